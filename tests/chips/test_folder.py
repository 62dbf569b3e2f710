import shutil

import numpy as np
import pytest

from geolearn.chips.emd import EMD_NAME
from geolearn.chips.folder import find_export, list_chips
from geolearn.chips.reader import read_chip
from geolearn.errors import ChipFolderError

IMAGES = [np.full((3, 2, 2), value, np.uint8) for value in (10, 20, 30)]
LABELS = [np.array([[0, 1], [2, 2]], np.uint8)] * 3


@pytest.fixture
def export(tmp_path, write_export):
    return write_export(tmp_path / 'export', IMAGES, LABELS)


def stems(listing):
    return [chip.image.stem for chip in listing.chips]


# --- where the export is


def test_the_folder_of_the_emd_is_the_export(export):
    assert find_export(export) == export
    assert find_export(str(export)) == export


def test_an_export_one_level_down_is_found(export, tmp_path):
    (tmp_path / 'notes').mkdir()
    assert find_export(tmp_path) == export


@pytest.mark.parametrize('name', ['images', 'labels'])
def test_the_images_or_labels_of_an_export_stand_for_it(export, name):
    assert find_export(export / name) == export


def test_a_tilde_is_the_home_folder(export, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert find_export('~/export') == export


def test_several_exports_are_named_rather_than_chosen_from(export, tmp_path):
    shutil.copytree(export, tmp_path / 'second')
    with pytest.raises(ChipFolderError, match=r'holds 2 exports \(export, second\); pass one of them'):
        find_export(tmp_path)


def test_a_folder_that_is_no_export_is_told_with_what_it_holds(tmp_path):
    (tmp_path / 'pictures').mkdir()
    (tmp_path / 'readme.txt').touch()
    with pytest.raises(ChipFolderError, match=rf'no {EMD_NAME} in it .*it holds pictures/, readme\.txt\. Pass the'):
        find_export(tmp_path)


def test_an_empty_folder_is_no_export(tmp_path):
    with pytest.raises(ChipFolderError, match='it holds nothing'):
        find_export(tmp_path)


def test_a_file_is_no_folder(export):
    with pytest.raises(ChipFolderError, match=rf'{EMD_NAME} is no folder; pass the folder that holds {EMD_NAME}'):
        find_export(export / EMD_NAME)


# --- what it holds


def test_images_and_labels_are_paired_by_name(export):
    listing = list_chips(export)
    assert stems(listing) == ['000000000000', '000000000001', '000000000002']
    assert all(chip.image.stem == chip.label.stem for chip in listing.chips)
    assert listing.unlabelled == listing.orphans == ()


def test_files_beside_the_images_are_passed_over(export):
    stem = '000000000000'
    for suffix in ('.tfw', '.tif.aux.xml', '.tif.ovr', '.jpg.ovr', '.jgw', '.tif.msk', '.idx', '.lrc'):
        (export / 'images' / f'{stem}{suffix}').touch()
        (export / 'labels' / f'{stem}{suffix}').touch()
    for name in ('Thumbs.db', '.DS_Store', '._000000000001.tif'):
        (export / 'images' / name).touch()
    assert len(list_chips(export).chips) == 3


@pytest.mark.parametrize(('layout', 'digits'), [('old', 9), ('new', 12)])
def test_numbering_may_start_anywhere_and_have_gaps(tmp_path, write_export, layout, digits):
    folder = write_export(tmp_path / 'e', IMAGES, LABELS, layout=layout, start=3381)
    for part in ('images', 'labels'):
        (folder / part / f'{3382:0{digits}d}.tif').unlink()
    assert stems(list_chips(folder)) == [f'{n:0{digits}d}' for n in (3381, 3383)]


def test_suffixes_may_be_written_in_capitals(export):
    first = export / 'images' / '000000000000.tif'
    first.rename(first.with_suffix('.TIF'))
    assert len(list_chips(export).chips) == 3


def test_images_without_labels_and_labels_without_images_are_set_apart(export):
    (export / 'labels' / '000000000000.tif').unlink()
    (export / 'images' / '000000000001.tif').unlink()
    listing = list_chips(export)
    assert stems(listing) == ['000000000002']
    assert [path.name for path in listing.unlabelled] == ['000000000000.tif']
    assert [path.name for path in listing.orphans] == ['000000000001.tif']


def test_an_image_in_two_formats_is_refused(export):
    shutil.copy(export / 'images' / '000000000001.tif', export / 'images' / '000000000001.tiff')
    with pytest.raises(ChipFolderError, match=r'000000000001\.tif and .*000000000001\.tiff are one chip twice'):
        list_chips(export)


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_palette_labels_beside_pictures_are_read_as_class_values(tmp_path, write_export, suffix):
    pictures = [np.full((3, 16, 16), 100 + i, np.uint8) for i in range(2)]
    labels = [np.kron([[0, 1], [2, 1]], np.ones((8, 8))).astype(np.uint8)] * 2
    colors = {0: (0, 0, 0, 255), 1: (255, 0, 0, 255), 2: (0, 0, 255, 255)}
    folder = write_export(
        tmp_path / 'e', pictures, labels, suffix=suffix, label_suffix='.png', label_profile={'colormap': colors}
    )
    listing = list_chips(folder)
    assert [chip.image.suffix for chip in listing.chips] == [suffix] * 2
    chip = read_chip(listing.chips[1])
    assert chip.pixels.shape == (3, 16, 16)
    assert abs(chip.pixels.astype(int) - 101).max() <= 2
    assert (chip.label == labels[1]).all()


def test_an_empty_labels_folder_is_told_with_counts(export):
    for path in (export / 'labels').iterdir():
        path.unlink()
    with pytest.raises(ChipFolderError, match='none of 3 images has a label among 0 label rasters; an image and its'):
        list_chips(export)


@pytest.mark.parametrize('name', ['images', 'labels'])
def test_a_missing_folder_is_named(export, name):
    shutil.rmtree(export / name)
    with pytest.raises(ChipFolderError, match=rf'has no {name}/ folder; a Classified_Tiles export has images/ and'):
        list_chips(export)

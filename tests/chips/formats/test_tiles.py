"""Classified_Tiles and ChangeDetection: rasters of class values beside images."""

import pickle
import shutil
import unicodedata

import numpy as np
import pytest

from geolearn.chips.emd import ExportMetadata, read_metadata
from geolearn.chips.formats.tiles import list_change_detection, list_classified_tiles
from geolearn.chips.label import Task
from geolearn.errors import ChipFolderError, RasterError

EMPTY = ExportMetadata.empty()
IMAGES = [np.full((3, 2, 2), value, np.uint8) for value in (10, 20, 30)]
LABELS = [np.array([[0, 1], [2, 2]], np.uint8)] * 3


@pytest.fixture
def export(tmp_path, write_export):
    return write_export(tmp_path / 'export', IMAGES, LABELS)


@pytest.fixture
def pairs(export):
    """The same with a second date."""
    shutil.copytree(export / 'images', export / 'images2')
    return export


def names(listing):
    return [chip.name for chip in listing.chips]


def test_images_and_labels_are_paired_by_name(export):
    listing = list_classified_tiles(export, read_metadata(export))
    assert listing.task is Task.PIXELS
    assert names(listing) == ['000000000000', '000000000001', '000000000002']
    assert [(info.value, info.name) for info in listing.classes] == [(1, 'one'), (2, 'two')]
    assert listing.notes == ()
    chip = listing.chips[1]
    assert chip.image == export / 'images' / '000000000001.tif'
    assert chip.labels == (export / 'labels' / '000000000001.tif',)
    label = pickle.loads(pickle.dumps(chip.read_label))((2, 2))  # noqa: S301 - worker processes get it so
    assert (label.raster == LABELS[1]).all()


def test_without_emd_the_pixels_tell_the_classes(export):
    assert list_classified_tiles(export, EMPTY).classes is None


def test_values_stay_as_they_are_stored(tmp_path, write_export):
    labels = [np.array([[0, 255], [7, 255]], np.uint16)]
    folder = write_export(tmp_path / 'e', IMAGES[:1], labels, classes=[(255, '255', [1, 2, 3])])
    label = list_classified_tiles(folder, read_metadata(folder)).chips[0].read_label((2, 2))
    assert (label.raster == labels[0]).all()


def test_files_beside_the_images_are_passed_over(export):
    stem = '000000000000'
    for suffix in ('.tfw', '.tif.aux.xml', '.tif.ovr', '.jpg.ovr', '.jgw', '.tif.msk', '.idx', '.lrc'):
        (export / 'images' / f'{stem}{suffix}').touch()
        (export / 'labels' / f'{stem}{suffix}').touch()
    for name in ('Thumbs.db', '.DS_Store', '._000000000001.tif'):
        (export / 'images' / name).touch()
    assert len(list_classified_tiles(export, EMPTY).chips) == 3


@pytest.mark.parametrize(('layout', 'digits'), [('old', 9), ('new', 12)])
def test_numbering_may_start_anywhere_and_have_gaps(tmp_path, write_export, layout, digits):
    folder = write_export(tmp_path / 'e', IMAGES, LABELS, layout=layout, start=3381)
    for part in ('images', 'labels'):
        (folder / part / f'{3382:0{digits}d}.tif').unlink()
    assert names(list_classified_tiles(folder, EMPTY)) == [f'{n:0{digits}d}' for n in (3381, 3383)]


def test_names_may_hold_blanks_dots_accents_and_folders(export):
    for part in ('images', 'labels'):
        folder = export / part
        (folder / 'tile 1').mkdir()
        (folder / '000000000000.tif').rename(folder / 'Straße 1.2 ä.tif')
        (folder / '000000000001.tif').rename(folder / 'tile 1' / 'a.TIF')
    assert names(list_classified_tiles(export, EMPTY)) == ['000000000002', 'Straße 1.2 ä', 'tile 1/a']


def test_images_without_labels_and_labels_without_images_are_told(export):
    (export / 'labels' / '000000000000.tif').unlink()
    (export / 'images' / '000000000001.tif').unlink()
    listing = list_classified_tiles(export, EMPTY)
    assert names(listing) == ['000000000002']
    assert listing.notes == (
        '1 images have no label and were left out, the first is 000000000000',
        '1 labels have no image and were left out, the first is 000000000001',
    )


def test_an_image_in_two_formats_is_refused(export):
    shutil.copy(export / 'images' / '000000000001.tif', export / 'images' / '000000000001.tiff')
    with pytest.raises(ChipFolderError, match=r'000000000001\.tif and .*000000000001\.tiff are one chip twice'):
        list_classified_tiles(export, EMPTY)


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_palette_labels_beside_pictures_are_read_as_class_values(tmp_path, write_export, suffix):
    pictures = [np.full((3, 16, 16), 100 + i, np.uint8) for i in range(2)]
    labels = [np.kron([[0, 1], [2, 1]], np.ones((8, 8))).astype(np.uint8)] * 2
    colors = {0: (0, 0, 0, 255), 1: (255, 0, 0, 255), 2: (0, 0, 255, 255)}
    folder = write_export(
        tmp_path / 'e', pictures, labels, suffix=suffix, label_suffix='.png', label_profile={'colormap': colors}
    )
    chip = list_classified_tiles(folder, EMPTY).chips[1]
    assert chip.image.suffix == suffix
    assert (chip.read_label((16, 16)).raster == labels[1]).all()


def test_an_empty_labels_folder_is_told_with_counts(export):
    for path in (export / 'labels').iterdir():
        path.unlink()
    with pytest.raises(ChipFolderError, match='none of 3 images has a label among 0 label files; an image and its'):
        list_classified_tiles(export, EMPTY)


def test_images_of_no_known_format_are_named(export):
    for path in (export / 'images').iterdir():
        path.rename(path.with_suffix('.gif'))
    with pytest.raises(ChipFolderError, match=r'images holds no image \(\.jpeg, .*\), but \.gif'):
        list_classified_tiles(export, EMPTY)


@pytest.mark.parametrize('name', ['images', 'labels'])
def test_a_missing_folder_is_named(export, name):
    shutil.rmtree(export / name)
    with pytest.raises(ChipFolderError, match=rf'export has no {name}/ folder'):
        list_classified_tiles(export, EMPTY)


def test_empty_files_are_chips_that_cannot_be_read(export):
    label = export / 'labels' / '000000000000.tif'
    label.write_bytes(b'')
    chips = list_classified_tiles(export, EMPTY).chips
    assert len(chips) == 3
    with pytest.raises(RasterError, match='cannot open raster .*000000000000'):
        chips[0].read_label((2, 2))


def test_a_label_of_another_size_is_named(export):
    with pytest.raises(ChipFolderError, match=r'000000000000\.tif is 2x2 pixels but its image is 3x4'):
        list_classified_tiles(export, EMPTY).chips[0].read_label((4, 3))


@pytest.mark.parametrize('bad', [-1, 70000])
def test_values_that_no_class_can_have_are_refused(export, save, bad):
    save(export / 'labels' / '000000000000.tif', np.full((2, 2), bad, np.int32))
    with pytest.raises(ChipFolderError, match=rf'holds values from {bad} to {bad}; class values lie in 0\.\.65535'):
        list_classified_tiles(export, EMPTY).chips[0].read_label((2, 2))


# --- two dates


def test_a_change_chip_has_two_dates(pairs):
    listing = list_change_detection(pairs, read_metadata(pairs))
    assert listing.task is Task.CHANGE
    assert listing.chips[0].dates == (
        (pairs / 'images' / '000000000000.tif',),
        (pairs / 'images2' / '000000000000.tif',),
    )
    assert [info.value for info in listing.classes] == [1, 2]
    assert (listing.chips[0].read_label((2, 2)).raster == LABELS[0]).all()


def test_an_emd_without_classes_leaves_change_to_the_pixels(pairs):
    assert list_change_detection(pairs, EMPTY).classes is None


def test_chips_with_one_date_or_without_label_are_counted_apart(pairs):
    (pairs / 'images2' / '000000000000.tif').unlink()
    (pairs / 'labels' / '000000000001.tif').unlink()
    shutil.copy(pairs / 'images' / '000000000002.tif', pairs / 'images2' / 'ü.tif')
    listing = list_change_detection(pairs, EMPTY)
    assert names(listing) == ['000000000002']
    assert listing.notes == (
        '1 images of images/ have none in images2/ and were left out, as 000000000000',
        '1 images of images2/ have none in images/ and were left out, as ü',
        '1 images have no label and were left out, the first is 000000000001',
    )


def test_dates_may_come_in_different_formats(pairs, save):
    for path in sorted((pairs / 'images2').iterdir()):
        save(path.with_suffix('.png'), IMAGES[0])
        path.unlink()
    assert len(list_change_detection(pairs, EMPTY).chips) == 3


def test_esris_older_names_of_the_dates_are_read(pairs):
    (pairs / 'images').rename(pairs / 'images_before')
    (pairs / 'images2').rename(pairs / 'images_after')
    dates = list_change_detection(pairs, EMPTY).chips[0].dates
    assert [files[0].parent.name for files in dates] == ['images_before', 'images_after']


def test_pairs_without_labels_are_refused(pairs):
    for path in (pairs / 'labels').iterdir():
        path.unlink()
    with pytest.raises(
        ChipFolderError, match='none of 3 images has a label among 0 .*images2/000000001.tif and labels'
    ):
        list_change_detection(pairs, EMPTY)


def test_decomposed_accents_are_what_the_disk_says(export):
    for part in ('images', 'labels'):
        path = export / part / '000000000000.tif'
        path.rename(path.with_name(unicodedata.normalize('NFD', 'ä') + '.tif'))
    assert len(list_classified_tiles(export, EMPTY).chips) == 3

"""RCNN_Masks: a folder of numbered objects for each class."""

import json
import pickle
import shutil
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geolearn.chips.emd import EMD_NAME, ExportMetadata, read_metadata
from geolearn.chips.formats import rcnn
from geolearn.chips.formats.rcnn import list_rcnn_masks, read_instances
from geolearn.chips.label import Task
from geolearn.errors import ChipFolderError

EMPTY = ExportMetadata.empty()
PANELS = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 7]], np.uint8)
CLASSES = [{'Value': 5, 'Name': 'Solar Panel'}, {'Value': 9, 'Name': 'Häuser'}]


@pytest.fixture
def export(tmp_path, save):
    """Three chips: panels and a house, panels alone, nothing."""
    folder = tmp_path / 'export'
    for part in ('images', 'labels/Solar Panel', 'labels/Häuser'):
        (folder / part).mkdir(parents=True)
    for index in range(3):
        save(folder / 'images' / f'{index:09d}.tif', np.zeros((3, 3, 4), np.uint8))
    for index in range(2):
        save(folder / 'labels' / 'Solar Panel' / f'{index:09d}.tif', PANELS)
    save(folder / 'labels' / 'Häuser' / '000000000.tif', np.full((3, 4), 3, np.uint16))
    (folder / EMD_NAME).write_text(json.dumps({'MetaDataMode': 'RCNN_Masks', 'Classes': CLASSES}), encoding='utf-8')
    return folder


def test_each_number_in_each_class_folder_is_an_object(export):
    listing = list_rcnn_masks(export, read_metadata(export))
    assert listing.task is Task.INSTANCES
    assert [(info.value, info.name) for info in listing.classes] == [(5, 'Solar Panel'), (9, 'Häuser')]
    chip = listing.chips[0]
    assert chip.labels == tuple(export / 'labels' / name / '000000000.tif' for name in ('Solar Panel', 'Häuser'))
    label = pickle.loads(pickle.dumps(chip.read_label))((3, 4))  # noqa: S301 - worker processes get it so
    assert label.class_ids.tolist() == [5, 5, 9]
    assert label.boxes.tolist() == [[0, 0, 2, 1], [3, 2, 4, 3], [0, 0, 4, 3]]
    assert [int(mask.sum()) for mask in label.masks] == [2, 1, 12]
    assert all(mask.dtype == bool and mask.shape == (3, 4) for mask in label.masks)
    assert label.skipped == ()


def test_an_image_without_label_files_holds_no_object_and_is_told(export):
    listing = list_rcnn_masks(export, read_metadata(export))
    label = listing.chips[2].read_label((3, 4))
    assert (len(label.class_ids), label.boxes.shape, label.masks) == (0, (0, 4), ())
    assert listing.notes == (
        '1 images have no file in any class folder and count as images without objects, the first is 000000002',
    )


def test_extra_bands_hold_objects_that_overlap(tmp_path, save):
    bands = np.zeros((4, 3, 4), np.uint8)  # GDAL would take the fourth of four bytes for opacity
    bands[0, :2], bands[1, 1:], bands[3, 0, 0] = 1, 1, 1
    path = save(tmp_path / '1.tif', bands, photometric='RGB', alpha='yes')
    label = read_instances(((2, path),), (3, 4))
    assert label.class_ids.tolist() == [2, 2, 2]
    assert [int(mask.sum()) for mask in label.masks] == [8, 8, 1]
    assert int((label.masks[0] & label.masks[1]).sum()) == 4


def test_a_band_that_repeats_another_is_no_second_object(tmp_path, save):
    path = save(tmp_path / '1.tif', np.stack([PANELS] * 3))
    label = read_instances(((2, path),), (3, 4))
    assert len(label.masks) == 2
    assert label.skipped == ('a band that repeats an earlier one',) * 2


def test_nodata_is_no_object(tmp_path, save):
    path = save(tmp_path / '1.tif', np.where(PANELS == 0, 255, PANELS).astype(np.uint8), nodata=255)
    assert len(read_instances(((2, path),), (3, 4)).masks) == 2


def test_negative_numbers_are_told(tmp_path, save):
    path = save(tmp_path / '1.tif', PANELS.astype(np.int16) - 1)
    label = read_instances(((2, path),), (3, 4))
    assert len(label.masks) == 1
    assert label.skipped == ('pixels with a negative object number',)


@pytest.mark.parametrize('bad', [0.5, np.nan, np.inf])
def test_fractions_are_no_object_numbers(tmp_path, save, bad):
    path = save(tmp_path / 'x.tif', np.full((3, 4), bad, np.float32))
    with pytest.raises(ChipFolderError, match=r'x\.tif holds fractions, NaN or infinity'):
        read_instances(((2, path),), (3, 4))


def test_a_label_of_another_size_is_named(export):
    chip = list_rcnn_masks(export, read_metadata(export)).chips[0]
    with pytest.raises(ChipFolderError, match=r'000000000\.tif is 4x3 pixels but its image is 8x8'):
        chip.read_label((8, 8))


def test_a_raster_that_numbers_its_pixels_is_refused(tmp_path, save, monkeypatch):
    monkeypatch.setattr(rcnn, 'MAX_MASK_BYTES', 10_000)
    path = save(tmp_path / 'x.tif', np.arange(1, 401, dtype=np.uint16).reshape(20, 20))
    with pytest.raises(ChipFolderError, match=r'x\.tif holds 400 different values above 0 in 20x20 pixels'):
        read_instances(((2, path),), (20, 20))


@settings(max_examples=25)
@given(hnp.arrays(np.uint8, (5, 6), elements=st.integers(0, 4)))
def test_the_objects_of_a_band_are_its_pixels_again(tmp_path_factory, save, numbers):
    path = save(tmp_path_factory.mktemp('x') / '1.tif', numbers)
    label = read_instances(((1, path),), (5, 6))
    assert len(label.masks) == len(set(numbers.ravel().tolist()) - {0}) == len(label.boxes)
    again = sum((mask * numbers[mask][0] for mask in label.masks), np.zeros((5, 6), np.uint8))
    assert (again == numbers).all()
    for (left, top, right, bottom), mask in zip(label.boxes.astype(int), label.masks):
        assert mask[top:bottom, left:right].sum() == mask.sum()


# --- folders and classes


def test_without_emd_the_folders_are_the_classes(export):
    classes = list_rcnn_masks(export, EMPTY).classes
    assert [(info.value, info.name) for info in classes] == [(1, 'Häuser'), (2, 'Solar Panel')]


def test_a_folder_may_be_named_after_the_value(export):
    (export / 'labels' / 'Häuser').rename(export / 'labels' / '9')
    assert set(list_rcnn_masks(export, read_metadata(export)).chips[0].read_label((3, 4)).class_ids) == {5, 9}


def test_a_name_of_digits_goes_before_the_value(export):
    rows = [{'Value': 1, 'Name': '2'}, {'Value': 2, 'Name': '1'}]
    (export / EMD_NAME).write_text(json.dumps({'Classes': rows}))
    shutil.rmtree(export / 'labels' / 'Häuser')
    (export / 'labels' / 'Solar Panel').rename(export / 'labels' / '2')
    assert list_rcnn_masks(export, read_metadata(export)).chips[0].read_label((3, 4)).class_ids.tolist() == [1, 1]


@pytest.mark.parametrize('name', ['HÄUSER', unicodedata.normalize('NFD', 'Häuser')])
def test_what_file_systems_change_in_names_does_not_matter(export, name):
    (export / 'labels' / 'Häuser').rename(export / 'labels' / name)
    assert 9 in list_rcnn_masks(export, read_metadata(export)).chips[0].read_label((3, 4)).class_ids


@pytest.mark.parametrize(('folder', 'told'), [('House', 2), ('HOUSE', 2), ('house', 1)])
def test_a_name_that_several_classes_have_is_no_class(export, folder, told):
    rows = [{'Value': value, 'Name': name} for value, name in enumerate(['House', 'House', 'house', 'Solar Panel'], 1)]
    (export / EMD_NAME).write_text(json.dumps({'Classes': rows}))
    (export / 'labels' / 'Häuser').rename(export / 'labels' / folder)
    assert len(list_rcnn_masks(export, read_metadata(export)).notes) == told


def test_a_folder_of_no_class_is_left_out_and_told(export):
    (export / 'labels' / 'Häuser').rename(export / 'labels' / 'Sheds')
    listing = list_rcnn_masks(export, read_metadata(export))
    assert f'labels/Sheds/ is named after no single class of {EMD_NAME}; its 1 files were left out' in listing.notes
    assert listing.chips[0].read_label((3, 4)).class_ids.tolist() == [5, 5]


def test_folders_of_no_class_at_all_are_refused(export):
    (export / EMD_NAME).write_text(json.dumps({'Classes': [{'Value': 1, 'Name': 'x'}]}))
    with pytest.raises(
        ChipFolderError, match='labels/Häuser/ is named after no single class .*labels/Solar Panel/ is named'
    ):
        list_rcnn_masks(export, read_metadata(export))


def test_labels_without_class_folders_are_refused(export):
    shutil.rmtree(export / 'labels')
    (export / 'labels').mkdir()
    with pytest.raises(ChipFolderError, match='has no folder for any class; RCNN_Masks are labels/<class name>'):
        list_rcnn_masks(export, EMPTY)


def test_labels_of_other_images_are_refused(export):
    for path in (export / 'images').iterdir():
        path.rename(path.with_name(f'x{path.name}'))
    with pytest.raises(ChipFolderError, match='none of 3 images has a label among 2'):
        list_rcnn_masks(export, EMPTY)


def test_labels_without_image_are_told(export):
    (export / 'images' / '000000000.tif').unlink()
    notes = list_rcnn_masks(export, EMPTY).notes
    assert '1 labels have no image and were left out, the first is 000000000' in notes

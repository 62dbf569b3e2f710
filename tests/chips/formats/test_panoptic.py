"""Panoptic_Segmentation: class values for all pixels, numbered objects for the countable classes."""

import json
import pickle

import numpy as np
import pytest

from geolearn.chips.emd import EMD_NAME, ExportMetadata, read_metadata
from geolearn.chips.formats.panoptic import list_panoptic
from geolearn.chips.label import Task
from geolearn.errors import ChipFolderError

EMPTY = ExportMetadata.empty()
GROUND = np.array([[3, 3, 8, 8], [3, 0, 3, 3]], np.uint8)
CARS = np.array([[0, 0, 1, 2], [0, 0, 0, 0]], np.uint8)
EMD = {
    'MetaDataMode': 'Panoptic_Segmentation',
    'Classes': [{'Value': 3, 'Name': 'Road'}, {'Value': 8, 'Name': 'Small Car'}],
    'Panoptic_Segmentation_Instance_Classes': [{'Value': 8, 'Name': 'Small Car'}],
}


@pytest.fixture
def export(tmp_path, save):
    """Two chips; the second has no car."""
    folder = tmp_path / 'export'
    for part in ('images', 'labels', 'labels2/Small Car'):
        (folder / part).mkdir(parents=True)
    for index in range(2):
        save(folder / 'images' / f'{index}.tif', np.zeros((3, 2, 4), np.uint8))
        save(folder / 'labels' / f'{index}.tif', GROUND)
    save(folder / 'labels2' / 'Small Car' / '0.tif', CARS)
    (folder / EMD_NAME).write_text(json.dumps(EMD))
    return folder


def test_a_chip_has_class_values_and_objects(export):
    listing = list_panoptic(export, read_metadata(export))
    assert listing.task is Task.PANOPTIC
    assert [(info.value, info.name) for info in listing.classes] == [(3, 'Road'), (8, 'Small Car')]
    label = pickle.loads(pickle.dumps(listing.chips[0].read_label))((2, 4))  # noqa: S301
    assert (label.raster == GROUND).all()
    assert label.class_ids.tolist() == [8, 8]
    assert label.boxes.tolist() == [[2, 0, 3, 1], [3, 0, 4, 1]]
    assert listing.chips[0].labels == (export / 'labels' / '0.tif', export / 'labels2' / 'Small Car' / '0.tif')


def test_chips_without_objects_are_kept_and_counted(export):
    listing = list_panoptic(export, read_metadata(export))
    label = listing.chips[1].read_label((2, 4))
    assert (label.raster == GROUND).all()
    assert label.masks == ()
    assert listing.notes == ('1 of 2 chips have no file in labels2/ and count as chips without objects',)


def test_countable_classes_that_classes_leaves_out_are_added(export):
    changed = EMD | {'Classes': [{'Value': 3, 'Name': 'Road'}]}
    (export / EMD_NAME).write_text(json.dumps(changed))
    listing = list_panoptic(export, read_metadata(export))
    assert [info.value for info in listing.classes] == [3, 8]
    assert listing.chips[0].read_label((2, 4)).class_ids.tolist() == [8, 8]


def test_a_value_with_two_names_is_told(export):
    (export / EMD_NAME).write_text(json.dumps(EMD | {'Classes': [{'Value': 8, 'Name': 'Vehicle'}]}))
    listing = list_panoptic(export, read_metadata(export))
    assert [info.name for info in listing.classes] == ['Vehicle']
    assert f"{EMD_NAME} calls class 8 'Vehicle' in Classes but 'Small Car' in" in listing.notes[0]
    assert listing.chips[0].read_label((2, 4)).class_ids.tolist() == [8, 8]


@pytest.mark.parametrize('rows', ['e.g. []', [1], [{'Value': 'x'}], [{'Value': -1, 'Name': 'y'}], None])
def test_countable_classes_that_make_no_sense_leave_it_to_classes(export, rows):
    (export / EMD_NAME).write_text(json.dumps(EMD | {'Panoptic_Segmentation_Instance_Classes': rows}))
    assert list_panoptic(export, read_metadata(export)).chips[0].read_label((2, 4)).class_ids.tolist() == [8, 8]


def test_without_emd_folders_must_be_named_after_values(export):
    (export / EMD_NAME).unlink()
    with pytest.raises(
        ChipFolderError, match=r'none of its folders \(Small Car\) is named after a class or a class va'
    ):
        list_panoptic(export, EMPTY)
    (export / 'labels2' / 'Small Car').rename(export / 'labels2' / '8')
    listing = list_panoptic(export, EMPTY)
    assert listing.classes is None
    assert listing.chips[0].read_label((2, 4)).class_ids.tolist() == [8, 8]


def test_objects_of_no_class_are_refused(export, save):
    (export / 'labels2' / 'Plane').mkdir()
    save(export / 'labels2' / 'Plane' / '0.tif', CARS)
    with pytest.raises(ChipFolderError, match=r"Plane holds objects of no class: .* lists none called 'Plane'"):
        list_panoptic(export, read_metadata(export))


def test_a_raster_of_another_size_is_named(export, save):
    path = save(export / 'labels2' / 'Small Car' / '0.tif', CARS[:1])
    with pytest.raises(ChipFolderError, match=rf'{path.name} is 4x1 pixels but its image is 4x2'):
        list_panoptic(export, read_metadata(export)).chips[0].read_label((2, 4))

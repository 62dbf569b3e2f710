"""Imagenet: the folder of an image is its label."""

import json
import pickle

import numpy as np
import pytest
from affine import Affine

from geolearn.chips.emd import EMD_NAME, ExportMetadata, read_metadata
from geolearn.chips.formats.imagenet import list_imagenet
from geolearn.chips.label import Task
from geolearn.errors import ChipFolderError

EMPTY = ExportMetadata.empty()


@pytest.fixture
def export(tmp_path):
    """Two classes with blanks and accents in their names, and one more image each."""
    for name, files in {'Sea Lake': ['0.tif', '1.tif'], 'Höfe': ['000000002.jpg']}.items():
        (tmp_path / 'images' / name).mkdir(parents=True)
        for file in files:
            (tmp_path / 'images' / name / file).touch()
    return tmp_path


def values(listing):
    return {chip.name: chip.read_label((4, 5)).class_ids.tolist() for chip in listing.chips}


def test_folders_are_the_classes(export):
    listing = list_imagenet(export, EMPTY)
    assert listing.task is Task.LABEL
    assert [(info.value, info.name) for info in listing.classes] == [(1, 'Höfe'), (2, 'Sea Lake')]
    assert values(listing) == {'Höfe/000000002': [1], 'Sea Lake/0': [2], 'Sea Lake/1': [2]}
    assert pickle.loads(pickle.dumps(listing.chips[0].read_label))((1, 1)).class_ids.dtype == 'int64'  # noqa: S301
    assert listing.chips[0].labels == ()


def test_the_emd_gives_the_values(export):
    rows = [{'Value': 30, 'Name': 'sea lake'}, {'Value': 7, 'Name': 'Höfe'}]
    (export / EMD_NAME).write_text(json.dumps({'Classes': rows}))
    listing = list_imagenet(export, read_metadata(export))
    assert values(listing) == {'Höfe/000000002': [7], 'Sea Lake/0': [30], 'Sea Lake/1': [30]}


def test_folders_of_numbers_are_values(export):
    (export / 'images' / 'Höfe').rename(export / 'images' / '10')
    (export / 'images' / 'Sea Lake').rename(export / 'images' / '2')
    listing = list_imagenet(export, EMPTY)
    assert [(info.value, info.name) for info in listing.classes] == [(2, '2'), (10, '10')]


def test_folders_may_lie_without_images_above_them(export):
    listing = list_imagenet(export / 'images', EMPTY)
    assert list(values(listing)) == ['Höfe/000000002', 'Sea Lake/0', 'Sea Lake/1']


def test_a_saved_model_among_the_folders_is_no_class(export):
    deep = export / 'images' / 'models' / 'first' / 'ModelCharacteristics'
    deep.mkdir(parents=True)
    (deep / 'loss_graph.png').touch()
    assert [info.name for info in list_imagenet(export / 'images', EMPTY).classes] == ['Höfe', 'Sea Lake']


def test_folders_of_no_class_are_left_out_and_told(export):
    (export / EMD_NAME).write_text(json.dumps({'Classes': [{'Value': 1, 'Name': 'Höfe'}]}))
    listing = list_imagenet(export, read_metadata(export))
    assert list(values(listing)) == ['Höfe/000000002']
    assert listing.notes == (
        f'2 images lie in folders that no class of {EMD_NAME} is named after (Sea Lake) and were left out',
    )


def test_images_in_no_class_folder_are_told(export):
    (export / 'images' / 'stray.png').touch()
    assert list_imagenet(export, EMPTY).notes == ('1 images lie outside images/<class name>/ and were left out',)


def test_classes_that_fit_no_folder_are_refused(export):
    (export / EMD_NAME).write_text(json.dumps({'Classes': [{'Value': 1, 'Name': 'Forest'}]}))
    with pytest.raises(ChipFolderError, match='images has folders Höfe, Sea Lake; .* lists the classes Forest'):
        list_imagenet(export, read_metadata(export))


def test_images_without_class_folders_are_refused(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / '0.tif').touch()
    with pytest.raises(ChipFolderError, match='has no folder of images; a folder of images for each class is needed'):
        list_imagenet(tmp_path, EMPTY)


@pytest.mark.parametrize('georeferenced', [True, False])
def test_images_and_labels_of_the_same_places_are_no_classes(tmp_path, save, georeferenced):
    """Folders named after sensors and products look like folders of classes, but show the same ground."""
    place = {} if georeferenced else {'transform': Affine.identity(), 'crs': None}
    for folder in ('S2L2A', 'LULC'):
        (tmp_path / folder).mkdir()
        for name in ('a.tif', 'b.tif'):
            save(tmp_path / folder / name, np.ones((8, 8), np.uint8), **place)
    if georeferenced:
        with pytest.raises(ChipFolderError, match=r'a of LULC and S2L2A shows the same ground.*from_rasters'):
            list_imagenet(tmp_path, EMPTY)
        return
    (note,) = list_imagenet(tmp_path, EMPTY).notes
    assert note.startswith('the folders LULC, S2L2A hold files of the same names and are taken as classes')

"""Folders of real data: they are read, or refused in words that help."""

import io

import pytest
import torch

from geolearn.chips.label import Task
from geolearn.errors import ChipFolderError
from geolearn.prepare import prepare_data

pytestmark = pytest.mark.real_data
PLAIN = {'chip_size': 64, 'batch_size': 2, 'val_split_pct': 0.34}


@pytest.fixture
def data_folder(shared):
    return shared / 'data'


def test_eurosat_is_a_folder_for_each_class(data_folder):
    data = prepare_data(data_folder / 'eurosat_ms', **PLAIN, bands='sentinel2_l1c')
    assert (data.task, data.dataset_type) == (Task.LABEL, 'Imagenet')
    assert data.classes == ['AnnualCrop', 'Pasture', 'SeaLake']
    images, labels = next(iter(data.train_dl))
    assert (images.shape, labels.dtype) == ((2, 13, 64, 64), torch.int64)
    assert any('reflectance x 10000' in note for note in data.notes)
    data.show_batch().savefig(io.BytesIO())


@pytest.mark.parametrize('path', ['src/bigearthnet_patch_interface/tiny_s2', 'src', 'v2/BigEarthNet-S2'])
def test_one_patch_cannot_be_divided(data_folder, path):
    with pytest.raises(ChipFolderError, match='1 chip; at least 3 are needed, two to train on and one to validate'):
        prepare_data(data_folder / 'bigearthnet' / path)


def test_a_patch_may_train_and_its_copy_validate(data_folder, tmp_path):
    source = data_folder / 'bigearthnet' / 'src' / 'bigearthnet_patch_interface' / 'tiny_s2'
    name = 'S2A_MSIL2A_20170617T113321_36_85'
    copy = tmp_path / name.replace('36_85', '37_85')
    copy.mkdir()
    for path in (source / name).iterdir():
        (copy / path.name.replace(name, copy.name)).write_bytes(path.read_bytes())
    data = prepare_data(source, chip_size=120, valid_path=tmp_path)
    assert (data.task, data.c, len(data.bands)) == (Task.LABELS, 19, 12)
    ((images, labels),) = data.train_dl
    assert images.shape == (1, 12, 120, 120)
    assert 1 <= labels.sum() <= 5
    data.show_batch().savefig(io.BytesIO())


def test_two_sensors_are_refused(data_folder):
    with pytest.raises(ChipFolderError, match='holds patches 1 of Sentinel-1 and 1 of Sentinel-2; pass the folder of'):
        prepare_data(data_folder / 'bigearthnet' / 'v2')


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('classified_tiles_drone_buildings', 'images holds no image .*, but .tfw'),
        ('export_tiles_drawinggui', 'has no images/ folder'),
        ('kitti_phragmites', 'has no images/ folder'),
        ('sample_emd', 'is no export of training data: no esri_model_definition.emd in it'),
        (
            '',
            r'holds 3 exports \(classified_tiles_drone_buildings, export_tiles_drawinggui, kitti_ph.*pass one of them',
        ),
    ],
)
def test_exports_without_their_chips_say_so(data_folder, name, words):
    with pytest.raises(ChipFolderError, match=words):
        prepare_data(data_folder / 'esri_exports' / name)

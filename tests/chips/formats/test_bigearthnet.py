"""BigEarthNet: a folder for each patch and a file for each band."""

import json
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest

from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats.bigearthnet import (
    BANDS,
    CLASSES_19,
    CLASSES_43,
    CORINE,
    VALUE_19,
    is_bigearthnet,
    list_bigearthnet,
    list_bigearthnet_43,
)
from geolearn.chips.label import Task
from geolearn.errors import ChipFolderError, RasterError

EMPTY = ExportMetadata.empty()
S2 = 'S2A_MSIL2A_20170617T113321_36_85'
OTHER = 'S2B_MSIL2A_20180101T113321_R022_T33UUP_75_43'
S1 = 'S1A_IW_GRDH_1SDV_20170613T165043_33UUP_70_48'


def write_patch(folder, name, labels=None, bands=None):
    """Make a patch of empty files; `labels` go beside them as v1 has them."""
    (folder / name).mkdir(parents=True)
    for band in bands or BANDS['Sentinel-1' if name.startswith('S1') else 'Sentinel-2']:
        (folder / name / f'{name}_{band}.tif').touch()
    if labels is not None:
        (folder / name / f'{name}_labels_metadata.json').write_text(json.dumps({'labels': labels}))
    return folder / name


def label_values(listing):
    return {chip.name: chip.read_label((120, 120)).class_ids.tolist() for chip in listing.chips}


# --- classes


def test_the_classes_are_those_that_were_published():
    assert (len(CLASSES_19), len(CLASSES_43), len(CORINE)) == (19, 43, 44)
    assert sum(value is None for value in VALUE_19.values()) == 11
    assert set(VALUE_19.values()) - {None} == set(range(1, 20))
    dropped = {name for name, value in VALUE_19.items() if value is None}
    assert {'Airports', 'Bare rock', 'Burnt areas', 'Intertidal flats', 'Green urban areas'} < dropped


@pytest.mark.parametrize(
    ('name', 'becomes'),
    [
        ('Discontinuous urban fabric', 'Urban fabric'),
        ('Rice fields', 'Arable land'),
        ('Annual crops associated with permanent crops', 'Permanent crops'),
        ('Sparsely vegetated areas', 'Natural grassland and sparsely vegetated areas'),
        ('Sclerophyllous vegetation', 'Moors, heathland and sclerophyllous vegetation'),
        ('Peatbogs', 'Inland wetlands'),
        ('Salines', 'Coastal wetlands'),
        ('Water courses', 'Inland waters'),
        ('Estuaries', 'Marine waters'),
        ('Pastures', 'Pastures'),
    ],
)
def test_the_43_become_19(name, becomes):
    assert CLASSES_19[VALUE_19[name] - 1].name == becomes


# --- patches of v1


def test_a_patch_is_twelve_files_and_its_labels(tmp_path):
    write_patch(tmp_path, S2, ['Rice fields', 'Non-irrigated arable land', 'Airports', 'Pastures'])
    listing = list_bigearthnet(tmp_path, EMPTY)
    assert listing.task is Task.LABELS
    assert (listing.sensor, listing.band_names) == ('Sentinel-2', BANDS['Sentinel-2'])
    (chip,) = listing.chips
    assert [path.stem.rsplit('_', 1)[1] for path in chip.dates[0]] == list(BANDS['Sentinel-2'])
    assert chip.labels == (tmp_path / S2 / f'{S2}_labels_metadata.json',)
    label = pickle.loads(pickle.dumps(chip.read_label))((120, 120))  # noqa: S301
    assert [listing.classes[value - 1].name for value in label.class_ids] == ['Arable land', 'Pastures']


def test_the_43_classes_keep_corine_codes(tmp_path):
    write_patch(tmp_path, S2, ['Rice fields', 'Airports'])
    listing = list_bigearthnet_43(tmp_path, EMPTY)
    assert label_values(listing) == {S2: [124, 213]}
    assert len(listing.classes) == 43


def test_a_patch_of_dropped_classes_alone_is_left_out_and_told(tmp_path):
    write_patch(tmp_path, S2, ['Airports'])
    write_patch(tmp_path, OTHER, ['Pastures'])
    listing = list_bigearthnet(tmp_path, EMPTY)
    assert list(label_values(listing)) == [OTHER]
    assert listing.notes == (f'1 patches hold nothing of the 19 classes and were left out, the first is {S2}',)
    shutil.rmtree(tmp_path / OTHER)
    with pytest.raises(ChipFolderError, match='none of 1 patches holds any of the 19 classes'):
        list_bigearthnet(tmp_path, EMPTY)


def test_patches_with_missing_bands_or_labels_are_told(tmp_path):
    write_patch(tmp_path, S2, ['Pastures'])
    write_patch(tmp_path, OTHER)
    broken = write_patch(tmp_path, f'{S2}1', ['Pastures'], bands=['B02', 'B03'])
    listing = list_bigearthnet(tmp_path, EMPTY)
    assert list(label_values(listing)) == [S2]
    assert listing.notes == (
        f'1 patches lack bands, the first is {S2}1 without B01, B04, B05, B06, B07, B08, B8A, B09, B11, B12; '
        'they were left out',
        f'1 patches have no labels and were left out, the first is {OTHER}',
    )
    with pytest.raises(ChipFolderError, match='1 patches lack bands, .*; none is whole'):
        list_bigearthnet(broken, EMPTY)


def test_broken_label_files_are_told_or_refused(tmp_path):
    path = write_patch(tmp_path, S2, []) / f'{S2}_labels_metadata.json'
    path.write_text('{')
    with pytest.raises(
        ChipFolderError, match=r'none of 1 label files can be read; the first: .*json is not valid JSON'
    ):
        list_bigearthnet(tmp_path, EMPTY)
    write_patch(tmp_path, OTHER, ['Pastures'])
    notes = list_bigearthnet(tmp_path, EMPTY).notes
    assert notes[0].startswith('1 label files cannot be read and were left out; the first: ')
    path.write_text('{"labels": "Pastures"}')
    assert 'has no list of labels' in list_bigearthnet(tmp_path, EMPTY).notes[0]


def test_a_label_of_neither_nomenclature_is_named(tmp_path):
    write_patch(tmp_path, S2, ['Glacier'])
    with pytest.raises(ChipFolderError, match=rf"json lists 'Glacier' for {S2}, which is not one of the 19 classes$"):
        list_bigearthnet(tmp_path, EMPTY)


def test_without_any_label_the_images_are_read_alone(tmp_path):
    write_patch(tmp_path / 'BigEarthNet-S1' / 'tile', S1)
    listing = list_bigearthnet(tmp_path, EMPTY)
    assert (listing.task, listing.sensor, listing.band_names) == (Task.UNLABELLED, 'Sentinel-1', ('VV', 'VH'))
    assert len(listing.chips[0].dates[0]) == 2
    assert 'no patch has labels' in listing.notes[0]


def test_both_sensors_at_once_are_refused_with_their_folders(tmp_path):
    write_patch(tmp_path / 'radar' / 'tile', S1)
    write_patch(tmp_path / 'optical' / 'tile', S2)
    with pytest.raises(
        ChipFolderError, match=r'holds patches 1 of Sentinel-[12] and 1 of .*; pass the folder of one sen'
    ):
        list_bigearthnet(tmp_path, EMPTY)


def test_a_patch_in_two_places_is_refused(tmp_path):
    write_patch(tmp_path / 'a', S2)
    write_patch(tmp_path / 'b', S2)
    with pytest.raises(ChipFolderError, match='are one band twice'):
        list_bigearthnet(tmp_path, EMPTY)


def test_a_folder_without_patches_is_refused(tmp_path):
    with pytest.raises(ChipFolderError, match='holds no patch of BigEarthNet; a patch is a folder such as'):
        list_bigearthnet(tmp_path, EMPTY)


# --- v2


@pytest.fixture
def v2(tmp_path):
    """The folders of v2 with a patch of each sensor and an empty table above them."""
    write_patch(tmp_path / 'BigEarthNet-S2' / 'tile', OTHER)
    write_patch(tmp_path / 'BigEarthNet-S1' / 'tile', S1)
    (tmp_path / 'metadata.parquet').touch()
    return tmp_path


def test_the_table_gives_labels_to_both_sensors(v2, monkeypatch):
    table = pd.DataFrame({'patch_id': [OTHER, 'x'], 's1_name': [S1, 'y'], 'labels': [['Arable land'], ['Pastures']]})
    monkeypatch.setattr(pd, 'read_parquet', lambda path, columns: table[columns])
    for folder, name in (('BigEarthNet-S2', OTHER), ('BigEarthNet-S1', S1)):
        listing = list_bigearthnet(v2 / folder, EMPTY)
        assert label_values(listing) == {name: [3]}
        assert listing.chips[0].labels == (v2 / 'metadata.parquet',)
    with pytest.raises(
        ChipFolderError, match="'Arable land' .* not one of the 43 classes; pass dataset_type='BigEarthNet'"
    ):
        list_bigearthnet_43(v2 / 'BigEarthNet-S2', EMPTY)


@pytest.mark.parametrize(
    ('error', 'told'),
    [
        (
            ImportError('no engine'),
            r"metadata\.parquet holds the labels; reading it needs pyarrow: pip install 'pyarrow>=14'",
        ),
        (ValueError('magic bytes'), r'cannot read columns patch_id and labels of .*metadata\.parquet: magic bytes'),
    ],
)
def test_a_table_that_cannot_be_read_is_named(v2, monkeypatch, error, told):
    def fail(path, columns):
        raise error

    monkeypatch.setattr(pd, 'read_parquet', fail)
    with pytest.raises(ChipFolderError, match=told):
        list_bigearthnet(v2 / 'BigEarthNet-S2', EMPTY)


@pytest.mark.parametrize('place', ['BigEarthNet-S2/Reference_Maps', 'Reference_Maps'])
def test_reference_maps_are_labels_where_there_are_no_others(v2, save, place):
    (v2 / 'metadata.parquet').unlink()
    folder = v2 / place / 'tile' / OTHER
    folder.mkdir(parents=True)
    codes = np.array([[211, 312], [0, 523]], np.uint16)
    path = save(folder / f'{OTHER}_reference_map.tif', codes)
    write_patch(v2 / 'BigEarthNet-S2' / 'tile', S2)
    listing = list_bigearthnet(v2 / 'BigEarthNet-S2', EMPTY)
    assert listing.task is Task.PIXELS
    assert (listing.chips[0].read_label((2, 2)).raster == codes).all()
    assert listing.chips[0].labels == (path,)
    assert {info.value: info.name for info in listing.classes}[523] == 'Sea and ocean'
    assert listing.notes == (
        f'1 patches have no reference map and were left out, the first is {S2}',
        'no patch has labels; the reference maps are read, with CORINE codes as class values',
    )


# --- recognition


def test_patches_are_recognized_up_to_three_folders_down(tmp_path):
    write_patch(tmp_path / 'a' / 'b' / 'c', S2)
    assert is_bigearthnet(tmp_path / 'a' / 'b' / 'c' / S2)
    assert is_bigearthnet(tmp_path / 'a')
    assert not is_bigearthnet(tmp_path)


def test_bands_of_another_product_are_no_patch(tmp_path):
    (tmp_path / 'scene').mkdir()
    for band in BANDS['Sentinel-2']:
        (tmp_path / 'scene' / f'T33UUP_20170613T101031_{band}.tif').touch()
    assert not is_bigearthnet(tmp_path)


@pytest.mark.real_data
def test_real_patches(shared):
    folder = shared / 'data' / 'bigearthnet'
    listing = list_bigearthnet(folder / 'src', EMPTY)
    values = listing.chips[0].read_label((120, 120)).class_ids
    assert [listing.classes[value - 1].name for value in values] == ['Arable land', 'Pastures']
    assert list_bigearthnet_43(folder / 'src', EMPTY).chips[0].read_label((120, 120)).class_ids.tolist() == [211, 231]
    for name, count in (('S2', 12), ('S1', 2)):
        listing = list_bigearthnet(folder / 'v2' / f'BigEarthNet-{name}', EMPTY)
        assert [len(chip.dates[0]) for chip in listing.chips] == [count]
        assert listing.task is Task.UNLABELLED
    with pytest.raises(ChipFolderError, match='pass the folder of one sensor'):
        list_bigearthnet(folder / 'v2', EMPTY)
    for path in (folder / 'v2').rglob('*_reference_map.tif'):
        from geolearn.chips.formats.tiles import read_class_raster

        assert set(np.unique(read_class_raster(path, (120, 120)).raster)) <= {info.value for info in CORINE}
        with pytest.raises((ChipFolderError, RasterError)):
            read_class_raster(path, (60, 60))

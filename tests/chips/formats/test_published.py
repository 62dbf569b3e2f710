"""Published data sets: recognized by their layout, read with bands, classes and parts as published, or explained."""

import json
import re
import shutil
from collections import Counter
from datetime import date

import miniatures
import numpy as np
import pytest

from geolearn import prepare_data
from geolearn.chips.formats import FORMATS, find_type, open_chips
from geolearn.chips.label import Task
from geolearn.chips.packing.read_chip import read_chip
from geolearn.errors import ChipFolderError, UnknownNameError

# Its name, what writes a small one, task, band names, class values, and chips of the published parts.
DATA_SETS = [
    ('HLS_Burn_Scars', miniatures.burn_scars, Task.PIXELS, 'B02 B03 B04 B8A B11 B12', (0, 1), {'train': 6, 'valid': 3}),
    (
        'Sen1Floods11',
        miniatures.sen1floods11,
        Task.PIXELS,
        'B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B10 B11 B12',
        (0, 1),
        {'train': 3, 'valid': 1, 'test': 1},
    ),
    (
        'MADOS',
        miniatures.mados,
        Task.PIXELS,
        'B1 B2 B3 B4 B5 B6 B7 B8 B8A B11 B12',
        tuple(range(1, 16)),
        {'train': 2, 'valid': 1, 'test': 1},
    ),
    (
        'LandCover.ai',
        miniatures.landcover_ai,
        Task.PIXELS,
        'Red Green Blue',
        (0, 1, 2, 3, 4),
        {'train': 3, 'valid': 1, 'test': 1},
    ),
    (
        'AI4SmallFarms',
        miniatures.ai4smallfarms,
        Task.PIXELS,
        'B2 B3 B4 B8',
        (0, 255),
        {'train': 2, 'valid': 1, 'test': 1},
    ),
    ('LEVIR-CD', miniatures.levir_cd, Task.CHANGE, 'Red Green Blue', None, {'train': 2, 'valid': 1, 'test': 1}),
    (
        'EuroSAT',
        miniatures.eurosat,
        Task.LABEL,
        'B1 B2 B3 B4 B5 B6 B7 B8 B9 B10 B11 B12 B8A',
        tuple(range(1, 11)),
        {'train': 10, 'valid': 10, 'test': 10},
    ),
    (
        'PASTIS',
        miniatures.pastis,
        Task.PIXELS,
        'B2 B3 B4 B5 B6 B7 B8 B8A B11 B12',
        tuple(range(19)),
        {'train': 3, 'valid': 1, 'test': 1},
    ),
    ('xView', miniatures.xview, Task.OBJECTS, 'Red Green Blue', None, {}),
    ('SpaceNet7', miniatures.spacenet7, Task.PIXELS, 'Red Green Blue', (0, 1), {}),
]
NAMES = [row[0] for row in DATA_SETS]


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """A small folder of every data set."""
    return {name: write(tmp_path_factory.mktemp('published') / 'data') for name, write, *_ in DATA_SETS}


@pytest.mark.parametrize(
    ('name', 'task', 'bands', 'values', 'parts'), [(n, *rest) for n, _, *rest in DATA_SETS], ids=NAMES
)
def test_a_data_set_is_recognized_and_divided_as_published(folders, name, task, bands, values, parts):
    opened = open_chips(folders[name])
    assert (opened.dataset_type, opened.listing.task) == (name, task)
    assert opened.listing.band_names == tuple(bands.split())
    if values is not None:
        assert tuple(info.value for info in opened.listing.classes) == values
    assert {part: len(chips) for part, chips in opened.listing.parts} == parts
    for chip in opened.listing.chips[:2]:
        read = read_chip(chip)
        assert len(read.pixels) == len(bands.split()) * read.dates


@pytest.mark.parametrize('name', ['HLS_Burn_Scars', 'Sen1Floods11', 'LEVIR-CD', 'MADOS'])
def test_chips_are_trained_on_in_the_published_parts(folders, name):
    data = prepare_data(folders[name], chip_size=32, batch_size=2)
    sizes = next(parts for known, *_, parts in DATA_SETS if known == name)
    found = {'train': len(data.train_ds), 'valid': len(data.valid_ds), 'test': len(data.split.test)}
    assert {part: count for part, count in found.items() if count} == sizes
    assert len(prepare_data(folders[name], chip_size=32, split='random', val_split_pct=0.4, batch_size=2).valid_ds) != 0


def test_missing_labels_and_pixels_take_no_part(folders):
    data = prepare_data(folders['HLS_Burn_Scars'], dataset_type='hls burn scars', chip_size=32, batch_size=2)
    assert [info.name for info in data.class_infos] == ['not burned', 'burn scar']
    assert data.bands[3].wavelength_um == pytest.approx(0.865, abs=0.01)
    images, masks = next(iter(data.valid_dl))
    assert (masks[:, :, 0] == 255).all()
    assert (masks[:, :, 2:] != 255).all()
    assert np.isnan(images[:, :, :, 1].numpy()).all()
    assert float(np.nanmin(data.statistics.minimum)) > -1
    floods = prepare_data(folders['Sen1Floods11'], dataset_type='Sen1Floods11-S1', chip_size=32, batch_size=2)
    assert [band.name for band in floods.bands] == ['VV', 'VH']
    assert sorted(set(next(iter(floods.valid_dl))[1].flatten().tolist())) == [0, 1, 255]


def test_a_series_is_read_at_the_same_months_of_every_patch(folders):
    data = prepare_data(folders['PASTIS'], chip_size=32, batch_size=1)
    assert (data.table.dates, data.acquired[0], data.acquired[-1]) == (12, date(2018, 10, 15), date(2019, 9, 15))
    images, masks = next(iter(data.valid_dl))
    assert images.shape == (1, 12, 10, 32, 32)
    # October to December are nearest to the 20th of the same month, the others to the 10th
    assert (images[0, :, 0, 0, 0] // 100).tolist() == list(range(1, 13))
    assert sorted(set(masks.flatten().tolist())) == [*range(19), 255]


def test_objects_and_footprints_lie_where_they_are_published(folders):
    (chip, *_) = open_chips(folders['xView']).listing.chips
    label = chip.read_label((64, 64))
    assert label.class_ids.tolist() == [73, 18]
    assert label.skipped == ('box of a class that xView does not list',)  # 75
    assert label.boxes.tolist() == [[4, 5, 20, 25], [50, 50, 64, 60]]
    (chip, *_) = open_chips(folders['SpaceNet7'] / 'train').listing.chips
    raster = chip.read_label((32, 32)).raster
    assert raster.sum() == 60
    assert raster[6:12, 4:14].all()


def test_boxes_that_are_left_out_of_xview_are_counted_with_the_reason(folders, tmp_path):
    root = tmp_path / 'xview'
    shutil.copytree(folders['xView'], root)
    corners = ('1,1,9,9', '70,70,90,90', '1,1,9', 'nan,1,9,9', '', '1,1,9,9')
    boxes = [
        {'image_id': '0.tif', 'type_id': kind, 'bounds_imcoords': text}
        for kind, text in zip((82, 73, 73, 73, 73, 'x'), corners)
    ]
    features = [{'type': 'Feature', 'properties': facts} for facts in boxes]
    (root / 'xView_train.geojson').write_text(json.dumps({'type': 'FeatureCollection', 'features': features}))
    label = open_chips(root).listing.chips[0].read_label((64, 64))
    assert label.boxes.shape == (0, 4)
    assert Counter(label.skipped) == {
        'box without a class or four corners': 4,
        'box of a class that xView does not list': 1,
        'box outside the chip or without area': 1,
    }


@pytest.mark.parametrize('name', NAMES)
def test_an_error_shows_the_layout_that_is_needed(tmp_path, name):
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'readme.txt').write_text('nothing')
    layout = FORMATS[name].layout
    with pytest.raises(ChipFolderError, match='found are other/. Needed is, as published') as error:
        open_chips(tmp_path, name.lower())
    assert layout in str(error.value)


def test_a_data_set_without_its_labels_says_so(tmp_path):
    root = miniatures.burn_scars(tmp_path / 'data', train=1, valid=1)
    for path in root.rglob('*.mask.tif'):
        path.unlink()
    with pytest.raises(ChipFolderError, match='2 images without labels in the layout of HLS Burn Scars'):
        open_chips(root, 'hls_burn_scars')


def test_names_are_found_in_any_spelling():
    assert [find_type(name) for name in ('hls_burn_scars', 'landcoverai', 'LEVIR_CD')] == [
        'HLS_Burn_Scars',
        'LandCover.ai',
        'LEVIR-CD',
    ]
    with pytest.raises(UnknownNameError, match='did you mean'):
        find_type('hls_burn_scar')


def test_shares_that_the_published_parts_leave_without_effect_are_refused(folders):
    with pytest.raises(ChipFolderError, match=r"published test part of 1 chips; leave it out, or pass split='random'"):
        prepare_data(folders['LEVIR-CD'], test_split_pct=0.5)
    with pytest.raises(ChipFolderError, match=r'val_split_pct=0.3 has no effect beside the published validation part'):
        prepare_data(folders['LEVIR-CD'], val_split_pct=0.3)
    tested = prepare_data(folders['HLS_Burn_Scars'], test_split_pct=0.3, chip_size=32)
    assert (len(tested.train_ds), len(tested.valid_ds), len(tested.split.test)) == (4, 3, 2)
    few = prepare_data(folders['LEVIR-CD'], label_fraction=0.5, chip_size=32)
    assert (len(few.train_ds), len(few.valid_ds)) == (1, 1)


@pytest.mark.parametrize(
    ('name', 'write', 'pattern', 'note'),
    [
        ('MADOS', miniatures.mados, 'Scene_0/20/*_rhorc_704_1.tif', 'Scene_0_1: 10 of 11 bands are there'),
        ('PASTIS', miniatures.pastis, 'DATA_S2/*.npy', r'there is no S2_\d+\.npy'),
    ],
)
def test_images_that_lack_files_are_counted_in_a_note(tmp_path, name, write, pattern, note):
    folder = write(tmp_path / name)
    whole = len(open_chips(folder).listing.chips)
    lost = sorted(folder.glob(pattern))[0]
    lost.unlink()
    opened = open_chips(folder)
    assert len(opened.listing.chips) == whole - 1
    (found,) = [text for text in opened.listing.notes if 'lack' in text]
    assert re.search(f'1 image lacks files, the first is .*{note}; left out', found)
    for path in folder.glob(pattern.replace('Scene_0', '*').replace('_704_1', '_*')):
        path.unlink()
    with pytest.raises(ChipFolderError, match='holds no whole image, and . images lack files, the first is'):
        open_chips(folder, name)

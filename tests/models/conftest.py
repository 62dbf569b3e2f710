"""Folders of chips, written by hand: pairs of dates of fields, and chips of one class or several."""

import json

import numpy as np
import pytest
from affine import Affine

SIDE = 32
FIELD, POND = (500, 800, 1100), (900, 600, 300)
PLACE = Affine(10, 0, 500_000, 0, -10, 5_400_000)


def pair(seed, side=SIDE, *, changed=True):
    """Before and after (3, side, side) uint16, and what changed (side, side): 0, or 2 where a pond appeared."""
    rng = np.random.default_rng(seed)
    before, after = (np.array(FIELD)[:, None, None] + rng.normal(0, 30, (3, side, side)) for _ in range(2))
    change = np.zeros((side, side), np.uint8)
    if changed:
        top, left = rng.integers(0, side - 14, 2)
        change[top : top + 14, left : left + 14] = 2
        after[:, change == 2] = np.array(POND)[:, None]
    return before.clip(1).astype(np.uint16), after.clip(1).astype(np.uint16), change


@pytest.fixture(scope='session')
def make_pair():
    """Draw a pair: `make_pair(seed, side)`."""
    return pair


@pytest.fixture(scope='session')
def write_pairs(save):
    """Write a folder of pairs: `write_pairs(folder, count)`; where asked for, half of some images has no data."""

    def write(folder, count, *, nodata_at=(), changed=lambda index: True):
        for part in ('images', 'images2', 'labels'):
            (folder / part).mkdir(parents=True)
        for index in range(count):
            before, after, change = pair(index, changed=changed(index))
            if index in nodata_at:
                before[:, :, : SIDE // 2] = 0
            place = {'transform': Affine(10, 0, 500_000 + 10 * SIDE * index, 0, -10, 5_400_000)}
            save(folder / 'images' / f'{index:09d}.tif', before, nodata=0, **place)
            save(folder / 'images2' / f'{index:09d}.tif', after, nodata=0, **place)
            save(folder / 'labels' / f'{index:09d}.tif', change, **place)
        content = {
            'MetaDataMode': 'Classified_Tiles',
            'ImageSpaceUsed': 'MAP_SPACE',
            'Classes': [{'Value': 2, 'Name': 'new pond', 'Color': [255, 0, 0]}],
            'InputRastersProps': {'RasterCount': 2, 'SensorName': 'Sentinel-2', 'BandNames': ['Blue', 'Green', 'Red']},
        }
        (folder / 'esri_model_definition.emd').write_text(json.dumps(content))
        return folder

    return write


@pytest.fixture(scope='session')
def pairs_folder(write_pairs, tmp_path_factory):
    """Eight pairs."""
    return write_pairs(tmp_path_factory.mktemp('pairs') / 'chips', 8)


LEVELS = {'water': (900, 600, 300), 'forest': (300, 900, 400), 'field': (500, 700, 1100)}
NAMES = list(LEVELS)


def ground(kinds, seed, side=SIDE):
    """Pixels (3, side, side) of a ground that is one of `kinds` in stripes, with noise."""
    rng = np.random.default_rng(seed)
    stripes = np.array([LEVELS[kinds[column * len(kinds) // side]] for column in range(side)]).T
    pixels = stripes[:, None, :] + rng.normal(0, 30, (3, side, side))
    return pixels.clip(1).astype(np.uint16)


@pytest.fixture(scope='session')
def write_chips(save):
    """Write a folder of chips with texts that name their classes: `write_chips(folder, [('water',), ...])`."""

    def write(folder, labels, *, mode=None, nodata_at=(), names=NAMES):
        (folder / 'images').mkdir(parents=True)
        (folder / 'labels').mkdir()
        for index, held in enumerate(labels):
            pixels = ground(held or ('water',), index)
            if index in nodata_at:
                pixels[:, :, : SIDE // 2] = 0
            place = {'transform': Affine(10, 0, 500_000 + 10 * SIDE * index, 0, -10, 5_400_000), 'nodata': 0}
            save(folder / 'images' / f'{index:09d}.tif', pixels, **place)
            rows = ''.join(f'<object><name>{1 + names.index(name)}</name></object>' for name in held)
            (folder / 'labels' / f'{index:09d}.xml').write_text(f'<annotation>{rows}</annotation>')
        classes = [{'Value': 1 + i, 'Name': name, 'Color': [40, 90, 60 * i]} for i, name in enumerate(names)]
        several = any(len(held) != 1 for held in labels)
        content = {
            'MetaDataMode': mode or ('MultiLabeled_Tiles' if several else 'Labeled_Tiles'),
            'ImageSpaceUsed': 'MAP_SPACE',
            'Classes': classes,
            'InputRastersProps': {'RasterCount': 1, 'SensorName': 'Sentinel-2', 'BandNames': ['Blue', 'Green', 'Red']},
        }
        (folder / 'esri_model_definition.emd').write_text(json.dumps(content))
        return folder

    return write


ONE = [(name,) for name in NAMES * 4]
SEVERAL = [(), ('water',), ('forest', 'field'), ('water', 'field'), ('field',), ('water', 'forest', 'field')] * 2


@pytest.fixture(scope='session')
def one_folder(write_chips, tmp_path_factory):
    """Twelve chips of one class each."""
    return write_chips(tmp_path_factory.mktemp('one') / 'chips', ONE)


@pytest.fixture(scope='session')
def several_folder(write_chips, tmp_path_factory):
    """Twelve chips of none to three classes."""
    return write_chips(tmp_path_factory.mktemp('several') / 'chips', SEVERAL)


@pytest.fixture
def prepare(tmp_path):
    """Prepare a folder: three quarters of the chips to train on, no augmentation."""
    from geolearn.prepare import prepare_data

    def prepared(folder, **options):
        usual = {'chip_size': SIDE, 'batch_size': 3, 'val_split_pct': 0.25, 'transforms': False}
        return prepare_data(folder, working_dir=tmp_path / 'work', **(usual | options))

    return prepared

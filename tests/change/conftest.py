"""Pairs of images of fields, in some of which a pond appears."""

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


@pytest.fixture
def prepare(tmp_path):
    """Prepare a folder: three quarters to train on, no augmentation."""
    from geolearn.prepare import prepare_data

    def prepared(folder, **options):
        usual = {'chip_size': SIDE, 'batch_size': 3, 'val_split_pct': 0.25, 'transforms': False}
        return prepare_data(folder, working_dir=tmp_path / 'work', **(usual | options))

    return prepared

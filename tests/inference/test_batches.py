"""Transformers compute several tiles at once on a CPU, and small rasters in one tile; no byte depends on how many."""

from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch

from geolearn.inference import computing
from geolearn.models import LinearProbe, UPerNet
from geolearn.tiling import whole_tile

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def scene(tmp_path_factory, save):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 41, (2, 60, 170)).astype(np.int16)
    pixels[:, 20:40, 50:90] = -1
    path = tmp_path_factory.mktemp('scene') / 'scene.tif'
    return save(path, pixels, names=['Red', 'Green'], nodata=-1)


@pytest.fixture(scope='module', params=[LinearProbe, UPerNet])
def model(request, make_spec):
    torch.manual_seed(0)
    spec = replace(make_spec(classes=3), model=request.param.__name__, backbone='dofa_tiny', chip_size=64)
    return request.param.of(spec, request.param.build(spec).eval())


def test_tiles_that_are_computed_together_give_the_bytes_of_each_alone(model, scene, tmp_path, monkeypatch):
    counts, results = [], []
    hook = model.network.register_forward_pre_hook(lambda network, inputs: counts.append(len(inputs[0])))
    options = {'outputs': ('classes', 'probabilities'), 'probability_dtype': 'float32', 'overwrite': True}
    for at_once, batch_size in ((3, None), (3, 1), (2, 5)):
        monkeypatch.setattr(computing, 'PIXELS_AT_ONCE', at_once * 64 * 64)
        counts.clear()
        model.predict_raster(scene, tmp_path / 'map.tif', batch_size=batch_size, **options)
        assert max(counts) == (1 if batch_size == 1 else at_once)
        results.append((tmp_path / 'map_probabilities.tif').read_bytes())
    hook.remove()
    assert len(set(results)) == 1


def test_rasters_of_two_tiles_a_side_are_computed_in_one(model, scene, tmp_path, save):
    with rasterio.open(scene) as src:
        small = save(tmp_path / 'small.tif', src.read()[:, :, :128], names=['Red', 'Green'], nodata=-1)
    grids = []
    hook = model.network.register_forward_pre_hook(lambda network, inputs: grids.append(inputs[0].shape))
    model.predict_raster(small, tmp_path / 'whole.tif', resume=False)
    model.predict_raster(small, tmp_path / 'same.tif', tile_size=128)
    assert grids == [(1, 2, 64, 128)] * 2
    model.predict_raster(scene, tmp_path / 'large.tif')
    hook.remove()
    assert grids[-1][2:] == (64, 64)
    with rasterio.open(tmp_path / 'whole.tif') as whole, rasterio.open(tmp_path / 'same.tif') as same:
        assert np.array_equal(whole.read(), same.read())


@pytest.mark.parametrize(
    ('shape', 'side'), [((512, 300), 544), ((513, 513), 256), ((256, 256), 256), ((100, 200), 256)]
)
def test_the_side_of_small_rasters(shape, side):
    assert whole_tile(shape, tile_size=256, multiple=32) == side


def test_tiles_that_hold_a_raster_are_not_too_large_for_attention():
    assert whole_tile((1600, 1600), tile_size=1024, multiple=32) == 1024

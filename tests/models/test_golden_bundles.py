"""Bundles that an older geolearn wrote give the same results for ever.

``data_golden`` holds one .dlpk per task, written at commit 1d9dd9b, and what it gave then. Weights are sparse, so that
the files are small. Nothing there is ever written again: where a file cannot be read any more, the reader is wrong.
"""

import lzma
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from geolearn.backbones.scene import scene_of
from geolearn.models import load_model

GOLDEN = Path(__file__).parents[1] / 'data_golden'
NAMES = ['Blue', 'Green', 'Red', 'NIR']

pytestmark = pytest.mark.usefixtures('one_thread')


def scene(seed, bands=4, side=64):
    """Stripes and blocks, the same on every machine."""
    row, col = np.mgrid[:side, :side]
    blocks = [400 * (((row // 9) * 5 + (col // 7) * 3 + band) % 4) for band in range(bands)]
    grain = [(row * 37 + col * 91 + band * 53) % 97 for band in range(bands)]
    return np.stack([300 + 250 * band + 40 * seed + blocks[band] + grain[band] for band in range(bands)])


@pytest.fixture
def load(tmp_path):
    """Load a golden bundle, and what it gave when it was written."""

    def loaded(name):
        path = tmp_path / f'{name}.dlpk'
        path.write_bytes(lzma.decompress((GOLDEN / f'{name}.dlpk.xz').read_bytes()))
        with np.load(GOLDEN / f'{name}.npz') as arrays:
            return load_model(path), dict(arrays)

    return loaded


@pytest.fixture
def rasters(tmp_path, save):
    """Two dates of a scene; the first pixels of the second have no data."""
    a, b = scene(1).astype(np.uint16), scene(5).astype(np.uint16)
    a[:, :5, :9] = 0
    for name, pixels in (('a', a), ('b', b)):
        save(tmp_path / f'{name}.tif', pixels, names=NAMES, nodata=0)
    return a, b


def outputs(model, images):
    """What the network gives for images (1, [dates,] bands, height, width), thinned as it was kept."""
    with torch.inference_mode():
        found = model.network.eval()(torch.from_numpy(images.astype(np.float32)))
    found = (found if isinstance(found, torch.Tensor) else found[0]).numpy()
    return found[..., ::4, ::4] if found.ndim == 4 else found


@pytest.mark.parametrize('name', ['pixels', 'regression', 'dates', 'change'])
def test_maps_are_as_they_were(load, rasters, tmp_path, name):
    model, wanted = load(name)
    a, b = rasters
    images = np.stack([b, a])[None] if name in ('dates', 'change') else b[None]
    assert np.allclose(outputs(model, images), wanted['outputs'], atol=1e-5)
    first, second, dst = tmp_path / 'a.tif', tmp_path / 'b.tif', tmp_path / 'map.tif'
    options = {'tile_size': 64, 'halo': 0}
    if name == 'dates':  # those of its training chips, which no raster states
        options['dates'] = [day.isoformat() for day in scene_of(model.network.backbone).dates]
    if name == 'change':
        model.predict_raster(second, first, dst, **options)
    else:
        model.predict_raster([second, first] if name == 'dates' else first, dst, **options)
    with rasterio.open(dst) as found:
        mapped = found.read(1)
    assert mapped.dtype == wanted['map'].dtype
    if mapped.dtype.kind == 'f':  # other processors round otherwise
        assert np.allclose(mapped, wanted['map'], rtol=1e-6, atol=1e-5, equal_nan=True)
    else:
        assert np.array_equal(mapped, wanted['map'])


def test_classes_of_chips_are_as_they_were(load, rasters):
    model, wanted = load('chips')
    assert np.allclose(outputs(model, rasters[1][None]), wanted['outputs'], atol=1e-5)
    found = model.predict(rasters[1].astype(np.float32))
    assert np.allclose(list(found.confidences.values()), wanted['probabilities'], atol=1e-5)


def test_detections_are_as_they_were(load):
    model, wanted = load('objects')
    found = model.predict((scene(5, bands=3) // 9).astype(np.float32), 0.02)
    assert np.allclose(found.boxes, wanted['boxes'], atol=1e-4)
    assert np.allclose(found.scores, wanted['scores'], atol=1e-5)


def test_what_a_spec_says_is_as_it_was(load):
    model, _ = load('pixels')
    assert [info.name for info in model.spec.class_infos] == ['water', 'field']
    assert model.spec.temperature != 1
    assert model.spec.class_balancing
    assert model.spec.options['loss']['loss'] == 'focal'
    model, _ = load('dates')
    assert (model.spec.dates, model.spec.temporal) == (2, 'ltae')
    assert model.spec.adaptation.freeze == 'all but norms'

"""Maps of a bundle's ONNX graph are those of predict_raster, where torch cannot be imported."""

import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch

from geolearn.arcgis import ClassifyPixels, raster_functions
from geolearn.backbones.custom import ModuleBackbone, register_module
from geolearn.bands import Band
from geolearn.classes import ClassInfo
from geolearn.errors import BundleError, RasterError, UnknownNameError
from geolearn.models import LinearProbe
from geolearn.networks.spec import ModelSpec
from geolearn.normalize import Normalization
from geolearn.onnx import load_model
from geolearn.statistics import BandStatistics

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
pytestmark = pytest.mark.usefixtures('one_thread')

SPEC = ModelSpec(
    model='LinearProbe',
    backbone='patches of the graph',
    bands=(Band('Red', 0.66, 'red'), Band('NIR', 0.84, 'nir')),
    class_infos=tuple(ClassInfo(value, str(value), (0, 0, 20 * value % 256)) for value in (0, 7, 300)),
    ignored_values=(),
    chip_size=64,
    statistics=BandStatistics((0, 0), (255, 255), (100, 120), (20, 30)),
    normalization=Normalization((100.0, 120.0), (20.0, 30.0), 'given'),
    dtype='uint8',
)

NO_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'torchvision', 'fastai', 'timm'):
            raise ModuleNotFoundError(f'there is no {name} here', name=name.split('.')[0])

sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    patches = torch.nn.Conv2d(2, 4, 16, stride=16)
    register_module(ModuleBackbone(patches, channels=(4,), strides=(16,), name='patches of the graph'))
    network = LinearProbe.build(SPEC).eval()
    torch.nn.init.normal_(network.decoder.classifier.weight)
    return LinearProbe.of(SPEC, network)


@pytest.fixture(scope='module')
def bundle(model, tmp_path_factory):
    return model.save(tmp_path_factory.mktemp('onnx') / 'm.dlpk', export='onnx')


@pytest.fixture(scope='module')
def scene(save, tmp_path_factory):
    """150 x 210 pixels, some without data."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(110, 60, (2, 150, 210)).clip(1, 255).astype(np.uint8)
    pixels[:, :40, :70] = 0
    return save(tmp_path_factory.mktemp('scene') / 's.tif', pixels, names=('Red', 'NIR'), nodata=0)


def read(path):
    with rasterio.open(path) as src:
        return src.read(1), src.nodata, src.dtypes[0], src.crs, src.transform, src.colormap(1)


def test_the_map_is_that_of_predict_raster(model, bundle, scene, tmp_path):
    options = {'tile_size': 96, 'halo': 8}
    expected = read(model.predict_raster(scene, tmp_path / 'torch.tif', **options))
    found = read(load_model(bundle).predict_raster(scene, tmp_path / 'onnx.tif', **options))
    assert np.array_equal(found[0], expected[0])
    assert found[1:] == expected[1:]
    assert len(np.unique(found[0])) == 4


def test_it_runs_where_torch_cannot_be_imported(model, bundle, scene, tmp_path):
    lines = (
        NO_TORCH,
        'from geolearn.arcgis import ClassifyPixels',
        'from geolearn.onnx import main',
        'main(sys.argv[1:])',
        'assert "torch" not in sys.modules',
    )
    code = '\n'.join(lines)
    arguments = [str(bundle), str(scene), str(tmp_path / 'onnx.tif')]
    done = subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    expected = read(model.predict_raster(scene, tmp_path / 'torch.tif'))
    assert np.array_equal(read(tmp_path / 'onnx.tif')[0], expected[0])


def test_tiles_of_networks_with_positions_fade_into_each_other(model, bundle, scene, tmp_path, monkeypatch):
    monkeypatch.setattr(type(model.network.backbone), 'has_position_grid', True)
    runner = load_model(bundle)
    runner.facts = replace(runner.facts, position_grid=True)
    options = {'tile_size': 96, 'halo': 8}
    expected = read(model.predict_raster(scene, tmp_path / 'torch.tif', **options))[0]
    found = read(runner.predict_raster(scene, tmp_path / 'onnx.tif', **options))[0]
    assert np.mean(found != expected) < 1e-4


def test_wrong_rasters_and_bundles_are_refused(bundle, model, save, scene, tmp_path):
    runner = load_model(bundle)
    with pytest.raises(RasterError, match='is the raster to map'):
        runner.predict_raster(scene, scene)
    other = save(tmp_path / 'other.tif', np.full((1, 40, 40), 9, np.uint8), names=('Red',))
    with pytest.raises(RasterError, match="no bands fit 'NIR'"):
        runner.predict_raster(other, tmp_path / 'map.tif')
    with pytest.raises(BundleError, match='holds no ONNX graph'):
        load_model(model.save(tmp_path / 'plain.dlpk'))
    with pytest.raises(UnknownNameError, match='provider'):
        load_model(bundle, providers=['CPUExecutionProvidr'])
    broken = tmp_path / 'broken.dlpk'
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(broken, 'w') as new:
        for name in old.namelist():
            new.writestr(name, b'no graph' if name == 'model.onnx' else old.read(name))
    with pytest.raises(BundleError, match='onnxruntime does not read the graph'):
        load_model(broken)


def test_a_graph_of_one_size_takes_smaller_tiles_filled_up(bundle):
    runner = load_model(bundle)
    x = 200 * np.random.default_rng(0).random((1, 2, 40, 50), np.float32)
    expected = runner.run(x)
    assert expected.shape == (1, 3, 40, 50)
    runner.facts = replace(runner.facts, size=(64, 64))
    assert np.allclose(runner.run(x), expected)
    with pytest.raises(ValueError, match='up to'):
        runner.run(np.zeros((1, 2, 80, 50), np.float32))


def classify_in_arcgis(bundle, scene, folder):
    """Call the raster function of an unpacked bundle as ArcGIS Pro does, for one block."""
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(folder)
    (emd,) = folder.glob('*.emd')
    function = ClassifyPixels()
    function.initialize(model=str(emd), device=-1)
    function.getParameterInfo()
    function.getConfiguration(tile_size='96', padding='8')
    with rasterio.open(scene) as src:
        pixels, mask = src.read()[:, :96, :96], src.read_masks()[:, :96, :96] > 0
    info = function.updateRasterInfo(output_info={})['output_info']
    props = {'pixelType': info['pixelType']}
    blocks = function.updatePixels(None, None, props, raster_pixels=pixels, raster_mask=mask)
    return blocks['output_pixels'], blocks['output_mask'], info


def test_the_raster_function_of_arcgis_runs_the_graph_without_torch(model, bundle, scene, tmp_path, monkeypatch):
    expected = classify_in_arcgis(bundle, scene, tmp_path / 'torch')
    monkeypatch.setattr(raster_functions, 'find_spec', lambda name: None)
    found = classify_in_arcgis(bundle, scene, tmp_path / 'graph')
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])
    assert found[2] == expected[2]
    assert 0 < found[1].mean() < 1
    plain = model.save(tmp_path / 'plain.dlpk')
    with pytest.raises(BundleError, match='holds no ONNX graph'):
        classify_in_arcgis(plain, scene, tmp_path / 'plain')


def test_a_graph_of_one_pixel_size_refuses_others(bundle, save, scene, tmp_path):
    runner = load_model(bundle)
    with rasterio.open(scene) as src:
        side = src.transform.a
    runner.facts = replace(runner.facts, resolution_m=1.2 * side)
    with pytest.raises(RasterError, match=rf'the graph is of pixels of {1.2 * side:g} m, and those of the raster'):
        runner.predict_raster(scene, tmp_path / 'map.tif')
    runner.facts = replace(runner.facts, resolution_m=1.01 * side)
    runner.predict_raster(scene, tmp_path / 'map.tif')

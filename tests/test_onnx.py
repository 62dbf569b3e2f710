"""Maps of a bundle's ONNX graph are those of predict_raster, where torch cannot be imported."""

import signal
import subprocess
import sys
import zipfile
from dataclasses import replace

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from rasterio.warp import transform_bounds

from geolearn.arcgis import ClassifyPixels, raster_functions
from geolearn.backbones.custom import ModuleBackbone, register_module
from geolearn.bands import Band
from geolearn.classes import ClassInfo
from geolearn.errors import BundleError, CheckpointError, RasterError, UnknownNameError
from geolearn.inference import stitching, store
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

NO_VECTORS = """
for name in ('shapely', 'scipy', 'pandas', 'geopandas', 'pyproj'):
    sys.modules[name] = None
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


SLANTED = ((30, 10), (190, 60), (120, 140), (60, 90))


def areas(scene, corners=SLANTED):
    """Options that name a part of the scene; `corners` are those of the polygon, in pixels."""
    with rasterio.open(scene) as src:
        transform, crs = src.transform, src.crs

    def place(x, y):
        return transform.c + transform.a * x, transform.f + transform.e * y

    left, top = place(35.2, 20.4)
    right, bottom = place(160.7, 120.1)
    polygon = shapely.Polygon([place(*point) for point in corners])
    return {
        'bbox': {'bbox': (left, bottom, right, top)},
        'bbox in degrees': {
            'bbox': transform_bounds(crs, 'EPSG:4326', left, bottom, right, top),
            'bbox_crs': 'EPSG:4326',
        },
        'geometry': {'aoi': polygon},
        'features': {'aoi': geopandas.GeoSeries([polygon], crs=crs).to_crs('EPSG:4326')},
        'both': {'aoi': polygon, 'bbox': (left, bottom, right, top)},
    }


@pytest.mark.parametrize('name', ['bbox', 'bbox in degrees', 'geometry', 'features', 'both'])
def test_maps_of_a_part_are_those_of_predict_raster(model, bundle, scene, tmp_path, name):
    options = {'tile_size': 64, 'halo': 8} | areas(scene)[name]
    expected = read(model.predict_raster(scene, tmp_path / 'torch.tif', **options))
    found = read(load_model(bundle).predict_raster(scene, tmp_path / 'onnx.tif', **options))
    assert np.array_equal(found[0], expected[0])
    assert found[1:] == expected[1:]
    assert found[0].shape != (150, 210)
    assert len(np.unique(found[0])) > 1


@pytest.mark.parametrize('augment', [True, 'flips'])
@pytest.mark.parametrize('sides', [(150, 210), (90, 210)])
def test_augmented_maps_are_those_of_predict_raster(model, bundle, save, tmp_path, augment, sides):
    pixels = np.random.default_rng(1).normal(110, 60, (2, *sides)).clip(1, 255).astype(np.uint8)
    scene = save(tmp_path / 'scene.tif', pixels, names=('Red', 'NIR'))
    options = {'tile_size': 96, 'halo': 8}
    plain = read(model.predict_raster(scene, tmp_path / 'plain.tif', **options))[0]
    expected = read(model.predict_raster(scene, tmp_path / 'torch.tif', augment=augment, **options))[0]
    found = read(load_model(bundle).predict_raster(scene, tmp_path / 'onnx.tif', augment=augment, **options))[0]
    assert np.array_equal(found, expected)
    assert np.mean(found != plain) > 0.1


def test_a_graph_of_one_size_refuses_turned_tiles_that_it_does_not_take(bundle, save, tmp_path):
    scene = save(tmp_path / 'scene.tif', np.full((2, 40, 90), 9, np.uint8), names=('Red', 'NIR'))
    runner = load_model(bundle)
    runner.facts = replace(runner.facts, size=(64, 96), tile_size=96)
    with pytest.raises(ValueError, match="images of 64 x 96; pass augment='flips'"):
        runner.predict_raster(scene, tmp_path / 'map.tif', augment=True)
    runner.predict_raster(scene, tmp_path / 'map.tif', augment='flips')


def test_maps_of_a_part_run_where_neither_torch_nor_shapely_can_be_imported(model, bundle, scene, tmp_path):
    box = areas(scene)['bbox']['bbox']
    code = '\n'.join((NO_TORCH, NO_VECTORS, 'from geolearn.onnx import main', 'main(sys.argv[1:])'))

    def run(*options):
        arguments = [str(bundle), str(scene), str(tmp_path / 'onnx.tif'), *options]
        return subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True, timeout=200)

    done = run('--augment', '--bbox', *(repr(edge) for edge in box))
    assert done.returncode == 0, done.stderr
    expected = read(model.predict_raster(scene, tmp_path / 'torch.tif', augment=True, bbox=box))
    assert np.array_equal(read(tmp_path / 'onnx.tif')[0], expected[0])
    failed = run('--aoi', str(tmp_path / 'area.gpkg'), '--overwrite')
    assert failed.returncode == 2
    assert 'geopandas is needed to read an area of interest; install it with: pip install' in failed.stderr


def test_wrong_areas_are_refused_as_by_predict_raster(model, bundle, scene, tmp_path):
    runner = load_model(bundle)
    for options in ({'bbox': (0, 0, 1, 1)}, {'bbox': (1, 1, 0, 0)}, {'bbox_crs': 'EPSG:4326'}, {'aoi': 7}):
        texts = []
        for each in (model, runner):
            with pytest.raises((RasterError, ValueError)) as caught:
                each.predict_raster(scene, tmp_path / 'map.tif', **options)
            texts.append(str(caught.value))
        assert texts[0] == texts[1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'options',
    [
        {'src': np.zeros((2, 40, 40), np.uint8)},
        {'dst': ''},
        {'tile_size': 64.5},
        {'tile_size': '64'},
        {'augment': None},
        {'bands': 'Red'},
        {'dates': ['2024-05-01']},
    ],
)
def test_wrong_arguments_are_refused_as_by_predict_raster(model, bundle, scene, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    texts = []
    for each in (model, load_model(bundle)):
        with pytest.raises((RasterError, ValueError)) as caught:
            each.predict_raster(**{'src': scene, 'dst': tmp_path / 'map.tif'} | options)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert not list(tmp_path.iterdir())


def run_until(runner, monkeypatch, tiles):
    """Let the runner be interrupted after so many tiles."""
    run, count = runner.run, []

    def stop(images):
        count.append(len(images))
        if len(count) > tiles:
            raise KeyboardInterrupt
        return run(images)

    monkeypatch.setattr(runner, 'run', stop)
    return count


@pytest.mark.parametrize('position_grid', [False, True])
@pytest.mark.parametrize('part', [False, True])
def test_a_map_is_resumed_to_the_same_bytes(bundle, save, tmp_path, monkeypatch, position_grid, part):
    monkeypatch.setattr(store, 'PIECE_SECONDS', 0.0)
    monkeypatch.setattr(store, 'BLOCK_SIZE', 32)
    monkeypatch.setattr(stitching, 'BLOCK_SIZE', 32)
    pixels = np.random.default_rng(2).normal(110, 60, (2, 420, 90)).clip(1, 255).astype(np.uint8)
    scene = save(tmp_path / 'scene.tif', pixels, names=('Red', 'NIR'))
    corners = ((5, 20), (85, 40), (70, 410), (10, 380))
    options = {'tile_size': 64, 'halo': 8} | (areas(scene, corners)['geometry'] if part else {})
    runner = load_model(bundle)
    runner.facts = replace(runner.facts, position_grid=position_grid)
    whole = runner.predict_raster(scene, tmp_path / 'whole.tif', **options).read_bytes()
    target, folder = tmp_path / 'map.tif', tmp_path / 'map.tif.part'
    with monkeypatch.context() as patch:
        count = run_until(runner, patch, 18)
        with pytest.raises(KeyboardInterrupt):
            runner.predict_raster(scene, target, **options)
    assert not target.exists()
    assert folder.is_dir()
    with pytest.raises(CheckpointError, match='is of another run; what differs: augment'):
        runner.predict_raster(scene, target, augment=True, resume=True, **options)
    before = len(count)
    with monkeypatch.context() as patch:
        count = run_until(runner, patch, 10**6)
        runner.predict_raster(scene, target, resume=True, **options)
        resumed = len(count)
        count.clear()
        runner.predict_raster(scene, target, overwrite=True, **options)
    assert resumed < len(count) < resumed + before, 'some tiles are computed again, and not all'
    assert target.read_bytes() == whole
    assert not folder.exists()
    with pytest.raises(CheckpointError, match='to resume; run without resume=True'):
        runner.predict_raster(scene, target, resume=True, overwrite=True, **options)


KILLED = """
import os, signal, sys
from geolearn.inference import stitching, store
from geolearn.onnx import OnnxModel, load_model
store.PIECE_SECONDS = 0.0
store.BLOCK_SIZE = stitching.BLOCK_SIZE = 32
model, calls = load_model(sys.argv[1]), []
run = OnnxModel.run

def dying(self, images):
    calls.append(len(images))
    if len(calls) > 15:
        os.kill(os.getpid(), signal.SIGKILL)
    return run(self, images)

OnnxModel.run = dying
model.predict_raster(sys.argv[2], sys.argv[3], tile_size=64, halo=8)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='SIGKILL')
def test_a_killed_run_is_resumed_to_the_same_bytes(bundle, save, tmp_path, monkeypatch, caplog):
    pixels = np.random.default_rng(2).normal(110, 60, (2, 420, 90)).clip(1, 255).astype(np.uint8)
    scene = save(tmp_path / 'scene.tif', pixels, names=('Red', 'NIR'))
    target, folder, runner = tmp_path / 'map.tif', tmp_path / 'map.tif.part', load_model(bundle)
    options = {'tile_size': 64, 'halo': 8}
    arguments = [str(path) for path in (bundle, scene, target)]
    for damage in (None, b''):
        done = subprocess.run([sys.executable, '-c', NO_TORCH + KILLED, *arguments], capture_output=True, timeout=100)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert not target.exists()
        pieces = sorted(folder.glob('*.piece.tif'))
        assert len(pieces) > 1
        if damage is not None:
            pieces[0].write_bytes(damage)
        with monkeypatch.context() as patch:
            count = run_until(runner, patch, 10**6)
            runner.predict_raster(scene, target, resume=True, **options)
            resumed = len(count)
        runner.predict_raster(scene, tmp_path / 'whole.tif', overwrite=True, **options)
        assert (resumed < 20) == (damage is None)
        assert ('is damaged; it is computed again' in caplog.text) == (damage is not None)
        assert target.read_bytes() == (tmp_path / 'whole.tif').read_bytes()
        assert not folder.exists()
        target.unlink()


def test_a_run_of_other_classes_or_another_graph_is_not_resumed(bundle, scene, tmp_path, monkeypatch):
    runner = load_model(bundle)
    options = {'tile_size': 64, 'halo': 8}
    with monkeypatch.context() as patch:
        run_until(runner, patch, 1)
        with pytest.raises(KeyboardInterrupt):
            runner.predict_raster(scene, tmp_path / 'map.tif', **options)
    others = (
        ('classes', 'spec', {'class_infos': tuple(ClassInfo(value, 'x', (0, 0, value)) for value in (1, 2, 3))}),
        ('graph', 'facts', {'position_grid': True}),
    )
    for name, part, changed in others:
        other = load_model(bundle)
        setattr(other, part, replace(getattr(other, part), **changed))
        with pytest.raises(CheckpointError, match=f'what differs: {name}'):
            other.predict_raster(scene, tmp_path / 'map.tif', resume=True, **options)
    runner.predict_raster(scene, tmp_path / 'map.tif', resume=True, **options)


def test_a_second_run_to_one_target_is_refused(model, bundle, scene, tmp_path, monkeypatch):
    runner, target = load_model(bundle), tmp_path / 'map.tif'
    run, errors = runner.run, []

    def meanwhile(images):
        for second in (load_model(bundle), model):
            with pytest.raises(CheckpointError, match='another process writes') as caught:
                second.predict_raster(scene, target, overwrite=True)
            errors.append(caught.value)
        return run(images)

    monkeypatch.setattr(runner, 'run', meanwhile)
    runner.predict_raster(scene, target)
    assert errors
    expected = load_model(bundle).predict_raster(scene, tmp_path / 'expected.tif')
    assert target.read_bytes() == expected.read_bytes()


def test_wrong_rasters_and_bundles_are_refused(bundle, model, save, scene, tmp_path):
    runner = load_model(bundle)
    with pytest.raises(RasterError, match='is the raster to map'):
        runner.predict_raster(scene, scene, overwrite=True)
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

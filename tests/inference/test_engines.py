"""Other engines than torch, and what a short measurement chooses."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch

from geolearn import extras
from geolearn.backbones.custom import ModuleBackbone, register_module
from geolearn.errors import ArgumentError, ExportError, MissingExtraError, UnknownNameError
from geolearn.inference import computing, engines, tuning
from geolearn.inference.options import TilingOptions
from geolearn.models import LinearProbe, base, load_model
from geolearn.tiling import make_grid

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def saved(make_spec, tmp_path_factory):
    """The bundle of a linear layer on patches of 16 pixels, with its graph."""
    pytest.importorskip('onnxscript')
    torch.manual_seed(0)
    patches = torch.nn.Conv2d(2, 4, 16, stride=16)
    register_module(ModuleBackbone(patches, channels=(4,), strides=(16,), name='patches of engines'))
    spec = replace(make_spec(classes=3), model='LinearProbe', backbone='patches of engines')
    built = LinearProbe.of(spec, LinearProbe.build(spec).eval())
    return built.save(tmp_path_factory.mktemp('engines') / 'm.dlpk', export='onnx')


@pytest.fixture(scope='module')
def model(saved):
    return load_model(saved)


@pytest.fixture(scope='module')
def scene(tmp_path_factory, save):
    pixels = np.random.default_rng(0).integers(0, 41, (2, 90, 150)).astype(np.int16)
    pixels[:, 20:40, 30:70] = -1
    return save(tmp_path_factory.mktemp('scene') / 'scene.tif', pixels, nodata=-1, names=['Red', 'Green'])


def read(path):
    with rasterio.open(path) as src:
        return src.read(), src.tags()


@pytest.mark.parametrize('engine', ['onnx', 'openvino'])
def test_engines_map_as_torch_does(model, scene, tmp_path, monkeypatch, engine):
    if not extras.is_installed(engines.LIBRARIES[engine]):
        pytest.skip(f'{engine} is not installed')
    # the bundle's graph needs no library that writes graphs
    monkeypatch.setattr(base, 'export_network', None)
    outputs = ('classes', 'probabilities')
    expected, tags = read(model.predict_raster(scene, tmp_path / 'torch.tif', tile_size=64, halo=8, outputs=outputs))
    assert (tags['ENGINE'], tags['TILE_SIZE'], tags['HALO']) == ('torch', '64', '8')
    given = {'tile_size': 64, 'halo': 8, 'outputs': outputs, 'engine': engine, 'batch_size': 1}
    found, tags = read(model.predict_raster(scene, tmp_path / 'map.tif', **given))
    assert tags['ENGINE'] == engine
    assert np.array_equal(found, expected)
    shares = [read(tmp_path / f'{name}_probabilities.tif')[0].astype(int) for name in ('torch', 'map')]
    assert np.abs(shares[0] - shares[1]).max() <= 1
    given['batch_size'] = 3
    again = model.predict_raster(scene, tmp_path / 'again.tif', **given)
    assert again.read_bytes() == (tmp_path / 'map.tif').read_bytes()


def test_a_network_that_was_changed_is_not_mapped_with_the_graph_of_its_bundle(saved, scene, tmp_path, monkeypatch):
    def write(*_):
        raise ExportError('another graph is needed')

    monkeypatch.setattr(base, 'export_network', write)
    changed = load_model(saved)
    changed.predict_raster(scene, tmp_path / 'map.tif', engine='onnx')
    with torch.no_grad():
        next(changed.network.parameters()).neg_()
    with pytest.raises(ExportError, match='another graph is needed'):
        changed.predict_raster(scene, tmp_path / 'changed.tif', engine='onnx')
    assert not list(tmp_path.glob('changed*'))


def test_engines_that_cannot_be_are_refused(model, scene, tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match="unknown engine 'onxx'; did you mean 'onnx'"):
        TilingOptions(engine='onxx')
    with pytest.raises(ValueError, match="compile=True is for engine='torch'"):
        model.predict_raster(scene, tmp_path / 'm.tif', engine='onnx', compile=True)
    monkeypatch.setitem(__import__('sys').modules, 'openvino', None)
    with pytest.raises(MissingExtraError, match='pip install .*openvino'):
        model.predict_raster(scene, tmp_path / 'm.tif', engine='openvino')
    assert not list(tmp_path.iterdir())


def measured(monkeypatch, costs):
    """Let every map be large enough for measurements, which find these costs."""
    monkeypatch.setattr(tuning, 'count_rounds', lambda *_: 1)
    counted = []

    def measure(jobs, *, rounds, rest=0.0):
        for job in jobs.values():
            job()
        counted.append(list(jobs))
        return {name: costs[name] for name in jobs}

    monkeypatch.setattr(tuning, 'measure', measure)
    return counted


def has_bfloat16():
    if not extras.is_installed('openvino'):
        pytest.skip('openvino is not installed')
    engines.require_engine('openvino')
    library = sys.modules['openvino']
    return 'BF16' in library.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')


def test_openvino_computes_in_half_precision(model, scene, tmp_path):
    if not has_bfloat16():
        pytest.skip('this processor has no instructions for bfloat16')
    found = {}
    for precision, batch_size in ((None, 1), ('bf16', 1), ('bf16', 7)):
        given = {'engine': 'openvino', 'mixed_precision': precision, 'batch_size': batch_size}
        path = tmp_path / f'{precision}_{batch_size}.tif'
        model.predict_raster(
            scene, path, tile_size=64, outputs=('probabilities',), **given, probability_dtype='float32'
        )
        found[precision, batch_size] = read(path)[0]
    exact, half, at_once = found.values()
    assert np.array_equal(half, at_once, equal_nan=True)
    assert 0 < np.nanmax(np.abs(half - exact)) < 0.02


def test_half_precision_needs_a_processor_that_has_it(model, scene, tmp_path, monkeypatch, caplog):
    has_bfloat16()
    library = sys.modules['openvino']
    monkeypatch.setattr(library.Core, 'get_property', lambda *_: ['FP32', 'INT8'])
    engines.close_graphs()
    with pytest.raises(ArgumentError, match="'bf16' with engine='openvino' needs a processor with instructions"):
        model.predict_raster(scene, tmp_path / 'map.tif', engine='openvino', mixed_precision='bf16')
    assert list(tmp_path.iterdir()) == []
    # the fastest of those that can: onnxruntime is not even asked
    counted = measured(monkeypatch, {'torch': 1.0})
    path = model.predict_raster(scene, tmp_path / 'map.tif', engine='auto', mixed_precision='bf16', tile_size=64)
    assert read(path)[1]['ENGINE'] == 'torch'
    assert counted == [['torch']]
    assert 'passes over openvino' in caplog.text


def test_auto_compares_half_precision_with_what_torch_rounds(model, scene, tmp_path, monkeypatch):
    if not has_bfloat16():
        pytest.skip('this processor has no instructions for bfloat16')
    counted = measured(monkeypatch, {'torch': 1.0, 'openvino': 0.5})
    path = model.predict_raster(scene, tmp_path / 'map.tif', engine='auto', mixed_precision='bf16', tile_size=96)
    assert read(path)[1]['ENGINE'] == 'openvino'
    assert counted == [['torch', 'openvino']]


def test_auto_takes_the_fastest_engine_once_and_for_all(model, scene, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, 'installed_engines', lambda precision: ('torch', 'onnx'))
    counted = measured(monkeypatch, {'torch': 1.0, 'onnx': 0.9})
    for name in ('first', 'second'):
        _, tags = read(model.predict_raster(scene, tmp_path / f'{name}.tif', engine='auto', tile_size=64))
        assert tags['ENGINE'] == 'onnx'
    assert counted == [['torch', 'onnx']]
    assert (tmp_path / 'first.tif').read_bytes() == (tmp_path / 'second.tif').read_bytes()


def test_openvino_reports_its_use_to_nobody():
    if not extras.is_installed('openvino_telemetry'):
        pytest.skip('openvino_telemetry is not installed')
    code = (
        'import sys, threading\n'
        'from geolearn.inference import engines\n'
        "engines.require_engine('openvino')\n"
        "print('openvino' in sys.modules, 'openvino_telemetry' in sys.modules, len(threading.enumerate()))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['True', 'False', '1']


def test_the_graph_of_the_last_map_stays_open(model, scene, tmp_path, monkeypatch):
    opened = []
    usual = engines.open_session
    monkeypatch.setattr(engines, 'open_session', lambda *args, **named: opened.append(1) or usual(*args, **named))
    engines.close_graphs()
    maps = [model.predict_raster(scene, tmp_path / f'{name}.tif', engine='onnx', tile_size=64) for name in 'ab']
    assert maps[0].read_bytes() == maps[1].read_bytes()
    assert len(opened) == 1
    # another number of threads is another session, and so is what was closed
    graph = model.onnx_graph((64, 64))
    engines.open_graph('onnx', graph, threads=2)
    engines.close_graphs()
    engines.open_graph('onnx', graph, threads=2)
    assert len(opened) == 3


@pytest.mark.parametrize(('opening', 'engine'), [(1e-3, 'onnx'), (1e3, 'torch')])
def test_small_maps_are_not_worth_opening_an_engine(model, scene, tmp_path, monkeypatch, opening, engine):
    monkeypatch.setattr(engines, 'installed_engines', lambda precision: ('torch', 'onnx'))
    known = {'torch': 1.0, 'onnx': 0.5, 'opening onnx': opening}
    monkeypatch.setattr(tuning, 'recall', lambda facts: known if facts['what'] == 'engine' else None)
    _, tags = read(model.predict_raster(scene, tmp_path / 'map.tif', engine='auto', tile_size=64))
    assert tags['ENGINE'] == engine


def test_auto_passes_over_engines_whose_outputs_differ(model, scene, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(engines, 'installed_engines', lambda precision: ('torch', 'onnx'))
    monkeypatch.setattr(engines, 'open_graph', lambda *_, **__: lambda images: np.zeros((1, 3, *images.shape[2:]), 'f'))
    measured(monkeypatch, {'torch': 1.0, 'onnx': 0.1})
    _, tags = read(model.predict_raster(scene, tmp_path / 'map.tif', engine='auto', tile_size=128))
    assert tags['ENGINE'] == 'torch'
    assert 'passes over onnx, whose outputs differ' in caplog.text


def test_tiles_are_chosen_by_a_clear_margin_kept_and_resumed(model, scene, tmp_path, monkeypatch):
    monkeypatch.setattr(computing, 'CPU_SIDES', (64, 96))
    monkeypatch.setattr(computing, 'CONVOLUTION_TILE', 64)
    # a tile of 96 px costs less for each of the 80 x 80 pixels that it gives
    counted = measured(monkeypatch, {'64': 1.0, '96': 1.2})
    first = model.predict_raster(scene, tmp_path / 'first.tif')
    found, tags = read(first)
    assert (tags['TILE_SIZE'], tags['HALO']) == ('96', '12')
    with rasterio.open(model.predict_raster(scene, tmp_path / 'same.tif', tile_size=96)) as src:
        assert np.array_equal(src.read(), found)
    tuning.KNOWN.clear()  # another process
    again = model.predict_raster(scene, tmp_path / 'again.tif')
    assert len(counted) == 1
    assert again.read_bytes() == first.read_bytes()

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.predict_raster(scene, tmp_path / 'broken.tif', progress=stop)
    measured(monkeypatch, {'64': 1.0, '96': 9.0})
    tuning.KNOWN.clear()
    monkeypatch.setattr(tuning, 'recall', lambda facts: None)
    resumed = model.predict_raster(scene, tmp_path / 'broken.tif', resume=True)
    assert resumed.read_bytes() == first.read_bytes()


def test_choices_of_an_earlier_run_are_checked():
    usual = computing.Setup('torch', 512)
    asked = TilingOptions(engine='auto')
    assert usual.recorded({'engine': 'onnx', 'tile size': 96}, asked) == computing.Setup('onnx', 96)
    for facts in ({}, {'engine': 'gpu', 'tile size': 0}, {'engine': None, 'tile size': '96'}):
        assert usual.recorded(facts, asked) == usual
    assert usual.recorded({'engine': 'onnx', 'tile size': 96}, TilingOptions(tile_size=512)) == usual


def test_small_maps_and_small_gains_keep_the_usual_tiles():
    # at most 5 % of a map is computed on top, and no more rounds than the fastest of them needs to be undisturbed
    rounds = [tuning.count_rounds(tiles * 512**2, 512**2) for tiles in (9, 59, 60, 100, 180, 1000)]
    assert rounds == [0, 0, 2, 4, 8, 8]
    assert tuning.pick({'512': 1.0, '768': 0.95}, '512', 0.1) == '512'
    assert tuning.pick({'512': 1.0, '768': 0.85}, '512', 0.1) == '768'
    assert tuning.pick({'768': 2.0}, '512', 0.1) == '768'


def test_candidates_that_memory_does_not_hold_are_left_out():
    def large():
        raise RuntimeError('out of memory')

    assert list(tuning.measure({'small': lambda: None, 'large': large})) == ['small']


def test_a_disturbed_round_decides_nothing(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(tuning.time, 'perf_counter', lambda: clock[0])
    ran = []

    def job(name, seconds):
        def run():
            ran.append(name)
            # other work on the machine slows down all of the first rounds
            clock[0] += seconds * (5 if ran.count(name) < 4 and name == 'fast' else 1)

        return run

    jobs = {'slow': job('slow', 1.1), 'fast': job('fast', 1.0)}
    assert tuning.measure(jobs, rounds=3) == pytest.approx({'slow': 1.1, 'fast': 1.0})
    assert ran == ['slow', 'fast', 'fast', 'slow'] * 2


def test_batches_are_measured_where_several_tiles_are_computed_at_once(model, scene, tmp_path, monkeypatch):
    monkeypatch.setattr(computing, 'most_at_once', lambda device: None)
    counted = measured(monkeypatch, {'1': 1.0, '4': 3.0, '16': 8.0, '512': 1.0, '150': 9.0, '256': 9.0, '768': 9.0})
    model.predict_raster(scene, tmp_path / 'map.tif', tile_size=32)
    assert counted == [['1', '4', '16']]


def test_turned_tiles_have_a_graph_of_their_own_sides(monkeypatch):
    asked = []

    def make_run(network, engine, graph, shape, *, precision):
        asked.append(shape)

        def run(images):
            assert images.shape[-2:] == shape
            return images

        return run

    monkeypatch.setattr(computing, 'make_run', make_run)
    grid = make_grid((32, 64), tile_size=64, halo=0, multiple=16)
    compute = computing.make_compute(torch.nn.Identity(), [], grid, TilingOptions(augment=True))
    images = torch.rand(1, 2, *grid.tile_shape)
    ((_, outputs),) = compute.parts(images)
    torch.testing.assert_close(outputs, images)
    assert asked == [grid.tile_shape, grid.tile_shape[::-1]]
    assert grid.tile_shape == (32, 64)

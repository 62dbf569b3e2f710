"""Bundles hold graphs of the network on request, which are compared with it when they are written."""

import io
import json
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import geolearn.onnx
from geolearn.backbones.custom import ModuleBackbone, register_module
from geolearn.bands import Band
from geolearn.batch import Batch
from geolearn.bundle import read_bundle, read_onnx
from geolearn.classes import IGNORE_INDEX, ClassInfo
from geolearn.errors import BundleError, ExportError, MissingExtraError, UnknownNameError
from geolearn.models import LinearProbe, exporting, load_model
from geolearn.networks.spec import ModelSpec
from geolearn.normalize import Normalization
from geolearn.statistics import BandStatistics

pytestmark = pytest.mark.usefixtures('one_thread')
onnxruntime = pytest.importorskip('onnxruntime')

SPEC = ModelSpec(
    model='LinearProbe',
    backbone='patches',
    bands=(Band('red', 0.66), Band('nir', 0.84)),
    class_infos=(ClassInfo(3, 'water', (0, 0, 255)), ClassInfo(300, 'land', (0, 128, 0))),
    ignored_values=(),
    chip_size=64,
    statistics=BandStatistics((0, 0), (255, 255), (100, 120), (20, 30)),
    normalization=Normalization((100.0, 120.0), (20.0, 30.0), 'given'),
    dtype='uint8',
)


@pytest.fixture(scope='module')
def model():
    """A linear layer on patches of 16 pixels: tracing takes as long as a network has layers."""
    torch.manual_seed(0)
    patches = torch.nn.Conv2d(2, 4, 16, stride=16)
    register_module(ModuleBackbone(patches, channels=(4,), strides=(16,), name='patches'))
    return LinearProbe.of(SPEC, LinearProbe.build(SPEC).eval())


@pytest.fixture(scope='module')
def saved(model, tmp_path_factory):
    return model.save(tmp_path_factory.mktemp('graphs') / 'm.dlpk', export=('torch', 'onnx'))


def images(count, height, width):
    x = 200 * torch.rand(count, 2, height, width, generator=torch.Generator().manual_seed(0))
    x[0, :, :9] = torch.nan
    return x


def test_both_graphs_give_the_models_numbers_for_any_batch_and_size(model, saved):
    session = onnxruntime.InferenceSession(read_onnx(saved))
    with zipfile.ZipFile(saved) as archive:
        program = torch.export.load(io.BytesIO(archive.read('model.pt2'))).module()
    for shape in ((1, 32, 32), (3, 96, 64)):
        x = images(*shape)
        with torch.no_grad():
            expected = model.network(x)
            assert torch.allclose(program(x), expected, atol=1e-4)
        assert np.allclose(session.run(None, {'images': x.numpy()})[0], expected, atol=1e-4)


def test_the_manifest_states_the_largest_difference_and_what_the_graphs_take(saved):
    exports = read_bundle(saved).manifest['exports']
    assert set(exports) == {'onnx', 'torch'}
    for row in exports.values():
        assert 0 <= row['largest_difference'] <= row['bound']
        assert (row['multiple'], row['size'], row['output']) == (32, None, 'classes')
    assert exports['onnx']['file'] == 'model.onnx'


def test_a_bundle_with_graphs_loads_as_any_other_and_graphs_name_no_paths(model, saved, tmp_path):
    x = images(1, 64, 64)
    with torch.no_grad():
        assert torch.equal(load_model(saved).network(x), model.network(x))
    again = load_model(saved).save(tmp_path / 'again.dlpk')
    assert 'exports' not in read_bundle(again).manifest
    with zipfile.ZipFile(saved) as archive:
        assert set(archive.namelist()) >= {'model.onnx', 'model.pt2'}
        held = b''.join(archive.read(name) for name in ('model.onnx', 'model.pt2'))
    assert b'/geolearn/' not in held


def test_weights_of_8_bits_are_smaller_and_their_cost_on_validation_chips_is_stated(model, tmp_path):
    given = LinearProbe.of(SPEC, model.network)
    with torch.no_grad():
        truth = model.network(images(2, 64, 64)).max(1).indices
    truth[0, :40] = IGNORE_INDEX
    truth[1, :16] = 1 - truth[1, :16]
    batch = Batch(images=images(2, 64, 64), masks=truth)
    given.data = SimpleNamespace(valid_dl=SimpleNamespace(batches=lambda: iter([batch])))
    path = given.save(tmp_path / 'm.dlpk', export='onnx-int8')
    row = read_bundle(path).manifest['exports']['onnx-int8']
    assert (row['file'], row['images']) == ('model.int8.onnx', 2)
    assert row['accuracy'] == pytest.approx(1 - 16 / 88)
    assert row['accuracy_int8'] == pytest.approx(row['accuracy'], abs=0.1)
    assert 0 < row['largest_difference'] < 1
    assert 0 <= row['differing_share'] < 0.1
    small = geolearn.onnx.load_model(path, int8=True)
    x = images(1, 64, 64)
    with torch.no_grad():
        expected = model.network(x).max(1).indices.numpy()
    assert (small.run(x.numpy()).argmax(1) != expected).mean() < 0.1
    with pytest.raises(BundleError, match='holds no ONNX graph'):
        geolearn.onnx.load_model(path)


def test_graphs_that_fail_on_other_sizes_are_written_for_one(model, tmp_path, monkeypatch, caplog):
    class Fails(Exception):
        pass

    def open_session(content, **_):
        session = onnxruntime.InferenceSession(content)

        def run(names, given):
            if given['images'].shape[-1] != given['images'].shape[-2]:
                raise Fails('broadcast')
            return session.run(names, given)

        return SimpleNamespace(run=run)

    monkeypatch.setattr(exporting, 'open_session', open_session)
    monkeypatch.setattr(exporting, 'list_refusals', lambda: (Fails,))
    row = read_bundle(model.save(tmp_path / 'm.dlpk', export='onnx')).manifest['exports']['onnx']
    assert row['size'] == [row['tile_size']] * 2
    assert 'onnxruntime fails on others: broadcast' in caplog.text


def test_what_differs_is_not_written(model, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, 'TOLERANCE', -1.0)
    with pytest.raises(ExportError, match='differs from the network by'):
        model.save(tmp_path / 'm.dlpk', export='torch')
    assert not (tmp_path / 'm.dlpk').exists()


def test_unknown_graphs_and_missing_libraries_are_named(model, tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match="unknown export 'onx'; did you mean 'onnx'"):
        model.save(tmp_path / 'm.dlpk', export='onx')
    monkeypatch.setitem(__import__('sys').modules, 'onnxscript', None)
    with pytest.raises(MissingExtraError, match='onnxscript is needed to write an ONNX graph'):
        model.save(tmp_path / 'm.dlpk', export='onnx')


def test_graphs_that_take_weights_from_other_files_are_refused(saved, tmp_path):
    hostile = tmp_path / 'h.dlpk'
    for reference in (b'\x0a\x08location', b'\x0a\x88\x00location', b'\x8a\x80\x00\x08location'):
        with zipfile.ZipFile(saved) as old, zipfile.ZipFile(hostile, 'w') as new:
            for name in old.namelist():
                content = old.read(name)
                new.writestr(name, content + reference if name == 'model.onnx' else content)
        with pytest.raises(BundleError, match='takes weights from other files'):
            read_onnx(hostile)
    plain = tmp_path / 'p.dlpk'
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(plain, 'w') as new:
        for name in set(old.namelist()) - {'model.onnx'}:
            new.writestr(name, old.read(name))
    with pytest.raises(BundleError, match='holds no ONNX graph'):
        read_onnx(plain)
    assert json.dumps(read_bundle(plain).manifest)

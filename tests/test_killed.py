"""Processes that are killed (SIGKILL) while they write: what was there stays, nothing half-written passes for whole.

Kills of packing, training, maps, detection and embedding have tests beside those of what they do.
"""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest
import rasterio

from geolearn import export_training_data, load_model, prepare_data, vectorize_map
from geolearn.bundle import read_bundle
from geolearn.models import MODELS, load_all
from geolearn.synthetic import CLASSES

pytestmark = [
    pytest.mark.usefixtures('one_thread'),
    pytest.mark.skipif(sys.platform != 'linux', reason='forks'),
    pytest.mark.timeout(120),
]


@pytest.fixture(scope='module')
def bundle(scene_chips, tmp_path_factory):
    load_all()
    folder = tmp_path_factory.mktemp('killed')
    data = prepare_data(scene_chips, chip_size=32, batch_size=4, ignore_classes=[0], working_dir=folder)
    return MODELS['FCN'](data, 'test_resnet', pretrained=False).save(folder / 'm')


def killed_at(method, count, function):
    """Run a function in a child process that is killed before the call `count` of a method of paths."""

    def child():
        plain, calls = getattr(pathlib.Path, method), []

        def dying(self, *rest, **options):
            calls.append(self)
            if len(calls) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(self, *rest, **options)

        setattr(pathlib.Path, method, dying)
        function()

    process = multiprocessing.get_context('fork').Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*'))


def test_a_killed_save_leaves_the_bundle_that_was_there(bundle, tmp_path):
    model = load_model(bundle)
    model.save(tmp_path / 'm')
    path = next((tmp_path / 'm').glob('*.dlpk'))
    before = path.read_bytes()
    killed_at('replace', 1, lambda: model.save(tmp_path / 'm'))
    assert path.read_bytes() == before
    model.save(tmp_path / 'm')  # removes what the killed one left
    assert read_bundle(path).weights.keys() == read_bundle(bundle).weights.keys()
    model.save(tmp_path / 'new')
    assert len(listing(tmp_path / 'm')) == len(listing(tmp_path / 'new'))


@pytest.mark.parametrize('call', [1, 2])
def test_a_killed_layer_is_absent_or_whole(scene_files, tmp_path, call):
    target = tmp_path / 'l.gpkg'
    killed_at('replace', call, lambda: vectorize_map(scene_files[1], target))
    assert not target.exists()  # the layer is renamed last
    vectorize_map(scene_files[1], target)
    assert listing(tmp_path) == ['l.gpkg', 'l.qml']


def test_a_killed_report_is_absent_or_whole(bundle, scene_chips, tmp_path):
    data = prepare_data(scene_chips, chip_size=32, batch_size=4, ignore_classes=[0], working_dir=tmp_path / 'w')
    model = load_model(bundle, data)
    killed_at('replace', 1, lambda: model.report(tmp_path / 'r.html'))
    assert not (tmp_path / 'r.html').exists()
    model.report(tmp_path / 'r.html')
    assert (tmp_path / 'r.html').read_text().rstrip().endswith('</html>')
    assert [name for name in listing(tmp_path) if not name.startswith('w')] == ['r.html']


def test_a_killed_export_is_no_chip_folder(scene_files, tmp_path):
    options = {'classes': CLASSES, 'tile_size': 32, 'sensor': 'Sentinel-2'}
    out = tmp_path / 'chips'
    killed_at('rename', 1, lambda: export_training_data(*scene_files, out, **options))
    assert not out.exists()
    export_training_data(*scene_files, out, **options)
    export_training_data(*scene_files, tmp_path / 'whole', **options)
    assert listing(out) == listing(tmp_path / 'whole')
    assert prepare_data(out, chip_size=32, batch_size=4).table is not None


def test_killed_maps_of_many_scenes_are_made_once_more_and_the_rest_is_kept(bundle, scene_files, tmp_path):
    scenes = []
    for name in ('a', 'b', 'c'):
        scenes.append(tmp_path / f'{name}.tif')
        scenes[-1].write_bytes(scene_files[0].read_bytes())
    maps, model = tmp_path / 'maps', load_model(bundle)
    # a process of its own: a forked one may wait forever for threads that torch had before
    script = f"""
        import os, pathlib, signal
        from geolearn import load_model
        replace, calls = pathlib.Path.replace, []
        def dying(self, target):
            calls.append(self)
            if len(calls) == 8:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)
        pathlib.Path.replace = dying
        load_model({str(bundle)!r}).predict_many({[str(path) for path in scenes]!r}, {str(maps)!r})
    """
    killed = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(script)], capture_output=True, text=True, timeout=110, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = {path.name: path.stat().st_mtime_ns for path in maps.glob('?.tif')}
    assert 0 < len(done) < 3
    for name in done:
        with rasterio.open(maps / name) as src:
            assert src.read(1).any()
    result = model.predict_many(scenes, maps)
    assert len(list(maps.glob('*.tif'))) == 3  # and no part of one
    model.predict_raster(scenes[0], tmp_path / 'whole.tif')
    assert (maps / 'a.tif').read_bytes() == (tmp_path / 'whole.tif').read_bytes()
    kept = [name for name, written in done.items() if (maps / name).stat().st_mtime_ns == written]
    assert len(kept) >= len(done) - 1
    assert not result.failed

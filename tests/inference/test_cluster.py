"""Maps on a Dask cluster: the bytes of one machine, whatever dies on the way."""

import csv
import importlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import cloudpickle
import distributed
import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from rasterio.windows import Window

from geolearn.errors import ArgumentError, RasterError
from geolearn.inference import cluster, tiles
from geolearn.models import UNet
from geolearn.tiling import make_grid

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not import tests

pytestmark = pytest.mark.usefixtures('one_thread')

TILES = {'tile_size': 64, 'halo': 8, 'blend': 'hann', 'outputs': ('classes', 'confidence')}


@pytest.fixture(scope='module')
def model(make_spec):
    """An untrained U-Net."""
    torch.manual_seed(0)
    spec = replace(make_spec(), model='UNet', backbone='test_resnet')
    return UNet.of(spec, UNet.build(spec).eval())


@pytest.fixture(scope='module')
def scene(tmp_path_factory, save):
    """200 x 180 pixels in 0..40."""
    pixels = np.random.default_rng(0).integers(0, 41, (2, 200, 180)).astype(np.int16)
    return save(tmp_path_factory.mktemp('scene') / 'scene.tif', pixels, names=['Red', 'Green'])


@pytest.fixture(scope='module')
def whole(model, scene, tmp_path_factory):
    """Return the bytes of the map and its confidence of one machine."""
    path = tmp_path_factory.mktemp('whole') / 'map.tif'
    model.predict_raster(scene, path, **TILES)
    return read_both(path)


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """Small rasters make several blocks."""
    monkeypatch.setattr(cluster, 'BLOCK_PIXELS', 6000)


@pytest.fixture
def in_process():
    """A cluster of two threads of this process."""
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=':0') as local,
        distributed.Client(local) as client,
    ):
        yield client


@pytest.fixture
def processes():
    """A cluster of two processes, which are started again when they die."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=':0', memory_limit='1.5GiB'
        ) as local,
        distributed.Client(local) as client,
    ):
        client.run(importlib.import_module, 'geolearn.models')  # which takes longer than the maps
        yield client


def read_both(path):
    return [path.with_name(f'{path.stem}{more}.tif').read_bytes() for more in ('', '_confidence')]


def journals(path):
    return list(path.with_name(f'{path.name}.part').glob('of-*/*.journal'))


def slow_down():
    """Let each tile take its time."""
    parts = tiles.MicroBatches.parts

    def slow(self, pixels):
        for part, outputs in parts(self, pixels):
            time.sleep(0.05)
            yield part, outputs

    tiles.MicroBatches.parts = slow


def fail_with_memory(times, where):
    """Let tiles fail as where memory does not suffice, so many times over all workers."""
    parts = tiles.MicroBatches.parts

    def failing(self, pixels):
        taken = len(list(Path(where).iterdir()))
        if taken < times:
            (Path(where) / f'{os.getpid()}-{time.monotonic_ns()}').touch()
            raise MemoryError('no memory left')
        return parts(self, pixels)

    tiles.MicroBatches.parts = failing


def hog_memory(where):
    """Take more than the worker has, once."""
    parts = tiles.MicroBatches.parts

    def hogging(self, pixels):
        taken = Path(where) / 'taken'
        if not taken.exists():
            taken.touch()
            held = [np.ones(2**25) for _ in range(12)]
            time.sleep(30)
            del held
        return parts(self, pixels)

    tiles.MicroBatches.parts = hogging


def test_the_map_of_a_cluster_is_that_of_one_machine(model, scene, whole, in_process, tmp_path, monkeypatch):
    target, seen = tmp_path / 'map.tif', []
    assert model.predict_raster(scene, target, client=in_process, **TILES, progress=seen.append) == target
    done = [progress.done for progress in seen if progress.stage == 'mapping']
    count = len(done)
    assert done == list(range(1, count + 1))
    assert count >= 6
    assert (seen[-1].stage, seen[-1].share, seen[-1].megapixels) == ('joining', 1, pytest.approx(0.036))
    assert read_both(target) == whole
    assert not (tmp_path / 'map.tif.part').exists()
    # neither workers nor who merges load the model again
    with monkeypatch.context() as patch:
        patch.setattr(UNet, 'from_spec', lambda *given: pytest.fail('was loaded before'))
        model.predict_raster(scene, tmp_path / 'again.tif', client=in_process, **TILES)
    assert read_both(tmp_path / 'again.tif') == whole
    with pytest.raises(RasterError, match='exists; pass overwrite=True'):
        model.predict_raster(scene, target, client=in_process, **TILES)
    with pytest.raises(ArgumentError, match='pass it without part='):
        model.predict_raster(scene, tmp_path / 'b.tif', client=in_process, part=(1, 2))
    # what fails to the last is listed, and the same call does only that
    tries = tmp_path / 'tries'
    tries.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(tiles.MicroBatches, 'parts', tiles.MicroBatches.parts)
        fail_with_memory(1000, tries)
        with pytest.raises(RasterError, match=rf'{count} of {count} blocks .*failed after 3 tries.*MemoryError: no'):
            model.predict_raster(scene, tmp_path / 'c.tif', client=in_process, **TILES)
    assert len(list(tries.iterdir())) == 3 * count
    with (tmp_path / 'c.tif.part' / 'failed.csv').open() as file:
        assert [row['part'] for row in csv.DictReader(file)] == [str(number) for number in range(1, count + 1)]
    model.predict_raster(scene, tmp_path / 'c.tif', client=in_process, **TILES)
    assert read_both(tmp_path / 'c.tif') == whole


@pytest.mark.parametrize('side', [1856, 2304, 3072, 4096])
def test_the_blocks_of_small_rasters_keep_all_workers_busy_to_the_end(monkeypatch, side):
    monkeypatch.undo()  # of the blocks of tests
    grid, window = make_grid((side, side), tile_size=512, halo=32, multiple=32), Window(0, 0, side, side)
    for threads in (2, 3):
        count = cluster.choose_count(grid, window, threads)
        ends = [0] * threads
        order = cluster._largest_first(grid, window, count, 'crop')
        for tiles_of_block, _ in order:
            ends[ends.index(min(ends))] += tiles_of_block
        whole = len(grid.rows) * len(grid.cols)
        assert sum(ends) == whole
        assert sorted(number for _, number in order) == list(range(1, count + 1))
        assert max(ends) <= 1.1 * whole / threads + 0.5


def test_workers_read_what_the_caller_names_from_their_own_folders(model, scene, in_process, tmp_path, monkeypatch):
    with rasterio.open(scene) as src:
        left, top = src.transform.c, src.transform.f
        across, down = src.transform.a, src.transform.e
        box = shapely.box(left + 30 * across, top + 120 * down, left + 140 * across, top + 20 * down)
        geopandas.GeoSeries([box], crs=src.crs).to_file(tmp_path / 'area.geojson')
    shutil.copy(scene, tmp_path / 'scene.tif')
    monkeypatch.chdir(tmp_path)
    model.predict_raster('scene.tif', 'here.tif', aoi='area.geojson', **TILES)
    run = cluster.run_tasks

    def elsewhere(*given):
        monkeypatch.chdir('/')
        return run(*given)

    monkeypatch.setattr(cluster, 'run_tasks', elsewhere)
    model.predict_raster('scene.tif', 'map.tif', aoi='area.geojson', client=in_process, **TILES)
    assert read_both(tmp_path / 'map.tif') == read_both(tmp_path / 'here.tif')


def test_files_inside_of_others_keep_their_names_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('a.nc', 'a.zip', 'b.tif'):
        Path(name).touch()
    assert cluster.absolute(['NETCDF:"a.nc":red', 'HDF5:a.nc://red', '/vsizip/a.zip/b.tif', 'zip://a.zip!b.tif']) == [
        f'NETCDF:"{tmp_path}/a.nc":red',
        f'HDF5:{tmp_path}/a.nc://red',
        f'/vsizip/{tmp_path}/a.zip/b.tif',
        f'zip://{tmp_path}/a.zip!b.tif',
    ]
    for name in ('https://x.org/b.tif', '/vsicurl/https://x.org/b.tif', '/vsis3/bucket/b.tif', f'{tmp_path}/b.tif'):
        assert cluster.absolute(name) == name


def test_scenes_are_mapped_by_workers_and_what_fails_is_listed(model, scene, in_process, tmp_path):
    (tmp_path / 'bad.tif').write_text('no raster')
    maps, options = tmp_path / 'maps', {'tile_size': 64, 'halo': 8}
    result = model.predict_many([scene, tmp_path / 'bad.tif'], maps, options=options, client=in_process)
    assert [(each.scene, each.state) for each in result.scenes] == [('scene', 'done'), ('bad', 'failed')]
    assert result.failed[0].error.startswith('cannot open raster')
    model.predict_raster(scene, tmp_path / 'map.tif', **options)
    assert (maps / 'scene.tif').read_bytes() == (tmp_path / 'map.tif').read_bytes()
    assert sorted(path.name for path in maps.glob('.*')) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNet, 'use_on_raster', lambda self, sources, dst, options: pytest.fail('was done'))
        assert model.predict_many([scene], maps, options=options, client=in_process).failed == ()


def test_what_is_no_client_is_refused(model, scene, tmp_path):
    with pytest.raises(ArgumentError, match=r'client must be a dask\.distributed\.Client .*, got a str'):
        model.predict_raster(scene, tmp_path / 'map.tif', client='tcp://localhost:8786')


# -- what happens to clusters


def run_aside(model, scene, target, client):
    """Map the scene in a thread; returns it, and a list that its error is put into."""
    failures = []

    def work():
        try:
            model.predict_raster(scene, target, client=client, **TILES)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, failures


def wait_for(condition, failures=(), seconds=150):
    until = time.monotonic() + seconds
    while not condition():
        assert not failures
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_worker_that_is_killed_costs_nothing_but_time(model, scene, whole, processes, tmp_path):
    target = tmp_path / 'map.tif'
    processes.run(slow_down)
    thread, failures = run_aside(model, scene, target, processes)
    wait_for(lambda: len(journals(target)) >= 3, failures)
    os.kill(next(iter(processes.run(os.getpid).values())), signal.SIGKILL)
    thread.join()
    assert failures == []
    assert read_both(target) == whole


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_workers_without_memory_are_tried_again(model, scene, whole, processes, tmp_path):
    (tmp_path / 'tries').mkdir()
    processes.run(fail_with_memory, 2, str(tmp_path / 'tries'))
    model.predict_raster(scene, tmp_path / 'a.tif', client=processes, **TILES)
    assert read_both(tmp_path / 'a.tif') == whole
    # Dask ends a worker that takes more than its limit
    (tmp_path / 'hog').mkdir()
    before = set(processes.run(os.getpid).values())
    processes.run(hog_memory, str(tmp_path / 'hog'))
    model.predict_raster(scene, tmp_path / 'b.tif', client=processes, **TILES)
    assert read_both(tmp_path / 'b.tif') == whole
    assert set(processes.run(os.getpid).values()) != before


def count_tiles(model, scene, target, client):
    """Map the scene, and return how many tiles were computed for it."""
    computed = []
    parts = tiles.MicroBatches.parts

    def counting(self, pixels):
        computed.append(len(pixels))
        return parts(self, pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles.MicroBatches, 'parts', counting)
        model.predict_raster(scene, target, client=client, **TILES)
    return sum(computed)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_lost_scheduler_is_said_and_a_new_one_does_what_is_missing(model, scene, whole, in_process, tmp_path):
    address, target = tmp_path / 'scheduler.json', tmp_path / 'map.tif'
    quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    words = [sys.executable, '-m', 'distributed.cli.dask_scheduler', '--scheduler-file', address, '--no-dashboard']
    scheduler = subprocess.Popen([*words, '--port', '0', '--host', '127.0.0.1'], **quiet)
    words = [sys.executable, '-m', 'distributed.cli.dask_worker', '--scheduler-file', address, '--no-dashboard']
    worker = subprocess.Popen([*words, '--nthreads', '1', '--death-timeout', '20'], **quiet)
    try:
        wait_for(address.exists)
        with distributed.Client(scheduler_file=str(address), timeout=30) as client:
            client.wait_for_workers(1, timeout=60)
            client.run(importlib.import_module, 'geolearn.models')
            client.run(slow_down)
            thread, failures = run_aside(model, scene, target, client)
            wait_for(lambda: len(journals(target)) >= 3, failures)
            scheduler.kill()
            thread.join()
        assert 'the Dask scheduler was lost. What is finished is kept' in str(failures[0])
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    assert not target.exists()
    done = {path: path.read_bytes() for path in journals(target) if path.read_bytes().count(b'\n') > 1}
    assert done
    missing = count_tiles(model, scene, target, in_process)
    assert read_both(target) == whole
    assert 0 < missing < count_tiles(model, scene, tmp_path / 'all.tif', in_process)

"""Maps on several workers and of many scenes: what splitting costs, and what is lost between scenes.

Prints the speed of each case, and last one JSON object of {name: {value, bar, ok}}.

    parts               map in parts, one after the other, and merged / map in one
    workers             one Dask worker of one thread / two of them, the same map, in the steady state: the clusters are
                        up, without Dask's dashboard and profiler, and have mapped with the model before. Each worker
                        has a core of its own: the threads of one that read and write would else use a second core,
                        which those of two do not have
    workers_limit       what two workers gain where each runs the model alone, without a raster: they share caches
                        and memory, and no map gains more
    same_bytes          whether all these maps are the same to the byte (1)
    many                predict_many on small scenes / the model alone on the same tiles
    submit_s            seconds to submit 100,000 blocks to a scheduler, and to take back what became of them
    scheduler_mb        memory that the scheduler takes for them, in MB, the client's in the same process included
"""

import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'  # a worker of one thread, and one thread here to compare it with
os.environ['TQDM_DISABLE'] = '1'  # bars would mix with the figures

import dask
import distributed
import numpy as np
import rasterio
import torch
from _measure import Check, Rate, parse_quick_and_rates, peak_mb, report, show_rates
from affine import Affine

from geolearn.bands import resolve_bands
from geolearn.classes import ClassInfo
from geolearn.inference import cluster
from geolearn.models import UNet
from geolearn.networks.spec import ModelSpec
from geolearn.normalize import Normalization
from geolearn.raster import GeoBox, RasterWriter
from geolearn.raster.writing import BLOCK_SIZE
from geolearn.statistics import BandStatistics

NAMES = ('B02', 'B03', 'B04', 'B08', 'B11', 'B12')
BLOCKS, QUICK_BLOCKS = 100_000, 10_000


def make_spec(model: str = 'UNet', backbone: str = 'resnet18') -> ModelSpec:
    """Say what a model of six bands and classes is built on."""
    count = len(NAMES)
    return ModelSpec(
        model=model,
        backbone=backbone,
        bands=tuple(resolve_bands(NAMES, sensor='Sentinel-2')),
        class_infos=tuple(ClassInfo(value, f'class {value}', (40 * value, 0, 0)) for value in range(1, 7)),
        ignored_values=(0,),
        chip_size=256,
        statistics=BandStatistics((0,) * count, (4000,) * count, (1500,) * count, (600,) * count),
        normalization=Normalization((1500,) * count, (600,) * count, 'the benchmark'),
        dtype='uint16',
    )


def make_model() -> UNet:
    """Build a U-Net on ResNet-18 with random weights."""
    torch.manual_seed(0)
    spec = make_spec()
    return UNet.of(spec, UNet.build(spec).eval())


def write_scene(path: Path, side: int, seed: int = 0) -> Path:
    """Write a tiled raster of correlated noise."""
    rng = np.random.default_rng(seed)
    box = GeoBox((side, side), Affine(10, 0, 400000, 0, -10, 5400000), 'EPSG:32633')
    tile = rng.normal(0, 40, (len(NAMES), min(BLOCK_SIZE, side), side)) + 1500 + 600 * np.sin(np.arange(side) / 37)
    with RasterWriter(path, box, dtype='uint16', count=len(NAMES), compress='deflate') as writer:
        for row in range(0, side, BLOCK_SIZE):
            writer.write(row, np.roll(tile, row, axis=2)[:, : side - row].astype(np.uint16))
    return path


READ = {'bands': NAMES, 'sensor': 'Sentinel-2', 'tile_size': 512}
"""One side of tiles for all: a machine alone may choose another by a measurement."""


def time_map(model: UNet, scene: Path, target: Path, **options: object) -> float:
    """Return the seconds of a map."""
    started = time.perf_counter()
    model.predict_raster(scene, target, overwrite=True, **READ, **options)
    return time.perf_counter() - started


def check_parts(model: UNet, scene: Path, whole: Path, rates: dict[str, Rate]) -> dict[str, Check]:
    """Compare a map in parts with one map."""
    target = whole.with_name('parts.tif')
    once, parts = [], []
    for _ in range(2):
        once.append(time_map(model, scene, whole))
        target.unlink(missing_ok=True)
        started = time.perf_counter()
        for number in range(1, 5):
            model.predict_raster(scene, target, part=(number, 4), **READ)
        model.predict_raster(scene, target, merge_parts=True, **READ)
        parts.append(time.perf_counter() - started)
    rates |= {'whole': Rate(megapixels_of(scene), once), 'four_parts': Rate(megapixels_of(scene), parts)}
    if target.read_bytes() != whole.read_bytes():
        raise SystemExit('the map in parts differs')
    return {'parts': Check(min(parts) / min(once), 1.1)}


def megapixels_of(path: Path) -> float:
    """Return the size of a raster."""
    with rasterio.open(path) as src:
        return float(src.width * src.height / 1e6)


def check_workers(
    model: UNet, scene: Path, large: Path, whole: Path, rounds: int, rates: dict[str, Rate]
) -> dict[str, Check]:
    """Compare one worker with two, in turn; both clusters are up, and have mapped the smaller scene before."""
    # both sample and draw all the time, on the cores that compute here
    dask.config.set({'distributed.worker.profile.enabled': False})
    folder = whole.parent
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with ExitStack() as stack:
        clients = {}
        for workers in seconds:
            local = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
            clients[workers] = stack.enter_context(distributed.Client(stack.enter_context(local)))
            clients[workers].wait_for_workers(workers)
            # imports in each worker take as long as a map of this size
            clients[workers].run(create_network)
            for core, address in enumerate(clients[workers].scheduler_info()['workers']):
                clients[workers].run(keep_to_core, core, workers=[address])
            time_map(model, scene, folder / f'small{workers}.tif', client=clients[workers])
        for _ in range(rounds):
            for workers, client in clients.items():
                seconds[workers].append(time_map(model, large, folder / f'{workers}.tif', client=client))
        alone = {workers: max(client.run(run_alone, TILES // 2).values()) for workers, client in clients.items()}
    rates |= {f'workers_{workers}': Rate(megapixels_of(large), values) for workers, values in seconds.items()}
    small = {path.read_bytes() for path in (whole, folder / 'small1.tif', folder / 'small2.tif')}
    same = len(small) == 1 and (folder / '1.tif').read_bytes() == (folder / '2.tif').read_bytes()
    ratio = statistics.median(one / two for one, two in zip(seconds[1], seconds[2]))
    return {
        'workers': Check(ratio, 1.8, at_least=True),
        'workers_limit': Check(2 * alone[1] / alone[2]),
        'same_bytes': Check(float(same), 1, at_least=True),
    }


def keep_to_core(number: int) -> None:
    """Let all threads of a worker, and those that they start, run on one of the cores; Linux alone can do that."""
    if hasattr(os, 'sched_setaffinity'):
        cores = sorted(os.sched_getaffinity(0))
        for thread in os.listdir('/proc/self/task'):
            os.sched_setaffinity(int(thread), {cores[number % len(cores)]})


TILES = 6
"""That the workers compute alone."""


def run_alone(tiles: int) -> float:
    """Return the seconds that a network like the model's takes for tiles in memory, with one thread."""
    network = importlib.import_module('segmentation_models_pytorch').Unet(
        'resnet18', encoder_weights=None, in_channels=len(NAMES), classes=len(NAMES)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tile = torch.rand(1, len(NAMES), 512, 512)
    with torch.inference_mode():
        network.eval()(tile)
        started = time.perf_counter()
        for _ in range(tiles):
            network(tile)
        seconds = time.perf_counter() - started
    torch.set_num_threads(threads)
    return seconds


def create_network() -> None:
    """Build a network, so that a worker has imported all that this takes."""
    importlib.import_module('segmentation_models_pytorch').Unet('resnet18', encoder_weights=None)
    importlib.import_module('geolearn.models')


def check_many(model: UNet, folder: Path, count: int, side: int, rates: dict[str, Rate]) -> dict[str, Check]:
    """Compare many small scenes with the model alone on as many tiles."""
    scenes = folder / 'scenes'
    scenes.mkdir()
    for number in range(count):
        write_scene(scenes / f'{number:04d}.tif', side, number)
    tile = torch.rand(1, len(NAMES), side, side) * 1200 + 900
    alone = 0.0
    with torch.inference_mode():
        model.network(tile)
        for half in (0, 1):
            started = time.perf_counter()
            for _ in range(half * (count // 2), count if half else count // 2):
                model.network(tile)
            alone += time.perf_counter() - started
            if not half:  # in between, so that what else the machine does hits both alike
                started = time.perf_counter()
                result = model.predict_many(scenes, folder / 'maps', options=READ | {'tile_size': side})
                many = time.perf_counter() - started
    assert not result.failed
    megapixels = count * side**2 / 1e6
    rates |= {'many': Rate(megapixels, [many]), 'many_model': Rate(megapixels, [alone])}
    return {'many': Check(many / alone, 1.2)}


def do_nothing(number: int) -> int:
    """Return the number of a block."""
    return number


def submit(blocks: int) -> None:
    """Submit a tenth of the blocks, then all, which do nothing, without workers; print seconds and MB."""
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=':0') as local,
        distributed.Client(local) as client,
    ):
        before = peak_mb()
        futures, kept = [], 0
        for count in (blocks // 10, blocks):
            started = time.perf_counter()
            futures += client.map(do_nothing, range(count), pure=False, retries=cluster.RETRIES, key=f'block-{count}')
            kept += count
            while len(local.scheduler.tasks) < kept:
                time.sleep(0.01)
            print(time.perf_counter() - started)
        print(peak_mb() - before, flush=True)
        # taking back what no worker took is quadratic in distributed, and nothing that maps do
        os._exit(0)


def check_submit(blocks: int) -> dict[str, Check]:
    """Measure the submission in a process of its own: ten times as many blocks take about ten times as long."""
    done = subprocess.run(
        [sys.executable, __file__, 'submit', str(blocks)], check=True, capture_output=True, text=True
    ).stdout.split()
    few, many, memory = (float(text) for text in done[-3:])
    print(f'{blocks} blocks: submitted in {many:.1f} s, a tenth in {few:.1f} s, {memory:.0f} MB')
    return {'submit_growth': Check(many / few / 10, 2.0), 'submit_s': Check(many), 'scheduler_mb': Check(memory)}


def main() -> None:
    """Run all checks."""
    quick, path = parse_quick_and_rates(__doc__)
    torch.set_num_threads(1)
    model = make_model()
    rates: dict[str, Rate] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checks = check_submit(QUICK_BLOCKS if quick else BLOCKS)
        checks |= check_many(model, folder, 4 if quick else 1000, 512, rates)
        scene = write_scene(folder / 'small.tif', 768 if quick else 2048)
        large = write_scene(folder / 'large.tif', 1856 if quick else 4096)
        checks |= check_parts(model, scene, folder / 'whole.tif', rates)
        checks |= check_workers(model, scene, large, folder / 'whole.tif', 1 if quick else 2, rates)
    show_rates(rates, path, benchmark='scale', threads=1)
    report(checks)


if __name__ == '__main__':
    if sys.argv[1:2] == ['submit']:
        submit(int(sys.argv[2]))
    else:
        main()

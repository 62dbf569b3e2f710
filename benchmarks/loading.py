"""Chips at memory speed: packed batches, packing and exporting against their limits and peers, in one run.

Prints, as its last line, one JSON object of {name: {value, bar, ok}}.

    packed_to_rasterio   packed batches/s over those of a torch Dataset that opens each chip with rasterio (2 workers)
    gathered_to_memmap   packed batches/s in the stored dtype, as they go to a GPU, over gathering the same bytes from a
                         plain numpy memory map
    packed_to_memmap     packed batches/s as float32 and int64, as a network takes them, over gathering from that memory
                         map and casting with numpy
    augmented_to_peer    packed and augmented batches/s over the same changes by albumentations, from that memory map
                         (the faster of no worker and two)
    packing_to_reading   time to pack a folder over that of reading each chip once with rasterio on both cores
    open_ms              time to open the pack of these chips (no bar)
    export_to_copying    time to export a raster over that of reading it and writing the same chips' bytes
    export_peak_mb       peak memory of that export

Chips are 256 px, 6 bands of uint16, GeoTIFF with deflate, and so are their labels. --quick takes fewer chips and a
smaller raster.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

os.environ['TQDM_DISABLE'] = '1'  # bars would mix with the figures
os.environ['NO_ALBUMENTATIONS_UPDATE'] = '1'

import numpy as np
import rasterio
import torch
from _measure import Check, child_peak_mb, interleave, median_ratio, parse_quick, peak_mb, report
from affine import Affine
from torch.utils.data import DataLoader, Dataset

from geolearn import prepare_data
from geolearn.chips.export import export_training_data
from geolearn.classes import ClassInfo
from geolearn.raster import GeoBox, RasterWriter, write_raster

BANDS, SIDE, BATCH_SIZE, CLASSES = 6, 256, 16, 6
PLACE = {'crs': 'EPSG:32633'}
THREADS = 2


def correlated_noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """uint16 pixels that deflate about as well as imagery."""
    rng = np.random.default_rng(seed)
    waves = 600 * np.sin(np.arange(shape[-1]) / 37 + rng.uniform(0, 6))
    return (rng.normal(0, 40, shape) + 1500 + waves).astype(np.uint16)


def write_chips(folder: Path, count: int) -> list[tuple[Path, Path]]:
    """Write plain images/ and labels/."""
    pairs = []
    for name in ('images', 'labels'):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        place = {'transform': Affine(10, 0, 10 * SIDE * index, 0, -10, 0)} | PLACE
        label = np.random.default_rng(index).integers(1, CLASSES + 1, (8, 8)).repeat(32, 0).repeat(32, 1)
        image = write_raster(
            folder / 'images' / f'{index:09d}.tif', correlated_noise((BANDS, SIDE, SIDE), index), **place
        )
        pairs.append((image, write_raster(folder / 'labels' / f'{index:09d}.tif', label.astype(np.uint8), **place)))
    return pairs


def read_with_rasterio(pair: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray]:
    """Read image and label as a careful user would."""
    with rasterio.open(pair[0]) as image, rasterio.open(pair[1]) as label:
        return image.read(), label.read(1)


class RasterioChips(Dataset):
    """What people write first."""

    def __init__(self, pairs: list[tuple[Path, Path]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = read_with_rasterio(self.pairs[index])
        return torch.from_numpy(image.astype(np.float32)), torch.from_numpy(label.astype(np.int64))


class AlbumentedChips(Dataset):
    """Chips in memory, changed one by one by albumentations as geolearn changes batches."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        import albumentations

        self.images, self.labels = images, labels
        # each in the range 0..1, which albumentations wants of floats
        self.change = albumentations.Compose(
            [
                albumentations.D4(p=1),
                albumentations.RandomBrightnessContrast(brightness_limit=0.1, contrast_limit=0.1, p=1),
                albumentations.GaussNoise(std_range=(0.0, 0.05), p=1),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.images[index].transpose(1, 2, 0).astype(np.float32) / 65535
        found = self.change(image=image, mask=self.labels[index])
        pixels = np.ascontiguousarray(found['image'].transpose(2, 0, 1)) * np.float32(65535)
        return torch.from_numpy(pixels), torch.from_numpy(found['mask'].astype(np.int64))


def seconds_per_batch(make: Callable[[], Iterator[object]], most: int) -> float:
    """Time batches without the first, which starts workers and warms caches."""
    batches = iter(make())
    next(batches)
    started = time.perf_counter()
    count = sum(1 for _ in islice(batches, most))
    return (time.perf_counter() - started) / count


def measure_batches(folder: Path, pairs: list[tuple[Path, Path]], rounds: int) -> dict[str, Check]:
    """Compare batches/s of all ways, round by round."""
    options = {'chip_size': SIDE, 'batch_size': BATCH_SIZE, 'val_split_pct': BATCH_SIZE / len(pairs)}
    plain = prepare_data(folder, transforms=False, **options)
    changed = prepare_data(folder, transforms={'noise': 0.05}, **options)
    images = np.lib.format.open_memmap(folder / 'all.npy', 'w+', np.uint16, (len(pairs), BANDS, SIDE, SIDE))
    labels = np.zeros((len(pairs), SIDE, SIDE), np.uint8)
    for index, pair in enumerate(pairs):
        images[index], labels[index] = read_with_rasterio(pair)
    images.flush()
    images = np.load(folder / 'all.npy', mmap_mode='r')  # afresh, as the pack is

    def gather() -> Iterator[object]:
        order = np.random.default_rng(0).permutation(len(pairs))
        for part in np.split(order, range(BATCH_SIZE, len(order), BATCH_SIZE)):
            yield images[part], labels[part]

    def gather_and_cast() -> Iterator[object]:
        for image, label in gather():
            yield torch.from_numpy(image.astype(np.float32)), torch.from_numpy(label.astype(np.int64))

    stored = plain.train_dl.with_config(replace(plain.train_ds.config, stored=True))
    ways: dict[str, tuple[Callable[[], Iterator[object]], int]] = {
        'rasterio': (lambda: DataLoader(RasterioChips(pairs), BATCH_SIZE, shuffle=True, num_workers=THREADS), 10),
        'memmap': (gather, 10**6),
        'memmap, cast': (gather_and_cast, 10**6),
        'gathered': (stored.collated, 10**6),
        'packed': (lambda: plain.train_dl, 10**6),
        'augmented': (lambda: changed.train_dl, 10**6),
    }
    try:
        peer = AlbumentedChips(images, labels)
    except ImportError:
        peer = None
    if peer is not None:
        for workers in (0, THREADS):
            ways[f'albumentations {workers}'] = (
                lambda workers=workers: DataLoader(peer, BATCH_SIZE, shuffle=True, num_workers=workers),
                10,
            )
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (make, most) in ways.items():
            found[name].append(seconds_per_batch(make, most))
    for name, seconds in found.items():
        print(f'{name:<20}{1 / statistics.median(seconds):10.1f} batches/s')

    def ratio(slow: str, fast: str) -> float:
        return statistics.median(a / b for a, b in zip(found[slow], found[fast]))

    peers = [ratio(name, 'augmented') for name in found if name.startswith('albumentations')]
    return {
        'packed_to_rasterio': Check(ratio('rasterio', 'packed'), 10, at_least=True),
        'gathered_to_memmap': Check(ratio('memmap', 'gathered'), 0.6, at_least=True),
        'packed_to_memmap': Check(ratio('memmap, cast', 'packed'), 0.6, at_least=True),
        'augmented_to_peer': Check(min(peers) if peers else None, 3, at_least=True),
    }


def measure_packing(folder: Path, cache: Path, pairs: list[tuple[Path, Path]], rounds: int) -> dict[str, Check]:
    """Compare packing with reading."""

    def read_all() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(read_with_rasterio, pairs):
                pass

    def pack() -> None:
        shutil.rmtree(cache / 'packs', ignore_errors=True)
        prepare_data(folder, val_split_pct=0.5)

    seconds = interleave({'read': read_all, 'pack': pack}, rounds=rounds)
    opened = interleave({'open': lambda: prepare_data(folder, val_split_pct=0.5)}, rounds=rounds)['open']
    print(f'reading {statistics.median(seconds["read"]):.2f} s, packing {statistics.median(seconds["pack"]):.2f} s')
    return {
        'packing_to_reading': Check(median_ratio(seconds, 'pack', 'read'), 1.3),
        'open_ms': Check(statistics.median(opened) * 1000),
    }


def write_scene(folder: Path, side: int) -> tuple[Path, Path]:
    """Write a raster of `side` pixels and labels on its grid."""
    geobox = GeoBox((side, side), Affine(10, 0, 400000, 0, -10, 5400000), PLACE['crs'])
    scene, labels = folder / 'scene.tif', folder / 'labels.tif'
    with (
        RasterWriter(scene, geobox, dtype='uint16', count=BANDS, compress='deflate') as images,
        RasterWriter(labels, geobox, dtype='uint8', compress='deflate') as classes,
    ):
        tile = correlated_noise((BANDS, SIDE, side), 0)
        for row in range(0, side, SIDE):
            rows = min(SIDE, side - row)
            images.write(row, np.roll(tile, row, axis=2)[:, :rows])
            classes.write(row, np.full((rows, side), row // SIDE % CLASSES + 1, np.uint8))
    return scene, labels


def export(scene: Path, labels: Path, out: Path) -> None:
    """Export all of a scene."""
    classes = [ClassInfo(value, f'class {value}', (40 * value, 0, 0)) for value in range(1, CLASSES + 1)]
    export_training_data(scene, labels, out, classes=classes, tile_size=SIDE, num_workers=THREADS)


def copy_bytes(scene: Path, out: Path, like: Path) -> None:
    """Read a scene by rows of chips on both cores, and write files of the sizes that its chips have."""
    out.mkdir()
    with rasterio.open(scene) as src:
        rows = range(0, src.height, SIDE)

    def read(row: int) -> None:
        with rasterio.open(scene) as src:
            src.read(window=((row, min(row + SIDE, src.height)), (0, src.width)))

    sizes = {path.relative_to(like): path.stat().st_size for path in like.rglob('*.tif')}

    def write(item: tuple[Path, int]) -> None:
        (out / '-'.join(item[0].parts)).write_bytes(bytes(item[1]))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, rows))
        list(pool.map(write, sizes.items()))


def measure_export(folder: Path, side: int, rounds: int) -> dict[str, Check]:
    """Compare an export with copying what it reads and writes."""
    scene, labels = write_scene(folder, side)
    export(scene, labels, folder / 'like')

    def fresh(job: Callable[[Path], None]) -> Callable[[], None]:
        def run() -> None:
            out = folder / 'out'
            shutil.rmtree(out, ignore_errors=True)
            job(out)

        return run

    jobs = {
        'copy': fresh(lambda out: copy_bytes(scene, out, folder / 'like')),
        'export': fresh(lambda out: export(scene, labels, out)),
    }
    seconds = interleave(jobs, rounds=rounds)
    shutil.rmtree(folder / 'out')
    print(f'copying {statistics.median(seconds["copy"]):.2f} s, export {statistics.median(seconds["export"]):.2f} s')
    peak = child_peak_mb(__file__, 'export', str(scene), str(labels), str(folder / 'out'))
    return {
        'export_to_copying': Check(median_ratio(seconds, 'export', 'copy'), 2),
        'export_peak_mb': Check(peak, 1024),
    }


def main() -> None:
    """Measure everything, or export in this process alone and print its peak memory."""
    if sys.argv[1:2] == ['export']:
        export(*map(Path, sys.argv[2:5]))
        print(peak_mb())
        return
    quick = parse_quick(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name), Path(name) / 'cache'
        os.environ['GEOLEARN_CACHE'] = str(cache)
        pairs = write_chips(folder / 'chips', 480 if quick else 1280)
        checks = measure_batches(folder / 'chips', pairs, rounds=3 if quick else 7)
        checks |= measure_packing(folder / 'chips', cache, pairs, rounds=3 if quick else 5)
        checks |= measure_export(folder, 3072 if quick else 10_000, rounds=3)
    report(checks)


if __name__ == '__main__':
    main()

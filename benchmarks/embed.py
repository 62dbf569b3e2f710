"""Embeddings against their limits: the encoder alone, one chip at a time, reading and writing alone.

Each function in `MEASUREMENTS` prints its figures and returns them. Last comes one JSON object of
{name: {value, bar, ok}}. Ratios are of processor time in one thread, which other work on the machine does not change;
reading and writing, which run beside the encoder, count in full.

    raster_over_encoder   embed_raster from file to file / the encoder alone on the same tiles
    raster_peak_mb        peak memory of the larger of two rasters in MB
    raster_memory_growth  peak memory of a raster four times as high / that of the smaller
    chips_batched         chips of 64 px embedded per second / with the same encoder called one chip at a time
    chips_called          the same / with `embed` called for each chip
    chips_batched_224, chips_called_224
                          with chips of 224 px: each fills a core by itself, so batches must only not be slower
    probe_linear_s        least squares on 270,000 x 768 vectors, 19 classes, three seeds, in seconds
    probe_mlp_s           the MLP on the same
    probe_peak_mb         peak memory of both, the vectors among it, in MB
    pixel_head            a PixelHead on a raster of 64 AlphaEarth bands / reading it and writing a map alone
    pixel_head_mpx_s      its megapixels per second
    pretrain_dino         steps/s of the loop of `pretrain` / a bare loop over the same network and batches
    pretrain_mae          the same of a masked autoencoder
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ['TQDM_DISABLE'] = '1'  # bars would mix with the figures

import numpy as np
import rasterio
import torch
from _measure import (
    Check,
    child_peak_mb,
    interleave,
    median_ratio,
    parse_quick,
    peak_mb,
    peaks_side_by_side,
    report,
)
from affine import Affine
from rasterio.windows import Window

from geolearn import PixelHead, from_rasters
from geolearn.bands import get_bands
from geolearn.embed import embed, embed_raster
from geolearn.embed.encoder import Encoder, EncoderOptions, make_encoder
from geolearn.inference import computing
from geolearn.inference.options import TilingOptions
from geolearn.probe import ProbeOptions, probe
from geolearn.raster import GeoBox, RasterWriter, open_raster, read_window

BANDS = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B11', 'B12')
"""The nine bands of Sentinel-2 that DOFA was trained on."""

PLACE = {'transform': Affine(10, 0, 400000, 0, -10, 5400000), 'crs': 'EPSG:32633'}

GIVEN = {'pretrained': False, 'normalize': ((1500.0,) * len(BANDS), (600.0,) * len(BANDS))}


def write_noise(path: Path, shape: tuple[int, int]) -> Path:
    """Write a raster of correlated noise around 1500, a few rows at a time."""
    rng = np.random.default_rng(0)
    tile = rng.normal(0, 40, (len(BANDS), 256, shape[1])) + 1500 + 600 * np.sin(np.arange(shape[1]) / 37)
    box = GeoBox(shape, **PLACE)
    with RasterWriter(path, box, dtype='uint16', count=len(BANDS), compress='deflate', band_names=BANDS) as writer:
        for row in range(0, shape[0], 256):
            rows = min(256, shape[0] - row)
            writer.write(row, np.roll(tile, row, axis=2)[:, :rows].astype(np.uint16))
    return path


def build(backbone: str) -> Encoder:
    """Build the encoder that `embed` builds for these bands."""
    sample = np.random.default_rng(0).normal(1500, 600, (len(BANDS), 1000)).clip(1)
    options = EncoderOptions(backbone, normalize=GIVEN['normalize'], pretrained=False)
    return make_encoder(options, get_bands('sentinel2_l2a', BANDS), sample, dtype='uint16')


def write_grid(path: Path, backbone: str) -> Path:
    """Embed a raster from file to file."""
    return embed_raster(path, path.with_suffix('.grid.tif'), backbone, sensor='sentinel2_l2a', overwrite=True, **GIVEN)


def measure_raster(folder: Path, quick: bool) -> dict[str, Check]:
    """Compare embed_raster with the encoder alone on as many tiles of the same size."""
    backbone = 'dofa_small' if quick else 'dofa_base'
    shape = (1008, 1008) if quick else (1568, 1568)
    path = write_noise(folder / 'raster.tif', shape)
    encoder = build(backbone)
    tiling = TilingOptions(encoder.side)
    side, halo = computing.choose_tile(encoder.spec, encoder.network, tiling)
    box = GeoBox(shape, **PLACE)
    stride = encoder.network.stride
    grid = computing.cut_raster(encoder.network, box, tiling, tile_size=side, halo=halo, stride=stride)
    tile = torch.rand(1, len(BANDS), *(length * stride for length in grid.tile_shape)) * 1000 + 1000
    count = len(grid.rows) * len(grid.cols)

    def alone() -> None:
        for _ in range(count):
            encoder.encode(tile)

    write_grid(write_noise(folder / 'small.tif', (256, 256)), backbone)  # loads what rasters need
    seconds = interleave(
        {'raster': lambda: write_grid(path, backbone), 'alone': alone},
        rounds=2,
        clock=time.process_time,
        warm_up=False,
    )
    ratio = median_ratio(seconds, 'raster', 'alone')
    print(f'{backbone}, {count} tiles of {tuple(tile.shape[2:])} px: embed_raster / encoder alone = {ratio:.3f}')
    return {'raster_over_encoder': Check(ratio, 1.15)}


def measure_memory(folder: Path, quick: bool) -> dict[str, Check]:
    """Compare the peak memory of two rasters, each embedded in a process of its own."""
    width, height = (224, 224) if quick else (2240, 1120)
    paths = [write_noise(folder / f'high{factor}.tif', (factor * height, width)) for factor in (1, 4)]
    peaks = peaks_side_by_side([partial(child_peak_mb, __file__, '--peak', str(path)) for path in paths])
    print(f'peak memory {peaks[0]:.0f} MB, with four times the rows {peaks[1]:.0f} MB')
    return {'raster_peak_mb': Check(peaks[1]), 'raster_memory_growth': Check(peaks[1] / peaks[0], 1.15)}


def measure_chips(folder: Path, quick: bool) -> dict[str, Check]:
    """Compare embedding many chips with the encoder called for one after the other, alone and through `embed`.

    Small chips fill a processor only together. One of 224 px fills a core by itself: there batches save what is done
    once for each call alone.
    """
    backbone, checks = 'dofa_small' if quick else 'dofa_base', {}
    encoder = build(backbone)
    given = {'bands': BANDS, 'sensor': 'sentinel2_l2a', **GIVEN}
    for side, number in ((64, 24 if quick else 64), (224, 10 if quick else 16)):
        chips = np.random.default_rng(0).normal(1500, 300, (number, len(BANDS), side, side)).astype(np.float32)

        def one_by_one(chips: np.ndarray = chips) -> None:
            for chip in chips:
                encoder.encode(chip[None])[0].mean((2, 3))

        def call_by_call(chips: np.ndarray = chips) -> None:
            for chip in chips:
                embed(chip, backbone, **given)

        def together(chips: np.ndarray = chips) -> None:
            embed(chips, backbone, **given)

        jobs = {'one': one_by_one, 'call': call_by_call, 'many': together}
        call_by_call(chips[:1])  # what is done once
        seconds = interleave(jobs, rounds=3, clock=time.process_time, warm_up=not quick)
        ratios = {name: median_ratio(seconds, name, 'many') for name in ('one', 'call')}
        print(
            f'{backbone}, {number} chips of {side} px: {number / min(seconds["many"]):.1f}/s, '
            f'{ratios["one"]:.2f} x the encoder one by one, {ratios["call"]:.2f} x embed called for each'
        )
        suffix, bar = ('', 1.3) if side == 64 else (f'_{side}', 1.0)
        checks[f'chips_batched{suffix}'] = Check(ratios['one'], bar, at_least=True)
        checks[f'chips_called{suffix}'] = Check(ratios['call'], bar, at_least=True)
    return checks


def probe_vectors(count: int, seeds: int) -> None:
    """Probe so many vectors of 768 dimensions; print seconds of the linear probe and the MLP, and the peak memory.

    The MLP sees each vector as often as it does 270,000 of them, so that the time of fewer is a share of theirs.
    """
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    options = ProbeOptions(epochs=3)
    rng = np.random.default_rng(0)
    labels = rng.random((count, 19)) < np.linspace(0.02, 0.4, 19)
    directions = 0.1 * rng.standard_normal((19, 768), dtype=np.float32)
    vectors = np.empty((count, 768), np.float32)
    for start in range(0, count, 10_000):
        part = labels[start : start + 10_000].astype(np.float32)
        vectors[start : start + 10_000] = rng.standard_normal((len(part), 768), dtype=np.float32) + part @ directions
    for method in ('linear', 'mlp'):
        started = time.perf_counter()
        result = probe(vectors, labels, method=method, seeds=range(seeds), options=options)
        seconds = time.perf_counter() - started
        print(f'{method} {seconds:.1f} {result.score(method).mean("f1_macro"):.3f}')
    print(peak_mb())


def measure_probes(folder: Path, quick: bool) -> dict[str, Check]:
    """Probe vectors in a process of its own: three seeds, a fifth of the items tested for each.

    Quick: a twentieth of them and one seed, with all five folds, which few vectors get: a twelfth of the work.
    """
    count, seeds, most = (13_500, 1, 10) if quick else (270_000, 3, 120)
    command = [sys.executable, __file__, '--probe', str(count), str(seeds)]
    environment = {name: text for name, text in os.environ.items() if not name.endswith('_NUM_THREADS')}
    lines = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split('\n')
    peak, found = float(lines[2]), {}
    for line in lines[:2]:
        method, seconds, score = line.split()
        print(f'{method} probe of {count:,} x 768 vectors, 19 classes, {seeds} seeds: {seconds} s, macro F1 {score}')
        found[f'probe_{method}_s'] = Check(float(seconds), most)
    print(f'peak memory {peak:.0f} MB, {count * 768 * 4 / 2**20:.0f} MB of it vectors')
    return found | {'probe_peak_mb': Check(peak, 4096)}


def write_codes(path: Path, side: int, block: int = 512) -> Path:
    """Write a raster of AlphaEarth's codes as Google stores them: int8 in square blocks, deflated."""
    rng = np.random.default_rng(0)
    part = min(side, 1024)
    vectors = rng.standard_normal((64, part, part), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=0)
    tile = np.rint(np.sign(vectors) * np.sqrt(np.abs(vectors)) * 127.5).astype(np.int8)
    names = [f'A{number:02d}' for number in range(64)]
    profile = {'driver': 'GTiff', 'width': side, 'height': side, 'count': 64, 'dtype': 'int8', 'nodata': -128}
    layout = {
        'tiled': True,
        'blockxsize': block,
        'blockysize': block,
        'compress': 'deflate',
        'BIGTIFF': 'YES',
        'ZLEVEL': 1,
        'NUM_THREADS': 'ALL_CPUS',
    }
    with rasterio.open(path, 'w', **profile, **layout, **PLACE) as dst:
        dst.descriptions = names
        for row in range(0, side, part):
            for col in range(0, side, part):
                rows, cols = min(part, side - row), min(part, side - col)
                dst.write(tile[:, :rows, :cols], window=Window(col, row, cols, rows))
    return path


def read_and_write(path: Path, out: Path, side: int) -> None:
    """Read every block row once and write a map of the same size."""
    with open_raster(path) as src:
        box = GeoBox((side, side), **PLACE)
        with RasterWriter(out, box, dtype='uint8', nodata=0) as writer:
            for row in range(0, side, 512):
                rows = min(512, side - row)
                pixels, _ = read_window(src, Window(0, row, side, rows), src.indexes)
                writer.write(row, pixels[0].view(np.uint8))


def measure_pixel_head(folder: Path, quick: bool) -> dict[str, Check]:
    """Compare a map of a PixelHead with reading the raster and writing a map."""
    # what is read to check units before a map begins is a few blocks: large ones are much of a small raster
    side, block = (2048, 256) if quick else (10_240, 512)
    path = write_codes(folder / 'codes.tif', side, block)
    labels = np.kron(np.arange(1, 5).reshape(2, 2), np.ones((64, 64))).astype(np.uint8)
    small = write_codes(folder / 'small.tif', 128)
    truth = folder / 'labels.tif'
    with RasterWriter(truth, GeoBox((128, 128), **PLACE), dtype='uint8', nodata=0) as writer:
        writer.write(0, labels)
    data = from_rasters(small, truth, dequantize='alphaearth', product='alphaearth v1', chip_size=32, split='random')
    model = PixelHead(data).fit(epochs=5)
    out = folder / 'map.tif'
    memory = {'max_memory': 2**31 if quick else 2**33}  # rows of 64 bands, each block read once
    model.predict_raster(small, out, product='alphaearth v1', cog=False, overwrite=True)  # loads what maps need
    jobs = {
        'map': lambda: model.predict_raster(path, out, product='alphaearth v1', cog=False, overwrite=True, **memory),
        'read_write': lambda: read_and_write(path, folder / 'copy.tif', side),
    }
    seconds = interleave(jobs, rounds=3 if quick else 1, warm_up=False)
    ratio, fastest = median_ratio(seconds, 'map', 'read_write'), min(seconds['map'])
    rate = side**2 / fastest / 1e6
    print(f'PixelHead, 64 bands, {side} px: {rate:.1f} Mpx/s, map / reading and writing = {ratio:.2f}')
    return {'pixel_head': Check(ratio, 1.3), 'pixel_head_mpx_s': Check(rate)}


def measure_pretraining(folder: Path, quick: bool) -> dict[str, Check]:
    """Steps of pretraining against a bare loop."""
    from _pretraining import compare_pretraining  # what trains takes seconds to import, in every child process

    return compare_pretraining(quick=quick, clock=time.process_time)


MEASUREMENTS: tuple[Callable[[Path, bool], dict[str, Check]], ...] = (
    measure_raster,
    measure_memory,
    measure_chips,
    measure_probes,
    measure_pixel_head,
    measure_pretraining,
)
"""Each takes a folder for its files and whether to be quick; add others here."""


def main() -> None:
    """Run all measurements, or embed one raster and print the peak memory."""
    if sys.argv[1:2] == ['--peak']:
        write_grid(Path(sys.argv[2]), 'dofa_tiny')
        print(peak_mb())
        return
    if sys.argv[1:2] == ['--probe']:
        probe_vectors(int(sys.argv[2]), int(sys.argv[3]))
        return
    quick, checks = parse_quick(__doc__), {}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for measure in MEASUREMENTS:
            started = time.perf_counter()
            checks |= measure(Path(folder), quick)
            print(f'  ({measure.__name__}: {time.perf_counter() - started:.0f} s)')
    report(checks)


if __name__ == '__main__':
    main()

"""predict_raster against its limits: reading and writing alone, and the model alone, in one run.

Prints the speed of each case in Mpx/s from file to file, and last one JSON object of {name: {value, bar, ok}}.

    limit_ratio         map / max(read + write alone, model alone on the same tiles)
    end_to_end          map / model alone on tiles that do not overlap, of its fastest size
    free_model          map by an almost free model / read + write alone
    auto_engine         map with engine='auto' / with the fastest of the engines installed, Unet on ResNet-18; small
                        maps follow a measurement that a large one would have made (alone with --only auto_engine)
    cog                 cloud-optimized map / plain map, tiny convolution
    probabilities       map with probabilities and confidence / map, tiny convolution
    blend               blended map / cut map by a transformer
    overhead            share of pixels computed twice
    peak_mb             peak memory of the widest raster in MB, with probabilities, stored in tiles
    memory_growth       peak memory of the widest raster / that of the narrowest, GDAL's cache included
    blended_peak_mb     the same of a raster in strips, which hold whole rows, where tiles fade into each other
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

os.environ['TQDM_DISABLE'] = '1'  # bars would mix with the figures

import numpy as np
import segmentation_models_pytorch as smp
import torch
from _measure import (
    Check,
    Rate,
    child_peak_mb,
    interleave,
    median_ratio,
    parse_only,
    parse_quick_and_rates,
    peak_mb,
    peaks_side_by_side,
    report,
    show_rates,
)
from affine import Affine
from rasterio.shutil import copy
from rasterio.windows import Window
from torch import nn

from geolearn.backbones import create_backbone
from geolearn.bands import resolve_bands
from geolearn.classes import ClassInfo
from geolearn.inference.computing import choose_setup
from geolearn.inference.encoding import ClassEncoding, Output
from geolearn.inference.engines import Engine, close_graphs, installed_engines
from geolearn.inference.mapping import map_sources
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.inference.plan import Blend
from geolearn.inference.source import Source
from geolearn.inference.tuning import KNOWN
from geolearn.models import UNet, load_model
from geolearn.networks.spec import ModelSpec
from geolearn.normalize import Normalization
from geolearn.raster import GeoBox, RasterWriter, open_raster, read_window
from geolearn.raster.writing import BLOCK_SIZE
from geolearn.statistics import BandStatistics
from geolearn.tiling import TileGrid, make_grid

Jobs = dict[str, Callable[[], object]]

BANDS = 6
CLASSES = tuple(ClassInfo(value, f'class {value}', (40 * value, 0, 0)) for value in range(1, 7))
TILE_SIZE, HALO = 512, 32
SIDES = (256, 512, 1024)
"""Tile sizes among which the fastest of a model is looked for."""
VIT_TILE, VIT_HALO = 224, 28
PLACE = {'transform': Affine(10, 0, 400000, 0, -10, 5400000), 'crs': 'EPSG:32633'}


def write_noise(path: Path, shape: tuple[int, int], *, strips: bool = False) -> None:
    """Write a deflate raster of correlated noise, in tiles or in strips, which packs about as well as imagery."""
    rng = np.random.default_rng(0)
    height, width = shape
    tile = rng.normal(0, 40, (BANDS, BLOCK_SIZE, width)) + 1500 + 600 * np.sin(np.arange(width) / 37)
    stored = path.with_name(f'tiled_{path.name}') if strips else path
    with RasterWriter(stored, GeoBox(shape, **PLACE), dtype='uint16', count=BANDS, compress='deflate') as writer:
        for row in range(0, height, BLOCK_SIZE):
            rows = min(BLOCK_SIZE, height - row)
            writer.write(row, np.roll(tile, row, axis=2)[:, :rows].astype(np.uint16))
    if strips:
        copy(stored, path, driver='GTiff', compress='deflate', predictor=2, interleave='pixel')
        stored.unlink()


class Scaled(nn.Module):
    """Brings stored values to about unit size first, as every geolearn model does."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits of (N, bands, H, W)."""
        return self.net(torch.nan_to_num((x - 1500) / 600))


class Free(nn.Module):
    """Costs nothing: the bands are the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return images (N, bands, H, W) as they are."""
        return x


class Probe(nn.Module):
    """A linear layer on the tokens of a transformer, enlarged to the image."""

    def __init__(self, name: str) -> None:
        super().__init__()
        bands = resolve_bands(['B02', 'B03', 'B04', 'B08', 'B11', 'B12'], sensor='Sentinel-2')
        self.backbone = create_backbone(name, bands, pretrained=False, strides=(16,))
        self.head = nn.Conv2d(self.backbone.channels[0], len(CLASSES), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits of (N, bands, H, W)."""
        return nn.functional.interpolate(self.head(self.backbone(x)[0]), scale_factor=16, mode='bilinear')


def make_network(name: str) -> nn.Module:
    """Build a network with random weights: a Unet on ResNet-18, a tiny convolution, or a transformer by its name."""
    torch.manual_seed(0)
    if name == 'free':
        return Free()
    if name == 'unet':
        net: nn.Module = smp.Unet('resnet18', encoder_weights=None, in_channels=BANDS, classes=len(CLASSES))
    elif name == 'tiny':
        net = nn.Sequential(nn.Conv2d(BANDS, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, len(CLASSES), 3, padding=1))
    else:
        net = Probe(name)
    return Scaled(net).eval()


def map_file(
    path: Path,
    network: nn.Module,
    out: Path,
    *,
    grid: tuple[int, int] = (TILE_SIZE, HALO),
    blend: Blend = 'crop',
    cog: bool = False,
    outputs: tuple[Output, ...] = ('classes',),
) -> None:
    """Map a file as predict_raster does."""
    with open_raster(path) as src:
        tiles = make_grid((src.height, src.width), tile_size=grid[0], halo=grid[1])
        sources = [Source(src, tuple(src.indexes))]
        encoding, tiling = ClassEncoding(CLASSES), TilingOptions()
        options = {'read': ReadOptions(), 'tiling': tiling, 'blend': blend, 'cog': cog, 'outputs': outputs}
        map_sources(sources, network, encoding, tiles, out, **options)


def read_and_write(path: Path, out: Path) -> None:
    """Read every block row once and write a map of the same size."""
    with open_raster(path) as src:
        box = GeoBox((src.height, src.width), **PLACE)
        with RasterWriter(out, box, dtype='uint8', nodata=0) as writer:
            for row in range(0, src.height, BLOCK_SIZE):
                rows = min(BLOCK_SIZE, src.height - row)
                pixels, _ = read_window(src, Window(0, row, src.width, rows), src.indexes)
                writer.write(row, (pixels[0] >> 8).astype(np.uint8))


def run_model(network: nn.Module, tiles: int, tile_shape: tuple[int, int]) -> None:
    """Run tiles that are already in memory, as float32, to class indices."""
    tile = torch.rand(1, BANDS, *tile_shape) * 1200 + 900
    with torch.inference_mode():
        for _ in range(tiles):
            network(tile).max(1).indices.to(torch.uint8)


def make_model(path: Path) -> UNet:
    """Save a Unet on ResNet-18 with random weights and its ONNX graph, and load it."""
    torch.manual_seed(0)
    spec = ModelSpec(
        model='UNet',
        backbone='resnet18',
        bands=tuple(resolve_bands(['B02', 'B03', 'B04', 'B08', 'B11', 'B12'], sensor='Sentinel-2')),
        class_infos=CLASSES,
        ignored_values=(),
        chip_size=256,
        statistics=BandStatistics((0,) * BANDS, (3000,) * BANDS, (1500,) * BANDS, (600,) * BANDS),
        normalization=Normalization((1500.0,) * BANDS, (600.0,) * BANDS, 'given'),
        dtype='uint16',
    )
    saved = UNet.of(spec, UNet.build(spec).eval()).save(path, export='onnx')
    model = load_model(saved)
    assert isinstance(model, UNet)
    return model


def _predict(model: UNet, image: Path, out: Path, engine: Engine) -> Callable[[], object]:
    given = {'tile_size': TILE_SIZE, 'device': 'cpu', 'scale': 1, 'overwrite': True, 'cog': False}

    def job() -> None:
        close_graphs()  # as in a process of its own, which opens its engine
        model.predict_raster(image, out, engine=engine, **given)

    return job


def measure_engines(folder: Path, scene: Path, out: Path, *, rounds: int) -> dict[str, list[float]]:
    """Map a scene with each engine and with 'auto', which knows what a large map would have measured."""
    os.environ['GEOLEARN_CACHE'] = str(folder)  # what an earlier run measured does not count
    model = make_model(folder / 'unet.dlpk')
    tiling = TilingOptions(tile_size=TILE_SIZE, device='cpu', engine='auto')
    choose_setup(model.spec, model.network, (2**13, 2**13), tiling, blend='crop', graph=model.onnx_graph)
    print('measured:', *(f'{name} {cost:.3f}' for costs in KNOWN.values() for name, cost in costs.items()))
    names = (*installed_engines(), 'auto')
    jobs: Jobs = {f'engine_{name}': _predict(model, scene, out, name) for name in names}
    return interleave(jobs, rounds=rounds, rest=0.2)


def check_engines(seconds: dict[str, list[float]]) -> Check:
    """Compare 'auto' with the fastest engine."""
    names = (f'engine_{name}' for name in installed_engines())
    quickest = min(names, key=lambda name: statistics.median(seconds[name]))
    return Check(median_ratio(seconds, 'engine_auto', quickest), 1.05)


def find_fastest(network: nn.Module, sides: tuple[int, ...], *, rounds: int) -> int:
    """Return the side of tiles that take least time per pixel; the largest is computed once."""
    jobs = {str(side): _run(network, (max(sides) // side) ** 2, side) for side in sides}
    seconds = interleave(jobs, rounds=rounds, warm_up=rounds > 1)
    return int(min(seconds, key=lambda side: min(seconds[side])))


def _run(network: nn.Module, tiles: int, side: int) -> Callable[[], None]:
    return lambda: run_model(network, tiles, (side, side))


def count(grid: TileGrid) -> int:
    """Return the number of tiles."""
    return len(grid.rows) * len(grid.cols)


def find_peaks(maps: Sequence[tuple[Path, str, str]]) -> list[float]:
    """Return the peak memory in MB of a process that maps one raster, with a network and a way to blend, for each."""
    return peaks_side_by_side(
        [
            partial(child_peak_mb, __file__, '--child', f'{raster}.map.tif', str(raster), network, blend)
            for raster, network, blend in maps
        ]
    )


def map_and_print_peak(out: str, raster: str, network: str, blend: str) -> None:
    """Map a raster, and print the peak memory of this process."""
    outputs: tuple[Output, ...] = ('classes', 'probabilities', 'confidence')
    blends: dict[str, Blend] = {'crop': 'crop', 'hann': 'hann'}
    map_file(Path(raster), make_network(network), Path(out), outputs=outputs, blend=blends[blend])
    print(peak_mb())


def main() -> None:
    """Measure and report."""
    quick, rates = parse_quick_and_rates(__doc__)
    side, tiny_side = (1216, 1536) if quick else (4096, 10240)
    widths = (1024, 3072) if quick else (1024, 4096, 20480)
    vit, vit_side = ('dofa_small', 448) if quick else ('dofa_base', 896)
    print(f'{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads')
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        image, wide, patch, out = (folder / f'{name}.tif' for name in ('image', 'wide', 'patch', 'map'))
        write_noise(image, (side, side))
        write_noise(wide, (tiny_side, tiny_side))
        write_noise(patch, (vit_side, vit_side))
        unet, tiny, free = (make_network(name) for name in ('unet', 'tiny', 'free'))
        transformer = make_network(vit)
        # warms up too
        fastest = find_fastest(unet, SIDES[:2] if quick else SIDES, rounds=1 if quick else 2)
        grid = make_grid((side, side), tile_size=TILE_SIZE, halo=HALO)
        every: tuple[Output, ...] = ('classes', 'probabilities', 'confidence')
        vit_grid = (VIT_TILE, VIT_HALO)
        # smaller than the other map, whose jobs take long enough as they are
        scene, scene_side = (folder / 'scene.tif', 768) if quick else (image, side)
        if quick:
            write_noise(scene, (scene_side, scene_side))
        convolution: Jobs = {
            'map': lambda: map_file(image, unet, out),
            'read_write': lambda: read_and_write(image, folder / 'copy.tif'),
            'model': lambda: run_model(unet, count(grid), grid.tile_shape),
            'model_plain': lambda: run_model(unet, round((side / fastest) ** 2), (fastest, fastest)),
        }
        light: Jobs = {
            'free': lambda: map_file(wide, free, out),
            'read_write_wide': lambda: read_and_write(wide, folder / 'copy.tif'),
            'tiny': lambda: map_file(wide, tiny, out),
            'tiny_cog': lambda: map_file(wide, tiny, out, cog=True),
            'tiny_probabilities': lambda: map_file(wide, tiny, out, outputs=every),
        }
        transformers: Jobs = {
            'transformer_crop': lambda: map_file(patch, transformer, out, grid=vit_grid),
            'transformer_hann': lambda: map_file(patch, transformer, out, grid=vit_grid, blend='hann'),
        }
        # jobs of a second differ by more than a limit allows, the first of each most of all
        seconds = interleave(convolution, rounds=5 if quick else 3)
        seconds |= interleave(light, rounds=5 if quick else 3)
        seconds |= interleave(transformers, rounds=3)
        engines = measure_engines(folder, scene, out, rounds=5 if quick else 3)
        seconds |= engines
        pixels = dict.fromkeys(convolution, side) | dict.fromkeys(engines, scene_side)
        pixels |= dict.fromkeys(transformers, vit_side)
        megapixels = {name: pixels.get(name, tiny_side) ** 2 / 1e6 for name in seconds}
        shown = {name: Rate(megapixels[name], values) for name, values in seconds.items()}
        show_rates(shown, rates, benchmark='predict', threads=torch.get_num_threads())
        print(f'fastest tiles of the model: {fastest} px; load {os.getloadavg()[0]:.1f}')
        slower = max(('read_write', 'model'), key=lambda name: statistics.median(seconds[name]))
        height, kind = (512, 'tiny') if quick else (1536, 'unet')
        maps = []
        for width in widths:
            maps.append((folder / f'{width}.tif', kind, 'crop'))
            write_noise(maps[-1][0], (height, width))
        maps.append((folder / 'strips.tif', 'tiny', 'hann'))
        write_noise(maps[-1][0], (height, widths[-1]), strips=True)
        *peaks, blended = find_peaks(maps)
        for width, peak in zip(widths, peaks):
            print(f'peak memory at a width of {width} px, with probabilities: {peak:.0f} MB')
        print(f'of a raster of that width in strips, whose tiles fade into each other: {blended:.0f} MB')
    report(
        {
            'limit_ratio': Check(median_ratio(seconds, 'map', slower), 1.05),
            'end_to_end': Check(median_ratio(seconds, 'map', 'model_plain'), 1.3),
            'free_model': Check(median_ratio(seconds, 'free', 'read_write_wide'), 2.0),
            'auto_engine': check_engines(seconds),
            'cog': Check(median_ratio(seconds, 'tiny_cog', 'tiny'), 1.25),
            'probabilities': Check(median_ratio(seconds, 'tiny_probabilities', 'tiny')),
            'blend': Check(median_ratio(seconds, 'transformer_hann', 'transformer_crop')),
            'overhead': Check(grid.overhead((side, side))),
            'peak_mb': Check(max(peaks), 1500),
            'memory_growth': Check(max(peaks) / peaks[0], 1.1),
            'blended_peak_mb': Check(blended, 1500),
        }
    )


def main_engines(*, quick: bool) -> None:
    """Measure and report the check of engines alone, on a scene of 9 tiles, or of 4."""
    side = 768 if quick else 1344
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_noise(folder / 'scene.tif', (side, side))
        seconds = measure_engines(folder, folder / 'scene.tif', folder / 'map.tif', rounds=9)
    for name, values in seconds.items():
        print(f'{name:<20} ' + ' '.join(f'{value:7.2f}' for value in values) + ' s')
    report({'auto_engine': check_engines(seconds)})


if __name__ == '__main__':
    if sys.argv[1:2] == ['--child']:
        map_and_print_peak(*sys.argv[2:])
    elif '--only' in sys.argv:
        main_engines(quick=parse_only(__doc__, ['auto_engine'])[0])
    else:
        main()

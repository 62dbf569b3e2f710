"""predict_raster against its limits: reading and writing alone, and the model alone, in one run.

Prints, as its last line, one JSON object of {name: {value, bar, ok}}.

    limit_ratio     map_sources / max(read + write alone, model alone on the same tiles in full batches)
    end_to_end      map_sources / model alone on tiles that do not overlap
    overhead        share of pixels computed twice
    memory_growth   peak memory of the large raster / that of the small one, GDAL's cache included
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ['TQDM_DISABLE'] = '1'  # bars would mix with the figures

import numpy as np
import segmentation_models_pytorch as smp
import torch
from _measure import Check, child_peak_mb, interleave, median_ratio, parse_quick, peak_mb, report
from affine import Affine

from geolearn.classes import ClassInfo
from geolearn.inference.mapping import ClassEncoding, map_sources
from geolearn.inference.tiles import ReadOptions, Source, TilingOptions
from geolearn.raster import GeoBox, RasterWriter, open_raster
from geolearn.raster.writing import BLOCK_SIZE
from geolearn.tiling import make_grid

BANDS = 6
CLASSES = tuple(ClassInfo(value, f'class {value}', (40 * value, 0, 0)) for value in range(1, 7))
TILE_SIZE, HALO, BATCH_SIZE = 512, 32, 4
PLACE = {'transform': Affine(10, 0, 400000, 0, -10, 5400000), 'crs': 'EPSG:32633'}


def write_noise(path: Path, side: int) -> None:
    """Write a tiled deflate raster of correlated noise, which packs about as well as imagery."""
    rng = np.random.default_rng(0)
    tile = rng.normal(0, 40, (BANDS, BLOCK_SIZE, side)) + 1500 + 600 * np.sin(np.arange(side) / 37)
    writer = RasterWriter(path, GeoBox((side, side), **PLACE), dtype='uint16', count=BANDS, compress='deflate')
    with writer:
        for row in range(0, side, BLOCK_SIZE):
            rows = min(BLOCK_SIZE, side - row)
            writer.write(row, np.roll(tile, row, axis=2)[:, :rows].astype(np.uint16))


def make_network() -> torch.nn.Module:
    """A Unet on ResNet-18 with random weights, laid out as convolutions on CPUs like it."""
    torch.manual_seed(0)
    net = smp.Unet('resnet18', encoder_weights=None, in_channels=BANDS, classes=len(CLASSES)).eval()
    return Scaled(net).eval()


class Scaled(torch.nn.Module):
    """Brings stored values to about unit size first, as every geolearn model does."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits of (N, bands, H, W)."""
        return self.net(torch.nan_to_num((x - 1500) / 600))


def map_file(path: Path, network: torch.nn.Module, out: Path) -> None:
    """Map a file as predict_raster does."""
    with open_raster(path) as src:
        grid = make_grid((src.height, src.width), tile_size=TILE_SIZE, halo=HALO)
        sources, tiling = [Source(src, tuple(src.indexes))], TilingOptions(batch_size=BATCH_SIZE)
        map_sources(sources, network, ClassEncoding(CLASSES), grid, out, read=ReadOptions(), tiling=tiling)


def read_and_write(path: Path, out: Path) -> None:
    """Read every block row once and write a map of the same size."""
    with open_raster(path) as src:
        box = GeoBox((src.height, src.width), **PLACE)
        with RasterWriter(out, box, dtype='uint8', nodata=0) as writer:
            for row in range(0, src.height, BLOCK_SIZE):
                rows = min(BLOCK_SIZE, src.height - row)
                pixels = src.read(window=((row, row + rows), (0, src.width)))
                writer.write(row, (pixels[0] >> 8).astype(np.uint8))


def run_model(network: torch.nn.Module, tiles: int, tile_shape: tuple[int, int]) -> None:
    """Run tiles that are already in memory, as float32, in full batches to class indices."""
    batch = torch.rand(BATCH_SIZE, BANDS, *tile_shape) * 1200 + 900
    with torch.inference_mode():
        for done in range(0, tiles, BATCH_SIZE):
            network(batch[: tiles - done]).max(1).indices.to(torch.uint8)


def main() -> None:
    """Measure and report."""
    quick = parse_quick(__doc__)
    side, rounds = (1024, 3) if quick else (4096, 3)
    small, large = (1024, 3072) if quick else (2048, 8192)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        image, out = folder / 'image.tif', folder / 'map.tif'
        write_noise(image, side)
        network = make_network()
        grid = make_grid((side, side), tile_size=TILE_SIZE, halo=HALO)
        tiles = len(grid.rows) * len(grid.cols)
        plain = (side // TILE_SIZE) ** 2
        jobs = {
            'map': lambda: map_file(image, network, out),
            'read_write': lambda: read_and_write(image, folder / 'copy.tif'),
            'model': lambda: run_model(network, tiles, grid.tile_shape),
            'model_plain': lambda: run_model(network, plain, (TILE_SIZE, TILE_SIZE)),
        }
        seconds = interleave(jobs, rounds=rounds)
        for name, values in seconds.items():
            print(f'{name:<12} ' + ' '.join(f'{value:7.2f}' for value in values) + ' s')
        slower = max(('read_write', 'model'), key=lambda name: sorted(seconds[name])[rounds // 2])
        peaks = []
        for length in (small, large):
            write_noise(image, length)
            peaks.append(child_peak_mb(__file__, '--child', str(image), str(out)))
            print(f'peak memory at {length} x {length}: {peaks[-1]:.0f} MB')
    report(
        {
            'limit_ratio': Check(median_ratio(seconds, 'map', slower), 1.1),
            'end_to_end': Check(median_ratio(seconds, 'map', 'model_plain'), 1.4),
            'overhead': Check(grid.overhead((side, side))),
            'memory_growth': Check(peaks[1] / peaks[0], 1.1),
        }
    )


if __name__ == '__main__':
    if sys.argv[1:2] == ['--child']:
        map_file(Path(sys.argv[2]), make_network(), Path(sys.argv[3]))
        print(peak_mb())
    else:
        main()

"""detect_objects against the model alone, training against a bare torchvision loop, windows against global attention.

Prints the speed of each case, of rasters in Mpx/s from file to file, and last one JSON object of
{name: {value, bar, ok}}.

    limit_ratio     detect_objects on a raster / the model alone on the same tiles in full batches
    memory_growth   peak memory of detect_objects on a large raster / on a small one
    training_step   speed of a training step / that of torchvision's Faster R-CNN in a bare loop, of the same sizes
    oriented_step   speed of a training step of RotatedFCOS / that of FCOS on the same backbone and levels
    windowed        time of ViT-B (quick: ViT-S) Faster R-CNN on 1024 pixels with global attention / with windows
    suppression     seconds for 50,000 boxes
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ['TQDM_DISABLE'] = '1'  # bars would mix with the figures

import numpy as np
import torch
from _measure import (
    Check,
    Rate,
    child_peak_mb,
    interleave,
    median_ratio,
    parse_quick_and_rates,
    peak_mb,
    peaks_side_by_side,
    report,
    show_rates,
)
from affine import Affine
from torch import nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from geolearn.backbones import create_backbone
from geolearn.bands import Band, resolve_bands
from geolearn.batch import Objects
from geolearn.classes import ClassInfo
from geolearn.inference.detecting import detect_tiles
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.inference.overlapping import nms
from geolearn.inference.placing import DetectOptions, merge_tiles
from geolearn.inference.source import Source
from geolearn.inference.vectors import objects_to_features, write_layer
from geolearn.networks.detection.architecture import LevelAnchors, RCNNOptions, RotatedOptions, SingleStageOptions
from geolearn.networks.detection.detector import DetectionLoss, Detector, FeaturePyramid
from geolearn.networks.detection.heads import FCOSHead, TwoStageHead
from geolearn.networks.detection.rotated import RotatedFCOSHead
from geolearn.networks.network import Normalize
from geolearn.oriented.geometry import hulls
from geolearn.raster import GeoBox, RasterWriter, open_raster, raster_geobox
from geolearn.raster.writing import BLOCK_SIZE
from geolearn.tiling import TileGrid, make_grid

BANDS: tuple[Band, ...] = tuple(resolve_bands(['Red', 'Green', 'Blue']))
CLASSES = (ClassInfo(1, 'object', (200, 0, 0)),)
TILE_SIZE, HALO, BATCH_SIZE = 512, 32, 4
PLACE = {'transform': Affine(0.1, 0, 400000, 0, -0.1, 5400000), 'crs': 'EPSG:32633'}
SIZES, RATIOS = [(32.0,), (64.0,), (128.0,), (256.0,), (512.0,)], (0.5, 1.0, 2.0)


def write_noise(path: Path, side: int) -> None:
    """Write a tiled deflate raster of correlated noise, which packs about as well as imagery."""
    rng = np.random.default_rng(0)
    block = rng.normal(0, 12, (3, BLOCK_SIZE, side)) + 100 + 30 * np.sin(np.arange(side) / 37)
    with RasterWriter(path, GeoBox((side, side), **PLACE), dtype='uint8', count=3, compress='deflate') as writer:
        for row in range(0, side, BLOCK_SIZE):
            rows = min(BLOCK_SIZE, side - row)
            writer.write(row, np.clip(np.roll(block, row, axis=2)[:, :rows], 0, 255).astype(np.uint8))


def make_detector(backbone: str = 'resnet18', **options: int) -> Detector:
    """A Faster R-CNN with random weights; on random weights every proposal becomes a few objects."""
    torch.manual_seed(0)
    maps = create_backbone(backbone, BANDS, pretrained=False, strides=(4, 8, 16, 32), **options)
    levels = FeaturePyramid(maps.channels, maps.strides, pooled=1)
    head = TwoStageHead(LevelAnchors(SIZES, RATIOS, levels.strides), 1, RCNNOptions(), masks=False)
    return Detector(Normalize([100.0] * 3, [30.0] * 3), maps, levels, head).eval()


def cut(shape: tuple[int, int]) -> TileGrid:
    """Return the tiles of a raster."""
    return make_grid(shape, tile_size=TILE_SIZE, halo=HALO)


def detect_file(path: Path, network: nn.Module, out: Path) -> None:
    """Detect as detect_objects does."""
    with open_raster(path) as src:
        tiling, grid, options = TilingOptions(batch_size=BATCH_SIZE), cut(src.shape), DetectOptions()
        sources = [Source(src, (1, 2, 3))]
        parts = detect_tiles(sources, network, grid, read=ReadOptions(), tiling=tiling, options=options)
        found = merge_tiles(parts, grid, options, None)
        write_layer(objects_to_features(found, raster_geobox(src), CLASSES, outlined=False), out)


def run_model(network: nn.Module, tiles: int, tile_shape: tuple[int, int]) -> None:
    """Run tiles that are already in memory, as float32, in full batches."""
    batch = torch.rand(BATCH_SIZE, 3, *tile_shape) * 90 + 55
    with torch.inference_mode():
        for done in range(0, tiles, BATCH_SIZE):
            network(batch[: tiles - done])


def make_boxes(count: int, side: int) -> torch.Tensor:
    """Boxes of 16 to 64 pixels."""
    corners = torch.rand(count, 2) * (side - 64)
    return torch.cat([corners, corners + 16 + 48 * torch.rand(count, 2)], 1)


def make_dense_detector(*, oriented: bool) -> Detector:
    """FCOS or RotatedFCOS on ResNet-18, on P3 to P7."""
    torch.manual_seed(0)
    maps = create_backbone('resnet18', BANDS, pretrained=False, strides=(8, 16, 32))
    levels = FeaturePyramid(maps.channels, maps.strides, pooled=2)
    places = LevelAnchors([(float(stride),) for stride in levels.strides], (1.0,), levels.strides)
    head = RotatedFCOSHead(places, 1, RotatedOptions()) if oriented else FCOSHead(places, 1, SingleStageOptions())
    return Detector(Normalize([100.0] * 3, [30.0] * 3), maps, levels, head)


def make_objects(count: int, side: int) -> Objects:
    """Oriented boxes of 16 to 64 pixels in any direction, and the level boxes around them."""
    middles, sides = torch.rand(count, 2) * (side - 64) + 32, 16 + 48 * torch.rand(count, 2)
    turned = torch.cat([middles, sides.sort(descending=True).values, torch.rand(count, 1) * 3 - 1.5], 1)
    return Objects(hulls(turned), torch.zeros(count, dtype=torch.int64), turned=turned)


def make_our_step(network: Detector, side: int) -> Callable[[], None]:
    """Return a training step of geolearn's."""
    network, loss = network.train(), DetectionLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-5)
    images = torch.rand(2, 3, side, side) * 90 + 55
    targets = [make_objects(8, side) for _ in range(2)]

    def step() -> None:
        torch.manual_seed(0)
        optimizer.zero_grad()
        loss(network(images, targets)).backward()
        optimizer.step()

    return step


def make_bare_step(side: int) -> Callable[[], None]:
    """Return a training step of torchvision's own, with batch normalization that trains as ours does."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name='resnet18', weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d
    )
    network = TorchvisionFasterRCNN(backbone, 2, min_size=side, max_size=side).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-5)
    images = list(torch.rand(2, 3, side, side))
    targets = [{'boxes': make_boxes(8, side), 'labels': torch.ones(8, dtype=torch.int64)} for _ in range(2)]

    def step() -> None:
        torch.manual_seed(0)
        optimizer.zero_grad()
        sum(network(images, targets).values()).backward()
        optimizer.step()

    return step


def run_vit(network: Detector, side: int) -> None:
    """Run one image."""
    with torch.inference_mode():
        network(torch.rand(1, 3, side, side) * 90 + 55)


def time_suppression(count: int = 50_000) -> float:
    """Return the seconds that so many boxes take, a few of which overlap each one."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 12_000, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 60, (count, 2))], axis=1)
    started = time.perf_counter()
    nms(boxes, np.zeros(count, np.int64), rng.random(count), overlap=0.3)
    return time.perf_counter() - started


def main() -> None:
    """Measure and report."""
    quick, rates = parse_quick_and_rates(__doc__)
    side, rounds = (640, 2) if quick else (8192, 3)
    small, large = (640, 1024) if quick else (2048, 8192)
    chip = 128 if quick else 512
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        image, out = folder / 'image.tif', folder / 'found.gpkg'
        write_noise(image, side)
        network, grid = make_detector(), cut((side, side))
        jobs = {
            'detect': lambda: detect_file(image, network, out),
            'model': lambda: run_model(network, len(grid.rows) * len(grid.cols), grid.tile_shape),
        }
        steps = {'ours': make_our_step(make_detector(), chip), 'bare': make_bare_step(chip)}
        dense = {
            name: make_our_step(make_dense_detector(oriented=name == 'oriented'), chip)
            for name in ('level', 'oriented')
        }
        vit = 'dofa_small' if quick else 'dofa_base'
        windowed, everywhere = make_detector(vit), make_detector(vit, window=0)
        looks = {'windowed': lambda: run_vit(windowed, 1024), 'global': lambda: run_vit(everywhere, 1024)}
        seconds: dict[str, list[float]] = {}
        run_vit(windowed, 256)
        # the first step of a network takes long: what it allocates and compiles is there for all that follow
        groups = ((jobs, rounds), (steps, 5), (dense, 3 if quick else 7), (looks, 2 if quick else 3))
        for group, count in groups:
            seconds |= interleave(group, rounds=count, warm_up=group is not looks or not quick)
        shown = {
            case: Rate(side**2 / 1e6, seconds[name]) for case, name in (('detect', 'detect'), ('detect_model', 'model'))
        }
        show_rates(shown, rates, benchmark='detection', threads=torch.get_num_threads())
        for name, values in seconds.items():
            if name not in jobs:
                print(f'{name:<20} ' + ' '.join(f'{value:7.2f}' for value in values) + ' s')
        children = []
        for length in (small, large):
            raster = folder / f'{length}.tif'
            write_noise(raster, length)
            given = ('--child', str(folder / f'{length}.gpkg'), str(raster))
            children.append(partial(child_peak_mb, __file__, *given))
        peaks = peaks_side_by_side(children)
        for length, peak in zip((small, large), peaks):
            print(f'peak memory at {length} x {length}: {peak:.0f} MB')
    report(
        {
            'limit_ratio': Check(median_ratio(seconds, 'detect', 'model'), 1.25),
            'memory_growth': Check(peaks[1] / peaks[0], 1.1),
            'training_step': Check(median_ratio(seconds, 'bare', 'ours'), 0.95, at_least=True),
            'oriented_step': Check(median_ratio(seconds, 'level', 'oriented'), 0.9, at_least=True),
            'windowed': Check(median_ratio(seconds, 'global', 'windowed'), 1.3, at_least=True),
            'suppression': Check(time_suppression()),
        }
    )


if __name__ == '__main__':
    if sys.argv[1:2] == ['--child']:
        detect_file(Path(sys.argv[3]), make_detector(), Path(sys.argv[2]))
        print(peak_mb())
    else:
        main()

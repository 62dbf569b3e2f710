"""Is our UNet as good as plain smp trained by a bare PyTorch loop? Three seeds of each, on the same splits and epochs.

Both are smp's U-Net on a ResNet-18 that starts from nothing, behind the same normalization. The bare loop has torch's
AdamW and one-cycle schedule with their defaults, the same highest rate, and batches from the same loader: same chips,
same order, same augmentation. Both are evaluated on held-out blocks of land after the last epoch, which nobody chose.

    python benchmarks/quality.py path/to/clouds_s2_l5

Prints, as its last line, one JSON object of {name: {value, bar, ok}}.

    ours     mean mIoU of our UNet over the seeds; the bar is the mean of plain smp less the spread
    plain    mean mIoU of plain smp
    spread   standard deviation over the seeds, the larger of the two
    seconds  of our trainings over those of the bare loop, median

The data are the reference masks of Wieland et al. 2019 as ukis-csmask ships them (the Sentinel-2 image). --quick takes
a synthetic scene instead, needs no data, and trains for fewer epochs.
"""

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from _clouds import export_clouds, read_clouds
from _measure import Check, report
from torch import nn
from torch.nn import functional

from geolearn import ChipData, UNet, export_training_data, prepare_data
from geolearn.chips.batches.loader import ChipLoader
from geolearn.classes import IGNORE_INDEX
from geolearn.metrics import ConfusionMatrix
from geolearn.networks.network import Normalize
from geolearn.synthetic import CLASSES, make_scene, write_scene

BACKBONE, LR, SEEDS = 'resnet18', 1e-3, (0, 1, 2)


def read_scene(folder: Path) -> ChipData:
    """Chips of a synthetic scene."""
    rasters = folder / 'scene.tif', folder / 'labels.tif'
    write_scene(make_scene(320, border=False), *rasters)
    chips = export_training_data(*rasters, folder / 'chips', classes=CLASSES, tile_size=64, sensor='Sentinel-2')
    return prepare_data(
        chips, chip_size=64, batch_size=4, split='blocks', block_size=640.0, val_split_pct=0.2, ignore_classes=[0]
    )


def reseed(data: ChipData, seed: int) -> ChipData:
    """The same chips in the same parts from the first epoch on, with order and augmentation by another seed."""
    loader = data.train_dl
    return replace(data, train_dl=ChipLoader(loader.dataset, replace(loader.options, seed=seed)))


def train_ours(data: ChipData, seed: int, epochs: int) -> float:
    """Return the mIoU of our UNet after the last epoch."""
    model = UNet(data, backbone=BACKBONE, pretrained=False)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        model.fit(epochs, lr=LR, checkpoint=False, seed=seed)
    return model.mIOU(mean=True)


def train_plain(data: ChipData, seed: int, epochs: int) -> float:
    """Return the mIoU of plain smp in a bare loop after the last epoch."""
    normalize = Normalize(data.normalization.mean, data.normalization.std)
    unet = smp.Unet(BACKBONE, encoder_weights=None, in_channels=len(data.bands), classes=data.c)
    network = nn.Sequential(normalize, unet).to(data.train_dl.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, epochs=epochs, steps_per_epoch=len(data.train_dl))
    for _ in range(epochs):
        network.train()
        for images, masks in data.train_dl:
            optimizer.zero_grad()
            functional.cross_entropy(network(images), masks, ignore_index=IGNORE_INDEX).backward()
            optimizer.step()
            schedule.step()
    return evaluate(network, data)


@torch.inference_mode()
def evaluate(network: nn.Module, data: ChipData) -> float:
    """Return the mIoU on the held-out blocks."""
    network.eval()
    matrix = ConfusionMatrix.empty(data.c)
    for images, masks in data.valid_dl:
        matrix.add(network(images).argmax(1), masks)
    return matrix.miou


def compare(data: ChipData, epochs: int) -> dict[str, Check]:
    """Train both with every seed, in turn."""
    trainings: dict[str, Callable[..., float]] = {'ours': train_ours, 'plain': train_plain}
    scores: dict[str, list[float]] = {name: [] for name in trainings}
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    for seed in SEEDS:
        for name, train in trainings.items():
            torch.manual_seed(seed)
            started = time.perf_counter()
            scores[name].append(train(reseed(data, seed), seed, epochs))
            seconds[name].append(time.perf_counter() - started)
            print(f'seed {seed}, {name}: mIoU {scores[name][-1]:.3f}, {seconds[name][-1]:.0f} s', flush=True)
    ours, plain = (statistics.mean(scores[name]) for name in trainings)
    spread = max(statistics.stdev(values) for values in scores.values())
    return {
        'ours': Check(ours, plain - spread, at_least=True),
        'plain': Check(plain),
        'spread': Check(spread),
        'seconds': Check(statistics.median(a / b for a, b in zip(seconds['ours'], seconds['plain']))),
    }


def main() -> None:
    """Train and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path, nargs='?', help='folder with sentinel2.npz')
    parser.add_argument('--epochs', type=int, help='15, or 6 with --quick')
    parser.add_argument('--quick', action='store_true', help='a synthetic scene, under 2 minutes')
    given = parser.parse_args()
    if not given.quick and given.data is None:
        parser.error('name the folder of clouds_s2_l5, or pass --quick')
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ['GEOLEARN_CACHE'] = f'{folder}/cache'
        data = read_scene(folder) if given.quick else read_clouds(export_clouds(given.data, folder, 'sentinel2'))
        print(data, flush=True)
        report(compare(data, given.epochs or (6 if given.quick else 15)))


if __name__ == '__main__':
    sys.exit(main())

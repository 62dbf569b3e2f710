"""`fit` against a bare PyTorch loop over the same network, and against torchgeo's task, decoder by decoder.

Prints, as its last line, one JSON object of {name: {value, bar, ok}}.

    fit_<decoder>_<backbone>       images/s of `fit` (chips from their pack, augmentation, clipping, AdamW, scores, bar)
                                   over those of a bare loop: the same network and loss, torch's fused AdamW, batches
                                   that are in memory already and as they are
    torchgeo_<decoder>_<backbone>  images/s of `fit` over those of torchgeo's SemanticSegmentationTask under Lightning's
                                   Trainer, with its own metrics, for networks that both have, weight for weight

All train on the same number of 6-band chips (256 px, batches of 8) and then go through the same validation chips; they
take turns in one process. --decoder and --backbone choose, and may be repeated; --quick takes small backbones, chips of
128 px, batches of 4 and two decoders. On a CPU that others use, OMP_NUM_THREADS=1 and --clock cpu measure what the
process itself computed, that of the threads that prepare batches included.
"""

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from _measure import Check, interleave, median_ratio, report
from torch import Tensor, nn

import geolearn
from geolearn import ChipData, export_training_data, prepare_data
from geolearn.models import PixelClassifier
from geolearn.synthetic import CLASSES, make_scene, write_scene

BARE_BAR, PEER_BAR = 0.95, 1.05
HLS_BANDS = ('B02', 'B03', 'B04', 'B8A', 'B11', 'B12')
DECODERS = (
    'UNet',
    'DeepLab',
    'DeepLabV3',
    'PSPNet',
    'UPerNet',
    'FPN',
    'SegFormer',
    'FCN',
    'LinearProbe',
    'MUSTER',
)
TORCHGEO = {'UNet': 'unet', 'DeepLab': 'deeplabv3+', 'UPerNet': 'upernet'}
"""Decoders with which both are the same network on a ResNet, weight for weight: both take smp's."""
CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}
LR = 1e-5

Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Plan:
    """What to measure: sizes, and which decoders on which backbones."""

    chip_size: int
    batch_size: int
    train_batches: int
    rounds: int
    decoders: Sequence[str]
    backbones: Sequence[str]
    clock: Callable[[], float]

    @property
    def train_count(self) -> int:
        """Training images in a round."""
        return self.train_batches * self.batch_size


VALID_COUNT = 2
"""Chips that are validated after the training ones; few, because training is what is measured."""


def make_data(folder: Path, plan: Plan) -> ChipData:
    """Chips of a synthetic Sentinel-2 scene, just as many as a round needs."""
    across, size = (plan.train_count + VALID_COUNT) // 3, plan.chip_size
    scene = make_scene((3 * size, across * size), border=False, cloud_fraction=0)
    write_scene(scene, folder / 'scene.tif', folder / 'labels.tif')
    rasters = folder / 'scene.tif', folder / 'labels.tif'
    chips = export_training_data(*rasters, folder / 'chips', classes=CLASSES, tile_size=size, sensor='Sentinel-2')
    return prepare_data(
        chips,
        chip_size=size,
        batch_size=plan.batch_size,
        val_split_pct=VALID_COUNT / (plan.train_count + VALID_COUNT),
        extract_bands=HLS_BANDS,
        ignore_classes=[0],
    )


def run_fit(model: PixelClassifier) -> None:
    """An epoch as a user runs it; bar and table are drawn, but to nowhere."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        model.fit(1, lr=LR, checkpoint=False)


def run_bare(network: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, parts: Sequence[Batches]) -> None:
    """The same epoch with nothing around it: no scores, no bar, no look at the losses."""
    train, valid = parts
    network.train()
    for images, masks in train:
        optimizer.zero_grad()
        loss(network(images), masks).backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        for images, masks in valid:
            loss(network(images), masks)


def run_torchgeo(task: nn.Module, parts: Sequence[Sequence[dict[str, Tensor]]]) -> None:
    """The same epoch of a Lightning task as its users run it, without its checkpoints and logs."""
    from lightning.pytorch import Trainer
    from torch.utils.data import DataLoader

    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)  # after the import, which sets it too
    off = {'logger': False, 'enable_checkpointing': False, 'enable_model_summary': False, 'num_sanity_val_steps': 0}
    loaders = [DataLoader(batches, batch_size=None) for batches in parts]  # type: ignore[arg-type]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trainer = Trainer(max_epochs=1, devices=1, **off)  # type: ignore[arg-type]
        trainer.fit(task, *loaders)  # type: ignore[arg-type]


def make_torchgeo_job(decoder: str, backbone: str, parts: Sequence[Batches]) -> Callable[[], None] | None:
    """torchgeo's epoch, or None where torchgeo is not installed or has not the same network."""
    if decoder not in TORCHGEO or not backbone.startswith('resnet') or not importlib.util.find_spec('torchgeo'):
        return None
    from torchgeo.trainers import SemanticSegmentationTask

    task = SemanticSegmentationTask(
        TORCHGEO[decoder], backbone, in_channels=len(HLS_BANDS), num_classes=len(CLASSES), ignore_index=-100, lr=LR
    )
    named = [[{'image': images, 'mask': masks} for images, masks in part] for part in parts]
    return partial(run_torchgeo, task, named)


def compare(decoder: str, backbone: str, data: ChipData, plan: Plan) -> dict[str, Check]:
    """Epochs of one decoder on one backbone, by `fit`, by the bare loop and by torchgeo."""
    torch.manual_seed(0)
    model: PixelClassifier = getattr(geolearn, decoder)(data, backbone=backbone, pretrained=False)
    parts = [[(batch[0].clone(), batch[1].clone()) for batch in loader] for loader in (data.train_dl, data.valid_dl)]
    run_fit(model)  # moves the network to its device, and into the layout that it trains in
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=LR, fused=True)
    jobs = {
        'fit': partial(run_fit, model),
        'bare': partial(run_bare, model.network, model.make_loss().to(data.train_dl.device), optimizer, parts),
    }
    scaled = [[(model.network.normalize(images), masks) for images, masks in part] for part in parts]
    if (peer := make_torchgeo_job(decoder, backbone, scaled)) is not None:
        jobs['torchgeo'] = peer
    seconds = interleave(
        {name: partial(_finished, job) for name, job in jobs.items()}, rounds=plan.rounds, clock=plan.clock
    )
    key = f'{decoder.lower()}_{backbone}'
    checks = {f'fit_{key}': Check(median_ratio(seconds, 'bare', 'fit'), BARE_BAR, at_least=True)}
    if decoder in TORCHGEO and backbone.startswith('resnet'):
        ratio = median_ratio(seconds, 'torchgeo', 'fit') if 'torchgeo' in seconds else None
        checks[f'torchgeo_{key}'] = Check(ratio, PEER_BAR, at_least=True)
    say(key, seconds, checks, plan)
    return checks


def _finished(job: Callable[[], None]) -> None:
    job()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def say(key: str, seconds: dict[str, list[float]], checks: dict[str, Check], plan: Plan) -> None:
    """Print at once what was measured, with the machine's load: others may be at work on it."""
    rates = ', '.join(f'{name} {plan.train_count / statistics.median(s):.2f}' for name, s in seconds.items())
    ratios = ', '.join(f'{name.split("_")[0]} {check.to_json()["value"]}' for name, check in checks.items())
    load = f' [load {os.getloadavg()[0]:.1f}]' if hasattr(os, 'getloadavg') else ''
    print(f'{key}: training images/s {rates}; ratio: {ratios}{load}', flush=True)


def read_plan() -> Plan:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='smaller sizes, same checks, under 2 minutes')
    parser.add_argument('--decoder', action='append', choices=DECODERS, help='only this one')
    parser.add_argument('--backbone', action='append', help='only this one')
    parser.add_argument('--rounds', type=int, help='of which the median is taken')
    parser.add_argument('--clock', choices=CLOCKS, default='wall', help='what counts as a second')
    given = parser.parse_args()
    if given.quick:
        names = given.decoder or ('UNet', 'SegFormer'), given.backbone or ('resnet18', 'dofa_tiny')
        return Plan(128, 4, 4, given.rounds or 3, *names, CLOCKS[given.clock])
    names = given.decoder or DECODERS, given.backbone or ('resnet50', 'dofa_base')
    return Plan(256, 8, 2, given.rounds or 5, *names, CLOCKS[given.clock])


def measure(plan: Plan) -> Iterator[dict[str, Check]]:
    """Measure one pair after the other."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ['GEOLEARN_CACHE'] = f'{folder}/cache'
        data = make_data(Path(folder), plan)
        for backbone in plan.backbones:
            for decoder in plan.decoders:
                yield compare(decoder, backbone, data, plan)


def main() -> None:
    """Measure and report."""
    warnings.filterwarnings('ignore', module='torchgeo|lightning|pytorch_lightning|torchmetrics')
    checks: dict[str, Check] = {}
    for found in measure(read_plan()):
        checks |= found
    report(checks)


if __name__ == '__main__':
    sys.exit(main())

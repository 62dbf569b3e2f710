"""A step of pretraining in the training loop of geolearn against a bare PyTorch loop, for benchmarks/embed.py.

    pretrain_dino, pretrain_mae  steps/s of the loop that `pretrain` runs (chips from memory, clipping, AdamW, measures
                                 of collapse, bar) over those of a bare loop: the same network, fused AdamW, the same
                                 batches as they are; the teacher's update belongs to both

Alone: ``python benchmarks/_pretraining.py [--quick] [--clock cpu]``.
"""

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from _measure import Check, interleave, median_ratio, report
from torch import Tensor

from geolearn import ChipData, create_backbone, from_arrays
from geolearn.history import History
from geolearn.networks.network import Normalize
from geolearn.pretrain import DinoOptions, MaeOptions
from geolearn.pretrain.callbacks import StepCallback
from geolearn.pretrain.collapse import CollapseScores
from geolearn.pretrain.dino import Dino
from geolearn.pretrain.mae import MaskedAutoencoder
from geolearn.pretrain.network import LastOutput, PretrainingNetwork
from geolearn.training import ChipLearner, FitOptions, make_learner, train

BAR = 0.95
LR, CLIP = 1e-5, 3.0
BANDS = ['VV', 'VH']
VALID = 2
"""Chips that are validated after the training ones; few, because training is what is measured."""

CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}


def make_data(chip: int, batch: int, batches: int) -> ChipData:
    """Chips of noise in memory, just as many as a round needs."""
    count = batch * batches + VALID
    images = np.random.default_rng(0).normal(-12, 4, (count, len(BANDS), chip, chip)).astype(np.float32)
    return from_arrays(images, bands=BANDS, batch_size=batch, val_split_pct=VALID / count, transforms=False)


def make_network(method: str, backbone: str, chip: int) -> PretrainingNetwork:
    """The network of a method, at random weights."""
    torch.manual_seed(0)
    encoder = create_backbone(backbone, BANDS, pretrained=False, form='tokens')
    normalize = Normalize([-12.0] * len(BANDS), [4.0] * len(BANDS))
    if method == 'dino':
        return Dino(normalize, encoder, DinoOptions(prototypes=1024, local_crops=4), chip)  # type: ignore[arg-type]
    return MaskedAutoencoder(normalize, encoder, MaeOptions(), chip, bands=len(BANDS))  # type: ignore[arg-type]


def run_geolearn(learner: ChipLearner, network: PretrainingNetwork) -> None:
    """An epoch as `pretrain` runs it; bar and table are drawn, but to nowhere."""
    options = FitOptions(1, LR, monitor=None, clip=CLIP, callbacks=(StepCallback(network),))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(learner, History(), options)


def run_bare(network: PretrainingNetwork, parts: Sequence[Sequence[Tensor]]) -> None:
    """The same epoch with nothing around it; gradients are clipped, as DINO's own code does.

    The optimizer is new, as in each call of `train`: moments of millions of weights take time to set up.
    """
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=LR, fused=True)
    network.train()
    for number, images in enumerate(parts[0]):
        optimizer.zero_grad()
        network(images)[1].backward()
        torch.nn.utils.clip_grad_norm_(learning, CLIP)
        optimizer.step()
        network.finish_step(number / len(parts[0]))
    network.eval()
    with torch.no_grad():
        for images in parts[1]:
            network(images)


def compare_pretraining(
    *, quick: bool, rounds: int | None = None, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Check]:
    """Measure both methods against the bare loop."""
    checks = {}
    for method in ('dino', 'mae'):
        backbone, chip, batch, batches = ('vit_tiny', 96, 8, 3) if quick else ('vit_small', 224, 16, 3)
        data = make_data(chip, batch, batches)
        network = make_network(method, backbone, chip)
        learner = make_learner(
            network,
            data.train_dl,
            data.valid_dl,
            LastOutput(),
            scores=CollapseScores(has_output=method == 'dino', has_labels=False),
            splitter=lambda module: [[p for p in module.parameters() if p.requires_grad]],
            forward_takes_targets=True,
        )
        parts = [[batch[0].clone() for batch in loader] for loader in (data.train_dl, data.valid_dl)]
        jobs = {
            'geolearn': partial(run_geolearn, learner, network),
            'bare': partial(run_bare, network, parts),
        }
        seconds = interleave(jobs, rounds=rounds or (5 if quick else 3), clock=clock)
        checks[f'pretrain_{method}'] = Check(median_ratio(seconds, 'bare', 'geolearn'), BAR, at_least=True)
        print(f'{method}, {backbone}, {chip} px: {checks[f"pretrain_{method}"].to_json()}', flush=True)
    return checks


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='smaller sizes, same checks')
    parser.add_argument('--rounds', type=int, help='of which the median is taken')
    parser.add_argument('--clock', choices=CLOCKS, default='wall', help='what counts as a second')
    given = parser.parse_args()
    report(compare_pretraining(quick=given.quick, rounds=given.rounds, clock=CLOCKS[given.clock]))


if __name__ == '__main__':
    sys.exit(main())

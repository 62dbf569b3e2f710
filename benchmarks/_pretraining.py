"""A step of pretraining in the training loop of geolearn against a bare PyTorch loop, for benchmarks/embed.py.

    pretrain_dino, pretrain_mae  steps/s of the loop that `pretrain` runs (chips from memory, clipping, AdamW, bar) over
                                 those of a bare loop: an equal network, fused AdamW, the same batches as they are; the
                                 teacher's update belongs to both

The two take turns within one epoch, step by step: after each of geolearn's the bare loop does one on the same batch,
and the median over all pairs counts. A step of geolearn's lasts from the end of the one before, so that fetching the
batch is part of it. What an epoch adds once (optimizer, validation) is no part of a step.

Alone: ``python benchmarks/_pretraining.py [--quick] [--clock cpu]``.
"""

import argparse
import contextlib
import copy
import gc
import io
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from _measure import Check, median_ratio, report
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
from geolearn.training import FitOptions, fastai, make_learner, train

BAR = 0.95
LR, CLIP = 1e-5, 3.0
BANDS = ['VV', 'VH']
WARM_UP = 2
"""Pairs of steps that do not count."""

VALID = 2
"""Chips that are validated after the training ones; few, because training is what is measured."""

CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}


def make_data(chip: int, batch: int, batches: int) -> ChipData:
    """Chips of noise in memory, just as many as the steps need."""
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


class BareLoop:
    """A training loop with nothing around it; gradients are clipped, as DINO's own code does."""

    def __init__(self, network: PretrainingNetwork) -> None:
        self.network = network.train()
        self.learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learning, lr=LR, fused=True)

    def step(self, images: Tensor, progress: float) -> None:
        """Learn from a batch."""
        self.network(images)[1].backward()
        torch.nn.utils.clip_grad_norm_(self.learning, CLIP)
        self.optimizer.step()
        self.network.finish_step(progress)
        self.optimizer.zero_grad()


class TakeTurns(fastai.QuickCallback):
    """Lets the bare loop do a step after each of geolearn's, and times both; the first ones warm up.

    Args:
        bare: The other loop.
        clock: What counts as a second.
    """

    order = 10_000  # after what all others do at the end of a batch

    def __init__(self, bare: BareLoop, clock: Callable[[], float]) -> None:
        self.bare, self.clock = bare, clock
        self.seconds: dict[str, list[float]] = {'geolearn': [], 'bare': []}
        self.started: float | None = None

    def after_batch(self) -> None:
        """Stop geolearn's clock, let the other loop do a step, and start the clock again."""
        if not self.training:
            return
        stopped = self.clock()
        self.bare.step(self.x.clone(), (self.iter + 1) / self.n_iter)
        ended = self.clock()
        if self.started is not None and self.iter >= WARM_UP:
            self.seconds['geolearn'].append(stopped - self.started)
            self.seconds['bare'].append(ended - stopped)
        self.started = self.clock()


def compare_method(
    method: str, *, backbone: str, chip: int, batch: int, steps: int, clock: Callable[[], float]
) -> Check:
    """Measure one method: the speed of geolearn's steps over that of bare ones."""
    data = make_data(chip, batch, steps + WARM_UP)
    network = make_network(method, backbone, chip)
    turns = TakeTurns(BareLoop(copy.deepcopy(network)), clock)
    learner = make_learner(
        network,
        data.train_dl,
        data.valid_dl,
        LastOutput(),
        scores=CollapseScores(has_output=method == 'dino', has_labels=False),
        splitter=lambda module: [[p for p in module.parameters() if p.requires_grad]],
        forward_takes_targets=True,
    )
    options = FitOptions(1, LR, monitor=None, clip=CLIP, callbacks=(StepCallback(network), turns))
    gc.collect()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(learner, History(), options)  # bar and table are drawn, but to nowhere
    return Check(median_ratio(turns.seconds, 'bare', 'geolearn'), BAR, at_least=True)


def compare_pretraining(*, quick: bool, clock: Callable[[], float] = time.perf_counter) -> dict[str, Check]:
    """Measure both methods against the bare loop."""
    backbone, chip, batch = ('vit_tiny', 96, 8) if quick else ('vit_small', 224, 16)
    checks = {}
    for method, steps in {'dino': 12, 'mae': 40}.items() if quick else {'dino': 5, 'mae': 15}.items():
        check = compare_method(method, backbone=backbone, chip=chip, batch=batch, steps=steps, clock=clock)
        checks[f'pretrain_{method}'] = check
        print(f'{method}, {backbone}, {chip} px, {steps} pairs of steps: {check.to_json()}', flush=True)
    return checks


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='smaller sizes, same checks')
    parser.add_argument('--clock', choices=CLOCKS, default='wall', help='what counts as a second')
    given = parser.parse_args()
    report(compare_pretraining(quick=given.quick, clock=CLOCKS[given.clock]))


if __name__ == '__main__':
    sys.exit(main())

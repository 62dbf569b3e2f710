"""Train a network with fastai's Learner. The only place that imports fastai."""

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm

with warnings.catch_warnings():
    # deprecations inside fastai's own imports, which no user of geolearn can act upon
    warnings.simplefilter('ignore', FutureWarning)
    warnings.simplefilter('ignore', DeprecationWarning)
    from fastai.callback.core import Callback
    from fastai.callback.schedule import LRFinder, valley
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner, Metric
    from fastai.optimizer import Adam

from geolearn.chips.loader import ChipLoader
from geolearn.history import History
from geolearn.metrics import ConfusionMatrix

SEARCHED_RATES = (1e-7, 10.0)
"""From where to where the range test goes."""

Splitter = Callable[[Any], Sequence[list[nn.Parameter]]]


class _FromMatrix(Metric):
    """A number read off the confusion matrix that all metrics of a learner share."""

    def __init__(self, name: str, matrix: ConfusionMatrix, *, fills: bool) -> None:
        self._name, self.matrix, self.fills = name, matrix, fills

    def reset(self) -> None:
        if self.fills:
            self.matrix.counts.zero_()

    def accumulate(self, learn: Learner) -> None:
        if self.fills:
            self.matrix.add(learn.pred.max(1).indices, learn.yb[0])

    @property
    def value(self) -> float:
        return getattr(self.matrix, self._name)

    @property
    def name(self) -> str:
        return self._name


class _KeepFrozen(Callback):
    """Run wholly frozen modules as in evaluation: their running statistics and dropout are part of what is frozen."""

    def before_train(self) -> None:
        for module in self.model.modules():
            own = list(module.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()


class _Watch(Callback):
    """Show a bar over the batches, write a row per epoch, and keep both in the history."""

    order = 60  # after fastai's Recorder, whose numbers it shows

    def __init__(self, history: History) -> None:
        self.history = history

    def before_epoch(self) -> None:
        self.started = time.perf_counter()
        title = f'epoch {len(self.history.epochs) + 1}'
        self.bar = tqdm(total=len(self.dls.train), desc=title, unit='batch', leave=False)

    def after_batch(self) -> None:
        if self.training:
            loss = float(self.recorder.losses[-1])
            self.history.batch_losses.append(loss)
            self.bar.set_postfix(loss=f'{loss:.3f}', refresh=False)
            self.bar.update()

    def after_epoch(self) -> None:
        self.bar.close()
        names = ('train_loss', 'valid_loss', 'accuracy', 'miou')
        row: dict[str, float] = {'epoch': len(self.history.epochs) + 1}
        row |= {name: float(value) for name, value in zip(names, self.learn.final_record)}
        row['seconds'] = time.perf_counter() - self.started
        self.history.epochs.append(row)
        if self.epoch == 0:
            tqdm.write(''.join(f'{name:>12}' for name in row))
        tqdm.write(''.join(f'{v:>12.0f}' if k in ('epoch', 'seconds') else f'{v:>12.4f}' for k, v in row.items()))

    def after_fit(self) -> None:
        self.bar.close()


def make_learner(
    network: nn.Module,
    train_dl: ChipLoader,
    valid_dl: ChipLoader,
    loss: nn.Module,
    *,
    class_count: int,
    splitter: Splitter,
) -> Learner:
    """Build the fastai Learner: AdamW, with the parameter groups that the splitter returns.

    Args:
        network: Maps images to logits.
        train_dl: Training batches.
        valid_dl: Validation batches.
        loss: Takes logits and class indices.
        class_count: Number of classes.
        splitter: Returns the parameter groups, the most pretrained first.
    """
    matrix = ConfusionMatrix.empty(class_count)
    metrics = [_FromMatrix('accuracy', matrix, fills=True), _FromMatrix('miou', matrix, fills=False)]
    learner = Learner(
        DataLoaders(train_dl, valid_dl),
        network.to(train_dl.device),
        loss_func=loss.to(train_dl.device),
        opt_func=Adam,  # its weight decay is decoupled: this is AdamW
        splitter=splitter,
        metrics=metrics,
        cbs=_KeepFrozen(),
        train_bn=False,  # frozen means frozen, batch normalisation too
    )
    for callback in list(learner.cbs):
        if type(callback).__name__ == 'ProgressCallback':
            learner.remove_cb(callback)
    return learner


def train(
    learner: Learner,
    history: History,
    *,
    epochs: int,
    learning_rate: float | slice | Sequence[float],
    one_cycle: bool,
    weight_decay: float,
) -> None:
    """Train for some epochs from where the network is now; rows are added to `history`.

    Args:
        learner: From `make_learner`.
        history: Extended in place.
        epochs: Passes over the training chips.
        learning_rate: Highest rate, or a slice from the trunk's to the head's, or one for each parameter group.
        one_cycle: Warm up and anneal (Smith & Topin 2017, arXiv:1708.07120) instead of a constant rate.
        weight_decay: Decoupled weight decay.
    """
    watch = _Watch(history)
    with learner.no_logging():
        if one_cycle:
            # a tenth of the run is enough warm-up; the default quarter leaves short runs too little time to anneal
            learner.fit_one_cycle(epochs, learning_rate, wd=weight_decay, pct_start=0.1, cbs=watch)
        else:
            learner.fit(epochs, learning_rate, wd=weight_decay, cbs=watch)


def find_learning_rate(
    learner: Learner, *, iterations: int = 100, scales: Sequence[float] | None = None
) -> tuple[float, list[float], list[float]]:
    """Run a learning-rate range test (Smith 2017, arXiv:1506.01186); the weights are put back afterwards.

    Args:
        learner: From `make_learner`.
        iterations: Number of batches.
        scales: Share of the rate that each parameter group learns at; None for one rate.

    Returns:
        The suggestion (fastai's "valley": half-way down the longest falling stretch), the rates and the losses.
    """
    folder = learner.path
    weights = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    with tempfile.TemporaryDirectory() as scratch, learner.no_logging(), warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # fastai names numpy.core while it saves
        learner.path = Path(scratch)
        try:
            # a first batch without labelled pixels costs 0, of which any loss is the fourfold at which the test would
            # stop: then it is run again to its end
            for stop in (True, False):
                low, high = (rate if scales is None else rate * np.asarray(scales) for rate in SEARCHED_RATES)
                finder = LRFinder(low, high, num_it=iterations, stop_div=stop)
                learner.fit(iterations // len(learner.dls.train) + 1, cbs=finder)
                if len(learner.recorder.losses) > iterations // 3:
                    break
        finally:
            learner.path = folder
            learner.model.load_state_dict(weights)  # fastai puts them back too, but not when it is interrupted
    skipped = iterations // 10
    rates = [float(rate) for rate in learner.recorder.lrs[skipped:-5]]
    losses = [float(loss) for loss in learner.recorder.losses[skipped:-5]]
    suggestion, _ = valley(rates, losses, iterations)
    return float(suggestion), rates, losses

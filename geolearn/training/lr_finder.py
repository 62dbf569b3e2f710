"""Find a learning rate by trying many, each on one batch."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from geolearn import errors, progress
from geolearn.training import checkpoints, fastai
from geolearn.training import distributed as processes
from geolearn.training.learner import ChipLearner

SEARCHED_RATES = (1e-7, 10.0)
"""From where to where the range test goes."""

MIN_LOSSES = 5
"""Fewer losses than this hold no valley."""


class _RangeTest(fastai.LRFinder):
    """fastai's finder, without the files that it writes to put the weights back."""

    def before_fit(self) -> None:
        """Begin without a best loss."""
        shown = processes.process_index() == 0
        self.bar = progress.ProgressBar(self.num_it, 'searching a learning rate', 'batch', show=shown)
        self.hps: dict[str, list[float]] = {name: [] for name in self.scheds}
        self.best_loss = float('inf')

    def after_batch(self) -> None:
        """Move the bar."""
        self.bar.update(detail=f'rate={float(self.hps["lr"][-1]) if self.hps["lr"] else 0:.1e}')
        super().after_batch()

    def after_fit(self) -> None:
        """Leave no gradients."""
        self.learn.opt.zero_grad()


def find_learning_rate(
    learner: ChipLearner, *, iterations: int = 100, scales: Sequence[float] | None = None
) -> tuple[float, list[float], list[float]]:
    """Run a learning-rate range test (Smith 2017, arXiv:1506.01186): from 1e-7 to 10, a batch for each rate.

    Weights, buffers, optimizer, random generators and the loader's epoch are put back afterwards. The test ends early
    where the smoothed loss is four times its lowest, or not finite.

    Args:
        learner: From `make_learner`.
        iterations: Number of batches.
        scales: Share of the rate that each parameter group gets; None for one rate.

    Returns:
        The suggestion, the rates and the smoothed losses. The suggestion is fastai's "valley": the rate half-way down
        the longest falling stretch of the loss, which is safer than where it falls most steeply.

    Raises:
        TrainingError: If too few losses are finite.
    """
    low, high = (rate if scales is None else rate * np.asarray(scales) for rate in SEARCHED_RATES)
    with _unchanged(learner), learner.no_logging():
        # a first batch without labelled pixels costs 0, of which any loss is the fourfold at which the test would
        # stop: then it is run again to its end
        for stop in (True, False):
            finder = _RangeTest(low, high, num_it=iterations, stop_div=stop)
            rates, losses = _run(learner, finder, iterations)
            if len(losses) > iterations // 3:
                break
    skipped = iterations // 10
    rates, losses = rates[skipped:-5], losses[skipped:-5]
    if len(losses) < MIN_LOSSES:
        raise errors.TrainingError(
            f'the search for a learning rate got only {len(losses)} finite losses; look at the chips with '
            'show_batch(), or pass a rate'
        )
    suggestion, _ = fastai.valley(rates, losses, iterations)
    return float(suggestion), rates, losses


def _run(learner: ChipLearner, finder: _RangeTest, iterations: int) -> tuple[list[float], list[float]]:
    try:
        learner.fit(iterations // len(learner.dls.train) + 1, cbs=finder)
    except errors.TrainingError as error:
        if not learner.recorder.losses:
            raise errors.TrainingError(f'the search for a learning rate ended with its first batch: {error}') from error
    finally:
        finder.bar.finish()
    rates = [float(rate) for rate in learner.recorder.lrs]
    losses = [float(loss) for loss in learner.recorder.losses]
    ends = [index for index, loss in enumerate(losses) if not math.isfinite(loss)]
    count = ends[0] if ends else len(losses)
    return rates[:count], losses[:count]


@contextmanager
def _unchanged(learner: ChipLearner) -> Iterator[None]:
    """Put back whatever the block changes in a learner."""
    weights = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    if learner.opt is None:
        learner.create_opt()
    parameters = [parameter for group in learner.opt.param_lists for parameter in group]
    moments = [copy.deepcopy(learner.opt.moments.get(parameter, {})) for parameter in parameters]
    hypers = learner.opt.hypers
    random_state, epoch = (checkpoints.random_tensors(), checkpoints.random_facts()), learner.dls.train.epoch
    learner.configure()
    try:
        yield
    finally:
        learner.configure()
        learner.model.load_state_dict(weights)
        for parameter, kept in zip(parameters, moments):
            learner.opt.moments[parameter] = kept
        for name in hypers[0]:
            learner.opt.set_hyper(name, [hyper[name] for hyper in hypers])
        learner.dls.train.epoch = epoch
        checkpoints.restore_random(*random_state)

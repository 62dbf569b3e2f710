"""What pretraining adds to the training loop: the teacher's steps, and the alarm of a collapse."""

import logging
from collections.abc import Callable, Mapping, Sequence

from geolearn.history import History
from geolearn.pretrain.network import PretrainingNetwork
from geolearn.pretrain.result import collapse_warning
from geolearn.training import distributed, fastai

log = logging.getLogger('geolearn')


class StepCallback(fastai.QuickCallback):
    """Tell the network of epochs and steps; all it does follows from where the training is, so that it can be resumed.

    Args:
        network: What is trained.
    """

    def __init__(self, network: PretrainingNetwork) -> None:
        self.network = network

    def before_train(self) -> None:
        """Begin an epoch."""
        self.network.begin_epoch(self.learn.epoch)

    def after_backward(self) -> None:
        """Change gradients before they are used."""
        self.network.begin_step()

    def after_step(self) -> None:
        """Take in a step."""
        done = self.learn.epoch * self.learn.n_iter + self.learn.iter + 1
        self.network.finish_step(done / (self.learn.n_epoch * self.learn.n_iter))


class CollapseAlarm(fastai.QuickCallback):
    """Warn once, as soon as the measures show a collapse.

    Args:
        history: Whose rows are looked at.
        find: Takes the rows, and returns which measures show a collapse.
    """

    order = 65  # after the row of the epoch is complete

    def __init__(self, history: History, find: Callable[[Sequence[Mapping[str, float]]], list[str]]) -> None:
        self.history, self._find = history, find
        self._warned = False

    def after_epoch(self) -> None:
        """Look at the row of the epoch."""
        found = self._find(self.history.epochs)
        if found and not self._warned and distributed.process_index() == 0:
            log.warning(collapse_warning(found))
        self._warned = self._warned or bool(found)

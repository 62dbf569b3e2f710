"""Deadline: a training that ends when its time is over."""

import math
import time

from geolearn.training import fastai


class OutOfTime(Exception):
    """The last moment has come in the middle of an epoch."""


class Deadline(fastai.QuickCallback):
    """End a training after the epoch in which its time is over, or before one that would not end by the last moment.

    A first epoch that takes longer is broken off.

    Args:
        end: When no further epoch begins, in seconds of `time.monotonic`.
        last: When the training is broken off.
    """

    order = 80  # after the epoch is written and kept

    def __init__(self, end: float, last: float) -> None:
        self.end, self.last = end, last
        self._began = math.inf

    def before_epoch(self) -> None:
        """Note when it began."""
        self._began = time.monotonic()

    def after_batch(self) -> None:
        """Break off.

        Raises:
            OutOfTime: At the last moment.
        """
        if self.learn.training and time.monotonic() > self.last:
            raise OutOfTime

    def after_epoch(self) -> None:
        """Begin no further epoch."""
        now = time.monotonic()
        if now > self.end or now + (now - self._began) > self.last:
            raise fastai.CancelFitException

"""How rate and momentum go over a training."""

import math
from collections.abc import Sequence

from geolearn.training._fastai import QuickCallback

WARM_UP = 0.1
"""Share of a run that warms up; fastai's quarter leaves short runs too little time to anneal."""

START_DIVISOR, END_DIVISOR = 25.0, 1e5
MOMENTA = (0.95, 0.85, 0.95)
"""As in fastai: rates from peak / 25 to the peak and to peak / 1e5, momentum the other way."""


class OneCycle(QuickCallback):
    """Warm up and anneal along half cosines (Smith & Topin 2017, arXiv:1708.07120).

    Where it is follows from the epoch and the batch alone, so that a resumed training needs no more.

    Args:
        peaks: Highest rate of each parameter group.
    """

    order = 60

    def __init__(self, peaks: Sequence[float]) -> None:
        self._peaks = [float(peak) for peak in peaks]

    def before_batch(self) -> None:
        """Set rate and momentum of the batch."""
        if self.learn.training:
            place = self.learn.pct_train
            factor = follow_cycle(place, (1 / START_DIVISOR, 1.0, 1 / END_DIVISOR))
            momentum = follow_cycle(place, MOMENTA)
            for hyper, peak in zip(self.learn.opt.hypers, self._peaks):
                hyper['lr'], hyper['mom'] = peak * factor, momentum


def follow_cycle(place: float, values: tuple[float, float, float]) -> float:
    """Return the value at a place from 0 to 1 between start, peak and end."""
    start, peak, end = values
    if place < WARM_UP:
        return _half_cosine(start, peak, place / WARM_UP)
    return _half_cosine(peak, end, (place - WARM_UP) / (1 - WARM_UP))


def _half_cosine(start: float, end: float, place: float) -> float:
    return start + (1 + math.cos(math.pi * (1 - place))) * (end - start) / 2

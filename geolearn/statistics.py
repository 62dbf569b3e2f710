"""Per-band statistics: sound or not, gathered from blocks of pixels, merged exactly; and percentiles from a sample."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class BandStatistics:
    """Minimum, maximum, mean and standard deviation of each band, in the stored units of the pixels."""

    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def is_sound(self) -> bool:
        """Whether the numbers can belong to real pixels: finite, ordered, and a spread that fits the range."""
        for low, high, mean, std in zip(self.minimum, self.maximum, self.mean, self.std):
            if not all(math.isfinite(value) for value in (low, high, mean, std)):
                return False
            slack = 1e-6 * max(abs(low), abs(high), 1.0)
            # no sample spreads wider than half its range (Popoviciu's inequality)
            if not low - slack <= mean <= high + slack or not 0 <= std <= (high - low) / 2 + slack:
                return False
            if high > low and std == 0:
                return False
        return len(self.mean) > 0

    def select(self, indexes: list[int]) -> 'BandStatistics':
        """Return the statistics of some bands, by 0-based index."""
        columns = (self.minimum, self.maximum, self.mean, self.std)
        return BandStatistics(*(tuple(column[i] for i in indexes) for column in columns))


VALUES_AT_ONCE = 2**19


@dataclass
class RunningStatistics:
    """Statistics of blocks of pixels, merged by Chan's parallel variance formula (1979)."""

    count: np.ndarray = field(default_factory=lambda: np.zeros(0))
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    m2: np.ndarray = field(default_factory=lambda: np.zeros(0))
    minimum: np.ndarray = field(default_factory=lambda: np.zeros(0))
    maximum: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, pixels: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Take in pixels (bands, height, width), leaving out those where `mask` is False."""
        flat = pixels.reshape(len(pixels), -1)
        flat = flat if mask is None else flat[:, mask.ravel()]
        if not flat.shape[1]:
            return
        rows = np.empty((2, len(flat)))
        # several small bands at a time: each call gives way to other threads; one large band: float64 takes much memory
        step = max(1, VALUES_AT_ONCE // flat.shape[1])
        for start in range(0, len(flat), step):
            part = slice(start, start + step)
            wide = flat[part].astype(np.float64)
            rows[0, part] = wide.mean(axis=1)
            wide -= rows[0, part, None]
            rows[1, part] = np.einsum('ij,ij->i', wide, wide)  # np.dot would start threads of its own
        count = np.full(len(flat), flat.shape[1], np.float64)
        low, high = flat.min(axis=1).astype(np.float64), flat.max(axis=1).astype(np.float64)
        self.merge(RunningStatistics(count, rows[0], rows[1], low, high))

    def merge(self, other: 'RunningStatistics') -> None:
        """Take in statistics gathered elsewhere."""
        if not len(other.count):
            return
        if not len(self.count):
            self.count, self.mean, self.m2 = other.count.copy(), other.mean.copy(), other.m2.copy()
            self.minimum, self.maximum = other.minimum.copy(), other.maximum.copy()
            return
        total = self.count + other.count
        delta = other.mean - self.mean
        self.m2 = self.m2 + other.m2 + delta**2 * self.count * other.count / total
        self.mean = self.mean + delta * other.count / total
        self.count = total
        self.minimum = np.minimum(self.minimum, other.minimum)
        self.maximum = np.maximum(self.maximum, other.maximum)

    def select(self, indexes: Sequence[int]) -> 'RunningStatistics':
        """Return what was gathered about some bands, by 0-based index."""
        columns = (self.count, self.mean, self.m2, self.minimum, self.maximum)
        return RunningStatistics(*(column[list(indexes)] if len(column) else column for column in columns))

    def result(self) -> BandStatistics:
        """Return what was gathered; NaN for bands without a valid pixel."""
        std = np.sqrt(self.m2 / self.count)
        columns = (self.minimum, self.maximum, self.mean, std)
        return BandStatistics(*(tuple(float(value) for value in column) for column in columns))


SPREAD_98 = 4.1075
"""Percentiles 2 and 98 of a normal distribution lie so many standard deviations apart."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles 2, 50 and 98 of each band, in stored units: where the pixels lie, whatever a few hot ones do."""

    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]

    def select(self, indexes: Sequence[int]) -> 'Percentiles':
        """Return the percentiles of some bands, by 0-based index."""
        return Percentiles(*(tuple(column[i] for i in indexes) for column in (self.low, self.median, self.high)))


def find_percentiles(pixels: np.ndarray) -> Percentiles | None:
    """Return the percentiles of each band of valid pixels (bands, n), or None where there are none."""
    if not pixels.size:
        return None
    low, median, high = np.percentile(pixels.astype(np.float64), (2, 50, 98), axis=1)
    return Percentiles(tuple(low.tolist()), tuple(median.tolist()), tuple(high.tolist()))


def count_values(raster: np.ndarray) -> dict[int, int]:
    """Count how often each value occurs in an array of integers."""
    if raster.dtype.kind == 'u' and raster.dtype.itemsize <= 2:
        counts = np.bincount(raster.ravel())
        found = np.flatnonzero(counts)
        return dict(zip(found.tolist(), counts[found].tolist()))
    values, numbers = np.unique(raster, return_counts=True)
    return dict(zip(values.tolist(), numbers.tolist()))

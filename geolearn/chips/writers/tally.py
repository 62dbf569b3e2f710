"""Count what the metadata of an export tells: pixels, features and band statistics of all chips."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from geolearn.raster import GeoBox
from geolearn.statistics import RunningStatistics


@dataclass(slots=True)
class Summary:
    """Smallest, largest, sum and number of some counts; sums are exact for whole numbers of any size."""

    low: float = math.inf
    high: float = -math.inf
    total: float = 0
    count: int = 0

    def add(self, values: Iterable[float]) -> None:
        """Take in values."""
        for value in values:
            self.low, self.high = min(self.low, value), max(self.high, value)
            self.total, self.count = self.total + value, self.count + 1

    def merge(self, other: 'Summary') -> None:
        """Take in another summary."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.total, self.count = self.total + other.total, self.count + other.count

    @property
    def mean(self) -> float:
        """Mean; 0 of nothing."""
        return self.total / self.count if self.count else 0.0

    def over(self, count: int) -> 'Summary':
        """Return the summary over `count` values of which those not added are 0."""
        if count == self.count:
            return self
        return Summary(min(self.low, 0), max(self.high, 0), self.total, count)

    def as_dict(self) -> dict[str, float]:
        """Return ArcGIS's form of it."""
        low, high = (self.low, self.high) if self.count else (0, 0)
        return {'Min': low, 'Max': high, 'Mean': self.mean, 'Sum': self.total, 'Count': self.count}


def _merge(mine: dict[int, Summary], other: Mapping[int, Summary]) -> None:
    for value, summary in other.items():
        mine.setdefault(value, Summary()).merge(summary)


@dataclass
class Tally:
    """What is known of some chips.

    Args:
        rows: Image and label files of each chip.
        bands: Statistics of valid pixels.
        pixels: For each class the pixels of the chips that hold any.
        classes_per_chip: Classes in each chip.
        areas: For each class the areas of its features in square map units.
        chips_with: For each class the features of the chips that hold any.
        features_per_chip: Features in each chip.
        cell_sizes: Width and height of the chips' pixels in map units.
        crs: CRS of the first chip.
    """

    rows: list[tuple[str, ...]] = field(default_factory=list)
    bands: RunningStatistics = field(default_factory=RunningStatistics)
    pixels: dict[int, Summary] = field(default_factory=dict)
    classes_per_chip: Summary = field(default_factory=Summary)
    areas: dict[int, Summary] = field(default_factory=dict)
    chips_with: dict[int, Summary] = field(default_factory=dict)
    features_per_chip: Summary = field(default_factory=Summary)
    cell_sizes: tuple[Summary, Summary] = field(default_factory=lambda: (Summary(), Summary()))
    crs: str | None = None

    def add_chip(self, files: tuple[str, ...], bands: RunningStatistics, place: GeoBox) -> None:
        """Take in what every chip has: files, statistics and place."""
        self.rows.append(files)
        self.bands.merge(bands)
        for summary, side in zip(self.cell_sizes, place.resolution):
            summary.add([float(f'{side:.12g}')])  # turning a chip leaves rounding behind
        self.crs = self.crs or place.crs

    def cell_size(self, which: str) -> dict[str, Any]:
        """Return the smallest (``'Min'``) or largest (``'Max'``) size of a pixel, as ArcGIS writes it."""
        side_x, side_y = (summary.as_dict()[which] for summary in self.cell_sizes)
        return {'x': side_x, 'y': side_y, 'spatialReference': {'wkt': self.crs} if self.crs else {}}

    def add_raster(self, counts: Mapping[int, int]) -> None:
        """Count the pixels of one chip, by class value."""
        present = {value: count for value, count in counts.items() if value}
        for value, count in present.items():
            self.pixels.setdefault(value, Summary()).add([count])
        self.classes_per_chip.add([len(present)])

    def add_features(self, values: np.ndarray, areas: np.ndarray) -> None:
        """Count the features of one chip: class values (n,) and areas (n,)."""
        for value in np.unique(values).tolist():
            found = areas[values == value].tolist()
            self.areas.setdefault(value, Summary()).add(found)
            self.chips_with.setdefault(value, Summary()).add([len(found)])
        self.features_per_chip.add([len(values)])

    def merge(self, other: 'Tally') -> None:
        """Take in what was counted elsewhere, behind what is here."""
        self.rows += other.rows
        self.bands.merge(other.bands)
        for mine, theirs in (
            (self.pixels, other.pixels),
            (self.areas, other.areas),
            (self.chips_with, other.chips_with),
        ):
            _merge(mine, theirs)
        self.classes_per_chip.merge(other.classes_per_chip)
        self.features_per_chip.merge(other.features_per_chip)
        for summary, found in zip(self.cell_sizes, other.cell_sizes):
            summary.merge(found)
        self.crs = self.crs or other.crs


def band_statistics(pixels: np.ndarray, mask: np.ndarray | None) -> RunningStatistics:
    """Return the statistics of a chip's valid pixels.

    Args:
        pixels: (bands, height, width).
        mask: (height, width), True where valid; None where all are.
    """
    found = RunningStatistics()
    found.add(pixels, mask)
    return found


def summaries(found: Mapping[int, Summary], values: Iterable[int], count: int | None = None) -> list[dict[str, Any]]:
    """Return ArcGIS's list of summaries in the order of class values, over `count` chips if given."""
    listed = [found.get(value, Summary()) for value in values]
    return [(item if count is None else item.over(count)).as_dict() for item in listed]

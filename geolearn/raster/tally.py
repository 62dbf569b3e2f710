"""Statistics of the bands of a raster, gathered while it is written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DIGITS = 9
"""Of what is written: sums differ in the last digits with the order in which they are made."""


@dataclass
class BandTally:
    """What one band held so far.

    Args:
        counts: Number of pixels of each value, for whole numbers.
        blocks: Number, least, largest, sum and sum of squares of the pixels of each block, for other numbers.
    """

    counts: dict[int, int] = field(default_factory=dict)
    blocks: list[tuple[int, float, float, float, float]] = field(default_factory=list)

    def add(self, pixels: np.ndarray, nodata: float | None) -> None:
        """Count the pixels of a block (height, width)."""
        if pixels.dtype.kind in 'iu':
            counts = np.bincount(pixels.ravel(), minlength=1)
            for value in np.flatnonzero(counts).tolist():
                if value != nodata:
                    self.counts[value] = self.counts.get(value, 0) + int(counts[value])
            return
        values = pixels[~np.isnan(pixels)]
        if values.size:
            exact = values.astype(np.float64)
            self.blocks.append(
                (values.size, float(values.min()), float(values.max()), float(exact.sum()), float(exact @ exact))
            )

    def merge(self, other: 'BandTally') -> None:
        """Take what another part of the band held."""
        for value, count in other.counts.items():
            self.counts[value] = self.counts.get(value, 0) + count
        self.blocks += other.blocks

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {'counts': sorted(self.counts.items()), 'blocks': self.blocks}

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> 'BandTally':
        """Undo `to_json`."""
        counts = {int(value): int(count) for value, count in stated['counts']}
        return cls(counts, [(int(block[0]), *map(float, block[1:])) for block in stated['blocks']])  # type: ignore[misc]

    def statistics(self) -> dict[str, float]:
        """Return minimum, maximum, mean and standard deviation of stored valid pixels, as GDAL names them."""
        whole = [(count, value, value, value * count, value**2 * count) for value, count in sorted(self.counts.items())]
        blocks = self.blocks or whole
        total = sum(block[0] for block in blocks)
        if not total:
            return {}
        mean = math.fsum(block[3] for block in blocks) / total
        variance = max(math.fsum(block[4] for block in blocks) / total - mean**2, 0.0)
        found = {
            'STATISTICS_MINIMUM': min(block[1] for block in blocks),
            'STATISTICS_MAXIMUM': max(block[2] for block in blocks),
            'STATISTICS_MEAN': mean,
            'STATISTICS_STDDEV': math.sqrt(variance),
        }
        return {key: float(f'{value:.{DIGITS}g}') for key, value in found.items()}


def merge_tallies(parts: Sequence[Sequence[BandTally]], bands: int) -> list[BandTally]:
    """Return the tallies of a raster's bands from those of its parts."""
    merged = [BandTally() for _ in range(bands)]
    for part in parts:
        for band, tally in zip(merged, part):
            band.merge(tally)
    return merged

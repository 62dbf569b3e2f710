"""Tell when chips to validate or test on share ground with chips to train on."""

from collections.abc import Sequence
from typing import NamedTuple

from geolearn.chips.footprints import find_footprints, find_overlaps
from geolearn.chips.splits import Split
from geolearn.raster import GeoBox


class Leaks(NamedTuple):
    """How many chips of each part overlap a training chip; `unplaced` chips of all parts have no place to compare."""

    valid: int
    test: int
    unplaced: int

    @property
    def total(self) -> int:
        """Chips of both parts that overlap a training chip."""
        return self.valid + self.test


def count_leaks(geoboxes: Sequence[GeoBox], split: Split) -> Leaks:
    """Count validation and test chips whose footprint shares area with that of a training chip.

    Only chips of one CRS are compared, and rotated chips by their hull. Chips without a place (pixel space) are counted
    apart: whether they leak is unknown.
    """
    places = find_footprints(geoboxes)
    valid, test = (int(find_overlaps(places, part, split.train).sum()) for part in (split.valid, split.test))
    return Leaks(valid, test, sum(int(places.groups[p] < 0) for p in (*split.train, *split.valid, *split.test)))


def leak_note(leaks: Leaks, split: Split, cure: str) -> str | None:
    """Return the warning about chips that share ground, with what to do about it, or None where none do."""
    found = [
        f'{count:,} of {len(part):,} {name} chips'
        for name, count, part in (('validation', leaks.valid, split.valid), ('test', leaks.test, split.test))
        if count
    ]
    if not found:
        return None
    return f'{" and ".join(found)} share ground with training chips, so scores will be too good; {cure}'

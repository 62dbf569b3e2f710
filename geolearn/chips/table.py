"""What is known about every chip without looking at its pixels again: place, statistics, labels."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from affine import Affine

from geolearn.chips.reader import Chip
from geolearn.raster import GeoBox
from geolearn.statistics import BandStatistics, RunningStatistics, count_values

SAMPLED_PIXELS = 200_000
"""About how many pixels of a folder are kept in `ChipTable.sample`."""


@dataclass(frozen=True, eq=False)
class ChipTable:
    """Facts about n chips, in columns. A plane is a band of one date; planes of one date lie together.

    Args:
        names: Of the chips.
        shapes: (n, 2) height and width.
        transforms: (n, 6) coefficients a, b, c, d, e, f of each chip's affine.
        crs: Distinct CRSs as WKT; None for chips that name none.
        crs_indexes: (n,) position in `crs`.
        dtype: Stored dtype of the images.
        dates: Number of dates.
        holed: (n,) bool, True where what is valid differs from plane to plane.
        counts: (n, planes) pixels that are valid in all planes.
        means: (n, planes).
        m2s: (n, planes) sums of squared deviations from the mean.
        minimums: (n, planes).
        maximums: (n, planes).
        value_offsets: (n + 1,) where each chip's part of `label_values` and `label_pixels` starts.
        label_values: Values of the label rasters, by chip.
        label_pixels: Valid pixels that hold them.
        object_offsets: (n + 1,) where each chip's part of `object_values` and `boxes` starts.
        object_values: Class values of the objects, or of chips as a whole.
        boxes: Left, top, right, bottom of the objects; no rows where they have none.
        sample: (k, planes) float32 pixels from all over the folder, valid in all planes.
        skipped: How often something in a label was left out, by reason.
        unreadable: Chips that were left out, each with the reason.
    """

    names: tuple[str, ...]
    shapes: np.ndarray
    transforms: np.ndarray
    crs: tuple[str | None, ...]
    crs_indexes: np.ndarray
    dtype: str
    dates: int
    holed: np.ndarray
    counts: np.ndarray
    means: np.ndarray
    m2s: np.ndarray
    minimums: np.ndarray
    maximums: np.ndarray
    value_offsets: np.ndarray
    label_values: np.ndarray
    label_pixels: np.ndarray
    object_offsets: np.ndarray
    object_values: np.ndarray
    boxes: np.ndarray
    sample: np.ndarray
    skipped: Mapping[str, int]
    unreadable: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def planes(self) -> int:
        """Bands of all dates."""
        return int(self.means.shape[1])

    @property
    def band_count(self) -> int:
        """Bands of one date."""
        return self.planes // self.dates

    def geobox(self, position: int) -> GeoBox:
        """Return where a chip lies."""
        height, width = self.shapes[position].tolist()
        return GeoBox(
            (height, width), Affine(*self.transforms[position].tolist()), self.crs[self.crs_indexes[position]]
        )

    def statistics(self) -> BandStatistics:
        """Return the pooled statistics of each band over all chips and dates."""
        return self.pooled(range(len(self))).result()

    def pooled(self, positions: Sequence[int]) -> RunningStatistics:
        """Pool the statistics of each band over some chips and all dates."""
        chosen = np.asarray(positions, np.int64)
        running = RunningStatistics()
        if not len(chosen):
            return running
        columns = (self.counts, self.means, self.m2s, self.minimums, self.maximums)
        by_date = [column[chosen].reshape(-1, self.dates, self.band_count) for column in columns]
        count, mean, m2, low, high = (column.reshape(-1, self.band_count) for column in by_date)
        total = count.sum(axis=0)
        pooled = (count * mean).sum(axis=0) / np.maximum(total, 1)
        running.count, running.mean = total, pooled
        running.m2 = (m2 + count * (mean - pooled) ** 2).sum(axis=0)
        running.minimum, running.maximum = low.min(axis=0), high.max(axis=0)
        return running if total.all() else RunningStatistics()

    def value_counts(self, positions: Sequence[int] | None = None) -> Counter[int]:
        """Count label values over some chips (None: all): pixels of rasters, else objects or chips."""
        rasters = len(self.label_values) > 0
        values = self.label_values if rasters else self.object_values
        amounts = self.label_pixels if rasters else np.ones(len(values), np.int64)
        if positions is not None:
            offsets = self.value_offsets if rasters else self.object_offsets
            wanted = np.zeros(len(self), bool)
            wanted[list(positions)] = True
            chosen = np.repeat(wanted, np.diff(offsets))
            values, amounts = values[chosen], amounts[chosen]
        found, inverse = np.unique(values, return_inverse=True)
        totals = np.zeros(len(found), np.int64)
        np.add.at(totals, inverse, amounts)
        return Counter(dict(zip(found.tolist(), totals.tolist())))

    def amounts(self, values: Sequence[int]) -> np.ndarray:
        """Return how many pixels (or objects) of each label value each chip holds: (n, len(values)) int64."""
        rasters = len(self.label_values) > 0
        held = self.label_values if rasters else self.object_values
        offsets = self.value_offsets if rasters else self.object_offsets
        weights = self.label_pixels if rasters else np.ones(len(held), np.int64)
        table = np.zeros((len(self), len(values)), np.int64)
        columns = {value: column for column, value in enumerate(values)}
        rows = np.repeat(np.arange(len(self)), np.diff(offsets))
        known = np.array([columns.get(value, -1) for value in held.tolist()], np.int64)
        np.add.at(table, (rows[known >= 0], known[known >= 0]), weights[known >= 0])
        return table

    def objects(self, position: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return class values (k,) and boxes (k, 4), or None, of one chip."""
        part = slice(self.object_offsets[position], self.object_offsets[position + 1])
        return self.object_values[part], self.boxes[part] if len(self.boxes) else None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return every column as an array; what is no array goes into ``json``."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        rest = {name: value for name, value in columns.items() if not isinstance(value, np.ndarray)}
        arrays = {name: value for name, value in columns.items() if isinstance(value, np.ndarray)}
        return arrays | {'json': np.frombuffer(json.dumps(rest).encode(), np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> 'ChipTable':
        """Make a table from what `to_arrays` returned."""
        rest: dict[str, Any] = json.loads(arrays['json'].tobytes())
        lists = {name: tuple(rest[name]) for name in ('names', 'crs', 'unreadable')}
        columns: dict[str, Any] = {f.name: arrays[f.name] for f in fields(cls) if f.name in arrays}
        return cls(**columns, **(rest | lists))


def join_tables(tables: Sequence[ChipTable], prefixes: Sequence[str]) -> ChipTable:
    """Put tables of equal bands and dates one after another; names get their table's prefix."""
    first = tables[0]
    if len(tables) == 1:
        return first
    crs = tuple(dict.fromkeys(name for table in tables for name in table.crs))
    columns: dict[str, Any] = {
        f.name: np.concatenate([getattr(table, f.name) for table in tables])
        for f in fields(first)
        if isinstance(getattr(first, f.name), np.ndarray)
    }
    columns['crs_indexes'] = np.concatenate(
        [np.array([crs.index(name) for name in table.crs], np.int64)[table.crs_indexes] for table in tables]
    )
    for name in ('value_offsets', 'object_offsets'):
        columns[name] = np.concatenate([[0], *(np.diff(getattr(table, name)) for table in tables)]).cumsum()
    return replace(
        first,
        **columns,
        names=tuple(f'{prefix}/{name}' for table, prefix in zip(tables, prefixes) for name in table.names),
        crs=crs,
        dtype=str(np.result_type(*(table.dtype for table in tables))),
        skipped=sum((Counter(table.skipped) for table in tables), Counter()),
        unreadable=tuple(reason for table in tables for reason in table.unreadable),
    )


@dataclass(frozen=True, slots=True)
class ChipFacts:
    """The row of one chip, found while it was read; it holds on to nothing large.

    Args:
        geobox: Where the chip lies.
        dtype: Stored dtype of its pixels.
        planes: Number of planes.
        dates: Number of dates.
        holed: Whether what is valid differs from plane to plane.
        statistics: Of each plane, over pixels that are valid in all of them.
        pixels_by_value: How often each value of the label raster occurs, over the same pixels.
        sample: (k, planes) float32 pixels.
        values: Class values of objects, or of the chip.
        boxes: Of the objects, or None.
        skipped: Why something in the label was left out.
    """

    geobox: GeoBox
    dtype: str
    planes: int
    dates: int
    holed: bool
    statistics: RunningStatistics
    pixels_by_value: Mapping[int, int]
    sample: np.ndarray
    values: np.ndarray
    boxes: np.ndarray | None
    skipped: tuple[str, ...]


def find_facts(chip: Chip, *, sampled: int) -> ChipFacts:
    """Gather the facts of one chip; `sampled` is how many of its pixels to keep."""
    raster = chip.label.raster
    valid: np.ndarray | None = None if chip.mask is None else np.logical_and.reduce(chip.mask, axis=0)
    counted: Mapping[int, int] = {}
    if raster is not None and not np.issubdtype(raster.dtype, np.floating):
        held = raster if valid is None else raster[valid]
        counted = count_values(held)
    running = RunningStatistics()
    running.add(chip.pixels, valid)
    return ChipFacts(
        GeoBox(chip.pixels.shape[1:], chip.geobox.transform, chip.geobox.crs),
        str(chip.pixels.dtype),
        len(chip.pixels),
        chip.dates,
        chip.mask is not None and len(chip.mask) > 1,
        running,
        counted,
        _sample(chip, valid, sampled),
        chip.label.values,
        chip.label.boxes,
        chip.label.skipped,
    )


def _sample(chip: Chip, valid: np.ndarray | None, size: int) -> np.ndarray:
    """Take pixels evenly from those that are valid in all planes: (k, planes) float32."""
    flat = chip.pixels.reshape(len(chip.pixels), -1)
    places = None if valid is None else np.flatnonzero(valid)
    count = flat.shape[1] if places is None else len(places)
    if not count:
        return np.zeros((0, len(flat)), np.float32)
    picked = np.linspace(0, count - 1, min(size, count)).astype(np.int64)
    return flat[:, picked if places is None else places[picked]].T.astype(np.float32)


_STATISTICS = (
    ('counts', 'count', 0.0),
    ('means', 'mean', 0.0),
    ('m2s', 'm2', 0.0),
    ('minimums', 'minimum', np.inf),
    ('maximums', 'maximum', -np.inf),
)


class TableBuilder:
    """Collect chips and their facts, in order, into a table."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._facts: list[ChipFacts] = []

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, facts: ChipFacts) -> None:
        """Take in one chip; all are of one dtype and number of planes and dates."""
        self._names.append(name)
        self._facts.append(facts)

    def result(self, unreadable: Sequence[str]) -> ChipTable:
        """Return the table of what was collected."""
        first, boxes = self._facts[0], [facts.geobox for facts in self._facts]
        crs = tuple(dict.fromkeys(box.crs for box in boxes))
        found = [facts.statistics for facts in self._facts]
        # chips without a valid pixel have no statistics; they count for nothing
        none = np.zeros(first.planes)
        columns = {
            name: np.stack([getattr(running, short) if len(running.count) else none + fill for running in found])
            for name, short, fill in _STATISTICS
        }
        counted = [facts.pixels_by_value for facts in self._facts]
        framed = [facts.boxes for facts in self._facts if facts.boxes is not None]
        return ChipTable(
            names=tuple(self._names),
            shapes=np.array([box.shape for box in boxes], np.int64),
            transforms=np.array([tuple(box.transform)[:6] for box in boxes], np.float64),
            crs=crs,
            crs_indexes=np.array([crs.index(box.crs) for box in boxes], np.int64),
            dtype=first.dtype,
            dates=first.dates,
            holed=np.array([facts.holed for facts in self._facts], bool),
            **columns,
            value_offsets=np.cumsum([0, *map(len, counted)]),
            label_values=np.array([value for counts in counted for value in counts], np.int64),
            label_pixels=np.array([pixels for counts in counted for pixels in counts.values()], np.int64),
            object_offsets=np.cumsum([0, *(len(facts.values) for facts in self._facts)]),
            object_values=np.concatenate([facts.values for facts in self._facts]).astype(np.int64),
            boxes=np.concatenate(framed).astype(np.float32) if framed else np.zeros((0, 4), np.float32),
            sample=np.concatenate([facts.sample for facts in self._facts]),
            skipped=dict(Counter(text for facts in self._facts for text in facts.skipped)),
            unreadable=tuple(unreadable),
        )

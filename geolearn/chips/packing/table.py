"""What is known about every chip without looking at its pixels again: place, statistics, labels."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from affine import Affine
from rasterio.warp import transform as transform_points

from geolearn.raster import GeoBox
from geolearn.statistics import BandStatistics, Percentiles, RunningStatistics, find_percentiles


@dataclass(frozen=True, slots=True)
class TargetStatistics:
    """What the numbers in label rasters are, in their stored units.

    Args:
        count: Pixels that have a number.
        mean: Of these pixels.
        std: Standard deviation of all of them (not of a sample).
        minimum: Of these pixels.
        maximum: Of these pixels.
    """

    count: int
    mean: float
    std: float
    minimum: float
    maximum: float


@dataclass(frozen=True, eq=False)
class ChipTable:
    """Facts about n chips, in columns. A channel is a band of one date; channels of one date lie together.

    Args:
        names: Of the chips.
        shapes: (n, 2) height and width.
        transforms: (n, 6) coefficients a, b, c, d, e, f of each chip's affine.
        crs: Distinct CRSs as WKT; None for chips that name none.
        crs_indexes: (n,) position in `crs`.
        dtype: Stored dtype of the images.
        dates: Number of dates.
        nodata_varies: (n,) bool, True where what is valid differs from channel to channel.
        counts: (n, channels) pixels that are valid in all channels.
        means: (n, channels).
        m2s: (n, channels) sums of squared deviations from the mean.
        minimums: (n, channels).
        maximums: (n, channels).
        value_offsets: (n + 1,) where each chip's part of `label_values` and `label_pixels` starts.
        label_values: Values of the label rasters, by chip.
        label_pixels: Valid pixels that hold them.
        label_statistics: (n, 5 * target_bands) counts, means, sums of squared deviations, minimums and maximums of the
            numbers in each label raster, each for all of its bands, over pixels that are valid in all channels; no
            rows where labels hold no numbers.
        object_offsets: (n + 1,) where each chip's part of `object_values` and `boxes` starts.
        object_values: Class values of the objects, or of chips as a whole.
        boxes: Left, top, right, bottom of the objects; no rows where they have none.
        turned: (objects, 5) oriented boxes of the objects; no rows where they have none.
        ignored: (objects,) bool; see `Label.ignored`. No rows where labels mark none.
        sample: (k, channels) float32 pixels from all over the folder, valid in all channels.
        skipped: How often something in a label was left out, by reason.
        unreadable: Chips that were left out, each with the reason.
        target_bands: Bands of the numbers in the label rasters.
        target_times: Pixels of them for each of the image, down and across.
    """

    names: tuple[str, ...]
    shapes: np.ndarray
    transforms: np.ndarray
    crs: tuple[str | None, ...]
    crs_indexes: np.ndarray
    dtype: str
    dates: int
    nodata_varies: np.ndarray
    counts: np.ndarray
    means: np.ndarray
    m2s: np.ndarray
    minimums: np.ndarray
    maximums: np.ndarray
    value_offsets: np.ndarray
    label_values: np.ndarray
    label_pixels: np.ndarray
    label_statistics: np.ndarray
    object_offsets: np.ndarray
    object_values: np.ndarray
    boxes: np.ndarray
    turned: np.ndarray
    ignored: np.ndarray
    sample: np.ndarray
    skipped: Mapping[str, int]
    unreadable: tuple[str, ...]
    target_bands: int = 1
    target_times: int = 1

    def __len__(self) -> int:
        return len(self.names)

    @property
    def channels(self) -> int:
        """Bands of all dates."""
        return int(self.means.shape[1])

    @property
    def band_count(self) -> int:
        """Bands of one date."""
        return self.channels // self.dates

    def geobox(self, position: int) -> GeoBox:
        """Return where a chip lies."""
        height, width = self.shapes[position].tolist()
        return GeoBox(
            (height, width), Affine(*self.transforms[position].tolist()), self.crs[self.crs_indexes[position]]
        )

    def cell_size(self) -> dict[str, Any] | None:
        """Return the smallest pixel of the chips as ArcGIS's MinCellSize; None where they have no place on the ground.

        Where they are in several CRSs, it is that of the first.
        """
        first = self.geobox(0)
        alike = self.transforms[self.crs_indexes == self.crs_indexes[0]]
        if first.transform.is_identity or not len(alike):
            return None
        across, down = (np.hypot(alike[:, at], alike[:, at + 3]).min() for at in (0, 1))
        reference = {'wkt': first.crs} if first.crs else {}
        return {'x': float(f'{across:.12g}'), 'y': float(f'{down:.12g}'), 'spatialReference': reference}

    def location(self) -> tuple[float, float] | None:
        """Return latitude and longitude of the middle of all chips, in degrees; None where one has no place."""
        points = np.zeros(3)
        for index, crs in enumerate(self.crs):
            members = self.crs_indexes == index
            if not members.any():
                continue
            height, width = self.shapes[members].T
            a, b, c, d, e, f = self.transforms[members].T
            if crs is None or ((a == 1) & (e == 1) & (b == 0) & (d == 0) & (c == 0) & (f == 0)).any():
                return None
            x, y = a * width / 2 + b * height / 2 + c, d * width / 2 + e * height / 2 + f
            longitude, latitude = transform_points(crs, 'EPSG:4326', x.tolist(), y.tolist())
            lat, lon = np.deg2rad(latitude), np.deg2rad(longitude)
            points += (np.cos(lat) * np.cos(lon)).sum(), (np.cos(lat) * np.sin(lon)).sum(), np.sin(lat).sum()
        if not np.isfinite(points).all() or not points.any():
            return None
        north = np.arctan2(points[2], np.hypot(points[0], points[1]))
        return float(np.rad2deg(north)), float(np.rad2deg(np.arctan2(points[1], points[0])))

    def statistics(self) -> BandStatistics:
        """Return the pooled statistics of each band over all chips and dates."""
        return self.pooled(range(len(self))).result()

    def pooled(self, positions: Sequence[int], indexes: Sequence[int] | None = None) -> RunningStatistics:
        """Pool the statistics of each band, or of some bands, over some chips and all dates."""
        chosen = np.asarray(positions, np.int64)
        running = RunningStatistics()
        if not len(chosen):
            return running
        columns = (self.counts, self.means, self.m2s, self.minimums, self.maximums)
        by_date = (column[chosen].reshape(-1, self.band_count) for column in columns)
        count, mean, m2, low, high = (c if indexes is None else c[:, list(indexes)] for c in by_date)
        total = count.sum(axis=0)
        pooled = (count * mean).sum(axis=0) / np.maximum(total, 1)
        running.count, running.mean = total, pooled
        running.m2 = (m2 + count * (mean - pooled) ** 2).sum(axis=0)
        running.minimum, running.maximum = low.min(axis=0), high.max(axis=0)
        return running if total.all() else RunningStatistics()

    def percentiles(self, indexes: Sequence[int] | None = None) -> Percentiles | None:
        """Return the percentiles of some bands (None: all) over all dates, from the sample; None where it is empty."""
        by_band = self.sample.reshape(-1, self.band_count).T
        return find_percentiles(by_band if indexes is None else by_band[list(indexes)])

    def target_statistics(self, positions: Sequence[int]) -> TargetStatistics | None:
        """Pool the numbers in the label rasters of some chips; None where none of them holds one."""
        return _pool(self._target_rows(positions).transpose(0, 2, 1).reshape(-1, 5))

    def target_band_statistics(self, positions: Sequence[int]) -> list[TargetStatistics | None]:
        """Pool the numbers in the label rasters of some chips, band by band."""
        rows = self._target_rows(positions)
        return [_pool(rows[:, :, band]) for band in range(self.target_bands)]

    def _target_rows(self, positions: Sequence[int]) -> np.ndarray:
        """Return the statistics of the numbers of some chips: (chips, 5, target_bands)."""
        rows = self.label_statistics[list(positions)] if len(self.label_statistics) else self.label_statistics
        return rows.reshape(len(rows), 5, self.target_bands) if len(rows) else np.zeros((0, 5, self.target_bands))

    @property
    def has_image_targets(self) -> bool:
        """Whether labels are images: of several bands, or finer than what they are predicted from."""
        return self.target_bands > 1 or self.target_times > 1

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

    def oriented_boxes(self, position: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the oriented boxes (k, 5) of one chip and which are ignored (k,), None where labels tell neither."""
        part = slice(self.object_offsets[position], self.object_offsets[position + 1])
        return self.turned[part] if len(self.turned) else None, self.ignored[part] if len(self.ignored) else None

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


def _pool(rows: np.ndarray) -> TargetStatistics | None:
    """Pool rows (n, 5) of `ChipTable.label_statistics`; None where none of them has a number."""
    rows = rows[rows[:, 0] > 0]
    if not len(rows):
        return None
    count, mean, m2, low, high = rows.T
    total = count.sum()
    pooled = (count * mean).sum() / total
    std = np.sqrt((m2 + count * (mean - pooled) ** 2).sum() / total)
    return TargetStatistics(int(total), float(pooled), float(std), float(low.min()), float(high.max()))


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
    if len(columns['ignored']):  # labels of another format may mark none
        columns['ignored'] = np.concatenate(
            [t.ignored if len(t.ignored) else np.zeros(len(t.object_values), bool) for t in tables]
        )
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

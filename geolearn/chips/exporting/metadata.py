"""The files that describe a whole export: .emd, accumulated statistics, map.txt and stats.txt."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np

from geolearn.bands import Band
from geolearn.chips.emd import EMD_NAME, STATS_NAME, WELL_KNOWN_KEY, WELL_KNOWN_NAMES
from geolearn.classes import ClassInfo
from geolearn.raster import EmbeddingProduct, GeoBox
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
        """Count the labelled pixels of one chip, by class value."""
        for value, count in counts.items():
            self.pixels.setdefault(value, Summary()).add([count])
        self.classes_per_chip.add([len(counts)])

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


@dataclass(frozen=True)
class ExportDescription:
    """What is true of all chips of an export, known before the first is written.

    Args:
        metadata_format: ArcGIS's name of the format.
        bands: Bands of the images, in order; those of each date after one another where a chip has several dates.
        classes: Classes that labels may hold.
        tile_size: Side of the chips in pixels; the largest one where sides vary.
        sensor: As ArcGIS would write it.
        map_space: Whether chips are georeferenced.
        variable_size: Whether each chip has the size of its feature.
        blackened: Whether pixels outside the feature are 0.
        features: Whether labels come from vectors.
        dates: Number of dates whose bands lie in each image.
        acquired: When the images of each date were taken, if that is known.
        nodata: What the user named as NoData, one value for all bands or one for each.
        bad_bands: 0-based bands that the raster tags as bad.
        product: The precomputed embeddings that the bands are; None for other images.

    Raises:
        ValueError: If the bands are not those of so many dates, or the times not as many.
    """

    metadata_format: str
    bands: tuple[Band, ...]
    classes: tuple[ClassInfo, ...]
    tile_size: int
    sensor: str = 'Undefined'
    map_space: bool = True
    variable_size: bool = False
    blackened: bool = False
    features: bool = False
    dates: int = 1
    acquired: tuple[date, ...] = ()
    nodata: tuple[float, ...] = ()
    bad_bands: frozenset[int] = frozenset()
    product: EmbeddingProduct | None = None

    def __post_init__(self) -> None:
        if self.dates < 1 or self.bands != self.bands[: len(self.bands) // self.dates] * self.dates:
            raise ValueError(f'{len(self.bands)} bands are not those of {self.dates} dates, each with the same bands')
        if self.acquired and len(self.acquired) != self.dates:
            raise ValueError(f'found {len(self.acquired)} acquisition dates of {self.dates} dates')


def metadata_texts(
    facts: ExportDescription,
    tally: Tally,
    *,
    next_index: int,
    extra: Mapping[str, Any],
    notes: Sequence[str],
) -> dict[str, str]:
    """Return name and content of each file.

    Args:
        facts: What is true of all chips.
        tally: What was counted.
        next_index: Number of the chip that would come next.
        extra: What the format adds to the .emd.
        notes: What people should know, kept in the .emd.
    """
    emd = _emd(facts, tally) | dict(extra)
    own: dict[str, Any] = {'wavelengths_um': [band.wavelength_um for band in facts.bands], 'notes': list(notes)}
    if facts.dates > 1 or facts.acquired:
        own['dates'] = [day.isoformat() for day in facts.acquired] or facts.dates
    if facts.nodata:
        own['nodata'] = list(facts.nodata)
    if facts.bad_bands:
        own['bad_bands'] = sorted(facts.bad_bands)
    if facts.product is not None:
        own['product'] = facts.product.to_json()
    emd['geolearn'] = own
    # ArcGIS writes backslashes, two blanks before labels and one at the end; its own reader relies on none of them
    rows = ''.join('  '.join(names).replace('/', '\\') + ' \n' for names in tally.rows)
    return {
        'map.txt': rows,
        'stats.txt': _stats_text(facts, tally),
        STATS_NAME: json.dumps(_accumulated(facts, tally, next_index), indent=2),
        EMD_NAME: json.dumps(emd, indent=2),
    }


def _properties(facts: ExportDescription) -> dict[str, Any]:
    return {'RasterCount': 1, 'SensorName': facts.sensor, 'BandNames': [band.name for band in facts.bands]}


def _emd(facts: ExportDescription, tally: Tally) -> dict[str, Any]:
    found = tally.bands.result()
    columns = zip(facts.bands, found.minimum, found.maximum, found.mean, found.std)
    return {
        'ImageHeight': facts.tile_size,
        'ImageWidth': facts.tile_size,
        'MetaDataMode': facts.metadata_format,
        'BlackenAroundFeature': facts.blackened,
        'IsMultidimensional': False,
        'CropTileMode': 'Variable_Size' if facts.variable_size else 'Fixed_Size',
        'ImageSpaceUsed': 'MAP_SPACE' if facts.map_space else 'PIXEL_SPACE',
        'MinCellSize': tally.cell_size('Min'),
        'MaxCellSize': tally.cell_size('Max'),
        'Classes': [{'Value': c.value, 'Name': c.name, 'Color': list(c.color)} for c in facts.classes],
        'InputRastersProps': _properties(facts),
        'AllTilesStats': [
            {'BandName': band.name, 'Min': low, 'Max': high, 'Mean': mean, 'StdDev': std}
            for band, low, high, mean, std in columns
        ],
        WELL_KNOWN_KEY: WELL_KNOWN_NAMES,
    }


def _accumulated(facts: ExportDescription, tally: Tally, next_index: int) -> dict[str, Any]:
    s, count = tally.bands, len(tally.rows)
    columns = zip(s.minimum.tolist(), s.maximum.tolist(), s.mean.tolist(), s.m2.tolist(), s.count.tolist())
    found = {
        'Version': 1,
        'NumBands': len(facts.bands),
        'TileSizeX': facts.tile_size,
        'TileSizeY': facts.tile_size,
        'NumClasses': len(facts.classes),
        'NumTiles': count,
        'NumTilesAsDouble': count,
        'NextTileIndex': next_index,
        'OutputFeatures': facts.features,
        'MetaDataMode': facts.metadata_format,
        'MinCellSize': tally.cell_size('Min'),
        'MaxCellSize': tally.cell_size('Max'),
        'Classes': [{'ClassValue': c.value, 'ClassName': c.name, 'Color': list(c.color)} for c in facts.classes],
        'InputRastersProps': _properties(facts),
        'BandStatsState': [
            {'Min': low, 'Max': high, 'Mean': 0, 'StdDev': 0, 'M1': mean, 'M2': m2, 'Num': int(number)}
            for low, high, mean, m2, number in columns
        ],
    }
    if tally.features_per_chip.count:
        found['FeatureStats'] = _feature_stats(facts, tally)
    if tally.classes_per_chip.count:
        found['ClassPixelStats'] = _pixel_stats(facts, tally)
    return found


def _totals(values: Sequence[int], tally: Tally) -> dict[str, Any]:
    return {'NumClasses': len(values), 'NumImagesTotal': len(tally.rows)}


def _counts(found: Mapping[int, Summary], values: Sequence[int]) -> list[int]:
    return [found[value].count if value in found else 0 for value in values]


def _feature_stats(facts: ExportDescription, tally: Tally) -> dict[str, Any]:
    values = [info.value for info in facts.classes]
    return {
        **_totals(values, tally),
        'NumFeaturesTotal': sum(summary.count for summary in tally.areas.values()),
        'NumImagesPerClass': _counts(tally.chips_with, values),
        'NumFeaturesPerClass': _counts(tally.areas, values),
        'NumFeaturesPerImage': tally.features_per_chip.as_dict(),
        'FeatureAreaPerClass': summaries(tally.areas, values),
    }


def _pixel_stats(facts: ExportDescription, tally: Tally) -> dict[str, Any]:
    values = [info.value for info in facts.classes]
    return {
        **_totals(values, tally),
        'NumImagesPerClass': _counts(tally.pixels, values),
        'NumPixelsPerClass': [int(tally.pixels[value].total) if value in tally.pixels else 0 for value in values],
        'NumClassesPerImage': tally.classes_per_chip.as_dict(),
        'PixelsPerClass': summaries(tally.pixels, values, len(tally.rows)),
    }


def _stats_text(facts: ExportDescription, tally: Tally) -> str:
    lines = [f'images = {len(tally.rows)} *{len(facts.bands)}*{facts.tile_size}*{facts.tile_size}']
    if tally.features_per_chip.count:
        total = sum(summary.count for summary in tally.areas.values())
        lines += [f'features = {total}', f'features per image = {_spread(tally.features_per_chip)}']
        what, sizes, images = 'features', tally.areas, tally.chips_with
    else:
        what, sizes, images = 'pixels', tally.pixels, tally.pixels
    lines.append(f'classes = {len(facts.classes)}')
    if what == 'pixels' and facts.classes:
        lines.append(f'classes per image = {_spread(tally.classes_per_chip)}')
    if facts.classes:
        heads = ('cls value', 'images', what, 'min size', 'mean size', 'max size')
        lines.append(f'{"cls name":<20}' + ''.join(f'{head:>12}' for head in heads))
    for info in facts.classes:
        size = sizes.get(info.value, Summary())
        number = size.count if what == 'features' else int(size.total)
        shown = (size if what == 'features' else size.over(len(tally.rows))).as_dict()
        counts = f'{info.value:>12}{images.get(info.value, Summary()).count:>12}{number:>12}'
        lines.append(f'{info.name:<20}{counts}' + ''.join(f'{shown[key]:>12.2f}' for key in ('Min', 'Mean', 'Max')))
    return '\n'.join(lines) + '\n'


def _spread(summary: Summary) -> str:
    found = summary.as_dict()
    return f'[min = {int(found["Min"])}, mean = {found["Mean"]:.2f}, max = {int(found["Max"])}]'

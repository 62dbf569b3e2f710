"""Read and write esri_model_definition.emd and esri_accumulated_stats.json, old and new.

Old ArcGIS Pro writes "e.g. ..." strings where values belong; nothing here assumes a type before looking.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

from geolearn.classes import ClassInfo, color_classes
from geolearn.errors import ChipFolderError
from geolearn.files import decode_text
from geolearn.raster import EmbeddingProduct
from geolearn.statistics import BandStatistics

EMD_NAME = 'esri_model_definition.emd'
STATS_NAME = 'esri_accumulated_stats.json'
MAX_JSON_BYTES = 16 * 2**20
"""Room for `MAX_CLASS_ROWS` classes; a larger file would only take time to refuse."""

MAX_CLASS_ROWS = 65_536
WELL_KNOWN_KEY = 'WellKnownBandNames (FYI, these band names can be used in ExtractBands)'
WELL_KNOWN_NAMES = (
    'Red Green Blue Infrared CoastalBlue Yellow RedEdge ShortWaveInfrared NearInfrared NearInfrared_1 NearInfrared_2 '
    'MidInfrared MidInfrared_1 MidInfrared_2 Thermal Thermal_1 Thermal_2 Panchromatic PseudoRed PseudoGreen '
    'PseudoBlue QA'
).split()


@dataclass(frozen=True)
class ExportMetadata:
    """What an export says about itself; None where it says nothing.

    Args:
        metadata_mode: Such as ``'Classified_Tiles'``.
        classes: Classes listed, without value 0 unless the user made one.
        band_names: One per band, possibly empty strings.
        sensor: ArcGIS's SensorName.
        wavelengths_um: What geolearn stored beside the Esri keys, per band.
        statistics: Per-band statistics, only if they are sound.
        band_count: Number of bands that the export states.
        image_space: ImageSpaceUsed; ``'MAP_SPACE'`` where the export does not say.
        cell_size: The MinCellSize object, passed on to saved models.
        dates: Number of dates of each chip, which geolearn keeps beside the Esri keys.
        acquired: When the images of each date were taken; empty where it is not said.
        variable_size: Whether chips are of the sizes of their features.
        blackened: Whether pixels around the feature of a chip were set to 0.
        nodata: Values that mean NoData in the images beside what the files say, which geolearn keeps; one for all bands
            or one for each.
        bad_bands: 0-based bands that were tagged as bad, which geolearn keeps.
        product: The precomputed embeddings that the bands are, which geolearn keeps; None for other images.
    """

    metadata_mode: str | None
    classes: tuple[ClassInfo, ...]
    band_names: tuple[str, ...] | None
    sensor: str | None
    wavelengths_um: tuple[float | None, ...] | None
    statistics: BandStatistics | None
    band_count: int | None
    image_space: str
    cell_size: Mapping[str, Any] | None
    dates: int | None = None
    acquired: tuple[date, ...] = ()
    variable_size: bool = False
    blackened: bool = False
    nodata: tuple[float, ...] = ()
    bad_bands: frozenset[int] = frozenset()
    product: EmbeddingProduct | None = None

    @classmethod
    def empty(cls) -> 'ExportMetadata':
        """Return what a folder without .emd says about itself: nothing."""
        return cls(None, (), None, None, None, None, None, 'MAP_SPACE', None)

    @property
    def dihedral(self) -> bool:
        """Whether north-up orientation carries no meaning, so chips may be turned."""
        return self.image_space == 'MAP_SPACE'

    def of_one_date(self, count: int) -> 'ExportMetadata':
        """Return the same of one date's bands, `count` of them, where bands are listed date by date; else as it is."""
        dates = self.dates or 1

        def cut(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
            return values[:count] if values and values == values[:count] * dates else values

        return replace(
            self,
            band_names=cut(self.band_names),
            wavelengths_um=cut(self.wavelengths_um),
            band_count=count if self.band_count == count * dates else self.band_count,
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ChipFolderError: If the file is missing, huge, neither UTF-8 nor UTF-16, broken or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ChipFolderError(f'{path} is {path.stat().st_size} bytes; metadata of an export is far smaller')
        content = json.loads(decode_text(path.read_bytes()))
    except ChipFolderError:
        raise
    except OSError as error:
        raise ChipFolderError(f'cannot read {path}: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise ChipFolderError(f'{path} is neither UTF-8 nor UTF-16 text ({error}); save it as UTF-8') from error
    except (ValueError, RecursionError) as error:
        raise ChipFolderError(f'{path} is not valid JSON: {error}') from error
    if not isinstance(content, dict):
        raise ChipFolderError(f'{path} holds a {type(content).__name__}; a JSON object is needed')
    return content


def read_metadata(folder: Path) -> ExportMetadata:
    """Read the metadata of an export folder.

    Raises:
        ChipFolderError: If a file is broken or classes make no sense; the message names the file.
    """
    path = folder / EMD_NAME
    emd = read_json(path)
    stats = read_json(folder / STATS_NAME) if (folder / STATS_NAME).exists() else {}
    properties = _object(emd.get('InputRastersProps')) or _object(stats.get('InputRastersProps')) or {}
    own = _object(emd.get('geolearn')) or {}
    rows = [row for row in _list(emd.get('AllTilesStats')) if isinstance(row, dict)]
    acquired, dates = _dates(own.get('dates'), path)
    names = _strings(properties.get('BandNames')) or _strings([row.get('BandName') for row in rows])
    statistics = _statistics(rows) or _welford_statistics(_list(stats.get('BandStatsState')))
    band_count = _integer(stats.get('NumBands')) or (len(names) if names else None) or len(rows) or None
    return ExportMetadata(
        metadata_mode=_text(stats.get('MetaDataMode')) or _text(emd.get('MetaDataMode')),
        classes=_classes(_list(emd.get('Classes')) or _list(stats.get('Classes')), path),
        band_names=tuple(names) if names else None,
        sensor=_text(properties.get('SensorName')),
        wavelengths_um=_wavelengths(own.get('wavelengths_um')),
        statistics=statistics,
        band_count=band_count,
        image_space=_text(emd.get('ImageSpaceUsed')) or 'MAP_SPACE',
        cell_size=_object(emd.get('MinCellSize')),
        dates=dates,
        acquired=acquired,
        variable_size=emd.get('CropTileMode') == 'Variable_Size',
        blackened=emd.get('BlackenAroundFeature') is True,
        nodata=tuple(number for item in _list(own.get('nodata')) if (number := _number(item)) == number),
        bad_bands=frozenset(int(item) for item in _list(own.get('bad_bands')) if type(item) is int and item >= 0),
        product=_product(own.get('product'), path),
    )


def _product(value: Any, path: Path) -> EmbeddingProduct | None:
    """Read the embeddings that the bands are; whatever else is refused, as they must not be mixed."""
    if value is None:
        return None
    row = _object(value) or {}
    try:
        if all(item is None or isinstance(item, str) for item in row.values()):
            return EmbeddingProduct(**row)
    except (TypeError, ValueError) as error:
        raise ChipFolderError(f'{path}: "product" in the geolearn block is {value!r}: {error}') from error
    raise ChipFolderError(f'{path}: "product" in the geolearn block is {value!r}; it must be an object of texts')


def _object(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and not value.startswith('e.g.') else None


def _strings(value: Any) -> list[str]:
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else []


def _number(value: Any) -> float:
    """Return a finite number, also where it is written as text, or NaN for whatever else JSON may hold there."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    return math.nan


_NUMBER = re.compile(r'\s*[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,3})?\s*', re.ASCII)


def _integer(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number == number and number == int(number) and number > 0 else None


def _wavelengths(value: Any) -> tuple[float | None, ...] | None:
    if not isinstance(value, list):
        return None
    return tuple(number if (number := _number(item)) == number else None for item in value)


def _dates(value: Any, path: Path) -> tuple[tuple[date, ...], int | None]:
    """Read a number of dates, or a list of them; whatever else is refused, as chips would be cut wrongly."""
    if value is None or (count := _integer(value)):
        return (), None if value is None else count
    try:
        acquired = tuple(datetime.fromisoformat(item).date() for item in _list(value))
    except (TypeError, ValueError):
        acquired = ()
    if not acquired:
        raise ChipFolderError(
            f'{path}: "dates" in the geolearn block is {value!r}; it must be a number of dates, or a list of them such '
            'as ["2021-05-01", "2021-06-10"]'
        )
    return acquired, len(acquired)


def _classes(rows: Sequence[Any], path: Path) -> tuple[ClassInfo, ...]:
    if len(rows) > MAX_CLASS_ROWS:
        raise ChipFolderError(f'{path} lists {len(rows)} classes; at most {MAX_CLASS_ROWS} are read: merge some')
    classes: dict[int, tuple[int, str, tuple[int, int, int] | None]] = {}
    for position, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ChipFolderError(f'{path}: class {position} is {row!r}; an object with Value and Name is needed')
        value = _number(row.get('Value', row.get('ClassValue')))
        if value != value or value != int(value) or value < 0:
            raise ChipFolderError(f'{path}: class {position} has no whole, non-negative Value: {row!r}')
        name = row.get('Name', row.get('ClassName'))
        if int(value) in classes:
            raise ChipFolderError(f'{path}: two classes have the value {int(value)}; values must differ')
        classes[int(value)] = int(value), str(name if name not in (None, '') else int(value)), _color(row)
    return color_classes(classes.values())


def _color(row: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Take the row's color, numbers or a text such as '#00ff00'; [-1, -1, -1] means that ArcGIS chose none."""
    color = row.get('Color')
    if isinstance(color, str):
        found = re.fullmatch(r'\s*#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})\s*', color)
        color = [int(part, 16) for part in found.groups()] if found else color.split(',')
    numbers = [_number(part) for part in _list(color)[:3]]
    if len(numbers) == 3 and all(0 <= part <= 255 for part in numbers):
        return int(numbers[0]), int(numbers[1]), int(numbers[2])
    return None


def _statistics(rows: Sequence[Mapping[str, Any]]) -> BandStatistics | None:
    columns = {key: tuple(_number(row.get(key)) for row in rows) for key in ('Min', 'Max', 'Mean', 'StdDev')}
    found = BandStatistics(columns['Min'], columns['Max'], columns['Mean'], columns['StdDev'])
    return found if rows and found.is_sound() else None


def _welford_statistics(rows: Sequence[Any]) -> BandStatistics | None:
    """Derive statistics from the running state: mean is M1, variance M2 / Num."""
    objects = [row for row in rows if isinstance(row, dict)]
    if not objects or len(objects) != len(rows):
        return None
    columns = {key: [_number(row.get(key)) for row in objects] for key in ('Min', 'Max', 'M1', 'M2', 'Num')}
    deviations = [math.sqrt(m2 / n) if n > 0 and m2 >= 0 else math.nan for m2, n in zip(columns['M2'], columns['Num'])]
    found = BandStatistics(tuple(columns['Min']), tuple(columns['Max']), tuple(columns['M1']), tuple(deviations))
    return found if found.is_sound() else None

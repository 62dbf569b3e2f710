"""Give bands their wavelengths: from the user, the file, the sensor or the name, and never by guessing."""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

from geolearn.errors import BandError, UnknownNameError


@dataclass(frozen=True, slots=True)
class Band:
    """One image band.

    Args:
        name: As the user or the raster calls it, such as ``'B04'`` or ``'Red'``.
        wavelength_um: Center wavelength in micrometers, or None where the band is not optical or unknown.
        common_name: STAC's common name where known, such as ``'red'``, ``'nir08'`` or ``'vv'``.
        is_radar: Whether the band is radar; its weights bring the constant that stands for a wavelength.
    """

    name: str
    wavelength_um: float | None = None
    common_name: str | None = None
    is_radar: bool = False

    def __post_init__(self) -> None:
        w = self.wavelength_um
        if w is not None and not 0.3 <= w <= 15:
            raise BandError(
                f'wavelength_um of band {self.name!r} must lie in 0.3..15 micrometers, got {w}; '
                'divide nanometers by 1000'
            )


class _Sensor(NamedTuple):
    """One record of sensors.yaml; `lookup` goes from normalized spelling to band."""

    bands: tuple[Band, ...] = ()
    lookup: Mapping[str, Band] = {}
    stack: int | None = None


class _Tables(NamedTuple):
    """All of sensors.yaml, keyed by normalized spelling except `sensors`."""

    sensors: dict[str, _Sensor]
    sensor_names: dict[str, str]
    generic: dict[str, Band]
    ambiguous: dict[str, str]


@lru_cache(maxsize=4096)
def _normalise(name: str) -> str:
    """Drop case, separators and leading zeros: 'SR_B04' -> 'srb4'."""
    return re.sub(r'(?<!\d)0+(?=\d)', '', re.sub(r'[\W_]+', '', name.lower()))


def _read_band(name: str, row: dict[str, Any]) -> Band:
    return Band(name, row.get('wavelength_um'), row.get('common_name'), row.get('radar', False))


def _read_sensor(record: dict[str, Any], spellings: dict[str, list[str]]) -> _Sensor:
    bands = tuple(_read_band(row['id'], row) for row in record['bands'])
    lookup: dict[str, Band] = {}
    for row, band in zip(record['bands'], bands):
        key = _normalise(band.name)
        own = [key, re.sub(r'^b(?=\d)', 'band', key), *map(_normalise, row.get('aliases', []))]
        lookup |= dict.fromkeys(own, band)
    for band in bands:
        shared = spellings.get(band.common_name or '', [])
        if band.common_name == 'nir08' and 'nir' not in [b.common_name for b in bands]:
            shared = shared + spellings['nir']  # Landsat's only near infrared is what its users call NIR
        for spelling in shared:
            lookup.setdefault(spelling, band)
            lookup.setdefault(_normalise(band.name) + spelling, band)  # 'B4_Red'
    return _Sensor(bands, lookup, record.get('stack'))


@cache
def _tables() -> _Tables:
    raw = yaml.safe_load(files('geolearn').joinpath('sensors.yaml').read_text(encoding='utf-8'))
    generic: dict[str, Band] = {}
    spellings: dict[str, list[str]] = {}
    for row in raw['names']:
        keys = [_normalise(name) for name in [*row['names'], row['common_name']]]
        spellings.setdefault(row['common_name'], []).extend(keys)
        generic = dict.fromkeys(keys, _read_band(row['names'][0], row)) | generic
    sensors = {r['key']: _read_sensor(r, spellings) for r in raw['sensors']}
    names = {_normalise(n): r['key'] for r in raw['sensors'] for n in [r['key'], r['title'], *r['aliases']]}
    return _Tables(sensors, names, generic, {_normalise(k): v for k, v in raw['ambiguous'].items()})


def list_sensors() -> list[str]:
    """Return the keys of all known sensors, sorted."""
    return sorted(_tables().sensors)


def find_sensor(name: str | None) -> str | None:
    """Return the key of the sensor that `name` spells, or None for ``'Undefined'`` and other names that say nothing.

    ``'Sentinel-2'`` gives Level-2A (Level-1C has the same wavelengths); ``'PlanetScope'`` None: generations differ.
    """
    return _tables().sensor_names.get(_normalise(name or ''))


def get_bands(sensor: str, names: Sequence[str] | None = None) -> tuple[Band, ...]:
    """Return a sensor's bands in their native order, or those in `names`, in that order and so named."""
    key = find_sensor(sensor)
    if key is None:
        raise UnknownNameError('sensor', sensor, list_sensors())
    record = _tables().sensors[key]
    if not record.bands:
        raise BandError(f'{key} has no fixed bands; read them from the file or pass wavelengths=[...] in micrometers')
    if names is None:
        return record.bands
    found = [_look_up(name, record.lookup) for name in names]
    if None in found:
        raise UnknownNameError(f'{key} band', names[found.index(None)], [b.name for b in record.bands])
    return tuple(replace(band, name=name) for name, band in zip(names, found) if band)


def _look_up(name: str, lookup: Mapping[str, Band]) -> Band | None:
    """Find a spelling, if need be without prefix ('SR_B4', 'S2_B04') or GDAL's 'B4, central wavelength 665 nm'."""
    match = re.match(r'(?:(?:sr|st|s2|toa|boa)[_\- ])?(b\d+a?(?=,)|[^,]*$)', name.strip(), flags=re.IGNORECASE)
    bare = match[1] if match else name
    return lookup.get(_normalise(name)) or lookup.get(_normalise(bare))


def _from_names(names: Sequence[str], sensor: str | None) -> list[Band | None]:
    """Find each name's table row; a row that differing names lay claim to goes to none of them."""
    tables, key = _tables(), find_sensor(sensor)
    record = tables.sensors[key] if key else _Sensor()
    if names and [_normalise(n) for n in names] == [f'band{i}' for i in range(1, len(names) + 1)]:
        # Software's default names count positions in the file, not the sensor's own band numbers.
        return list(record.bands[: len(names)]) if record.stack == len(names) else [None] * len(names)
    found = [_look_up(n, record.lookup) or _look_up(n, tables.generic) for n in names]
    claims: dict[Band, set[str]] = {}
    for name, band in zip(names, found):
        if band and not band.is_radar:
            claims.setdefault(band, set()).add(_normalise(name))
    return [band if band and len(claims.get(band, ())) < 2 else None for band in found]


def unique_names(names: Sequence[str]) -> list[str]:
    """Number names that several bands have: three ``'bands'`` become ``'bands_1'``, ``'bands_2'`` and ``'bands_3'``.

    Software that knows one description for an array writes it for every band. Empty names stay, and so do names that
    repeat as a whole, which are the bands of several dates one after the other.
    """
    period = len(set(names))
    if 1 < period < len(names) and len(names) % period == 0 and [*names] == [*names[:period]] * (len(names) // period):
        return list(names)
    taken, numbers, unique = set(names), dict.fromkeys(names, 0), list[str]()
    for name in names:
        if name.strip() and names.count(name) > 1:
            candidate = name
            while candidate in taken:
                numbers[name] += 1
                candidate = f'{name}_{numbers[name]}'
            taken.add(candidate)
            name = candidate
        unique.append(name)
    return unique


def resolve_bands(
    names: Sequence[str],
    *,
    sensor: str | None = None,
    wavelengths: Sequence[float | None] | None = None,
    stored_wavelengths_um: Sequence[float | None] | None = None,
    tag_wavelengths_um: Sequence[float | None] | None = None,
) -> tuple[Band, ...]:
    """Give each band the first wavelength found: explicit, stored, tagged, the sensor's, the name's, or none.

    A band that stays unresolved is no error here, since many networks need no wavelength. Radar bands are known
    by name, whatever wavelength is given. ``'Band_1'``, ``'Band_2'``, ... count positions, so they are resolved only
    where the sensor's files always hold that many bands in one order.

    Args:
        names: After band selection, in raster order; an empty name becomes ``'band_<position>'``, and equal ones
            without a meaning are numbered (see `unique_names`).
        sensor: Key or any spelling; one that is unknown is passed over, because files say ``'MultiSpectral'``.
        wavelengths: From the user, as `parse_wavelengths` takes them; radar bands may have None.
        stored_wavelengths_um: What geolearn wrote beside the chips, None where unresolved.
        tag_wavelengths_um: From the raster's band metadata, None where absent.
    """
    known = _from_names(names, sensor)
    sources: list[Sequence[float | None]] = []
    if wavelengths is not None:
        sources.append(_explicit(wavelengths, known))
    for label, values in (('stored', stored_wavelengths_um), ('tag', tag_wavelengths_um)):
        if values is not None:
            _check_count(f'{label} wavelengths', len(values), len(names))
            sources.append(values)
    sources.append([band.wavelength_um if band else None for band in known])
    first = [next((w for w in column if w is not None), None) for column in zip(*sources)]
    # two bands that are both called red stay so, and match nothing; names that mean nothing are told apart
    numbered = [own if band else other for own, other, band in zip(names, unique_names(names), known)]
    titles = [name if name.strip() else f'band_{i}' for i, name in enumerate(numbered, 1)]
    return tuple(map(_bind, titles, known, first))


def _explicit(wavelengths: Sequence[float | None], known: Sequence[Band | None]) -> list[float | None]:
    _check_count('wavelengths', len(wavelengths), len(known))
    optical = [i for i, band in enumerate(known) if not (band and band.is_radar)]
    given = [math.nan if (w := wavelengths[i]) is None else w for i in optical]
    placed = dict(zip(optical, parse_wavelengths(given, len(optical))))
    return [placed.get(i) for i in range(len(known))]


def _bind(name: str, known: Band | None, wavelength_um: float | None) -> Band:
    if known and known.is_radar:
        return replace(known, name=name)
    # A near infrared that is called 'Blue' (false-color exports) must not be matched as blue.
    same = known and _near(wavelength_um, known.wavelength_um)
    return Band(name, wavelength_um, known.common_name if known and same else None)


def _near(a: float | None, b: float | None) -> bool:
    """Whether two wavelengths may belong to one kind of band; the same band differs by under 10% between sensors."""
    return a is None or b is None or abs(a - b) <= 0.1 * max(a, b)


def _check_count(what: str, found: int, needed: int) -> None:
    if found != needed:
        raise BandError(f'found {found} {what}, needed {needed}; give one per selected band, in band order')


def parse_wavelengths(values: Sequence[float], count: int) -> tuple[float, ...]:
    """Return `count` wavelengths in 0.3..15 micrometers, or raise; values that all exceed 100 are nanometers."""
    _check_count('wavelengths', len(values), count)
    found = [float(v) for v in values]
    if not all(map(math.isfinite, found)):
        raise BandError(f'found wavelengths {found}, needed a number of micrometers for every optical band')
    long = [v > 100 for v in found]
    if any(long) and not all(long):
        raise BandError(f'found wavelengths {found}, a mix of nanometers and micrometers; give all in micrometers')
    if found and all(long):
        found = [v / 1000 for v in found]
        warnings.warn(f'wavelengths all exceed 100, so they are read as nanometers: {found} um', UserWarning, 2)
    if not all(0.3 <= v <= 15 for v in found):
        raise BandError(f'found wavelengths {found}, needed values in 0.3..15 micrometers; divide nanometers by 1000')
    return tuple(found)


def require_wavelengths(bands: Sequence[Band], needed_by: str) -> None:
    """Raise BandError, with the line to paste, unless every band is radar or has a wavelength."""
    missing = [b.name for b in bands if b.wavelength_um is None and not b.is_radar]
    if not missing:
        return
    known = {b.name: 'None' if b.is_radar else f'{b.wavelength_um:g}' for b in bands if b.name not in missing}
    order = ', '.join(f'{b.name!r} ({known[b.name]})' if b.name in known else repr(b.name) for b in bands)
    raise BandError(
        f'{needed_by} needs a wavelength for every band; unresolved: {", ".join(map(repr, missing))}. '
        f'Pass wavelengths= with a number of micrometers for each band in this order: {order}; '
        'for example wavelengths=[0.665, 0.56, 0.49] for red, green, blue, None for radar. Or prepare the data with '
        "bands= and names that tell, such as 'red'"
        + ''.join(f'. {name!r} {hint}' for name in missing if (hint := _tables().ambiguous.get(_normalise(name))))
    )


def match_bands(available: Sequence[Band], wanted: Sequence[Band]) -> list[int]:
    """Return the 0-based index into `available` of each wanted band, by common name, else by normalized name.

    Equal names do not match where common names or wavelengths contradict them (Landsat's B5 is not Sentinel-2's).
    A wanted ``nir`` (Sentinel-2 B8) is served by ``nir08`` (B8A, Landsat's only near infrared), and the other way
    round, only if the exact one is absent and the substitute is not itself wanted.

    Raises:
        BandError: If a wanted band is missing or fits several.
    """
    matched = []
    for want in wanted:
        fits = _candidates(available, want, {b.common_name for b in wanted})
        if len(fits) != 1:
            have, need = (
                ', '.join(f'{b.name!r} ({b.common_name or b.wavelength_um or "unknown"})' for b in bands) or 'no bands'
                for bands in (available, wanted)
            )
            found = f'{len(fits) or "no"} bands fit {want.name!r}; found {have}; needed {need}'
            raise BandError(f'{found}; name the bands, or choose and order them yourself')
        matched.append(fits[0])
    if twice := sorted({index for index in matched if matched.count(index) > 1}):
        both = ' and '.join(repr(want.name) for want, index in zip(wanted, matched) if index == twice[0])
        raise BandError(
            f'{both} would both be the one band {available[twice[0]].name!r}; name the bands, or choose and order them '
            'yourself'
        )
    return matched


def _candidates(available: Sequence[Band], want: Band, wanted_names: set[str | None]) -> list[int]:
    def agrees(band: Band) -> bool:
        kinds = {band.common_name, want.common_name, None}
        return len(kinds) < 3 and band.is_radar == want.is_radar and _near(band.wavelength_um, want.wavelength_um)

    same = [i for i, b in enumerate(available) if want.common_name and b.common_name == want.common_name]
    if len(same) == 1:
        return same
    named = [i for i, b in enumerate(available) if _normalise(b.name) == _normalise(want.name) and agrees(b)]
    twin = {'nir': 'nir08', 'nir08': 'nir'}.get(want.common_name or '')
    twins = [i for i, b in enumerate(available) if twin and twin not in wanted_names and b.common_name == twin]
    return named or same or twins


def is_placeholder(name: str) -> bool:
    """Whether a name says nothing about its band: '', 'Band 1', 'layer_2', '3', 'Gray', 'Undefined'."""
    bare = _normalise(name)
    return bare in {'gray', 'grey', 'undefined'} or re.fullmatch(r'(band|layer|channel)?\d*', bare) is not None


def rgb_indexes(bands: Sequence[Band]) -> tuple[int, int, int]:
    """Choose the 0-based bands to show as red, green and blue.

    By common name, else the nearest within 0.4..0.7 um; else the first three, or (0, 0, 0) where there are fewer.
    """
    if len(bands) < 3:
        return 0, 0, 0
    names = [b.common_name for b in bands]
    visible = {i: w for i, b in enumerate(bands) if (w := b.wavelength_um) is not None and 0.4 <= w <= 0.7}
    chosen: list[int] = []
    for color, target in {'red': 0.665, 'green': 0.56, 'blue': 0.49}.items():
        nearest = [index for _, index in sorted((abs(w - target), i) for i, w in visible.items())]
        chosen += [names.index(color)] if color in names else nearest[:1]
    return (chosen[0], chosen[1], chosen[2]) if len(set(chosen)) == 3 else (0, 1, 2)

"""The bands that OlmoEarth knows, and the sets of them that share a token, whatever bands an image has."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from geolearn.bands import Band, get_bands, match_bands
from geolearn.errors import BandError

log = logging.getLogger('geolearn')

MANY_MISSING = 0.2
"""Share of a sensor's bands from which on their absence is warned of, as the authors do."""

SENSORS: dict[str, tuple[Band, ...]] = {
    'sentinel2_l2a': get_bands(
        'sentinel2_l2a', ['B02', 'B03', 'B04', 'B08', 'B05', 'B06', 'B07', 'B8A', 'B11', 'B12', 'B01', 'B09']
    ),
    'sentinel1': get_bands('sentinel1', ['VV', 'VH']),
    'landsat': get_bands('landsat8', ['B8', 'B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B9', 'B10', 'B11']),
}
"""Bands of each sensor, in the order of the weights."""

SETS = {'sentinel2_l2a': (4, 10, 12), 'sentinel1': (2,), 'landsat': (1, 11)}
"""Where v1's sets of a sensor's bands end."""


@dataclass(frozen=True, slots=True)
class BandSet:
    """Bands that share a token.

    Args:
        sensor: One of `SENSORS`.
        number: Of the set within its sensor.
        at: Positions of its bands in the image.
        numbers: Which of the sensor's bands each of them is.
        start: First of the sensor's bands that the weights have in this set.
        sources: For each band that the weights have in it, the place in `at` of the band of the image that stands for
            it; None where none does.
    """

    sensor: str
    number: int
    at: tuple[int, ...]
    numbers: tuple[int, ...]
    start: int
    sources: tuple[int | None, ...]

    @property
    def name(self) -> str:
        """Of its embedding in the published weights."""
        return f'{self.sensor}__{self.number}'


def find_sensor(bands: Sequence[Band]) -> list[tuple[str, int]]:
    """Find the sensor and band of the weights that each band of an image is.

    Bands that Sentinel-2 and Landsat share, such as 0.865 um, are of the sensor of their neighbors in the image.

    Raises:
        BandError: If a band is of no sensor, or two are the same one.
    """
    found: list[tuple[str, int] | None] = [None] * len(bands)
    fits = [{name: at for name in SENSORS if (at := _find(name, band)) is not None} for band in bands]
    for position, (band, possible) in enumerate(zip(bands, fits)):
        if not possible:
            known = '; '.join(f'{name}: {", ".join(b.name for b in own)}' for name, own in SENSORS.items())
            raise BandError(
                f'OlmoEarth knows no band {band.name!r}; leave it out, or name it as its sensor does ({known})'
            )
        if len(possible) == 1:
            found[position] = next(iter(possible.items()))
    sure = {i: pair[0] for i, pair in enumerate(found) if pair is not None and pair[0] != 'sentinel1'}
    for position, possible in enumerate(fits):
        if found[position] is None:
            names = [sure[i] for i in sorted(sure, key=lambda i: abs(i - position))] or ['sentinel2_l2a']
            free = [name for name in names if (name, possible[name]) not in found] or names
            found[position] = (free[0], possible[free[0]])
    chosen = [pair for pair in found if pair is not None]
    for position, pair in enumerate(chosen):
        if pair in chosen[:position]:
            names = [bands[chosen.index(pair)].name, bands[position].name]
            raise BandError(
                f'the bands {names[0]!r} and {names[1]!r} are both {pair[0]} {SENSORS[pair[0]][pair[1]].name}'
                ' of OlmoEarth; leave one out'
            )
    return chosen


def _find(sensor: str, band: Band) -> int | None:
    """Return which band of a sensor a band is: of those that are named alike the one of its very wavelength."""
    own = SENSORS[sensor]
    try:
        at = match_bands(own, [band])[0]
    except BandError:
        return None
    w, exact = band.wavelength_um, own[at].wavelength_um
    if w is None or exact is None:
        return at if w is None and exact is None else None
    others = [b.wavelength_um for name, bands in SENSORS.items() if name != sensor for b in bands]
    nearest = min((abs(other - w) for other in others if other is not None), default=1.0)
    return at if abs(exact - w) <= nearest + 1e-9 else None


def choose_sets(bands: Sequence[Band], version: str) -> tuple[BandSet, ...]:
    """Divide the bands of an image into sets; sets without a band are left out.

    In v1 a band that is missing from a set is stood for by the one nearest in wavelength, thermal only by thermal; in
    later versions, which were trained with bands left out, by nothing.
    """
    chosen = find_sensor(bands)
    sets = []
    for sensor, own in SENSORS.items():
        ends = SETS[sensor] if version == '1' else (len(own),)
        there = {number: position for position, (name, number) in enumerate(chosen) if name == sensor}
        if there and len(there) < (1 - MANY_MISSING) * len(own):
            log.warning(
                'OlmoEarth: %d of the %d bands of %s are there; features of few bands are worse',
                len(there),
                len(own),
                sensor,
            )
        for number, (start, end) in enumerate(zip((0, *ends), ends)):
            inside = {n: p for n, p in there.items() if start <= n < end}
            if not inside:
                continue
            numbers = list(inside)
            sources = []
            for n in range(start, end):
                stand_in = n if n in inside else _nearest(own, n, numbers) if version == '1' else None
                sources.append(None if stand_in is None else numbers.index(stand_in))
            sets.append(BandSet(sensor, number, tuple(inside.values()), tuple(numbers), start, tuple(sources)))
    return tuple(sets)


def _nearest(own: Sequence[Band], number: int, there: Sequence[int]) -> int | None:
    def is_thermal(n: int) -> bool:
        return (own[n].wavelength_um or 0) > 3

    wave = own[number].wavelength_um
    if wave is None:  # radar
        return there[0]
    alike = [
        (abs((own[n].wavelength_um or 0) - wave), own[n].wavelength_um or 0, n)
        for n in there
        if not is_thermal(n) or is_thermal(number)
    ]
    return min(alike)[2] if alike else None

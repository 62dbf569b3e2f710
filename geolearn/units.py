"""Recognize the units of pixels (reflectance, reflectance x 10000, dB), and whether a model was trained on others."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from geolearn.bands import Band
from geolearn.errors import ChipFolderError
from geolearn.statistics import SPREAD_98, BandStatistics, Percentiles, find_percentiles

METERS = 'meters'
"""The ``unit`` of a pixel size that comes without a CRS."""

RadarScale = Literal['dB', 'linear', 'amplitude']


@dataclass(frozen=True, slots=True)
class UnitsComparison:
    """Pixels against training chips.

    Args:
        far: They are in other units.
        odd: They may be.
        table: Medians of both, band by band.
        hint: What the pixels look like and which `scale=` and `offset=` bring them to the model's units, such as
            ``'looks like reflectance x 10000; pass scale=0.0001'``; empty if nothing was recognized.
        scale: The scale of the hint, `'db'` for linear power against decibels, or None.
        offset: The offset of the hint.
    """

    far: bool
    odd: bool
    table: str
    hint: str = ''
    scale: float | Literal['db'] | None = None
    offset: float = 0.0


class _Conversion(NamedTuple):
    """Pixels * scale + offset are what the chips are in; `words` say what the pixels look like."""

    scale: float
    offset: float
    words: str


_NAMED = {10.0: '10', 100.0: '100', 255.0: '255', 1000.0: '1000', 10_000.0: '10000'}

_CONVERSIONS = (
    *(_Conversion(1 / factor, 0.0, f'looks {name} times too large') for factor, name in _NAMED.items()),
    *(_Conversion(factor, 0.0, f'looks {name} times too small') for factor, name in _NAMED.items()),
    _Conversion(10_000 / 255, 0.0, 'looks like 8-bit values against reflectance x 10000'),
    _Conversion(255 / 10_000, 0.0, 'looks like reflectance x 10000 against 8-bit values'),
    _Conversion(255 / 65535, 0.0, 'looks like 16 bits against 8'),
    _Conversion(65535 / 255, 0.0, 'looks like 8 bits against 16'),
    _Conversion(2.75e-5, -0.2, 'looks like Landsat Collection 2 digital numbers'),
    _Conversion(0.275, -2000.0, 'looks like Landsat Collection 2 digital numbers'),
    _Conversion(1.0, -1000.0, 'looks like Sentinel-2 reflectance x 10000 with 1000 added, as delivered since 2022'),
    _Conversion(1e-4, -0.1, 'looks like Sentinel-2 reflectance x 10000 with 1000 added, as delivered since 2022'),
)

_AS_TRAINED = _Conversion(1.0, 0.0, '')

_GOOD, _CLOSE, _BETTER = 0.7, 1.3, 1.5
"""Distances at which distributions are alike, and similar; and by how much a conversion must do better."""

_ODD_RATIO, _FAR_RATIO, _HOPELESS_RATIO = 5, 20, 500
"""Scenes differ by season and light, water and clouds, but hardly by these factors in every band at once."""

_FAR_IN_STD = 20

_ALONE = 8
"""By this factor no season changes one band alone, its spread included."""

_DARKEST, _BRIGHTEST = 0.004, 1.8
"""Reflectances below and above which no scene lies: darker than open sea, brighter than sunlit clouds and snow."""

_CAP = 5.0


def compare_units(found: Percentiles, trained: BandStatistics, bands: Sequence[Band]) -> UnitsComparison:
    """Compare where pixels lie with where the training chips lay, all bands together.

    Known conversions are tried, and one is believed where it brings the pixels' distribution, its middle and its spread
    in every band, to that of the chips, and they are far from it as they are. Another season, clouds, snow, water or a
    dead band are not taken for other units: they change the bands differently, or stay within what can be reflected.

    Args:
        found: Of each band of the pixels, after `scale` and `offset` if some were given.
        trained: Of the training chips.
        bands: In the same order.
    """
    low, middle, high = (np.asarray(column, float) for column in (found.low, found.median, found.high))
    mean, std = np.asarray(trained.mean, float), np.maximum(np.asarray(trained.std, float), 1e-9)
    table = ', '.join(
        f'{band.name} {value:.4g} (trained on {m:.4g} ± {s:.3g})'
        for band, value, m, s in zip(bands, middle, mean, np.asarray(trained.std, float))
    )
    if radar := _compare_radar(found, trained, bands, table):
        return radar
    # a band of one value tells nothing, unless all are (single pixels)
    live = (high > low) & np.isfinite(low + middle + high)
    live = live if live.any() else np.isfinite(middle)
    if not live.any():
        return UnitsComparison(False, False, table)
    view = _View(low[live], middle[live], high[live], mean[live], std[live])
    plain = view.distance(_AS_TRAINED)
    best = min(_CONVERSIONS, key=view.distance)
    distance = view.distance(best)
    factor = np.abs(view.middle) / np.where(view.mean == 0, np.nan, np.abs(view.mean))
    # factors say nothing where zero lies within the training values, as with decibels or elevation
    telling = np.abs(view.mean) > 0.2 * view.std
    ratios = factor if telling.all() else np.ones(1)
    scales = _likely_scales(trained, bands)
    white = scales[0] if len(scales) == 1 else None
    reflecting = live & np.array([_is_optical(band) for band in bands])
    scales = scales if reflecting.any() else []
    brightest = high[reflecting].max(initial=0.0)
    darkest = low[reflecting].min(initial=0.0)
    plausible = bool(scales) and darkest >= -0.2 * scales[-1] and 0 < brightest <= _BRIGHTEST * scales[-1]
    # the darkest water reflects more than that in the visible
    dark = bool(scales) and 0 < brightest < _DARKEST * scales[0]
    few = int(live.sum()) < 3
    larger = bool((ratios > 1).all())
    # backscatter differs by more than 10 times between sea, land and city
    linear = any(band.is_radar and least >= 0 for band, least in zip(bands, trained.minimum))
    if linear and 1 / _HOPELESS_RATIO < best.scale < _HOPELESS_RATIO:
        recognized = False
    elif best.offset:
        recognized = distance < _GOOD and not few
    elif best.scale < 1:
        recognized = distance < (_GOOD if plausible else _CLOSE)
    else:
        # water is dark in one or two bands
        recognized = distance < _CLOSE and not (few and best.scale < _HOPELESS_RATIO)
    recognized = recognized and plain - distance > _BETTER and (view.has_spread or _all_beyond(ratios, _FAR_RATIO))
    beyond = (np.abs(view.middle - view.mean) / view.std > _FAR_IN_STD).mean() > 0.5
    outside = beyond or (larger and _all_beyond(ratios, _FAR_RATIO))
    far = recognized or (bool(outside) and not plausible) or _all_beyond(ratios, _HOPELESS_RATIO)
    far = far or (dark and not few and _all_beyond(ratios, _FAR_RATIO))
    alike = plain - distance > _BETTER and distance < _CLOSE
    closer = view.has_spread and plain > 2 * _BETTER and plain - distance > _BETTER and distance < 2 * _CLOSE
    negative = reflecting & (np.asarray(trained.minimum, float) >= 0) & (middle < -0.2 * mean)
    far = far or bool(negative.any() and (negative == reflecting).all())
    alone = [band.name for band, apart in zip(bands, negative | _differs_alone(view, live)) if apart]
    odd = bool(far or alike or closer or alone or _all_beyond(ratios, _ODD_RATIO))
    if not (recognized or (far and alike)):
        hint = f'differs in {", ".join(alone)} as other units do, and in no other band' if alone and not far else ''
        return UnitsComparison(bool(far), odd, table, hint)
    hint = f'{_words(best, white)}; pass scale={best.scale:.6g}' + (f', offset={best.offset:g}' if best.offset else '')
    return UnitsComparison(bool(far), odd, table, hint, best.scale, best.offset)


@dataclass(frozen=True, slots=True)
class _View:
    """The bands that tell something: pixels' percentiles, and mean and std of the chips."""

    low: np.ndarray
    middle: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @property
    def has_spread(self) -> bool:
        return bool((self.high > self.low).any())

    def distance(self, conversion: _Conversion) -> float:
        """Return how far converted pixels lie from the chips in middle and spread, averaged without the worst band."""
        middle = self.middle * conversion.scale + conversion.offset
        spread = (self.high - self.low) * conversion.scale / SPREAD_98
        apart = np.minimum(np.abs(middle - self.mean) / np.maximum(self.std, spread), _CAP)
        if self.has_spread:
            apart = apart + np.minimum(np.abs(np.log(np.maximum(spread, 1e-12) / self.std)), _CAP)
        # one band may be dead or another one
        return float(np.sort(apart)[: max(1, len(apart) - (len(apart) >= 4))].mean())


def _differs_alone(view: '_View', live: np.ndarray) -> np.ndarray:
    """Return which bands, fewer than half, differ by a large factor in middle and spread; clouds change more bands."""
    found = np.zeros(len(live), bool)
    with np.errstate(divide='ignore', invalid='ignore'):
        factor = np.abs(view.middle / view.mean)
        spread = (view.high - view.low) / SPREAD_98 / view.std
        apart = ((factor > _ALONE) | (factor < 1 / _ALONE)) & (np.abs(np.log(spread / factor)) < math.log(3))
    if apart.mean() < 0.5:
        found[live] = apart
    return found


def _compare_radar(
    found: Percentiles, trained: BandStatistics, bands: Sequence[Band], table: str
) -> UnitsComparison | None:
    """Return the comparison where radar bands are in decibels here and linear there, or the like; None elsewhere."""
    seen, known = (radar_scale(part, bands, dtype='float32') for part in (found, likely_percentiles(trained)))
    lows = [low for low, band in zip(found.low, bands) if band.is_radar]
    if known is None or seen == known or (seen is None and (known != 'dB' or min(lows) < 0)):
        return None
    if seen == 'linear' and known == 'dB':
        hint = "radar bands look like linear power, the training chips like dB; pass scale='db', which takes 10 * log10"
        return UnitsComparison(True, True, table, hint, 'db')
    here = 'not in dB' if seen is None else _RADAR_SAYS[seen]
    hint = f'radar bands are {here}, the training chips {_RADAR_SAYS[known]}; convert them (dB = 10 * log10(power))'
    return UnitsComparison(True, True, table, hint)


def to_decibels(power: np.ndarray) -> np.ndarray:
    """Return 10 * log10 of linear power as float32; NaN where there is none."""
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.where(power > 0, 10 * np.log10(power), np.nan).astype(np.float32)


def likely_percentiles(statistics: BandStatistics) -> Percentiles:
    """Return where percentiles 2, 50 and 98 lie by mean, std and range, where the pixels themselves are not at hand."""
    rows = []
    for low, high, mean, std in zip(statistics.minimum, statistics.maximum, statistics.mean, statistics.std):
        half = SPREAD_98 / 2 * std
        rows.append((max(mean - half, low), mean, min(mean + half, high)))
    return Percentiles(*map(tuple, zip(*rows))) if rows else Percentiles((), (), ())


MOST_COMPARED = 2**15
"""Pixels that typical values are taken of, about: more say the same, and take as long as a tile of a small map."""


def typical_values(sample: np.ndarray, convert: Callable[[np.ndarray], np.ndarray] | None = None) -> Percentiles | None:
    """Return the percentiles of (bands, n) stored pixels, without those that are 0 in all bands: an untagged border.

    Args:
        sample: The pixels.
        convert: Brings those that are left to other units.

    Returns:
        Of each band, or None where nothing is left to compare.
    """
    # an odd step takes pixels of every column of a window
    sample = sample[:, :: max(1, sample.shape[1] // MOST_COMPARED) | 1]
    kept = sample[:, (sample != 0).any(axis=0)]
    kept = kept if convert is None else convert(kept)
    return find_percentiles(kept[:, np.isfinite(kept).all(axis=0)])


def _all_beyond(ratios: np.ndarray, factor: float) -> bool:
    return bool((ratios < 1 / factor).all() or (ratios > factor).all())


def _likely_scales(trained: BandStatistics, bands: Sequence[Band]) -> list[int]:
    """Return which values of the chips may stand for a reflectance of 1: several where the chips are dark."""
    highs = zip(likely_percentiles(trained).high, bands)
    optical = [(high, band.wavelength_um or 0) for high, band in highs if _is_optical(band)]
    if not optical:
        return []
    brightest = max(high for high, _ in optical)
    least = 0.1 if any(0.75 <= wave <= 1.3 for _, wave in optical) else 0.03  # plants are bright in near infrared
    return [scale for scale in (1, 1000, 10_000) if least <= brightest / scale <= 1.5]


def _is_optical(band: Band) -> bool:
    return not band.is_radar and band.wavelength_um is not None and 0.4 <= band.wavelength_um <= 2.5


def _words(conversion: _Conversion, white: int | None) -> str:
    """Say what pixels look like, by the reflectance scale of the chips where it is known."""
    there = None if white is None or conversion.offset else white / conversion.scale
    if there is not None and any(math.isclose(there, scale, rel_tol=1e-6) for scale in (1, 1000, 10_000)):
        return 'looks like reflectance' + (' 0..1' if round(there) == 1 else f' x {round(there)}')
    if there is not None and math.isclose(there, 255, rel_tol=1e-6):
        return 'looks like 8-bit values'
    return conversion.words


_RADAR_SAYS: dict[RadarScale | None, str] = {
    'dB': 'in dB',
    'linear': 'linear (power or amplitude around 0..1)',
    'amplitude': 'uncalibrated amplitude (digital numbers)',
    None: 'in units that were not recognized (neither dB, nor linear, nor digital numbers)',
}


def radar_scale(percentiles: Percentiles, bands: Sequence[Band], *, dtype: str) -> RadarScale | None:
    """Recognize what radar bands measure backscatter in, by where their values lie.

    Args:
        percentiles: Of each band, over valid pixels.
        bands: In the same order; only radar bands are looked at.
        dtype: Stored dtype of the pixels.

    Returns:
        ``'dB'``: mostly negative, about -50..20. ``'linear'``: fractions from 0 up, power or its root. ``'amplitude'``:
        whole numbers, mostly over 1. None where there is no radar band, or bands differ, or nothing fits.
    """
    columns = zip(percentiles.low, percentiles.median, percentiles.high, bands)
    found = {_radar_band_scale(low, mid, high, dtype) for low, mid, high, band in columns if band.is_radar}
    return found.pop() if len(found) == 1 else None


def radar_note(scale: RadarScale | None, bands: Sequence[Band]) -> str | None:
    """Say what radar bands are in, such as ``'bands VV, VH are in dB'``; None where there is no radar band."""
    names = [band.name for band in bands if band.is_radar]
    if not names:
        return None
    return (
        f'{"bands" if len(names) > 1 else "band"} {", ".join(names)} {"are" if len(names) > 1 else "is"} '
        + (_RADAR_SAYS[scale])
    )


def check_radar_scales(scales: Mapping[str, RadarScale | None]) -> None:
    """Refuse chips of several folders whose radar bands are in different units.

    Args:
        scales: What `radar_scale` found in each folder, by its path; None, unknown, contradicts nothing.

    Raises:
        ChipFolderError: If two folders differ.
    """
    known = {folder: scale for folder, scale in scales.items() if scale}
    if len(set(known.values())) > 1:
        found = '; '.join(f'{folder} is {_RADAR_SAYS[scale]}' for folder, scale in known.items())
        raise ChipFolderError(
            f'radar bands are in different units: {found}. Convert them to one, e.g. dB = 10 * log10(power), '
            'or prepare the folders apart'
        )


class Sample(NamedTuple):
    """Where the pixels of a folder or a raster lie.

    Args:
        shown: What it is called in messages.
        percentiles: Of each band, over valid pixels.
        statistics: Of the same.
        dtype: Stored dtype.
    """

    shown: str
    percentiles: Percentiles
    statistics: BandStatistics
    dtype: str


def sample_of(pixels: np.ndarray, shown: str, dtype: str) -> Sample | None:
    """Return where pixels (bands, n) lie; None where there are none, or not finite ones."""
    pixels = pixels.astype(np.float64)
    pixels = pixels[:, np.isfinite(pixels).all(axis=0)]
    found = find_percentiles(pixels)
    if found is None:
        return None
    columns = (pixels.min(axis=1), pixels.max(axis=1), pixels.mean(axis=1), pixels.std(axis=1))
    return Sample(shown, found, BandStatistics(*(tuple(column.tolist()) for column in columns)), dtype)


def check_same_units(samples: Sequence[Sample], bands: Sequence[Band]) -> None:
    """Refuse folders or rasters whose pixels are in units known to differ, such as decibels and linear power.

    Args:
        samples: Of each, the first one with the units that others must have.
        bands: Of all of them, in order.

    Raises:
        ChipFolderError: If two differ.
    """
    if len(samples) < 2:
        return
    check_radar_scales({part.shown: radar_scale(part.percentiles, bands, dtype=part.dtype) for part in samples})
    scales: dict[int, str] = {}
    for part in samples:
        scale = reflectance_scale(part.percentiles, bands, dtype=part.dtype)
        if scale in (1, 1000, 10_000):
            scales.setdefault(scale, part.shown)
    if len(scales) > 1:
        words = {1: 'as fractions of 1', 1000: 'as thousands (x 1000)', 10_000: 'as thousands (x 10000)'}
        one, other = sorted(scales)[:2]
        raise ChipFolderError(
            f'{scales[one]} holds reflectance {words[one]} but {scales[other]} {words[other]}; '
            'bring them to one scale first'
        )
    if any(band.is_radar for band in bands):
        return
    for part in samples[1:]:
        comparison = compare_units(part.percentiles, samples[0].statistics, bands)
        if comparison.far:
            raise ChipFolderError(
                f'{part.shown} is in other units than {samples[0].shown}: medians {comparison.table}. '
                f'Bring them to one scale first{f" ({comparison.hint})" if comparison.hint else ""}'
            )


def reflectance_scale(percentiles: Percentiles, bands: Sequence[Band], *, dtype: str) -> int | None:
    """Recognize which stored value stands for a reflectance of 1, by where bright pixels of land or cloud lie.

    Args:
        percentiles: Of each band, over valid pixels.
        bands: In the same order; only those of 0.4..2.5 micrometers are looked at.
        dtype: Stored dtype of the pixels.

    Returns:
        1, 1000 or 10000; 255 for 8-bit values, which need not be reflectance; None where nothing fits, as over dark
        water alone, or with 16-bit digital numbers.
    """
    chosen = [i for i, band in enumerate(bands) if band.wavelength_um is not None and 0.4 <= band.wavelength_um <= 2.5]
    if not chosen or dtype == 'uint8':
        return 255 if chosen else None
    seen, waves = percentiles.select(chosen), [bands[i].wavelength_um or 0 for i in chosen]
    visible = [mid for mid, wave in zip(seen.median, waves) if wave < 0.6]
    infrared = [mid for mid, wave in zip(seen.median, waves) if 0.75 <= wave <= 1.3]
    if visible and infrared and max(infrared) < min(visible):
        return None  # water: dark in the infrared, and no bright pixel that tells the scale
    bright, dark = max(seen.high), min(seen.low)
    fits = [scale for scale in (1, 1000, 10_000) if 0.2 <= bright / scale <= 1.5 and dark / scale >= -0.2]
    if np.dtype(dtype).kind in 'iu' and 1 in fits:
        fits.remove(1)  # fractions cannot be stored in whole numbers
    return fits[0] if len(fits) == 1 and dark / fits[0] <= 0.5 else None


def reflectance_note(scale: int | None) -> str | None:
    """Say what `reflectance_scale` found, for people; None where it found nothing."""
    if scale is None:
        return None
    if scale == 255:
        return 'optical bands hold 8-bit values, 0..255'
    return 'optical bands look like reflectance' + (' 0..1' if scale == 1 else f' x {scale}')


def _radar_band_scale(low: float, median: float, high: float, dtype: str) -> RadarScale | None:
    whole = np.dtype(dtype).kind in 'iu'
    if -60 <= low < -3 and median < 0 and high <= 25:
        return 'dB'
    if low >= 0 and not whole and 0 < median <= 2 and high <= 20:
        return 'linear'
    if low >= 0 and median > 20 and high <= 65535 and (whole or median > 50):
        return 'amplitude'
    return None

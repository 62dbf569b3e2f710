"""Tell what units pixels are in (reflectance, reflectance x 10000, dB), and whether a model was trained on others."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from geolearn.bands import Band
from geolearn.errors import ChipFolderError
from geolearn.statistics import Percentiles

RadarScale = Literal['dB', 'linear', 'amplitude']

FAR_IN_STD = 20
"""No scene's typical value lies this many standard deviations from the training mean."""

FAR_RATIO, ODD_RATIO = 20, 5
"""Scenes differ by season and light, not by these factors in every band at once."""


class UnitsComparison(NamedTuple):
    """What a comparison found: `far` means other units, `odd` that they may be; `table` shows the numbers."""

    far: bool
    odd: bool
    table: str


def compare_units(
    typical: Sequence[float] | np.ndarray, mean: Sequence[float], std: Sequence[float], band_names: Sequence[str]
) -> UnitsComparison:
    """Compare typical values of some pixels with the statistics of the training chips.

    Args:
        typical: Median or mean of each band.
        mean: Training mean of each band.
        std: Training standard deviation of each band.
        band_names: For the table.
    """
    found, center = np.asarray(typical, float), np.asarray(mean, float)
    spread = np.maximum(np.asarray(std, float), 1e-9)
    distance = np.abs(found - center) / spread
    factor = np.abs(found) / np.where(center == 0, np.nan, np.abs(center))
    # factors say nothing where zero lies within the training values, as with decibels or elevation
    telling = np.abs(center) > 0.2 * spread
    ratios = factor[telling] if telling.all() else np.ones(1)
    far = bool((distance > FAR_IN_STD).mean() > 0.5 or _all_beyond(ratios, FAR_RATIO))
    table = ', '.join(
        f'{name} {value:.4g} (trained on {t:.4g} ± {s:.3g})'
        for name, value, t, s in zip(band_names, found, center, np.asarray(std, float))
    )
    return UnitsComparison(far, far or _all_beyond(ratios, ODD_RATIO), table)


def typical_values(sample: np.ndarray) -> np.ndarray | None:
    """Return the median of each band of (bands, n) pixels, without those that are 0 in all bands: an untagged border.

    Returns:
        (bands,) float, or None where nothing is left to judge by.
    """
    kept = sample[:, (sample != 0).any(axis=0)]
    return np.median(kept, axis=1) if kept.shape[1] else None


def _all_beyond(ratios: np.ndarray, factor: float) -> bool:
    return bool((ratios < 1 / factor).all() or (ratios > factor).all())


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

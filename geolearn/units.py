"""Tell pixels in other units (reflectance, reflectance x 10000, dB) from those that a model was trained on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FAR_IN_STD = 20
"""No scene's typical value lies this many standard deviations from the training mean."""

FAR_RATIO, ODD_RATIO = 20, 5
"""Scenes differ by season and light, not by these factors in every band at once."""


class UnitsVerdict(NamedTuple):
    """What a comparison found: `far` means other units, `odd` that they may be; `table` shows the numbers."""

    far: bool
    odd: bool
    table: str


def compare_units(
    typical: Sequence[float] | np.ndarray, mean: Sequence[float], std: Sequence[float], band_names: Sequence[str]
) -> UnitsVerdict:
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
    return UnitsVerdict(far, far or _all_beyond(ratios, ODD_RATIO), table)


def typical_values(sample: np.ndarray) -> np.ndarray | None:
    """Return the median of each band of (bands, n) pixels, without those that are 0 in all bands: an untagged border.

    Returns:
        (bands,) float, or None where nothing is left to judge by.
    """
    kept = sample[:, (sample != 0).any(axis=0)]
    return np.median(kept, axis=1) if kept.shape[1] else None


def _all_beyond(ratios: np.ndarray, factor: float) -> bool:
    return bool((ratios < 1 / factor).all() or (ratios > factor).all())

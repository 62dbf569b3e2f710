"""Radar imagery for networks: decibels and linear power, log ratios of polarizations, stacks of the seasons."""

from collections.abc import Sequence
from datetime import date

import numpy as np

from geolearn import units
from geolearn.errors import BandError

SEASONS = ('winter', 'spring', 'summer', 'autumn')
"""Of the northern hemisphere, by month: December to February, and so on."""

MONTHS = {month: SEASONS[month % 12 // 3] for month in range(1, 13)}


def to_decibels(power: np.ndarray) -> np.ndarray:
    """Return 10 * log10 of linear power as float32; NaN where there is none."""
    return units.to_decibels(np.asarray(power, np.float32))


def to_linear(decibels: np.ndarray) -> np.ndarray:
    """Return the linear power of decibels as float32, 10 ** (decibels / 10); NaN stays."""
    return np.power(np.float32(10), np.asarray(decibels, np.float32) / 10)


def log_ratio(vv: np.ndarray, vh: np.ndarray, *, decibels: bool) -> np.ndarray:
    """Return the ratio of two polarizations, VV over VH, in decibels as float32; NaN where one is missing.

    Args:
        vv: Backscatter in VV, of any shape.
        vh: The same in VH.
        decibels: Whether both are in decibels; else they are linear power. Nothing in the values is taken for it.

    Raises:
        ValueError: If the shapes differ.
    """
    first, second = (np.asarray(band, np.float32) for band in (vv, vh))
    if first.shape != second.shape:
        raise ValueError(f'VV is of shape {first.shape}, VH of {second.shape}; both must be of one grid')
    if not decibels:
        first, second = to_decibels(first), to_decibels(second)
    return first - second


def seasonal_stack(
    images: Sequence[np.ndarray], dates: Sequence[date], *, decibels: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Make one image of 12 channels of a year of dual-polarization images: VV, VH and VV / VH of each season.

    Means are taken of linear power, and the result is in decibels. Images of a season that lack data somewhere are left
    out there.

    Args:
        images: Each (2, height, width), VV before VH, NaN where there is no data.
        dates: When each was taken.
        decibels: Whether the images are in decibels; else they are linear power.

    Returns:
        float32 (12, height, width), winter first, NaN where a season has no data; and the names of the channels, such
        as ``'VV winter'``.

    Raises:
        BandError: If an image is not of two bands.
        ValueError: If images and dates are of different numbers or shapes, or a season has no image.
    """
    if len(images) != len(dates):
        raise ValueError(f'found {len(images)} images and {len(dates)} dates; give one date for each')
    for image in images:
        if image.ndim != 3 or len(image) != 2:
            raise BandError(f'an image must be (2, height, width), VV before VH; got an array of shape {image.shape}')
        if image.shape != images[0].shape:
            raise ValueError(f'images must be of one grid; got shapes {images[0].shape} and {image.shape}')
    channels: list[np.ndarray] = []
    names: list[str] = []
    for season in SEASONS:
        chosen = [image for image, day in zip(images, dates) if MONTHS[day.month] == season]
        if not chosen:
            found = ', '.join(sorted({MONTHS[day.month] for day in dates}))
            raise ValueError(f'no image was taken in {season} (northern hemisphere); those given are of {found}')
        total = np.zeros(chosen[0].shape, np.float64)
        count = np.zeros(chosen[0].shape, np.int64)
        for image in chosen:
            power = to_linear(image) if decibels else np.asarray(image, np.float32)
            known = np.isfinite(power).all(axis=0) & (power > 0).all(axis=0)
            total += np.where(known, power, 0)
            count += known
        with np.errstate(invalid='ignore', divide='ignore'):
            vv, vh = to_decibels((total / count).astype(np.float32))
        channels += [vv, vh, vv - vh]
        names += [f'{band} {season}' for band in ('VV', 'VH', 'VV/VH')]
    return np.stack(channels).astype(np.float32), tuple(names)

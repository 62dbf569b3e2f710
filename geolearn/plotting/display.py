"""How pixel values become the colors of a figure: one stretch for a data set, in which clouds darken nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from geolearn.bands import Band, rgb_indexes

NODATA_GRAY = 0.5

_LIKE, _CROSS = ('vv', 'hh'), ('vh', 'hv')

_PIXELS = 1_000_000
"""Pixels of a figure's images that a stretch is fitted to; of more, evenly chosen ones."""

_QUARTILE, _MEDIAN = 0.2, 0.35
"""Brightness 0..1 that a quarter and a half of the pixels should reach."""

_LEAST_GAMMA = 0.25


@dataclass(frozen=True, slots=True)
class DisplayStretch:
    """Which values are black and white in the three colors of a figure, the same for all its images.

    Args:
        low: Of red, green and blue: the value that is black.
        high: The value that is white; a color where both are equal is gray.
        gamma: Exponent of what lies between, under 1 where most of it would be dark.
        decibels: Whether radar bands are linear power, of which the logarithm is shown.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    gamma: float = 1.0
    decibels: bool = False


def to_array(values: Tensor | np.ndarray) -> np.ndarray:
    """Return a NumPy array of a tensor on any device."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def fit_stretch(images: Tensor | np.ndarray, bands: Sequence[Band]) -> DisplayStretch:
    """Fit a stretch to images, from the 2nd percentile of their pixels to the 98th, or less where these are clouds.

    Args:
        images: (bands, ...) or, of any number of images and dates, (..., bands, height, width); NaN where there is no
            data.
        bands: Of the images.
    """
    pixels = to_array(images)
    if pixels.ndim > 3:
        pixels = np.moveaxis(pixels, -3, 0)
    pixels = pixels.reshape(len(bands), -1)
    pixels = pixels[:, :: -(-pixels.shape[1] // _PIXELS) or 1].astype(np.float32, copy=False)
    radar = _shown_radar(bands)
    decibels = bool(radar) and not (pixels[radar] < 0).any()
    colors = _compose(pixels, bands, decibels=decibels)
    colors = colors[:, np.isfinite(colors).all(0)]
    if not colors.size:
        return DisplayStretch((0.0,) * 3, (0.0,) * 3, decibels=decibels)
    low, high = _triple(np.percentile(colors, 2, axis=1)), _triple([_ceiling(color) for color in colors])
    plain = _between(colors.T, DisplayStretch(low, high)).mean(-1)
    quarter, half = np.percentile(plain, [25, 50])
    return DisplayStretch(low, high, min(_exponent(quarter, _QUARTILE), _exponent(half, _MEDIAN)), decibels)


def natural_colors(
    image: Tensor | np.ndarray, bands: Sequence[Band], stretch: DisplayStretch | None = None
) -> np.ndarray:
    """Show an image as people expect it: (..., bands, H, W) to (..., H, W, 3) in 0..1, gray where there is no data.

    Red, green and blue by wavelength where the bands have them. Radar alone as like-polarized, cross-polarized and
    the ratio of both, in decibels. One or two other bands as the first one in gray, more as the first three.

    Args:
        image: NaN where there is no data.
        bands: Of the image.
        stretch: Of the data set, so that equal values look the same in all figures; None fits one to this image.
    """
    stretch = fit_stretch(image, bands) if stretch is None else stretch
    pixels = np.moveaxis(to_array(image).astype(np.float32, copy=False), -3, 0)
    colors = np.moveaxis(_compose(pixels, bands, decibels=stretch.decibels), 0, -1)
    valid = np.isfinite(colors).all(-1, keepdims=True)
    constant = np.array(stretch.low) >= np.array(stretch.high)
    return np.where(valid & ~constant, _between(colors, stretch), NODATA_GRAY)


def image_target_colors(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Show images (n, C, H, W) in their first three bands, or the first alone: (n, H, W, 3) in 0..1.

    Args:
        images: NaN where there is no data, which is gray.
        reference: Images of the same bands, whose 2nd and 98th percentiles are black and white.
    """
    chosen = [0, 1, 2] if images.shape[1] > 2 else [0, 0, 0]
    seen = np.moveaxis(reference[:, chosen], 1, 0).reshape(3, -1)
    known = seen[:, np.isfinite(seen).all(0)]
    low, high = np.percentile(known, [2, 98], axis=1) if known.size else (np.zeros(3), np.ones(3))
    colors = _between(np.moveaxis(images[:, chosen], 1, -1), DisplayStretch(_triple(low), _triple(high)))
    return np.where(np.isfinite(colors).all(-1, keepdims=True), colors, NODATA_GRAY)


def _between(colors: np.ndarray, stretch: DisplayStretch) -> np.ndarray:
    """Return colors (..., 3) as 0..1."""
    low, high = np.array(stretch.low), np.array(stretch.high)
    with np.errstate(invalid='ignore'):
        return np.clip((colors - low) / np.where(high > low, high - low, 1), 0, 1) ** stretch.gamma


def _exponent(brightness: float, wanted: float) -> float:
    """Return the gamma that makes a brightness at least as high as wanted; 1 where it is so already."""
    if brightness >= wanted:
        return 1.0
    return _LEAST_GAMMA if brightness <= 0 else max(_LEAST_GAMMA, float(np.log(wanted) / np.log(brightness)))


def _ceiling(values: np.ndarray) -> float:
    """Return the 98th percentile of what lies within four interquartile ranges of the median."""
    lower, median, upper = np.percentile(values, [25, 50, 75])
    # beyond lie clouds, snow and roofs, which may be white
    usual = values[values <= median + 4 * (upper - lower)] if upper > lower else values
    return float(np.percentile(usual, 98))


def _triple(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _shown_radar(bands: Sequence[Band]) -> list[int]:
    """Return the positions of radar bands where radar is what is shown."""
    radar = [index for index, band in enumerate(bands) if band.is_radar]
    return radar if len(radar) == len(bands) or len(bands) - len(radar) < 3 else []


def _compose(pixels: np.ndarray, bands: Sequence[Band], *, decibels: bool) -> np.ndarray:
    """Return what red, green and blue show of pixels (bands, ...): (3, ...)."""
    if radar := _shown_radar(bands):
        return _radar(pixels, bands, radar, decibels=decibels)
    optical = [index for index, band in enumerate(bands) if not band.is_radar]
    return pixels[[optical[index] for index in rgb_indexes([bands[index] for index in optical])]]


def _radar(pixels: np.ndarray, bands: Sequence[Band], radar: list[int], *, decibels: bool) -> np.ndarray:
    names = {bands[index].common_name: index for index in reversed(radar)}
    like = next((names[name] for name in _LIKE if name in names), None)
    cross = next((names[name] for name in _CROSS if name in names), None)
    chosen = pixels[radar[:1] * 3] if like is None or cross is None else pixels[[like, cross]]
    if decibels:
        chosen = 10 * np.log10(np.where(chosen > 0, chosen, np.nan))
    return chosen if len(chosen) == 3 else np.concatenate((chosen, chosen[:1] - chosen[1:]))

"""What the bands of imagery are, and what its pixels are normalized by before they are embedded."""

import math
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

import numpy as np

from geolearn import normalize
from geolearn.backbones.create import list_quantities
from geolearn.bands import Band, get_bands, parse_wavelengths, resolve_bands
from geolearn.errors import BackboneError, BandError, RasterError
from geolearn.models.new_spec import weights_normalization, with_wavelengths
from geolearn.normalize import Normalization
from geolearn.statistics import BandStatistics, Percentiles, RunningStatistics
from geolearn.units import typical_values

Normalize = normalize.Normalize | None
"""``'pretraining'``, ``'dataset'``, ``'minmax'``, ``'robust'``, ``'imagenet'``, ``'none'`` or (means, stds)."""

SAMPLE = 200_000
"""Pixels that statistics of arrays are taken from."""

LEAST_SCORE, MOST_SCORE = -0.25, 30.0
"""Reflectance is not below the first, though corrections of the atmosphere overshoot; scores are not above the last."""


def name_bands(
    count: int,
    bands: str | Sequence[Band | str] | None,
    *,
    sensor: str | None = None,
    wavelengths: Sequence[float | None] | None = None,
) -> tuple[Band, ...]:
    """Say what the bands of an array are.

    Args:
        count: Number of bands.
        bands: A sensor's key for all its bands, names, or `Band` objects; None where `sensor` or `wavelengths` say it.
        sensor: Whose names the bands have, or all of whose bands they are.
        wavelengths: Center of each band in micrometers; None for radar.

    Raises:
        BandError: If nothing says what they are, there are more or fewer of them, or one is named twice.
        UnknownNameError: If there is no such sensor or band.
    """
    if isinstance(bands, str):
        sensor, bands = bands, None
    if bands is not None:
        names = [band for band in bands if isinstance(band, str)]
        if len(names) not in (0, len(bands)):
            raise BandError('bands must be all names or all Band objects')
        known: Sequence[Band | str] = bands
        if names:
            known = resolve_bands(names)
            if sensor is not None:
                own = iter(get_bands(sensor, [name for name in names if name not in list_quantities()]))
                known = [Band(name) if name in list_quantities() else next(own) for name in names]
        found = tuple(band for band in known if isinstance(band, Band))
    elif sensor is not None:
        found = get_bands(sensor)
    elif wavelengths is not None:
        if len(wavelengths) != count:
            raise BandError(f'found {len(wavelengths)} wavelengths for {count} bands; give one for each, in band order')
        given = [wave for wave in wavelengths if wave is not None]
        light = iter(parse_wavelengths(given, len(given)))
        return tuple(
            Band(f'radar {number}', is_radar=True) if wave is None else Band(f'band {number}', next(light))
            for number, wave in enumerate(wavelengths, 1)
        )
    else:
        raise BandError(
            f'nothing says what the {count} bands are; pass bands= with their names, such as ["B04", "B03", "B02"], '
            'with sensor="sentinel2_l2a"; or wavelengths= in micrometers, one for each'
        )
    if len(found) != count:
        names = [band.name for band in found]
        raise BandError(f'found {count} bands in the array, but {len(found)} are named: {", ".join(names)}')
    if twice := [band.name for number, band in enumerate(found) if band in found[:number]]:
        raise BandError(f'the band {twice[0]} is named twice; name each band of the array once, in order')
    if wavelengths is not None:
        found = with_wavelengths(found, wavelengths)
    require_known(found)
    return found


def require_known(bands: Sequence[Band]) -> None:
    """Refuse bands of which nothing is known.

    Raises:
        BandError: If one has no wavelength, no common name, and is neither radar nor a quantity that a
            backbone knows by its name.
    """
    unknown = [
        b.name
        for b in bands
        if b.wavelength_um is None and b.common_name is None and not b.is_radar and b.name not in list_quantities()
    ]
    if unknown:
        raise BandError(
            f'the names {unknown} do not say which bands they are; pass sensor= or bands= with names that do, or '
            'wavelengths= in micrometers, one for each band'
        )


def choose_normalization(
    kind: Normalize,
    sample: np.ndarray,
    bands: Sequence[Band],
    backbone: str,
    *,
    dtype: str,
    pretrained: bool,
    weights: str | Path | None = None,
    check_values: bool = True,
) -> tuple[Normalization, BandStatistics]:
    """Choose what pixels are normalized by.

    Args:
        kind: None takes ``'pretraining'`` for pretrained weights, ``'dataset'`` for random ones.
        sample: Pixels with data (bands, n), as they are stored.
        bands: In order.
        backbone: Its name.
        dtype: Stored dtype of the pixels.
        pretrained: Whether the backbone has weights.
        weights: The user's own file.
        check_values: Whether to refuse pixels that look normalized already.

    Returns:
        The normalization, and the statistics of the sample.

    Raises:
        RasterError: If there is no pixel with data, or pixels look normalized already.
        BackboneError: If the weights state no mean and std for these bands in these units.
        BandError: If the normalization does not fit the bands.
        UnknownNameError: If there is none of that name.
    """
    percentiles = typical_values(sample)
    if percentiles is None:
        raise RasterError('no pixel holds data; check nodata=, and the part of the raster that is wanted')
    statistics = sample_statistics(sample)
    if kind is None:
        kind = 'pretraining' if pretrained else 'dataset'
    if isinstance(kind, str) and kind == 'none':
        return Normalization((0.0,) * len(bands), (1.0,) * len(bands), 'nothing: normalized by the caller'), statistics
    normalize.check_normalize(kind, len(bands))
    invariant = isinstance(kind, str) and kind in ('dataset', 'minmax', 'robust')
    if check_values and not invariant:
        refuse_normalized(percentiles, statistics, bands, dtype=dtype)
    stated = None
    if isinstance(kind, str) and kind == 'pretraining':
        try:
            stated = weights_normalization(percentiles, dtype, bands, backbone, weights=weights)
        except BackboneError as error:
            text = str(error).removesuffix(' to prepare_data')
            raise BackboneError(f'{text} (mean and std of these images), or (means, stds) in their units') from error
    chosen = normalize.choose_normalization(
        kind, statistics, dtype=dtype, bands=bands, percentiles=percentiles, pretraining=stated
    )
    if invariant:
        text = chosen.source.replace('the chips', 'these images')
        chosen = Normalization(chosen.mean, chosen.std, text)
    return chosen, statistics


def sample_statistics(sample: np.ndarray) -> BandStatistics:
    """Return the statistics of pixels (bands, n) that have data."""
    running = RunningStatistics()
    running.add(sample[:, np.isfinite(sample).all(axis=0)][:, None])
    return running.result()


def sample_arrays(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return some `SAMPLE` pixels (bands, n) with data, of arrays of images (items, bands, H, W) of several sizes."""
    total = sum(pixels.size // pixels.shape[1] for pixels in arrays)
    step = max(1, math.ceil(math.sqrt(total / SAMPLE)))
    parts = []
    for pixels in arrays:
        flat = np.moveaxis(pixels[:, :, ::step, ::step], 1, 0).reshape(pixels.shape[1], -1)
        parts.append(flat[:, np.isfinite(flat).all(axis=0)])
    return pool_samples(parts)


def pool_samples(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Put samples (bands, n) of several images together, so that their sums are the same whatever their order is."""
    return np.concatenate(sorted(parts, key=lambda part: part.tobytes()), axis=1)


def refuse_normalized(
    percentiles: Percentiles, statistics: BandStatistics, bands: Sequence[Band], *, dtype: str
) -> None:
    """Refuse pixels that look normalized already: they would be normalized twice.

    Standard scores lie around 0 on both sides, where no reflectance is, and no backscatter in decibels. Bands that were
    stretched to 0..1 each fill that range exactly. Of either, whole numbers are left where they are cut to such.

    Raises:
        RasterError: With what to do instead.
    """
    imaged = [band.is_radar or band.wavelength_um is not None or band.common_name is not None for band in bands]
    if not any(imaged):
        return  # an index or a height may lie anywhere
    rows = list(compress(zip(bands, percentiles.low, percentiles.median, percentiles.high), imaged))
    scores = [
        low < LEAST_SCORE and high < MOST_SCORE and abs(mid) < 3 and high > 0
        if not band.is_radar
        else low < LEAST_SCORE and abs(mid) < 3 and low > -6 and 0 < high < 6
        for band, low, mid, high in rows
    ]
    whole = np.dtype(dtype).kind in 'iu'  # of reflectance and of scores, 0 and 1 are left
    stretched = [
        least >= 0 and most <= 1 and (whole or (least <= 1e-3 and most >= 1 - 1e-3))
        for least, most in compress(zip(statistics.minimum, statistics.maximum), imaged)
    ]
    found = 'standard scores (mean 0, std 1)' if all(scores) else 'bands stretched to 0..1' if all(stretched) else ''
    if found:
        ranges = ', '.join(f'{band.name} {low:.3g} to {high:.3g}' for band, low, _, high in rows[:4])
        raise RasterError(
            f'the values look normalized already, like {found}: {ranges}. Pass pixels in raw units (reflectance, '
            "decibels, digital numbers); normalize='none' if they are normalized as the weights need it; or "
            'check_values=False if these are raw units'
        )

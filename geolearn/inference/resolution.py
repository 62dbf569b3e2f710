"""Pixel sizes: compare a raster's with that of the training chips, and choose the grid that it is resampled to."""

import logging
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import transform as transform_points

from geolearn.errors import RasterError
from geolearn.inference.options import Resolution
from geolearn.networks.spec import ModelSpec
from geolearn.raster import GeoBox

log = logging.getLogger('geolearn')

MAX_RATIO = 1.5
"""Networks lose accuracy on pixels that are larger or smaller than those of training by more than this factor."""

SAME = 0.01
"""Pixel sizes that differ by a smaller share are equal: no resampling."""

METERS_PER_DEGREE = 111_320.0
PIXEL_SPACE = 'PIXEL_SPACE'
"""ArcGIS's ImageSpaceUsed for images without a place on the ground."""


def choose_geobox(box: GeoBox, spec: ModelSpec, resolution: Resolution | None, *, shown: str) -> GeoBox | None:
    """Check a raster's pixel size against that of the training chips, and return the grid to read it on.

    Args:
        box: Place of the raster.
        spec: Of the model; its cell size is that of the training chips.
        resolution: What the caller asks for; None reads the raster as it is.
        shown: Name of the raster in messages.

    Returns:
        None where the raster is read as it is.

    Raises:
        RasterError: If pixels are more than `MAX_RATIO` times larger or smaller than in training and `resolution` is
            not given; or it is ``'training'`` and the sizes cannot be compared.
        ValueError: If `resolution` is not a size.
    """
    trained = _training_sides(spec, box)
    if trained is None and not box.transform.is_identity:
        _warn_unchecked(spec.model)
    if resolution is None:
        _check(box, trained, shown)
        return None
    sides = trained if resolution == 'training' else _given_sides(resolution, box)
    if sides is None:
        raise RasterError(
            f"resolution='training' needs the pixel size of the training chips and the place of {shown}, and one of "
            "them is not known; pass resolution= as a number in the raster's units"
        )
    if trained is not None and (ratio := _ratio(sides, trained)) > MAX_RATIO:
        log.warning(
            'pixels of %s are %.3g times off those of the training chips, %s', shown, ratio, _text(trained, box)
        )
    factors = [wanted / own for wanted, own in zip(sides, box.resolution)]
    if all(abs(factor - 1) < SAME for factor in factors):
        return None
    return _rescaled(box, factors[0], factors[1])


def _check(box: GeoBox, trained: tuple[float, float] | None, shown: str) -> None:
    if trained is None:
        return
    ratio = _ratio(box.resolution, trained)
    if ratio > MAX_RATIO:
        larger = _side(box.resolution) > _side(trained)
        raise RasterError(
            f'pixels of {shown} measure {_text(box.resolution, box)}, those of the training chips '
            f"{_text(trained, box)}: {ratio:.3g} times {'larger' if larger else 'smaller'}. Pass resolution='training' "
            f'to resample while reading, or resolution={_side(box.resolution):.6g} to read the raster as it is'
        )


@cache
def _warn_unchecked(model: str) -> None:
    """Log once that pixel sizes are not compared."""
    log.warning(
        'the pixel size of the training chips of this %s is not known, so that of rasters is not checked', model
    )


def _given_sides(resolution: float, box: GeoBox) -> tuple[float, float]:
    size = max(own * length for own, length in zip(box.resolution, reversed(box.shape)))
    if resolution > size:
        unit = _unit(box)
        degrees = resolution / METERS_PER_DEGREE
        advice = f'; {resolution:g} m are about {degrees:.3g} degrees' if unit == 'degrees' else ''
        raise ValueError(
            f'resolution={resolution:g} {unit} is larger than the whole raster ({size:.3g} {unit}){advice}'
        )
    return float(resolution), float(resolution)


def _training_sides(spec: ModelSpec, box: GeoBox) -> tuple[float, float] | None:
    """Return width and height of the training chips' pixels in units of a raster; None where these are not known."""
    cell = spec.cell_size or {}
    try:
        sides = (float(cell['x']), float(cell['y']))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if not all(0 < side < math.inf for side in sides) or spec.image_space == PIXEL_SPACE:
        return None
    crs = None if box.crs is None else CRS.from_user_input(box.crs)
    trained = _read_crs(cell.get('spatialReference'))
    if trained is None or crs is None:
        # chips and rasters without a CRS are in the same unknown unit
        return sides if trained is None and crs is None and not box.transform.is_identity else None
    if trained == crs:
        return sides
    latitude = _latitude(box, crs)
    theirs, ours = (_meters_per_unit(each, latitude) for each in (trained, crs))
    return sides[0] * theirs[0] / ours[0], sides[1] * theirs[1] / ours[1]


def _read_crs(reference: Any) -> CRS | None:
    """Return the CRS of Esri's spatialReference; None where it names none that PROJ knows."""
    if not isinstance(reference, Mapping):
        return None
    candidates: list[Any] = [reference.get('wkt')]
    for key in ('latestWkid', 'wkid'):
        if isinstance(number := reference.get(key), int):
            candidates += [f'EPSG:{number}', f'ESRI:{number}']
    for text in candidates:
        try:
            if text:
                return CRS.from_user_input(text)
        except (CRSError, ValueError):
            continue
    return None


def _latitude(box: GeoBox, crs: CRS) -> float:
    """Return the latitude of a raster's center in degrees."""
    left, bottom, right, top = box.bounds
    x, y = (left + right) / 2, (bottom + top) / 2
    if crs.is_geographic:
        return min(max(y, -89.0), 89.0)
    try:
        _, (latitude,) = transform_points(crs, 'EPSG:4326', [x], [y])
    except RasterioError:
        return 0.0
    return min(max(latitude, -89.0), 89.0) if math.isfinite(latitude) else 0.0


def _meters_per_unit(crs: CRS, latitude: float) -> tuple[float, float]:
    """Return the meters on the ground, across and down, of one unit of a CRS."""
    shrinks = math.cos(math.radians(latitude))
    if crs.is_geographic:
        return METERS_PER_DEGREE * shrinks, METERS_PER_DEGREE
    # Mercator, which web maps are in, stretches the ground by 1 / cos(latitude)
    stretched = crs.to_dict().get('proj') in ('merc', 'webmerc')
    factor = float(crs.linear_units_factor[1]) * (shrinks if stretched else 1.0)
    return factor, factor


def _unit(box: GeoBox) -> str:
    if box.crs is None:
        return 'units'
    crs = CRS.from_user_input(box.crs)
    return 'degrees' if crs.is_geographic else str(crs.linear_units)


def _text(sides: tuple[float, float], box: GeoBox) -> str:
    """Write a pixel size in units of a raster, and in meters where these are degrees."""
    unit = _unit(box)
    if unit == 'degrees':
        crs = CRS.from_user_input(box.crs)
        meters = _side((sides[0] * _meters_per_unit(crs, _latitude(box, crs))[0], sides[1] * METERS_PER_DEGREE))
        return f'{_side(sides):.3g} degrees (about {meters:.3g} m)'
    return f'{_side(sides):.3g} {"m" if unit in ("metre", "meter") else unit}'


def _side(sides: tuple[float, float]) -> float:
    """Return the side of the square with the area of a pixel."""
    return math.sqrt(sides[0] * sides[1])


def _ratio(sides: tuple[float, float], others: tuple[float, float]) -> float:
    """Return how many times larger the larger of two pixel sizes is."""
    ratio = _side(sides) / _side(others)
    return max(ratio, 1 / ratio)


def _rescaled(box: GeoBox, across: float, down: float) -> GeoBox:
    """Return a box of the same corner whose pixels are so many times larger; it covers the whole of the other."""
    t = box.transform
    shape = tuple(max(1, math.ceil(length / factor - 1e-6)) for length, factor in zip(box.shape, (down, across)))
    place = Affine(t.a * across, t.b * down, t.c, t.d * across, t.e * down, t.f)
    return GeoBox((shape[0], shape[1]), place, box.crs)

"""Pixel sizes on the ground in meters, whatever the units of a CRS and however its projection stretches them."""

import math

from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform as transform_points

from geolearn.raster.geobox import GeoBox

METERS_PER_DEGREE = 111_320.0
"""Of latitude."""


def meters_per_unit(crs: CRS, latitude: float) -> tuple[float, float]:
    """Return the meters on the ground, across and down, of one unit of a CRS at a latitude in degrees."""
    shrinks = math.cos(math.radians(latitude))
    if crs.is_geographic:
        return METERS_PER_DEGREE * shrinks, METERS_PER_DEGREE
    # Mercator, which web maps are in, stretches the ground by 1 / cos(latitude)
    stretched = crs.to_dict().get('proj') in ('merc', 'webmerc')
    factor = float(crs.linear_units_factor[1]) * (shrinks if stretched else 1.0)
    return factor, factor


def unit_of(crs: CRS | None) -> str:
    """Return the unit of a CRS in words: ``'m'``, ``'degrees'``, such as ``'US survey foot'``; ``'units'`` of none."""
    if crs is None:
        return 'units'
    if crs.is_geographic:
        return 'degrees'
    return {'metre': 'm', 'meter': 'm'}.get(str(crs.linear_units), str(crs.linear_units))


def latitude_of(box: GeoBox, crs: CRS) -> float:
    """Return the latitude of a raster's center in degrees, -89..89; 0 where the CRS does not say."""
    left, bottom, right, top = box.bounds
    x, y = (left + right) / 2, (bottom + top) / 2
    if crs.is_geographic:
        return min(max(y, -89.0), 89.0)
    try:
        _, (latitude,) = transform_points(crs, 'EPSG:4326', [x], [y])
    except RasterioError:
        return 0.0
    return min(max(latitude, -89.0), 89.0) if math.isfinite(latitude) else 0.0


def pixel_side_m(box: GeoBox) -> float | None:
    """Return the side in meters of the square with the area of a pixel; None where the raster names no place."""
    if box.crs is None or box.transform.is_identity:
        return None
    crs = CRS.from_user_input(box.crs)
    across, down = meters_per_unit(crs, latitude_of(box, crs))
    width, height = box.resolution
    return math.sqrt(abs(width * across * height * down))


SAME_RESOLUTION = 0.05
"""Share of the pixel size up to which that of training is kept."""


def other_resolution(box: GeoBox, trained_m: float) -> float | None:
    """Return meters per pixel of a raster; None where they are not known, or about those of training."""
    found = pixel_side_m(box)
    return None if found is None or abs(found / trained_m - 1) <= SAME_RESOLUTION else found

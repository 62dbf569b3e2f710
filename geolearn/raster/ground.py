"""Pixel sizes on the ground in meters, whatever the units of a CRS and however its projection stretches them."""

import math

from rasterio._err import CPLE_BaseError
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


Location = tuple[float, float]
"""Latitude and longitude in degrees."""


def locate(crs: CRS, x: float, y: float) -> Location | None:
    """Return where a point in units of a CRS lies; None where the CRS does not say."""
    try:
        (lon,), (lat,) = transform_points(crs, 'EPSG:4326', [x], [y])
    except (RasterioError, CPLE_BaseError):  # the latter of a local CRS, of which PROJ knows no way to the ground
        return None
    return (float(lat), float(lon)) if math.isfinite(lat) and math.isfinite(lon) else None


def center_of(box: GeoBox) -> Location | None:
    """Return where the center of a raster lies; None where it has no CRS, or that does not say."""
    if box.crs is None:
        return None
    left, bottom, right, top = box.bounds
    return locate(CRS.from_user_input(box.crs), (left + right) / 2, (bottom + top) / 2)


def latitude_of(box: GeoBox) -> float:
    """Return the latitude of a raster's center in degrees, -89..89; 0 where the CRS does not say."""
    found = center_of(box)
    return 0.0 if found is None else min(max(found[0], -89.0), 89.0)


def pixel_side_m(box: GeoBox) -> float | None:
    """Return the side in meters of the square with the area of a pixel; None where the raster names no place."""
    if box.crs is None or box.transform.is_identity:
        return None
    crs = CRS.from_user_input(box.crs)
    across, down = meters_per_unit(crs, latitude_of(box))
    width, height = box.resolution
    return math.sqrt(abs(width * across * height * down))


SAME_RESOLUTION = 0.05
"""Share of the pixel size up to which that of training is kept."""


def other_resolution(box: GeoBox, trained_m: float) -> float | None:
    """Return meters per pixel of a raster; None where they are not known, or about those of training."""
    found = pixel_side_m(box)
    return None if found is None or abs(found / trained_m - 1) <= SAME_RESOLUTION else found

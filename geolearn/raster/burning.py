"""Draw polygons into pixels, and outline groups of pixels.

rasterio hides warnings while it does either, which changes a list that belongs to the whole process; so one thread at a
time may be at it.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from rasterio.features import rasterize, shapes

from geolearn.raster._opening import filters_to_oneself


def burn_polygons(
    pairs: Iterable[tuple[Any, int]], shape: tuple[int, ...], *, dtype: type = np.uint8, all_touched: bool = False
) -> np.ndarray:
    """Return (height, width) with the number of the last polygon that holds each pixel's centre, else 0.

    Args:
        pairs: Polygon in pixels (x = columns, y = rows) and number of each.
        shape: Height and width.
        dtype: Type of the result.
        all_touched: Whether pixels count that a polygon only touches.
    """
    listed = list(pairs)
    if not listed:
        return np.zeros(shape, dtype)
    with filters_to_oneself():
        burnt: np.ndarray = rasterize(listed, out_shape=shape, dtype=dtype, all_touched=all_touched)
    return burnt


def group_pixels(values: np.ndarray) -> list[tuple[Any, int]]:
    """Return the outline and the value of each group of pixels of one value above 0 that share edges.

    Args:
        values: (height, width) unsigned integers of at most 16 bits.
    """
    with filters_to_oneself():
        return [(outline, int(value)) for outline, value in shapes(values, mask=values > 0, connectivity=4)]

"""Maps whose pixels are larger than those of their raster, so many of these for each: places, windows and tiles."""

import numpy as np
from affine import Affine
from rasterio.windows import Window

from geolearn.inference.source import MIN_VALID_SHARE
from geolearn.raster import GeoBox
from geolearn.tiling import Tile


def coarsen_box(box: GeoBox, stride: int) -> GeoBox:
    """Return the place of a map that has a pixel for each `stride` pixels of a raster, the last of them cut short."""
    if stride == 1:
        return box
    t = box.transform
    rows, columns = (-(-length // stride) for length in box.shape)
    return GeoBox((rows, columns), Affine(t.a * stride, t.b * stride, t.c, t.d * stride, t.e * stride, t.f), box.crs)


def coarsen_window(window: Window, stride: int) -> Window:
    """Return the pixels of such a map that a window of the raster reaches into."""
    top, left = int(window.row_off) // stride, int(window.col_off) // stride
    bottom, right = (-(-int(end) // stride) for end in (window.row_off + window.height, window.col_off + window.width))
    return Window(left, top, right - left, bottom - top)


def coarsen_absent(absent: np.ndarray, first: tuple[int, int], shape: tuple[int, int], stride: int) -> np.ndarray:
    """Return which pixels of a map lack data in over half of their part of the raster, as bool (h, w).

    Args:
        absent: (h * stride, w * stride), True where a tile of the raster has no data, as outside of the raster.
        first: Row and column of the raster where the tile begins.
        shape: Height and width of the raster.
        stride: Pixels of the raster for each of the map.
    """
    known = (~absent).reshape(absent.shape[0] // stride, stride, -1, stride).sum(axis=(1, 3))
    inside = [
        ((np.arange(side) + start >= 0) & (np.arange(side) + start < length)).reshape(-1, stride).sum(axis=1)
        for side, start, length in zip(absent.shape, first, shape)
    ]
    lacking: np.ndarray = (known < MIN_VALID_SHARE * np.outer(*inside)) | (known == 0)
    return lacking


def coarsen_tile(tile: Tile, stride: int) -> Tile:
    """Return a tile in pixels of the map."""
    read, core = (
        Window(*(int(number) // stride for number in (w.col_off, w.row_off, w.width, w.height))) for w in tile
    )
    return Tile(read, core)

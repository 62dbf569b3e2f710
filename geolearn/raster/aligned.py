"""A raster of classes seen on the grid of another: each pixel takes the value at its center."""

from collections.abc import Sequence

import numpy as np
from rasterio.errors import RasterioError
from rasterio.warp import transform as transform_points
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from geolearn.errors import RasterError
from geolearn.raster.geobox import GeoBox, same_crs
from geolearn.raster.nodata import compact
from geolearn.raster.raster import Raster, RasterView


class AlignedRaster(RasterView):
    """A raster on another grid, of whatever CRS, pixel size and extent (nearest neighbor).

    Each pixel has the value of the source pixel that its center lies in; where there is none, it is invalid. No value
    is made up between two, so that classes stay classes.

    Args:
        raster: The source.
        geobox: The grid to have.

    Raises:
        RasterError: If one of the two has no place on the ground, only one of them has a CRS, or they do not overlap.
    """

    def __init__(self, raster: Raster, geobox: GeoBox) -> None:
        if raster.transform.is_identity or geobox.transform.is_identity:
            raise RasterError(f'{raster.name} and the image cannot be aligned: one has no place on the ground')
        if (raster.geobox.crs is None) != (geobox.crs is None):
            raise RasterError(
                f'{raster.name} and the image cannot be aligned: only one of them names a CRS, '
                f'{raster.geobox.crs or geobox.crs}'
            )
        bounds = geobox.bounds
        if geobox.crs is not None and not same_crs(geobox.crs, raster.geobox.crs):
            bounds = transform_bounds(geobox.crs, raster.geobox.crs, *bounds)
        left, bottom, right, top = raster.geobox.bounds
        if bounds[2] <= left or bounds[0] >= right or bounds[3] <= bottom or bounds[1] >= top:
            raise RasterError(
                f'{raster.name} and the image do not overlap: bounds {raster.geobox.bounds} and, in its CRS, {bounds}'
            )
        super().__init__(raster, geobox, crs=geobox.crs)

    def read_masked(
        self, window: Window, indexes: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window; its pixels are the same whatever window they are read in."""
        rows, cols = self._source_pixels(window)
        inside = (rows >= 0) & (rows < self._raster.height) & (cols >= 0) & (cols < self._raster.width)
        if out is None:
            out = np.empty((len(indexes), *rows.shape), self.common_dtype(indexes))
        out[...] = 0
        mask = np.zeros(out.shape, bool)
        if inside.any():
            rows, cols = rows[inside], cols[inside]
            top, left = int(rows.min()), int(cols.min())
            source = Window(left, top, int(cols.max()) - left + 1, int(rows.max()) - top + 1)
            pixels, valid = self._raster.read_masked(source, indexes)
            out[:, inside] = pixels[:, rows - top, cols - left]
            mask[:, inside] = (
                True if valid is None else np.broadcast_to(valid, pixels.shape)[:, rows - top, cols - left]
            )
        return out, compact(mask)

    def _source_pixels(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Return row and column of the source, (height, width) each, that each pixel's center lies in."""
        there, back = self.transform, ~self._raster.transform
        shape = (int(window.height), int(window.width))
        rows, cols = np.indices(shape, np.float64)
        rows, cols = rows + window.row_off + 0.5, cols + window.col_off + 0.5
        x = there.a * cols + there.b * rows + there.c
        y = there.d * cols + there.e * rows + there.f
        if not same_crs(self.geobox.crs, self._raster.geobox.crs):
            try:
                points = transform_points(self.geobox.crs, self._raster.geobox.crs, x.ravel(), y.ravel())
            except RasterioError as error:
                raise RasterError(f'cannot bring {self.name} to the CRS of the image: {error}') from error
            x, y = (np.asarray(values, np.float64).reshape(shape) for values in points)
        # a hair to the right and down, so that centers on an edge, but for rounding, fall to one side
        nearest = [
            np.floor(np.nan_to_num(values + 1e-6, nan=-1, posinf=-1, neginf=-1)).astype(np.int64)
            for values in (back.d * x + back.e * y + back.f, back.a * x + back.b * y + back.c)
        ]
        return nearest[0], nearest[1]

"""See a raster on another grid of pixels: interpolated where that is finer, averaged where it is coarser."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from affine import Affine
from rasterio.windows import Window

from geolearn.errors import RasterError
from geolearn.raster.geobox import GeoBox
from geolearn.raster.nodata import compact
from geolearn.raster.raster import Raster


class _Taps(NamedTuple):
    """Which source pixels make each target pixel along one axis: indexes and weights (targets, taps)."""

    indexes: np.ndarray
    weights: np.ndarray


class ResampledRaster(Raster):
    """A raster on another grid of the same CRS and orientation.

    Each pixel is the mean of the source pixels around its center, weighted by a triangle as wide as the larger of the
    two pixels: bilinear interpolation on finer grids, an average on coarser ones. Pixels without data take no part; a
    pixel is valid where the source pixel at its center is.

    Args:
        raster: The source.
        geobox: The grid to have.

    Raises:
        RasterError: If one of the two is turned.
    """

    def __init__(self, raster: Raster, geobox: GeoBox) -> None:
        if any((raster.transform.b, raster.transform.d, geobox.transform.b, geobox.transform.d)):
            raise RasterError(f'{raster.name} is turned or sheared; warp it to a north-up grid first (gdalwarp)')
        self._raster = raster
        super().__init__(
            raster.name,
            geobox,
            dtypes=raster.dtypes,
            descriptions=raster.descriptions,
            nodatavals=raster.nodatavals,
            block_shapes=[(min(256, geobox.shape[0]), min(256, geobox.shape[1]))] * raster.count,
            scales=raster.scales,
            offsets=raster.offsets,
            colorinterp=raster.colorinterp,
            crs=raster.crs,
        )
        self.files = raster.files
        old, new = raster.transform, geobox.transform
        self._rows = (new.e / old.e, (new.f - old.f) / old.e)
        self._cols = (new.a / old.a, (new.c - old.c) / old.a)

    def tags(self, index: int = 0, ns: str | None = None) -> Mapping[str, str]:
        """Return metadata of the source."""
        return self._raster.tags(index, ns=ns)

    def close(self) -> None:
        """Close the source."""
        self._raster.close()

    def read_masked(
        self, window: Window, indexes: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window; its pixels are the same whatever window they are read in."""
        height, width = int(window.height), int(window.width)
        rows = _taps(int(window.row_off), height, *self._rows, self._raster.height)
        cols = _taps(int(window.col_off), width, *self._cols, self._raster.width)
        top, left = int(rows.indexes.min()), int(cols.indexes.min())
        source = Window(left, top, int(cols.indexes.max()) - left + 1, int(rows.indexes.max()) - top + 1)
        pixels, mask = self._raster.read_masked(source, indexes)
        rows, cols = rows._replace(indexes=rows.indexes - top), cols._replace(indexes=cols.indexes - left)
        if out is None:
            out = np.empty((len(indexes), height, width), pixels.dtype)
        valid = None if mask is None else np.broadcast_to(mask, pixels.shape)
        for place, plane in enumerate(pixels):
            out[place] = _stored(_resample(plane, None if valid is None else valid[place], rows, cols), out.dtype)
        if valid is None:
            return out, None
        centers = np.ix_(_centers(rows), _centers(cols))
        return out, compact(np.stack([band[centers] for band in valid]))


def _taps(start: int, count: int, step: float, offset: float, length: int) -> _Taps:
    """Weigh the source pixels of targets start..start + count, whose edges lie at `step * target + offset`."""
    reach = max(1.0, abs(step))
    middle = (start + np.arange(count) + 0.5) * step + offset - 0.5
    first = np.ceil(middle - reach - 1e-6).astype(np.int64)
    indexes = first[:, None] + np.arange(math.floor(2 * reach + 1e-6) + 1)
    weights = np.clip(1 - np.abs(indexes - middle[:, None]) / reach, 0, None)
    weights[(indexes < 0) | (indexes >= length)] = 0
    empty = weights.sum(axis=1) == 0  # beyond the edge, by half a pixel at most
    indexes = np.clip(indexes, 0, length - 1)
    weights[empty, 0] = 1
    weights /= weights.sum(axis=1, keepdims=True)
    return _Taps(indexes, weights)


def _centers(taps: _Taps) -> np.ndarray:
    """Return the source pixel nearest to the center of each target."""
    nearest: np.ndarray = np.take_along_axis(taps.indexes, taps.weights.argmax(axis=1)[:, None], axis=1)[:, 0]
    return nearest


def _resample(plane: np.ndarray, valid: np.ndarray | None, rows: _Taps, cols: _Taps) -> np.ndarray:
    values = plane.astype(np.float64 if plane.dtype.itemsize > 2 else np.float32)
    if valid is None or valid.all():
        return _apply(values, rows, cols)
    weight = _apply(valid.astype(values.dtype), rows, cols)
    total = _apply(np.where(valid, values, 0), rows, cols)
    nearest = values[np.ix_(_centers(rows), _centers(cols))]
    return np.where(weight > 1e-6, total / np.maximum(weight, 1e-6), nearest)


def _apply(plane: np.ndarray, rows: _Taps, cols: _Taps) -> np.ndarray:
    """Weigh rows, then columns."""
    for taps, axis in ((rows, 0), (cols, 1)):
        plane = sum(
            np.take(plane, indexes, axis=axis) * (weights[:, None] if axis == 0 else weights).astype(plane.dtype)
            for indexes, weights in zip(taps.indexes.T, taps.weights.T)
        )
    return plane


def _stored(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return values in the type of the file: whole numbers are rounded."""
    if dtype.kind == 'f':
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)


def resized_box(box: GeoBox, resolution: float) -> GeoBox:
    """Return the grid of square pixels of this size, in map units, over the ground of `box`, from its upper left."""
    t = box.transform
    width, height = box.resolution
    shape = tuple(max(1, round(length * side / resolution)) for length, side in zip(box.shape, (height, width)))
    return GeoBox(
        (shape[0], shape[1]),
        Affine(math.copysign(resolution, t.a), 0, t.c, 0, math.copysign(resolution, t.e), t.f),
        box.crs,
    )

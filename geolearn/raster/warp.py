"""Rasters of several CRSs, pixel sizes and NoData values, brought to one grid while they are read."""

import logging
import math
from collections.abc import Sequence

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform as transform_points
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from geolearn.errors import RasterError
from geolearn.raster.area import CroppedRaster, PixelArea
from geolearn.raster.geobox import MISFIT_PX, GeoBox, same_crs
from geolearn.raster.mosaic import ResampledRaster, as_stored
from geolearn.raster.nodata import compact
from geolearn.raster.raster import Raster, RasterView

log = logging.getLogger('geolearn')

STEP = 16
"""Pixels between the points whose coordinates are computed; those between them are interpolated."""

FINER = 1.5
"""Sources of pixels that are smaller by more than this factor are averaged before they are interpolated."""


class WarpedRaster(RasterView):
    """A raster on a grid of any CRS, by bilinear interpolation; pixels without data take no part.

    A pixel is valid where the source pixel nearest to its center is. The coordinates of every 16th pixel are computed,
    counted from the corner of the grid, so that pixels are the same whatever window they are read in.

    Args:
        raster: The source.
        geobox: The grid to have.

    Raises:
        RasterError: If a place has no coordinates in the other CRS.
    """

    def __init__(self, raster: Raster, geobox: GeoBox) -> None:
        super().__init__(raster, geobox, crs=CRS.from_user_input(geobox.crs))

    def read_masked(
        self, window: Window, indexes: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window that lies inside the grid."""
        shape = int(window.height), int(window.width)
        if out is None:
            out = np.empty((len(indexes), *shape), self.common_dtype(indexes))
        out[...] = 0
        across, down = self._source_pixels(window)
        height, width = self._raster.shape
        with np.errstate(invalid='ignore'):
            inside = (across >= -0.5) & (across < width - 0.5) & (down >= -0.5) & (down < height - 0.5)
        if not inside.any():
            return out, np.zeros((1, *shape), bool)
        across, down = np.clip(across[inside], 0, width - 1), np.clip(down[inside], 0, height - 1)
        left, top = int(across.min()), int(down.min())
        right, bottom = math.ceil(across.max()) + 1, math.ceil(down.max()) + 1
        pixels, mask = self._raster.read_masked(Window(left, top, right - left, bottom - top), indexes)
        known = np.ones((1, *pixels.shape[1:]), bool) if mask is None else mask
        known = np.broadcast_to(known, pixels.shape)
        valid = np.zeros((len(indexes), *shape), bool)
        for band, plane in enumerate(pixels):
            values, there = _interpolate(plane, known[band], across - left, down - top)
            out[band][inside], valid[band][inside] = as_stored(values, out.dtype), there
        return out, compact(valid)

    def _source_pixels(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Return columns and rows (height, width) of the source at the centers of pixels; NaN where there are none."""
        (rows, row_parts), (cols, col_parts) = (
            _nodes(int(start), int(count))
            for start, count in ((window.row_off, window.height), (window.col_off, window.width))
        )
        t = self.transform
        x, y = np.meshgrid(cols + 0.5, rows + 0.5)
        places = t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f
        if not same_crs(self.geobox.crs, self._raster.geobox.crs):
            try:
                found = transform_points(self.crs, self._raster.crs, *(each.ravel() for each in places))
            except RasterioError as error:
                raise RasterError(f'{self.name} cannot be warped to {self.crs}: {error}') from error
            places = np.reshape(found[0], x.shape), np.reshape(found[1], x.shape)
        back = ~self._raster.transform
        with np.errstate(invalid='ignore'):
            across = back.a * places[0] + back.b * places[1] + back.c - 0.5
            down = back.d * places[0] + back.e * places[1] + back.f - 0.5
            return _between(across, row_parts, col_parts), _between(down, row_parts, col_parts)


Parts = tuple[np.ndarray, np.ndarray]
"""Number of the point before each pixel, and how far on the way to the next one it lies, 0..1."""


def _nodes(start: int, count: int) -> tuple[np.ndarray, Parts]:
    first = start // STEP
    pixels = np.arange(start, start + count)
    nodes = np.arange(first, (start + count - 1) // STEP + 2) * STEP
    return nodes, (pixels // STEP - first, (pixels % STEP) / STEP)


def _between(values: np.ndarray, rows: Parts, cols: Parts) -> np.ndarray:
    """Interpolate between points (rows, cols)."""
    at, part = rows
    lines = values[at] * (1 - part)[:, None] + values[at + 1] * part[:, None]
    at, part = cols
    found: np.ndarray = lines[:, at] * (1 - part) + lines[:, at + 1] * part
    return found


def _interpolate(
    plane: np.ndarray, known: np.ndarray, across: np.ndarray, down: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return values (n,) at places between pixels, and whether the nearest pixel has data."""
    height, width = plane.shape
    left, top = np.floor(across).astype(np.int64), np.floor(down).astype(np.int64)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    far_x, far_y = across - left, down - top
    total, weight = np.zeros(len(across)), np.zeros(len(across))
    for row, col, share in (
        (top, left, (1 - far_y) * (1 - far_x)),
        (top, right, (1 - far_y) * far_x),
        (bottom, left, far_y * (1 - far_x)),
        (bottom, right, far_y * far_x),
    ):
        share = share * known[row, col]
        total += share * np.where(known[row, col], plane[row, col], 0)
        weight += share
    nearest = np.where(far_y < 0.5, top, bottom), np.where(far_x < 0.5, left, right)
    values = np.where(weight > 0, total / np.maximum(weight, 1e-12), plane[nearest])
    return values, known[nearest]


def bring_to_one_grid(rasters: Sequence[Raster], *, level: int) -> list[Raster]:
    """Bring rasters to the CRS, pixel size and alignment of the first.

    Coarser ones are interpolated (bilinear), finer ones averaged; those that fit stay as they are. Which pixels lack
    data is decided before, by the NoData value and mask of each file.

    Args:
        rasters: In the order of the mosaic; the first is north-up or south-up.
        level: Of the log that says what was done.

    Raises:
        RasterError: If a raster cannot be placed in the CRS of the first.
    """
    first = rasters[0]
    if first.transform.is_identity or first.transform.b or first.transform.d:
        return list(rasters)
    aligned = [first, *(_align(raster, first) for raster in rasters[1:])]
    moved = [raster.name for raster, new in zip(rasters, aligned) if isinstance(new, WarpedRaster | ResampledRaster)]
    if moved:
        width, height = first.geobox.resolution
        log.log(
            level,
            '%s of %s rasters are warped while reading to the grid of the first, %s (%s, pixels of %g x %g): %s%s; '
            'where rasters overlap, later ones lie over earlier ones',
            len(moved),
            len(rasters),
            first.name,
            first.crs,
            width,
            height,
            ', '.join(moved[:5]),
            ', ...' if len(moved) > 5 else '',
        )
    return aligned


def _align(raster: Raster, first: Raster) -> Raster:
    if (raster.geobox.crs is None) != (first.geobox.crs is None) or raster.transform.is_identity:
        return raster  # for the mosaic to refuse
    if _on_grid(raster, first):
        if repr(raster.nodatavals) == repr(first.nodatavals):
            return raster
        whole = CroppedRaster(raster, PixelArea(Window(0, 0, raster.width, raster.height)))
        whole.nodatavals = first.nodatavals
        return whole
    if same_crs(raster.geobox.crs, first.geobox.crs) and not (raster.transform.b or raster.transform.d):
        new: Raster = ResampledRaster(raster, _inner_box(raster, first))
    else:
        box = _covering_box(raster, first)
        new = WarpedRaster(_averaged(raster, box), box)
    # each pixel's mask says whether it holds data; the value of one file means nothing in another
    new.nodatavals = first.nodatavals
    return new


def _on_grid(raster: Raster, first: Raster) -> bool:
    a, b = first.transform, raster.transform
    if not same_crs(raster.geobox.crs, first.geobox.crs) or b.b or b.d:
        return False
    if max(raster.width * abs(b.a / a.a - 1), raster.height * abs(b.e / a.e - 1)) > MISFIT_PX:
        return False
    return all(abs(shift - round(shift)) <= MISFIT_PX for shift in ((b.c - a.c) / a.a, (b.f - a.f) / a.e))


def _inner_box(raster: Raster, first: Raster) -> GeoBox:
    """Return the pixels of the first raster's grid whose centers lie in a raster of the same CRS."""
    return _snapped(raster.geobox.bounds, first, centers=True)


def _covering_box(raster: Raster, first: Raster) -> GeoBox:
    """Return the pixels of the first raster's grid that hold a raster of another CRS."""
    try:
        bounds = transform_bounds(raster.crs, first.crs, *raster.geobox.bounds, densify_pts=21)
    except RasterioError as error:
        raise RasterError(f'{raster.name} cannot be brought to the CRS of {first.name}: {error}') from error
    if not np.isfinite(bounds).all():
        raise RasterError(
            f'{raster.name} cannot be brought to the CRS of {first.name}: it lies beyond where that is used'
        )
    return _snapped(bounds, first, centers=False)


def _snapped(bounds: tuple[float, float, float, float], first: Raster, *, centers: bool) -> GeoBox:
    t = first.transform
    spans = []
    for low, high, origin, step in ((bounds[0], bounds[2], t.c, t.a), (bounds[1], bounds[3], t.f, t.e)):
        begin, end = sorted(((low - origin) / step, (high - origin) / step))
        if centers:
            start, stop = math.ceil(begin - 0.5 - 1e-6), math.floor(end + 0.5 + 1e-6)
        else:
            start, stop = math.floor(begin), math.ceil(end)
        spans.append((start, max(stop, start + 1)))
    (left, right), (top, bottom) = spans
    place = Affine(t.a, 0, t.c + t.a * left, 0, t.e, t.f + t.e * top)
    return GeoBox((bottom - top, right - left), place, first.geobox.crs)


def _averaged(raster: Raster, box: GeoBox) -> Raster:
    """Return a raster whose pixels are about as large as those of a grid of another CRS, where they are smaller."""
    if raster.transform.b or raster.transform.d:
        return raster
    bounds = transform_bounds(box.crs, raster.crs, *box.bounds, densify_pts=21)
    sides = abs(bounds[2] - bounds[0]) / box.shape[1], abs(bounds[3] - bounds[1]) / box.shape[0]
    factors = [side / own for side, own in zip(sides, raster.geobox.resolution)]
    if not all(math.isfinite(factor) for factor in factors) or max(factors) < FINER:
        return raster
    t = raster.transform
    across, down = (max(1.0, factor) for factor in factors)
    shape = max(1, math.ceil(raster.height / down)), max(1, math.ceil(raster.width / across))
    return ResampledRaster(raster, GeoBox(shape, Affine(t.a * across, 0, t.c, 0, t.e * down, t.f), raster.geobox.crs))

"""Several rasters seen as one, without copying a pixel: the tiles of a mosaic, and the bands of one scene."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from affine import Affine
from rasterio.windows import Window

from geolearn.errors import RasterError
from geolearn.raster.border import BorderCheck
from geolearn.raster.geobox import MISFIT_PX, GeoBox, same_crs, same_grid
from geolearn.raster.nodata import compact, valid_in_all_bands
from geolearn.raster.raster import Raster, RasterView
from geolearn.raster.scaling import ADVICE, product_difference, scaling_difference, scaling_of


class _Taps(NamedTuple):
    """Which source pixels make each target pixel along one axis: indexes and weights (targets, taps)."""

    indexes: np.ndarray
    weights: np.ndarray


class ResampledRaster(RasterView):
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
        super().__init__(raster, geobox)
        old, new = raster.transform, geobox.transform
        self._rows = (new.e / old.e, (new.f - old.f) / old.e)
        self._cols = (new.a / old.a, (new.c - old.c) / old.a)

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
            out[place] = as_stored(_resample(plane, None if valid is None else valid[place], rows, cols), out.dtype)
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


def as_stored(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
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


class _Placed(NamedTuple):
    """A raster and the pixel of the mosaic where it begins."""

    raster: Raster
    row: int
    col: int


class Mosaic(Raster):
    """Rasters that share bands, type, CRS and pixel grid.

    Later ones lie over earlier ones where all bands that are read hold data. Places that none covers are invalid. Tags
    of the first are the mosaic's.

    Args:
        rasters: In order.

    Raises:
        RasterError: If one does not fit the first; the message names both.
    """

    def __init__(self, rasters: Sequence[Raster]) -> None:
        first = rasters[0]
        if len(rasters) > 1 and first.transform.is_identity:
            raise RasterError(f'{first.name} has no place on the ground, so nothing can lie beside it; georeference it')
        for raster in rasters:
            raster.require_real()
            if raster.transform.b or raster.transform.d:
                raise RasterError(
                    f'{raster.name} is turned or sheared, so it fits no mosaic. Warp it to a north-up grid first'
                )
        for other in rasters[1:]:
            _check_fits(first, other)
        cell_x, cell_y = first.transform.a, first.transform.e
        left = (min if cell_x > 0 else max)(raster.transform.c for raster in rasters)
        top = (max if cell_y < 0 else min)(raster.transform.f for raster in rasters)
        self._placed = [
            _Placed(raster, round((raster.transform.f - top) / cell_y), round((raster.transform.c - left) / cell_x))
            for raster in rasters
        ]
        width = max(part.col + part.raster.width for part in self._placed)
        height = max(part.row + part.raster.height for part in self._placed)
        super().__init__(
            f'the mosaic of {len(rasters)} rasters (the first is {first.name})',
            GeoBox((height, width), Affine(cell_x, 0, left, 0, cell_y, top), first.geobox.crs),
            dtypes=first.dtypes,
            descriptions=first.descriptions,
            nodatavals=first.nodatavals,
            block_shapes=[(min(rows, height), min(cols, width)) for rows, cols in first.block_shapes],
            scales=first.scales,
            offsets=first.offsets,
            colorinterp=first.colorinterp,
            crs=first.crs,
        )
        self.files = tuple(name for raster in rasters for name in raster.files)
        self.numbered, self.dequantized = first.numbered, first.dequantized
        self.rescaled = any(raster.rescaled for raster in rasters)
        self.stated = first.stated
        self.product_offset = first.product_offset

    def tags(self, index: int = 0, ns: str | None = None) -> Mapping[str, str]:
        """Return metadata of the first raster, without what is true of one file only."""
        found = self._placed[0].raster.tags(index, ns=ns)
        return {key: value for key, value in found.items() if not key.startswith('STATISTICS_')}

    def colormap(self, index: int) -> Mapping[int, tuple[int, int, int, int]]:
        """Return the colors of the first raster."""
        return self._placed[0].raster.colormap(index)

    def read_masked(
        self, window: Window, indexes: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window, which any number of the rasters may cover."""
        shape = (len(indexes), int(window.height), int(window.width))
        if out is None:
            out = np.empty(shape, self.common_dtype(indexes))
        for plane, index in zip(out, indexes):
            nodata = self.nodatavals[index - 1]
            plane[...] = 0 if nodata is None or not _holds(plane.dtype, nodata) else nodata
        mask, covered = np.zeros(shape, bool), np.zeros(shape[1:], bool)
        for part in self._placed:
            self._paste(part, window, indexes, out, mask, covered)
        return out, compact(mask)

    def _paste(
        self,
        part: _Placed,
        window: Window,
        indexes: Sequence[int],
        out: np.ndarray,
        mask: np.ndarray,
        covered: np.ndarray,
    ) -> None:
        """Lay one raster over what the window holds so far."""
        top, left = max(part.row, int(window.row_off)), max(part.col, int(window.col_off))
        bottom = min(part.row + part.raster.height, int(window.row_off + window.height))
        right = min(part.col + part.raster.width, int(window.col_off + window.width))
        if top >= bottom or left >= right:
            return
        inner = Window(left - part.col, top - part.row, right - left, bottom - top)
        pixels, valid = part.raster.read_masked(inner, indexes)
        place = (
            np.s_[top - int(window.row_off) : bottom - int(window.row_off)],
            np.s_[left - int(window.col_off) : right - int(window.col_off)],
        )
        whole = (slice(None), *place)
        if valid is None:
            out[whole], mask[whole], covered[place] = pixels, True, True
            return
        there = valid_in_all_bands(valid)
        # what lacks data never covers what does not, but stays readable where nothing else is
        taken = ~covered[place] if there is None else there | ~covered[place]
        np.copyto(out[whole], pixels, where=taken)
        np.copyto(mask[whole], valid, where=taken)
        covered[place] |= taken if there is None else there

    def check_border(self, check: BorderCheck) -> None:
        """Report a border of any of the files with one `check`, once for all of them."""
        for part in self._placed:
            part.raster.check_border(check)

    def close(self) -> None:
        """Close all files."""
        for part in self._placed:
            part.raster.close()


def _holds(dtype: np.dtype, value: float) -> bool:
    """Whether a type has a value."""
    if dtype.kind == 'f':
        return True
    limits = np.iinfo(dtype)
    return bool(limits.min <= value <= limits.max and value == int(value))


def _check_fits(first: Raster, other: Raster) -> None:
    a, b = first.transform, other.transform
    names, other_names = list(first.descriptions), list(other.descriptions)
    problems, advice = [], []
    if first.dtypes != other.dtypes:
        problems.append(f'bands {list(first.dtypes)} and {list(other.dtypes)}')
        advice.append('write the same bands in one type into both (gdal_translate -b -ot)')
    elif any(names) and any(other_names) and names != other_names:
        problems.append(f'band names {names} and {other_names}')
        advice.append('pass bands= with one name for each band if they are the same bands')
    if apart := scaling_difference(scaling_of(first), scaling_of(other)) or product_difference(first, other):
        problems.append(f'values of different units, {apart}')
        advice.append(ADVICE)
    if not same_crs(first.geobox.crs, other.geobox.crs):
        problems.append(f'CRS {first.crs} and {other.crs}')
    # repr: NaN is NoData too, and differs from itself
    if repr(first.nodatavals) != repr(other.nodatavals):
        problems.append(f'NoData {_nodata_text(first)} and {_nodata_text(other)}')
        advice.append('declare one NoData value in both (gdalwarp -dstnodata)')
    grids = len(problems)
    widest, tallest = max(first.width, other.width), max(first.height, other.height)
    if max(widest * abs(b.a / a.a - 1), tallest * abs(b.e / a.e - 1)) > MISFIT_PX:
        problems.append(f'pixel sizes {(a.a, a.e)} and {(b.a, b.e)}')
    else:
        offsets = ((b.c - a.c) / a.a, (b.f - a.f) / a.e)
        if any(abs(offset - round(offset)) > MISFIT_PX for offset in offsets):
            problems.append(f'grids that are shifted by a part of a pixel: {offsets}')
    if problems:
        warped = len(problems) > grids or not same_crs(first.geobox.crs, other.geobox.crs)
        advice += ['warp them to one grid first (gdalwarp -t_srs -tr -tap)'] if warped else []
        raise RasterError(
            f'{first.name} and {other.name} cannot be one mosaic: {"; ".join(problems)}. {_sentence(advice)}'
        )


def _sentence(parts: Sequence[str]) -> str:
    text = ', and '.join(parts)
    return text[0].upper() + text[1:]


def _nodata_text(raster: Raster) -> str:
    return str(raster.nodata if len({*map(repr, raster.nodatavals)}) == 1 else list(raster.nodatavals))


class BandStack(Raster):
    """Bands of one scene that lie in several files over the same ground, brought to the finest of their grids.

    Args:
        rasters: In the order of the bands.
        names: Name of each band.
        sensor: Whose scene it is, or None.

    Raises:
        RasterError: If they do not cover the same ground; the message names two of them.
    """

    def __init__(self, rasters: Sequence[Raster], names: Sequence[str | None], *, sensor: str | None = None) -> None:
        finest = max(rasters, key=lambda raster: raster.height * raster.width)
        for raster in rasters:
            raster.require_real()
            if not covers_same_ground(raster, finest):
                raise RasterError(
                    f'{raster.name} covers {raster.geobox.bounds} and {finest.name} {finest.geobox.bounds}, so they '
                    'are no bands of one scene; warp them to one extent (gdalwarp -te)'
                )
        aligned = [
            raster if same_grid(raster.geobox, finest.geobox) else ResampledRaster(raster, finest.geobox)
            for raster in rasters
        ]
        self.resampled = [raster.name for raster, other in zip(rasters, aligned) if raster is not other]
        self._bands = [(raster, index) for raster in aligned for index in raster.indexes]
        self._sensor = sensor
        super().__init__(
            f'the scene of {len(rasters)} files (the first is {rasters[0].name})',
            finest.geobox,
            dtypes=[raster.dtypes[index - 1] for raster, index in self._bands],
            descriptions=names,
            nodatavals=[raster.nodatavals[index - 1] for raster, index in self._bands],
            block_shapes=[finest.block_shapes[0]] * len(self._bands),
            scales=[raster.scales[index - 1] for raster, index in self._bands],
            offsets=[raster.offsets[index - 1] for raster, index in self._bands],
            colorinterp=[raster.colorinterp[index - 1] for raster, index in self._bands],
            crs=finest.crs,
        )
        self.gcps, self.rpcs = rasters[0].gcps, rasters[0].rpcs
        self.files = tuple(name for raster in rasters for name in raster.files)
        self.dequantized, self.rescaled = rasters[0].dequantized, any(raster.rescaled for raster in rasters)

    def tags(self, index: int = 0, ns: str | None = None) -> Mapping[str, str]:
        """Return metadata of the file that holds a band; of the scene, its sensor."""
        if index:
            raster, inner = self._bands[index - 1]
            return raster.tags(inner, ns=ns)
        if self._sensor is not None and ns is None:
            return {'SENSOR_NAME': self._sensor}
        return self._bands[0][0].tags(0, ns=ns)

    def read_masked(
        self, window: Window, indexes: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window, each band from its file."""
        shape = (len(indexes), int(window.height), int(window.width))
        if out is None:
            out = np.empty(shape, self.common_dtype(indexes))
        mask = np.ones(shape, bool)
        for place, index in enumerate(indexes):
            raster, inner = self._bands[index - 1]
            pixels, valid = raster.read_masked(window, [inner])
            out[place] = pixels[0]
            if valid is not None:
                mask[place] = valid[0]
        if self.border is not None:
            self.border.add(out, mask, window, self.shape, indexes)
        return out, compact(mask)

    def close(self) -> None:
        """Close all files."""
        for raster in {id(raster): raster for raster, _ in self._bands}.values():
            raster.close()


def covers_same_ground(one: Raster, other: Raster) -> bool:
    """Whether two rasters cover the same ground: their edges are at most half of the larger pixel apart."""
    if one.transform.is_identity or other.transform.is_identity:
        return one.transform == other.transform and one.shape == other.shape and one.geobox.crs == other.geobox.crs
    if not same_crs(one.geobox.crs, other.geobox.crs):
        return False
    apart = np.abs(np.subtract(one.geobox.bounds, other.geobox.bounds)).max()
    return bool(apart <= 0.51 * max(*one.geobox.resolution, *other.geobox.resolution))

"""An open raster in the bands and on the grid that a network wants, read window by window."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from rasterio.windows import Window

from geolearn.inference.options import ReadOptions
from geolearn.raster import GeoBox, common_dtype, raster_geobox, read_window
from geolearn.raster.nodata import differs, valid_in_all_bands

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

MIN_VALID_SHARE = 0.5
"""Share of the ground of a resampled pixel that needs data."""


@dataclass(frozen=True)
class Source:
    """An open raster, or one date of it.

    Args:
        dataset: From `open_raster`.
        indexes: 1-based bands in the network's order.
        target: Grid to resample to while reading; None reads the raster's own.
        nodata: Value of missing pixels in each band, on top of what the file says; None for no value.
        unit_length: Whether pixels are vectors of length 1, which resampled ones are made again.
        repeats: How often each pixel is repeated, down and across, for networks whose outputs are finer.
    """

    dataset: Any
    indexes: tuple[int, ...]
    target: GeoBox | None = None
    nodata: tuple[float | None, ...] = ()
    unit_length: bool = False
    repeats: int = 1

    @property
    def box(self) -> GeoBox:
        """Place of the pixels that are read."""
        box = raster_geobox(self.dataset) if self.target is None else self.target
        if self.repeats == 1:
            return box
        t, times = box.transform, self.repeats
        place = Affine(t.a / times, t.b / times, t.c, t.d / times, t.e / times, t.f)
        return GeoBox((box.shape[0] * times, box.shape[1] * times), place, box.crs)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what is read."""
        return self.box.shape

    @property
    def dtype(self) -> Any:
        """Of the pixels that are read: as stored, float32 where they are resampled."""
        return common_dtype(self.dataset, self.indexes) if self.target is None else np.dtype('float32')

    @property
    def _has_codes(self) -> bool:
        """Whether pixels are held as the codes that their values follow from."""
        if self.target is not None or self.repeats > 1 or not self.dataset.code_dtype:
            return False
        return all(value is None for value in self.nodata)

    @property
    def held_dtype(self) -> Any:
        """Of the pixels that `read_held` returns, which memory holds until tiles are cut: `dtype`, or that of codes."""
        return np.dtype(self.dataset.code_dtype) if self._has_codes else self.dtype

    @property
    def block_rows(self) -> int:
        """Rows that the file stores together."""
        stored = self.dataset.block_shapes[0][0] * self.repeats
        return stored if self.target is None else max(1, round(stored / self._factors[0]))

    @property
    def _factors(self) -> tuple[float, float]:
        """Rows and columns of the raster for each row and column that is read."""
        box = self.box
        (across, down), (wide, high) = raster_geobox(self.dataset).resolution, box.resolution
        return high / down, wide / across

    def read(self, window: Window, *, out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window that lies inside the grid.

        Resampled pixels are means over their ground where they are larger than the raster's, weighted by area and
        without pixels that lack data, and bilinear between the nearest ones where they are smaller.

        Args:
            window: Columns and rows.
            out: Array of the result's shape to read into, or None for a new one.

        Returns:
            Pixels (bands, height, width) in `dtype`, and a mask (height, width), True where there is data, or None
            where that is everywhere.

        Raises:
            RasterError: If the file cannot be read there.
        """
        if self.repeats > 1:
            return self._read_repeated(window, out)
        if self.target is None:
            return self._read_stored(window, out)
        down, across = self._factors
        top, rows = _axis_weights(int(window.row_off), int(window.height), down, self.dataset.height)
        left, cols = _axis_weights(int(window.col_off), int(window.width), across, self.dataset.width)
        inside = Window(left, top, cols.shape[1], rows.shape[1])
        stored, valid = self._read_stored(inside)
        known = np.ones(stored.shape[1:], np.float32) if valid is None else valid.astype(np.float32)
        share = rows @ (cols @ known.T).T
        pixels = np.empty((len(stored), *share.shape), np.float32) if out is None else out
        for band, plane in zip(pixels, stored):
            values = plane.astype(np.float32)
            band[:] = rows @ (cols @ (values if valid is None else np.where(valid, values, 0)).T).T
            band /= np.maximum(share, np.finfo(np.float32).tiny)
        if self.unit_length:
            pixels /= np.maximum(np.linalg.norm(pixels, axis=0), np.finfo(np.float32).tiny)
        return pixels, None if valid is None else share >= MIN_VALID_SHARE

    def read_held(self, window: Window, *, out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window as `read` does, in `held_dtype`."""
        if not self._has_codes:
            return self.read(window, out=out)
        codes, valid = self.dataset.read_codes(window, self.indexes, out)
        return codes, valid_in_all_bands(valid)

    def put_model_units(self, held: np.ndarray, values: np.ndarray, read: ReadOptions) -> None:
        """Convert pixels from `read_held` into the network's units, into an array float32 of the same shape."""
        if not self._has_codes:
            read.put_model_units(held, values)
            return
        self.dataset.put_values(held, values)
        read.scale_values(values)

    def _read_repeated(self, window: Window, out: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        times = self.repeats
        top, left = int(window.row_off) // times, int(window.col_off) // times
        bottom, right = (
            -(-int(end) // times) for end in (window.row_off + window.height, window.col_off + window.width)
        )
        pixels, valid = replace(self, repeats=1).read(Window(left, top, right - left, bottom - top))
        rows = np.arange(int(window.row_off), int(window.row_off + window.height)) // times - top
        cols = np.arange(int(window.col_off), int(window.col_off + window.width)) // times - left
        repeated = pixels[:, rows[:, None], cols]
        if out is not None:
            out[...] = repeated
            repeated = out
        return repeated, None if valid is None else valid[rows[:, None], cols]

    def _read_stored(self, window: Window, out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        pixels, valid = read_window(self.dataset, window, self.indexes, out=out)
        for band, value in zip(pixels, self.nodata):
            if (kept := differs(band, value)) is not None:
                valid = kept if valid is None else valid & kept
        return pixels, valid


def _axis_weights(first: int, count: int, factor: float, length: int) -> tuple[int, 'csr_matrix']:
    """Return the first stored pixel needed along one axis, and the weights (count, stored) of resampled pixels.

    Args:
        first: First resampled pixel.
        count: Number of them.
        factor: Stored pixels for each.
        length: Number of stored pixels.
    """
    from scipy.sparse import csr_matrix  # late: half a second, and only resampled rasters need it

    numbers = first + np.arange(count)
    if factor > 1:
        low, high = numbers * factor, np.minimum((numbers + 1) * factor, length)
        taps = np.floor(low)[:, None] + np.arange(math.ceil(factor) + 1)
        weights = np.clip(np.minimum(high[:, None], taps + 1) - np.maximum(low[:, None], taps), 0, None)
    else:
        middles = (numbers + 0.5) * factor - 0.5
        taps = np.floor(middles)[:, None] + np.arange(2)
        nearness = middles - np.floor(middles)
        weights = np.stack([1 - nearness, nearness], axis=1)
    taps = np.clip(taps, 0, length - 1).astype(np.int64)
    weights /= weights.sum(axis=1, keepdims=True)
    start, stop = int(taps.min()), int(taps.max()) + 1
    rows = np.repeat(np.arange(count), taps.shape[1])
    entries = (weights.ravel().astype(np.float32), (rows, taps.ravel() - start))
    return start, csr_matrix(entries, (count, stop - start))

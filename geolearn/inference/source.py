"""An open raster as a network sees it: the bands that it takes, on the grid of pixels that tiles are cut from."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio.windows import Window
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

from geolearn.raster import GeoBox, common_dtype, raster_geobox, read_window
from geolearn.raster.nodata import differs

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
    """

    dataset: Any
    indexes: tuple[int, ...]
    target: GeoBox | None = None
    nodata: tuple[float | None, ...] = ()

    @property
    def box(self) -> GeoBox:
        """Place of the pixels that are read."""
        return raster_geobox(self.dataset) if self.target is None else self.target

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what is read."""
        return self.box.shape

    @property
    def dtype(self) -> Any:
        """Of the pixels that are read: as stored, float32 where they are resampled."""
        return common_dtype(self.dataset, self.indexes) if self.target is None else np.dtype('float32')

    @property
    def block_rows(self) -> int:
        """Rows that the file stores together."""
        stored = self.dataset.block_shapes[0][0]
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
        return pixels, None if valid is None else share >= MIN_VALID_SHARE

    def _read_stored(self, window: Window, out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        pixels, valid = read_window(self.dataset, window, self.indexes, out=out)
        for band, value in zip(pixels, self.nodata):
            if (kept := differs(band, value)) is not None:
                valid = kept if valid is None else valid & kept
        return pixels, valid


def _axis_weights(first: int, count: int, factor: float, length: int) -> tuple[int, csr_matrix]:
    """Return the first stored pixel needed along one axis, and the weights (count, stored) of resampled pixels.

    Args:
        first: First resampled pixel.
        count: Number of them.
        factor: Stored pixels for each.
        length: Number of stored pixels.
    """
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

"""Put predicted tiles together and write them in whole block rows, in a thread of its own."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from rasterio.windows import Window

from geolearn.raster import RasterWriter
from geolearn.raster.writing import BLOCK_SIZE
from geolearn.tiling import TileGrid


class MapAssembler:
    """Collect the cores of tiles into rows, and write these in whole block rows from a thread of its own.

    Args:
        writer: Where rows go.
        grid: The tiles, which come in this order; those that never come stay NoData.
        shape: Height and width of the raster.
        dtype: Of the output.
        nodata: Value of pixels that no tile covers.
    """

    def __init__(self, writer: RasterWriter, grid: TileGrid, shape: tuple[int, int], dtype: str, nodata: float) -> None:
        self._writer, self._shape = writer, shape
        self._bands = [(top, bottom) for _, top, bottom in grid.rows]
        self._nodata, self._dtype = nodata, dtype
        self._pool = ThreadPoolExecutor(1, 'geolearn-writer')
        self._pending: Any = None
        self._written = 0
        self._rows = np.empty((0, shape[1]), dtype)
        self._open_next_band()

    def _open_next_band(self) -> None:
        if self._bands:
            top, bottom = self._bands.pop(0)
            self._bottom = bottom
            fresh = np.full((bottom - top, self._shape[1]), self._nodata, self._dtype)
            self._rows = np.concatenate([self._rows, fresh])

    def put(self, core: Window, values: np.ndarray) -> None:
        """Place the predicted core of one tile."""
        while core.row_off >= self._bottom:
            self._flush()
            self._open_next_band()
        row, col = int(core.row_off) - self._written, int(core.col_off)
        self._rows[row : row + values.shape[0], col : col + values.shape[1]] = values

    def finish(self) -> None:
        """Write what is left; bands without a tile are NoData."""
        while self._bands:
            self._flush()
            self._open_next_band()
        self._flush()
        self._wait()
        self._pool.shutdown()

    def close(self) -> None:
        """Stop the writing thread."""
        self._pool.shutdown()

    def _flush(self) -> None:
        """Hand whole block rows to the writer."""
        last = self._bottom == self._shape[0]
        count = self._rows.shape[0] if last else self._rows.shape[0] // BLOCK_SIZE * BLOCK_SIZE
        if count:
            self._wait()
            ready, self._rows = self._rows[:count], self._rows[count:].copy()
            self._pending = self._pool.submit(self._writer.write, self._written, ready)
            self._written += count

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

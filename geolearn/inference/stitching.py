"""Make rows of a map out of the outputs of tiles, and hand them to a thread that writes them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from rasterio.windows import Window

from geolearn.inference.layers import Layer
from geolearn.inference.plan import Blend, Part
from geolearn.raster.writing import BLOCK_SIZE
from geolearn.tiling import Tile, TileGrid, blend_weights

WriteRows = Callable[[int, Sequence[np.ndarray]], None]
"""Takes the first row, and rows (bands, rows, width) of each layer."""


class RowAssembler:
    """Collect rectangles of pixels into rows, and write these in whole block rows from a thread of its own.

    Args:
        write: Where rows go, in order.
        part: Of the map.
        layers: Of the map.
        bands: First and last row + 1 of each row of rectangles, which come in this order; those that never come are
            NoData.
        first_row: Rows above are written already, or of another part.
    """

    def __init__(
        self,
        write: WriteRows,
        part: Part,
        layers: Sequence[Layer],
        bands: Sequence[tuple[int, int]],
        first_row: int,
    ) -> None:
        self._write, self._layers, self._part = write, layers, part
        self._left, self._width = int(part.core.col_off), int(part.core.width)
        self._bands = [(max(top, first_row), bottom) for top, bottom in bands if bottom > first_row]
        self._pool = ThreadPoolExecutor(1, 'geolearn-writer')
        self._pending: Future[None] | None = None
        self._written = self._bottom = first_row
        self._rows = [self._empty(layer, 0) for layer in layers]
        self._open_next_band()

    def _empty(self, layer: Layer, rows: int) -> np.ndarray:
        shape = (layer.content.count, rows, self._width)
        return np.full(shape, layer.nodata, layer.content.memory_dtype)

    def _open_next_band(self) -> None:
        if self._bands:
            top, self._bottom = self._bands.pop(0)
            self._rows = [
                np.concatenate([rows, self._empty(layer, self._bottom - top)], axis=1)
                for layer, rows in zip(self._layers, self._rows)
            ]

    def put(self, place: Window, pixels: Sequence[np.ndarray]) -> None:
        """Place a rectangle (bands, height, width) of each layer, which lies inside of the part."""
        while int(place.row_off) >= self._bottom:
            self._flush()
            self._open_next_band()
        row, col = int(place.row_off) - self._written, int(place.col_off) - self._left
        for rows, values in zip(self._rows, pixels):
            inside = values[:, max(-row, 0) :]
            rows[:, max(row, 0) : row + values.shape[1], col : col + values.shape[2]] = inside

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
        top, bottom = self._part.top, self._part.bottom
        ends = bottom if self._bottom == bottom else top + (self._bottom - top) // BLOCK_SIZE * BLOCK_SIZE
        count = ends - self._written
        if count > 0:
            self._wait()
            ready = [rows[:, :count] for rows in self._rows]
            self._rows = [rows[:, count:].copy() for rows in self._rows]
            self._pending = self._pool.submit(self._write, self._written, ready)
            self._written += count

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None


class Stitcher(ABC):
    """Makes the pixels of a part of a map out of the outputs of its tiles.

    Args:
        write: Where rows go, in order.
        grid: All tiles of the raster.
        part: Of the map.
        layers: Of the map.
        first_row: Rows above are written already, or of another part; the first tiles are those that the others depend
            on.
    """

    def __init__(self, write: WriteRows, grid: TileGrid, part: Part, layers: Sequence[Layer], first_row: int) -> None:
        self._part, self._layers, self._first_row = part, layers, first_row
        self._assembler = RowAssembler(write, part, layers, self._bands(), first_row)

    @abstractmethod
    def _bands(self) -> list[tuple[int, int]]:
        """Return the first and the last row + 1 of the rows that come together."""

    @abstractmethod
    def put(self, tile: Tile, outputs: Any, absent: np.ndarray) -> None:
        """Place a tile.

        Args:
            tile: Tiles come in the order of the grid; some may be left out.
            outputs: Of the network, (C, h, w): a tensor, or a float32 array.
            absent: (h, w), True where there is no data.
        """

    def finish(self) -> None:
        """Write what is left."""
        self._assembler.finish()

    def close(self) -> None:
        """Stop the writing thread."""
        self._assembler.close()

    def _encode(self, outputs: Any, absent: np.ndarray) -> list[np.ndarray]:
        """Return the pixels (bands, h, w) of each layer."""
        encoded = [layer.encode(outputs) for layer in self._layers]
        if absent.any():
            for layer, pixels in zip(self._layers, encoded):
                pixels[:, absent] = layer.nodata
        return encoded


class CropStitcher(Stitcher):
    """Puts the cores of tiles side by side."""

    def _bands(self) -> list[tuple[int, int]]:
        return [(top, bottom) for _, top, bottom in self._part.grid.rows]

    def put(self, tile: Tile, outputs: Any, absent: np.ndarray) -> None:
        """Place a tile."""
        read, core = tile.read, tile.core
        if core.row_off + core.height <= self._first_row:
            return
        row, col = int(core.row_off - read.row_off), int(core.col_off - read.col_off)
        inner = np.s_[row : row + int(core.height), col : col + int(core.width)]
        self._assembler.put(core, self._encode(outputs[:, *inner], absent[inner]))


class BlendStitcher(Stitcher):
    """Lets the outputs of tiles fade into each other where they overlap.

    Memory holds the outputs of one row of tiles. Each pixel is the sum of the same products in the same order, however
    the raster is divided into parts and wherever a run is resumed.
    """

    def __init__(self, write: WriteRows, grid: TileGrid, part: Part, layers: Sequence[Layer], first_row: int) -> None:
        super().__init__(write, grid, part, layers, first_row)
        height, width = grid.tile_shape
        self._down, self._across = _fades(grid.rows, height), _fades(grid.cols, width)
        self._left, self._width, self._height = int(part.core.col_off), int(part.core.width), height
        rows = [start for start, _, _ in part.grid.rows]
        first = part.first_row_of_tiles(first_row)
        # rows above the next row of tiles are complete
        self._ends = [*rows[first + 1 :], part.bottom]
        self._top = max(rows[first], 0)
        self._sums: Any = None
        self._weights: Any = None
        self._absent = np.ones((height, self._width), bool)

    def _bands(self) -> list[tuple[int, int]]:
        rows = [start for start, _, _ in self._part.grid.rows][1:]
        return list(zip([self._part.top, *rows], [*rows, self._part.bottom]))

    def put(self, tile: Tile, outputs: Any, absent: np.ndarray) -> None:
        """Place a tile."""
        outputs = outputs if isinstance(outputs, np.ndarray) else outputs.float().cpu()
        if self._sums is None:
            shape = (self._height, self._width)
            self._sums, self._weights = _zeros(outputs, (len(outputs), *shape)), _zeros(outputs, shape)
        row, col = int(tile.read.row_off), int(tile.read.col_off)
        self._advance(row)
        weights = _like(outputs, np.outer(self._down[row], self._across[col]))
        # windows reach beyond the raster, and beyond the part
        top, bottom = max(-row, 0), min(weights.shape[0], self._part.bottom - row)
        left, right = max(self._left - col, 0), min(weights.shape[1], self._left + self._width - col)
        inside = np.s_[top:bottom, left:right]
        begin = col + left - self._left
        place = np.s_[row + top - self._top : row + bottom - self._top, begin : begin + right - left]
        self._sums[:, *place] += outputs[:, *inside] * weights[inside]
        self._weights[place] += weights[inside]
        self._absent[place] = absent[inside]

    def _advance(self, row: int) -> None:
        """Write the rows above `row`."""
        while self._ends and self._ends[0] <= row:
            end = self._ends.pop(0)
            count = end - self._top
            skipped = min(max(self._first_row - self._top, 0), count)
            if self._sums is not None:
                if skipped < count:
                    self._emit(count, skipped)
                for held in (self._sums, self._weights[None]):
                    held[:, : self._height - count] = _copied(held[:, count:])
                    held[:, self._height - count :] = 0
            self._absent[: self._height - count] = self._absent[count:].copy()
            self._absent[self._height - count :] = True
            self._top = end

    def _emit(self, count: int, skipped: int) -> None:
        """Write the first `count` rows that are held, without those that are written already."""
        absent = self._absent[:count]
        if absent[skipped:].all():
            return
        means = self._sums[:, :count] / self._weights[:count].clip(min=1e-6)
        place = Window(self._left, self._top + skipped, self._width, count - skipped)
        # all rows are encoded: rounding may depend on the shape
        self._assembler.put(place, [pixels[:, skipped:] for pixels in self._encode(means, absent)])

    def finish(self) -> None:
        """Write what is left."""
        self._advance(self._part.bottom)
        super().finish()


def _like(outputs: Any, array: np.ndarray) -> Any:
    """Return an array as what outputs are: an array, or a tensor that shares its memory."""
    if isinstance(outputs, np.ndarray):
        return array
    import torch

    return torch.from_numpy(array)


def _zeros(outputs: Any, shape: tuple[int, ...]) -> Any:
    return _like(outputs, np.zeros(shape, np.float32))


def _copied(held: Any) -> Any:
    return held.copy() if isinstance(held, np.ndarray) else held.clone()


def _fades(spans: Sequence[tuple[int, int, int]], side: int) -> dict[int, np.ndarray]:
    """Return the weights along one axis of all tiles of a raster, by their first pixel."""
    starts = [start for start, _, _ in spans]
    return dict(zip(starts, blend_weights(starts, side, spans[-1][2])))


STITCHERS: dict[Blend, type[Stitcher]] = {'hann': BlendStitcher, 'crop': CropStitcher}

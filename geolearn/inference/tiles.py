"""Read a raster's tiles in full batches: each block row once, in a thread of its own, a few batches ahead."""

import logging
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from queue import Full, Queue
from typing import Any, NamedTuple

import numpy as np
import torch
from rasterio.windows import Window

from geolearn.device import is_out_of_memory
from geolearn.inference.options import ReadOptions
from geolearn.inference.source import Source
from geolearn.tiling import Tile, TileGrid

log = logging.getLogger('geolearn')

QUEUE_BATCHES = 2
MAX_BLOCK_ROWS = 2048


class TileBatch(NamedTuple):
    """Tiles that are computed together: pixels (n, [dates,] bands, h, w) float32, NaN where there is no data."""

    tiles: list[Tile]
    pixels: torch.Tensor


MEMORY_SHARE = 0.25
"""Share of the machine's memory that batches of tiles may take before they are computed."""


def fit_batch_size(batch_size: int, tiles: int, tile_bytes: int) -> int:
    """Return how many tiles are read at once: no more than there are, and half as many until memory holds them.

    Args:
        batch_size: What the caller asks for.
        tiles: Of the raster.
        tile_bytes: Of one tile.
    """
    wanted = size = min(batch_size, max(tiles, 1))
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') if hasattr(os, 'sysconf') else 2**33
    # a few batches wait for the network, and one is being computed
    while size > 1 and size * tile_bytes * (QUEUE_BATCHES + 2) > MEMORY_SHARE * memory:
        size = (size + 1) // 2
    if size < wanted:
        log.warning('memory does not hold batches of %s tiles; taking %s at once', batch_size, size)
    return size


class MicroBatches:
    """Compute batches in parts that the device's memory holds: the whole batch, until that fails, and then halves.

    Args:
        compute: Takes images (n, ...).
    """

    def __init__(self, compute: Callable[[torch.Tensor], Any]) -> None:
        self._compute, self._size = compute, 0

    def parts(self, pixels: torch.Tensor) -> Iterator[tuple[slice, Any]]:
        """Yield which images were computed, and what came out.

        Raises:
            RuntimeError: Of torch, if memory does not hold one image.
        """
        start = 0
        while start < len(pixels):
            size = min(self._size or len(pixels), len(pixels) - start)
            part = slice(start, start + size)
            try:
                outputs = self._compute(pixels[part])
            except RuntimeError as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                self._size = (size + 1) // 2
                log.warning('out of memory with %s tiles at once; continuing with %s', size, self._size)
                continue
            yield part, outputs
            start += size


class RollingRows:
    """Full-width rows of a raster, each read once, in whole block rows, and dropped when no tile needs them.

    Args:
        source: The raster.
        tile_rows: Most rows that are asked for at once.
    """

    def __init__(self, source: Source, tile_rows: int) -> None:
        self._source, (self._height, self._width) = source, source.shape
        # a raster that is one huge block is decoded whole by GDAL anyway; holding it here too would help nobody
        self._block_rows = min(source.block_rows, MAX_BLOCK_ROWS)
        capacity = min(tile_rows + self._block_rows, self._height)
        self._pixels = np.empty((len(source.indexes), capacity, self._width), source.dtype)
        self._valid = np.empty((capacity, self._width), bool)
        self._first = self._end = 0

    def rows(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels (bands, rows, width) and validity (rows, width) of rows top..bottom.

        Both are views that the next call overwrites; `top` must not go back. Rows that are passed over are not read.
        """
        if bottom > self._end:
            self._end = max(self._end, top)
            held = self._end - top
            self._pixels[:, :held] = self._pixels[:, top - self._first : self._end - self._first]
            self._valid[:held] = self._valid[top - self._first : self._end - self._first]
            self._first = top
            # up to a block's edge, so that no block is decompressed twice
            stop = min(-(-bottom // self._block_rows) * self._block_rows, self._height)
            window = Window(0, self._end, self._width, stop - self._end)
            filled = slice(held, held + stop - self._end)
            mask = self._source.read(window, out=self._pixels[:, filled])[1]
            self._valid[filled] = True if mask is None else mask
            self._end = stop
        part = slice(top - self._first, bottom - self._first)
        return self._pixels[:, part], self._valid[part]


def read_batches(
    sources: Sequence[Source], grid: TileGrid, *, batch_size: int, read: ReadOptions, first: int = 0
) -> Iterator[TileBatch]:
    """Yield full batches of tiles in file order; tiles without a valid pixel are left out.

    Args:
        sources: One for each date, all on one grid of pixels; tiles of several dates are (n, dates, bands, h, w).
        grid: How the raster is cut.
        batch_size: Tiles in a batch.
        read: How stored values become the network's units.
        first: Number of the tile to begin with, counted row by row.
    """
    height, width = grid.tile_shape
    tile_bytes = 4 * len(sources) * len(sources[0].indexes) * height * width
    batch_size = fit_batch_size(batch_size, len(grid.rows) * len(grid.cols) - first, tile_bytes)
    rolling = [RollingRows(source, height) for source in sources]
    shape = sources[0].shape
    dates = (len(sources),) if len(sources) > 1 else ()
    tiles: list[Tile] = []
    batch = torch.empty((batch_size, *dates, len(sources[0].indexes), height, width))
    for tile in islice(iter(grid), first, None):
        top, left = int(tile.read.row_off), int(tile.read.col_off)
        # windows begin and end a few pixels outside of the raster
        inside = np.s_[max(top, 0) : min(top + height, shape[0]), max(left, 0) : min(left + width, shape[1])]
        corner = (inside[0].start - top, inside[1].start - left)
        targets = batch[len(tiles)].numpy().reshape(len(sources), -1, height, width)
        # every date is read, so that all of them stay in step
        if not any([_fill(target, rows, inside, corner, read) for target, rows in zip(targets, rolling)]):
            continue
        tiles.append(tile)
        if len(tiles) == batch_size:
            yield TileBatch(tiles, batch)
            tiles, batch = [], torch.empty_like(batch)
    if tiles:
        yield TileBatch(tiles, batch[: len(tiles)])


def _fill(
    target: np.ndarray,
    rolling: RollingRows,
    inside: tuple[slice, slice],
    corner: tuple[int, int],
    read: ReadOptions,
) -> bool:
    """Put the pixels of a tile into `target` (bands, h, w) from `corner` on, else NaN; returns whether it has data."""
    rows, cols = inside
    pixels, valid = rolling.rows(rows.start, rows.stop)
    valid = valid[:, cols]
    if not valid.any():
        target[:] = np.nan
        return False
    if valid.shape != target.shape[1:]:
        target[:] = np.nan
    part = target[:, corner[0] : corner[0] + valid.shape[0], corner[1] : corner[1] + valid.shape[1]]
    part[:] = read.to_model_units(pixels[:, :, cols])
    if not valid.all():
        part[:, ~valid] = np.nan
    if any(corner):  # above and left of the raster is its mirror image: a patch that is half empty misleads a network
        lead = [np.pad(np.arange(length), (before, 0), 'symmetric') for length, before in zip(valid.shape, corner)]
        filled = part[:, lead[0]][:, :, lead[1]]
        target[:, : filled.shape[1], : filled.shape[2]] = filled
    return True


def prefetch(batches: Iterator[TileBatch]) -> Generator[TileBatch, None, None]:
    """Run an iterator in a thread of its own, a bounded number of batches ahead; its error is raised here."""
    queue: Queue[TileBatch | None] = Queue(QUEUE_BATCHES)
    stopped = threading.Event()

    def put(item: TileBatch | None) -> bool:
        while not stopped.is_set():
            try:
                queue.put(item, timeout=0.1)
            except Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
        finally:
            put(None)

    with ThreadPoolExecutor(1, 'geolearn-reader') as pool:
        reading = pool.submit(work)
        try:
            while (item := queue.get()) is not None:
                yield item
            reading.result()
        finally:
            stopped.set()

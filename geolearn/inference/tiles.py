"""Read a raster's tiles in full batches: each block row once, in a thread of its own, a few batches ahead."""

import logging
import math
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import groupby, islice
from queue import Full, Queue
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rasterio.windows import Window

from geolearn import tiling
from geolearn.inference.options import ReadOptions
from geolearn.inference.source import Source
from geolearn.raster.area import PixelArea
from geolearn.raster.nodata import missing

if TYPE_CHECKING:
    import torch  # loaded where it is needed: other engines read tiles too

log = logging.getLogger('geolearn')

QUEUE_BATCHES = 2

BATCH_SIZE = 4
"""Tiles computed together, unless the caller says otherwise."""

MAX_BLOCK_ROWS = 2048


class TileBatch(NamedTuple):
    """Tiles that are computed together.

    Args:
        tiles: In the order of the grid.
        pixels: (n, [dates,] bands, h, w) float32, NaN where there is no data.
        absent: (n, h, w), True where there is too little data to map.
        through: All tiles up to this number, counted row by row, are in this batch or before it, or have no data.
    """

    tiles: list[tiling.Tile]
    pixels: np.ndarray
    absent: np.ndarray
    through: int


MEMORY_SHARE = 0.25
"""Share of the machine's memory that batches of tiles may take before they are computed."""


def fit_batch_size(batch_size: int, tiles: int, tile_bytes: int, *, memory: int | None = None) -> int:
    """Return how many tiles are read at once: no more than there are, and half as many until memory holds them.

    Args:
        batch_size: What the caller asks for.
        tiles: Of the raster.
        tile_bytes: Of one tile.
        memory: Bytes for all of them; None for a share of the machine's.
    """
    wanted = size = min(batch_size, max(tiles, 1))
    if memory is None:
        whole = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') if hasattr(os, 'sysconf') else 2**33
        memory = int(MEMORY_SHARE * whole)
    # a few batches wait for the network, and one is being computed
    while size > 1 and size * tile_bytes * (QUEUE_BATCHES + 2) > memory:
        size = (size + 1) // 2
    if size < wanted:
        log.warning('memory does not hold batches of %s tiles; taking %s at once', batch_size, size)
    return size


class MicroBatches:
    """Compute batches in parts that the device's memory holds: the whole batch, until that fails, and then halves.

    Args:
        compute: Takes images (n, ...).
        most: Images of a part; None for all.
    """

    def __init__(self, compute: Callable[['torch.Tensor'], Any], *, most: int | None = None) -> None:
        self._compute, self._size = compute, most or 0

    def parts(self, pixels: 'np.ndarray | torch.Tensor') -> Iterator[tuple[slice, Any]]:
        """Yield which images were computed, and what came out.

        Raises:
            RuntimeError: Of torch, if memory does not hold one image.
        """
        import torch

        images = torch.from_numpy(pixels) if isinstance(pixels, np.ndarray) else pixels
        start = 0
        while start < len(images):
            size = min(self._size or len(images), len(images) - start)
            part = slice(start, start + size)
            try:
                outputs = self._compute(images[part])
            except RuntimeError as error:
                from geolearn.device import is_out_of_memory

                if size == 1 or not is_out_of_memory(error):
                    raise
                self._size = (size + 1) // 2
                log.warning('out of memory with %s tiles at once; continuing with %s', size, self._size)
                continue
            yield part, outputs
            start += size


class _Rows(NamedTuple):
    """Memory for some rows of a raster: pixels (bands, rows, width) and validity (rows, width)."""

    pixels: np.ndarray
    valid: np.ndarray


def _map_memory(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array that the system has back as soon as it is dropped; malloc keeps what threads that ended had."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), dtype, math.prod(shape)).reshape(shape)


class RollingRows:
    """Rows of a raster, each read once, in whole block rows, and dropped when no tile needs them.

    Args:
        source: The raster.
        tile_rows: Most rows that are asked for at once.
        columns: First and last column + 1; None for all.
        most_block_rows: That are read at once.
        pool: One thread that reads, so that rows can be read ahead; it may be that of other rasters too. None reads
            where rows are asked for.
    """

    def __init__(
        self,
        source: Source,
        tile_rows: int,
        columns: tuple[int, int] | None = None,
        most_block_rows: int = MAX_BLOCK_ROWS,
        pool: Executor | None = None,
    ) -> None:
        self.source, (self._height, width) = source, source.shape
        self.left, right = (0, width) if columns is None else (max(columns[0], 0), min(columns[1], width))
        self._width = right - self.left
        # a raster that is one huge block is decoded whole by GDAL anyway; holding it here too would help nobody
        self._block_rows = min(source.block_rows, most_block_rows)
        self._capacity = min(tile_rows + self._block_rows, self._height)
        self._held = self._allocate()
        self._first = self._end = 0
        self._pool = pool
        self._spare: _Rows | None = None
        self._coming: Future[tuple[int, int]] | None = None

    def _allocate(self) -> _Rows:
        shape = (self._capacity, self._width)
        return _Rows(_map_memory((len(self.source.indexes), *shape), self.source.held_dtype), _map_memory(shape, bool))

    @property
    def end(self) -> int:
        """The last row + 1 that is held."""
        return self._end

    def rows(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels (bands, rows, width) and validity (rows, width) of rows top..bottom.

        Both are views that the next call overwrites; `top` must not go back. Rows that are passed over are not read.
        """
        if bottom > self._end:
            self.read_ahead(top, bottom)
            if self._coming is None:
                self._first, self._end = self._read(self._held, top, bottom)
            else:
                assert self._spare is not None
                self._first, self._end = self._coming.result()
                self._held, self._spare, self._coming = self._spare, self._held, None
        part = slice(top - self._first, bottom - self._first)
        return self._held.pixels[:, part], self._held.valid[part]

    def read_ahead(self, top: int, bottom: int) -> None:
        """Begin to read rows that are asked for later; those that are held stay as they are, and may be asked for."""
        if self._pool is None or self._coming is not None or bottom <= self._end:
            return
        if self._spare is None:
            self._spare = self._allocate()
        self._coming = self._pool.submit(self._read, self._spare, top, bottom)

    def _read(self, into: _Rows, top: int, bottom: int) -> tuple[int, int]:
        """Fill memory with rows from `top` on, of which some may be held; returns the first and the last + 1."""
        start = max(self._end, top)
        held, old = start - top, slice(top - self._first, self._end - self._first)
        if held:
            into.pixels[:, :held] = self._held.pixels[:, old]
            into.valid[:held] = self._held.valid[old]
        # up to a block's edge, so that no block is decompressed twice
        stop = min(-(-bottom // self._block_rows) * self._block_rows, self._height)
        filled = slice(held, held + stop - start)
        mask = self.source.read_held(Window(self.left, start, self._width, stop - start), out=into.pixels[:, filled])[1]
        into.valid[filled] = True if mask is None else mask
        return top, stop


class _WantedTile(NamedTuple):
    """A tile that is read: its number, and which pixels are wanted; None for all."""

    number: int
    tile: tiling.Tile
    wanted: np.ndarray | None


def _wanted_rows(grid: tiling.TileGrid, first: int, area: PixelArea | None) -> Iterator[list[_WantedTile]]:
    """Yield the tiles of each row from tile `first` on, without those outside of an area."""
    for _, row in groupby(islice(enumerate(iter(grid)), first, None), lambda item: item[0] // len(grid.cols)):
        found = []
        for number, tile in row:
            wanted = None if area is None else area.mask(tile.read)
            if wanted is None or wanted.any():
                found.append(_WantedTile(number, tile, wanted))
        if found:
            yield found


class _Ahead:
    """Rows of tiles, of which those to come can be seen.

    Args:
        rows: In order.
    """

    def __init__(self, rows: Iterator[list[_WantedTile]]) -> None:
        self._rows, self._seen = rows, deque[list[_WantedTile]]()

    def pop(self) -> list[_WantedTile] | None:
        """Return the next row; None behind the last one."""
        return self._seen.popleft() if self._seen else next(self._rows, None)

    def find(self, wanted: Callable[[list[_WantedTile]], bool]) -> list[_WantedTile] | None:
        """Return the first row to come that is wanted, which stays to come; None where none is."""
        for row in self._seen:
            if wanted(row):
                return row
        for row in self._rows:
            self._seen.append(row)
            if wanted(row):
                return row
        return None


def read_batches(
    sources: Sequence[Source],
    grid: tiling.TileGrid,
    *,
    batch_size: int,
    read: ReadOptions,
    first: int = 0,
    columns: tuple[int, int] | None = None,
    memory: int | None = None,
    every_date: bool = False,
    area: PixelArea | None = None,
    reuse: bool = False,
) -> Generator[TileBatch, None, None]:
    """Yield full batches of tiles in file order; tiles without a valid pixel, or outside of `area`, are left out.

    While the tiles of one row are cut, a thread reads the rows of the next.

    Args:
        sources: One for each date, all on one grid of pixels; tiles of several dates are (n, dates, bands, h, w).
        grid: How the raster is cut.
        batch_size: Tiles in a batch.
        read: How stored values become the network's units.
        first: Number of the tile to begin with, counted row by row.
        columns: Of the raster that these tiles show; None for all.
        memory: Bytes that batches may take; None for a share of the machine's.
        every_date: Whether a pixel needs data at every date.
        area: What is mapped; networks see what lies around it. None for all.
        reuse: Whether the pixels of a batch may be overwritten as soon as the caller, behind `prefetch`, asks for the
            next one: the system takes long to hand out new memory.
    """
    height, width = grid.tile_shape
    shape = sources[0].shape
    dates = (len(sources),) if len(sources) > 1 else ()

    def finish(pixels: np.ndarray, through: int) -> TileBatch:
        # missing in one band is missing in all, but for what has no logarithm
        bands = pixels if read.scale == 'db' else pixels[..., :1, :, :]
        absent = np.stack([missing(each, every_date=every_date) for each in bands])
        for gaps, wanted in zip(absent, masks):
            if wanted is not None:
                gaps |= ~wanted
        return TileBatch(tiles, pixels, absent, through)

    def reach(row: list[_WantedTile]) -> tuple[int, int]:
        # windows begin and end a few pixels outside of the raster
        top = int(row[0].tile.read.row_off)
        return max(top, 0), min(top + height, shape[0])

    def beyond(end: int) -> Callable[[list[_WantedTile]], bool]:
        return lambda row: reach(row)[1] > end

    tile_bytes = 4 * len(sources) * len(sources[0].indexes) * height * width
    total = len(grid.rows) * len(grid.cols)
    batch_size = fit_batch_size(batch_size, total - first, tile_bytes, memory=memory)
    tiles: list[tiling.Tile] = []
    masks: list[np.ndarray | None] = []
    batch = np.empty((batch_size, *dates, len(sources[0].indexes), height, width), np.float32)
    yielded: deque[np.ndarray] = deque()
    with ThreadPoolExecutor(1, 'geolearn-rows') as pool:
        rolling = [RollingRows(source, height, columns, pool=pool) for source in sources]
        coming = _Ahead(_wanted_rows(grid, first, area))
        while (row := coming.pop()) is not None:
            top, bottom = reach(row)
            for rows in rolling:
                rows.rows(top, bottom)
                # block rows may hold several rows of tiles: the first one that they do not is read meanwhile
                following = coming.find(beyond(rows.end))
                if following is not None:
                    rows.read_ahead(*reach(following))
            for number, tile, wanted in row:
                left = int(tile.read.col_off)
                inside = np.s_[top:bottom, max(left, 0) : min(left + width, shape[1])]
                corner = (top - int(tile.read.row_off), inside[1].start - left)
                targets = batch[len(tiles)].reshape(len(sources), -1, height, width)
                # every date is read, so that all of them stay in step
                if not any([fill_tile(target, rows, inside, corner, read) for target, rows in zip(targets, rolling)]):
                    continue
                tiles.append(tile)
                masks.append(wanted)
                if len(tiles) == batch_size:
                    yield finish(batch, number)
                    if reuse:
                        yielded.append(batch)
                    # a few wait in the queue, and one is computed
                    tiles, masks = [], []
                    batch = yielded.popleft() if len(yielded) > QUEUE_BATCHES + 1 else np.empty_like(batch)
    if tiles:
        yield finish(batch[: len(tiles)], total - 1)


def fill_tile(
    target: np.ndarray,
    rolling: RollingRows,
    inside: tuple[slice, slice],
    corner: tuple[int, int],
    read: ReadOptions,
) -> bool:
    """Put the pixels of a tile into `target` (bands, h, w) from `corner` on, else NaN; returns whether it has data."""
    rows, cols = inside[0], slice(inside[1].start - rolling.left, inside[1].stop - rolling.left)
    pixels, valid = rolling.rows(rows.start, rows.stop)
    valid = valid[:, cols]
    if not valid.any():
        target[:] = np.nan
        return False
    if valid.shape != target.shape[1:]:
        target[:] = np.nan
    part = target[:, corner[0] : corner[0] + valid.shape[0], corner[1] : corner[1] + valid.shape[1]]
    rolling.source.put_model_units(pixels[:, :, cols], part, read)
    if not valid.all():
        part[:, ~valid] = np.nan
    if any(corner):  # above and left of the raster is its mirror image: a patch that is half empty misleads a network
        lead = [np.pad(np.arange(length), (before, 0), 'symmetric') for length, before in zip(valid.shape, corner)]
        filled = part[:, lead[0]][:, :, lead[1]]
        target[:, : filled.shape[1], : filled.shape[2]] = filled
    return True


def prefetch(batches: Generator[TileBatch, None, None]) -> Generator[TileBatch, None, None]:
    """Run a generator in a thread of its own, a bounded number of batches ahead; its error is raised here."""
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
            batches.close()
            put(None)

    with ThreadPoolExecutor(1, 'geolearn-reader') as pool:
        reading = pool.submit(work)
        try:
            while (item := queue.get()) is not None:
                yield item
            reading.result()
        finally:
            stopped.set()

"""Map a raster of any size: one thread reads block rows, this one computes, one thread writes."""

import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Full, Queue
from typing import Any, NamedTuple

import numpy as np
import torch
from rasterio.windows import Window
from torch import nn
from tqdm.auto import tqdm

from geolearn.classes import ClassInfo
from geolearn.errors import RasterError
from geolearn.raster import GeoBox, RasterWriter, read_window
from geolearn.raster.writing import BLOCK_SIZE
from geolearn.tiling import Tile, TileGrid

QUEUE_BATCHES = 2
MAX_BLOCK_ROWS = 2048


class TileBatch(NamedTuple):
    """Tiles that are computed together: pixels (n, bands, h, w) float32, NaN where there is no data."""

    tiles: list[Tile]
    pixels: torch.Tensor


@dataclass(frozen=True)
class PixelScale:
    """How stored pixel values become the units that the network was trained on: value * scale + offset."""

    scale: float = 1.0
    offset: float = 0.0

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Return float32 pixels in the network's units."""
        values = pixels.astype(np.float32)
        if self.scale != 1.0:
            values *= np.float32(self.scale)
        if self.offset:
            values += np.float32(self.offset)
        return values


class RollingRows:
    """Full-width rows of a raster, each read once, in whole block rows, and dropped when no tile needs them.

    Args:
        src: The raster.
        indexes: 1-based bands.
        tile_rows: Most rows that are asked for at once.
    """

    def __init__(self, src: Any, indexes: Sequence[int], tile_rows: int) -> None:
        self._src, self._indexes = src, list(indexes)
        # a raster that is one huge block is decoded whole by GDAL anyway; holding it here too would help nobody
        self._block_rows = min(src.block_shapes[0][0], MAX_BLOCK_ROWS)
        capacity = min(tile_rows + self._block_rows, src.height)
        self._pixels = np.empty((len(indexes), capacity, src.width), src.dtypes[indexes[0] - 1])
        self._valid = np.empty((capacity, src.width), bool)
        self._first = self._end = 0

    def rows(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels (bands, rows, width) and validity (rows, width) of rows top..bottom.

        Both are views that the next call overwrites; `top` must not go back.
        """
        if bottom > self._end:
            held = self._end - top
            self._pixels[:, :held] = self._pixels[:, top - self._first : self._end - self._first]
            self._valid[:held] = self._valid[top - self._first : self._end - self._first]
            self._first = top
            # up to a block's edge, so that no block is decompressed twice
            stop = min(-(-bottom // self._block_rows) * self._block_rows, self._src.height)
            window = Window(0, self._end, self._src.width, stop - self._end)
            filled = slice(held, held + stop - self._end)
            mask = read_window(self._src, window, self._indexes, out=self._pixels[:, filled])[1]
            self._valid[filled] = True if mask is None else mask
            self._end = stop
        part = slice(top - self._first, bottom - self._first)
        return self._pixels[:, part], self._valid[part]


def read_batches(
    src: Any, indexes: Sequence[int], grid: TileGrid, *, batch_size: int, scale: PixelScale
) -> Iterator[TileBatch]:
    """Yield full batches of tiles in file order; tiles without a valid pixel are left out."""
    height, width = grid.tile_shape
    rolling = RollingRows(src, indexes, height)
    tiles: list[Tile] = []
    batch = torch.empty((batch_size, len(indexes), height, width))
    for tile in grid:
        top, left = int(tile.read.row_off), int(tile.read.col_off)
        bottom, right = min(top + height, src.height), min(left + width, src.width)
        pixels, valid = rolling.rows(top, bottom)
        inside = valid[:, left:right]
        if not inside.any():
            continue
        target = batch[len(tiles)].numpy()
        target[:, : bottom - top, : right - left] = scale.apply(pixels[:, :, left:right])
        target[:, bottom - top :] = np.nan
        target[:, :, right - left :] = np.nan
        if not inside.all():
            target[:, : bottom - top, : right - left][:, ~inside] = np.nan
        tiles.append(tile)
        if len(tiles) == batch_size:
            yield TileBatch(tiles, batch)
            tiles, batch = [], torch.empty_like(batch)
    if tiles:
        yield TileBatch(tiles, batch[: len(tiles)])


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


class MapAssembler:
    """Collect the cores of tiles into rows, and write these in whole block rows from a thread of its own.

    Args:
        writer: Where rows go.
        grid: The tiles, which come in this order; those that never come stay NoData.
        shape: Height and width of the raster.
        dtype: Of the output.
        nodata: Value of pixels that no tile covers.
    """

    def __init__(self, writer: RasterWriter, grid: TileGrid, shape: tuple[int, int], dtype: str, nodata: int) -> None:
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


@dataclass(frozen=True)
class MapPlan:
    """Everything about a run but the raster's content.

    Args:
        indexes: 1-based bands to read, in the network's order.
        grid: How the raster is cut.
        batch_size: Tiles computed together.
        scale: From stored values to the network's units.
        classes: Position is the network's output channel.
    """

    indexes: tuple[int, ...]
    grid: TileGrid
    batch_size: int
    scale: PixelScale
    classes: tuple[ClassInfo, ...]


def output_encoding(classes: Sequence[ClassInfo]) -> tuple[str, int]:
    """Choose the map's dtype and NoData value: 0 unless a class has it, else the largest value that is free."""
    values = {info.value for info in classes}
    dtype, limit = ('uint8', 255) if max(values) <= 255 else ('uint16', 65535)
    # a class named NoData with value 0 is what the map calls NoData
    if not any(info.value == 0 and info.name != 'NoData' for info in classes):
        return dtype, 0
    return dtype, max(set(range(limit + 1)) - values)


def map_raster(src: Any, network: nn.Module, plan: MapPlan, dst: str | Path, *, tags: dict[str, str]) -> Path:
    """Write the class map of an open raster.

    Args:
        src: Dataset from `open_raster`.
        network: Maps (N, bands, H, W) float32, NaN where there is no data, to logits (N, classes, H, W).
        plan: How to go about it.
        dst: GeoTIFF to write.
        tags: Metadata to store in it.

    Returns:
        The path written.

    Raises:
        RasterError: If reading or writing fails; no part of `dst` is left.
    """
    dtype, nodata = output_encoding(plan.classes)
    geobox = GeoBox((src.height, src.width), src.transform, src.crs.to_wkt() if src.crs else None)
    writer = RasterWriter(
        dst,
        geobox,
        dtype=dtype,
        nodata=nodata,
        colors={info.value: info.color for info in plan.classes},
        class_names={info.value: info.name for info in plan.classes},
        tags=tags,
    )
    values = np.array([info.value for info in plan.classes], dtype)
    device = next(network.parameters()).device
    network.eval()
    with writer:
        assembler = MapAssembler(writer, plan.grid, geobox.shape, dtype, nodata)
        batches = prefetch(read_batches(src, plan.indexes, plan.grid, batch_size=plan.batch_size, scale=plan.scale))
        total = len(plan.grid.rows) * len(plan.grid.cols)
        try:
            with tqdm(total=total, desc='mapping', unit='tile', leave=False) as bar, torch.inference_mode():
                for batch in batches:
                    # argmax on channels-first logits takes eight times as long as max
                    found = network(batch.pixels.to(device)).max(1).indices.to(torch.uint8).cpu().numpy()
                    _place(assembler, batch, found, values, nodata)
                    bar.update(len(batch.tiles))
            assembler.finish()
        finally:
            batches.close()
            assembler.close()
    return Path(dst)


def _place(assembler: MapAssembler, batch: TileBatch, found: np.ndarray, values: np.ndarray, nodata: int) -> None:
    for tile, indices, pixels in zip(batch.tiles, found, batch.pixels):
        row, col = int(tile.core.row_off - tile.read.row_off), int(tile.core.col_off - tile.read.col_off)
        part = np.s_[row : row + int(tile.core.height), col : col + int(tile.core.width)]
        mapped = values[indices[part]]
        missing = np.isnan(pixels[0].numpy()[part])
        if missing.any():
            mapped[missing] = nodata
        assembler.put(tile.core, mapped)


def check_range(
    sample: np.ndarray, mean: Sequence[float], std: Sequence[float], band_names: Sequence[str]
) -> str | None:
    """Compare a raster's values with those that the model was trained on.

    Args:
        sample: (bands, n) pixels in the network's units.
        mean: Training mean of each band.
        std: Training standard deviation of each band.
        band_names: For the message.

    Returns:
        A remark if most bands look as if they were in other units, else None.

    Raises:
        RasterError: If most bands lie so far off that the map would be meaningless.
    """
    if sample.shape[1] == 0:
        return None
    median, mean_, std_ = np.median(sample, axis=1), np.array(mean), np.maximum(np.array(std), 1e-9)
    distance = np.abs(median - mean_) / std_
    table = ', '.join(
        f'{n} {m:.4g} (trained on {t:.4g} ± {s:.3g})' for n, m, t, s in zip(band_names, median, mean_, std_)
    )
    if (distance > 20).mean() > 0.5:
        raise RasterError(
            f"the raster's values are in other units than the training chips: medians {table}. "
            'Pass scale= (and offset=) so that value * scale + offset is what the model was trained on'
        )
    ratio = median / np.where(mean_ == 0, np.nan, mean_)
    if ((ratio < 0.2) | (ratio > 5)).all():
        return f"the raster's values look as if they were in other units than the training chips: medians {table}"
    return None

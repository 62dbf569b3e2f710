"""Compute the parts of a map, whatever computes its tiles: one thread reads block rows, one writes what is done."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rasterio.windows import Window

from geolearn import errors, files
from geolearn.inference import tiles
from geolearn.inference.coarse import coarsen_absent, coarsen_tile
from geolearn.inference.layers import Layer
from geolearn.inference.map_progress import ProgressFn, advance, watch_files
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.inference.plan import BUFFER_BYTES, TILED_BUFFER_BYTES, Blend, Part, Share, plan_parts
from geolearn.inference.source import Source
from geolearn.inference.stitching import STITCHERS
from geolearn.inference.store import PieceStore, sidecars
from geolearn.progress import ProgressBar
from geolearn.raster.area import PixelArea
from geolearn.raster.writing import BLOCK_SIZE
from geolearn.tiling import TileGrid


def divide_parts(
    sources: Sequence[Source],
    grid: TileGrid,
    window: Window,
    layers: Sequence[Layer],
    tiling: TilingOptions,
    blend: Blend,
    share: Share | None = None,
    *,
    stride: int = 1,
) -> list[Part]:
    """Divide a window of a map, or a share of it, into parts whose rows memory holds.

    Args:
        sources: One for each date.
        grid: How the raster is cut, in pixels of the map.
        window: Of the map.
        layers: Of the map.
        tiling: What memory may be taken.
        blend: How tiles meet.
        share: To divide; None for all of the window.
        stride: Pixels of the raster for each of the map.
    """
    height = grid.tile_shape[0]
    budget = (_usual_memory(sources, blend) if tiling.max_memory is None else tiling.max_memory) * 3 // 4
    column = 0
    for source in sources:
        rows = min(height * stride + min(source.block_rows, tiles.MAX_BLOCK_ROWS), source.shape[0])
        # rows whose tiles are cut, and those that are read meanwhile
        column += 2 * stride * rows * (len(source.indexes) * np.dtype(source.held_dtype).itemsize + 1)
    # rows that wait to be written, and those that are
    column += sum(
        2 * (height + BLOCK_SIZE) * layer.content.count * np.dtype(layer.content.memory_dtype).itemsize
        for layer in layers
    )
    if blend == 'hann':
        classes = max([len(layer.content.class_names) for layer in layers] + [layer.content.count for layer in layers])
        # sums, and the same again while they move up and are encoded
        column += 4 * height * (2 * classes + 3)
    return plan_parts(grid, window, blend=blend, most_columns=budget // column, share=share)


def _usual_memory(sources: Sequence[Source], blend: Blend) -> int:
    """Return the bytes that rows and tiles may take.

    Each part of a raster that is stored in strips decompresses all of them, and tiles that fade into two parts are
    computed for both.
    """
    tiled = all(source.dataset.block_shapes[0][1] < source.dataset.width for source in sources)
    return TILED_BUFFER_BYTES if tiled and blend == 'crop' else BUFFER_BYTES


class TileCompute(Protocol):
    """Computes tiles: `MicroBatches` of torch, or a graph."""

    def parts(self, pixels: np.ndarray) -> Iterator[tuple[slice, Any]]:
        """Yield which tiles (n, [dates,] bands, h, w) were computed, and the outputs (m, C, h, w) of these."""


class RowStore(Protocol):
    """Takes the rows of a map as they are computed."""

    next_rows: list[int]
    """Of each part the first row that is not written yet."""

    def write(self, part: int, row: int, pixels: Sequence[np.ndarray]) -> None:
        """Take rows of a part: (bands, rows, columns of the part) of each layer."""


def compute_parts(
    sources: Sequence[Source],
    compute: TileCompute,
    grid: TileGrid,
    parts: Sequence[Part],
    layers: Sequence[Layer],
    store: RowStore,
    *,
    read: ReadOptions,
    tiling: TilingOptions,
    blend: Blend,
    every_date: bool,
    area: PixelArea | None = None,
    progress: ProgressFn | None = None,
    stride: int = 1,
) -> None:
    """Compute the parts that are not finished, and put their rows into the store.

    Args:
        sources: One for each date.
        compute: From tiles of the raster to outputs (n, C, h, w) in pixels of the map.
        grid: How the raster is cut, in pixels of the map.
        parts: Of the map.
        layers: Of the map.
        store: Takes the rows.
        read: How stored values become the network's units.
        tiling: How many tiles are read together, and what memory they may take.
        blend: How tiles meet.
        every_date: Whether a pixel needs data at every date.
        area: What is mapped, in pixels of the raster; None for all.
        progress: Called after each batch of tiles.
        stride: Pixels of the raster for each of the map, which needs data in half of those inside of the raster.
    """
    batch_size = tiles.BATCH_SIZE if tiling.batch_size is None else tiling.batch_size
    memory = None if tiling.max_memory is None else tiling.max_memory // 4
    total = sum(len(part.grid.rows) * len(part.grid.cols) for part in parts)
    pixels_per_tile = stride**2 * sum(part.core.height * part.core.width for part in parts) / 1e6 / max(total, 1)
    skipped = sum(_tiles_done(part, row) for part, row in zip(parts, store.next_rows))
    with ProgressBar(total, 'mapping', 'tile', initial=skipped) as bar:
        for number, (part, first_row) in enumerate(zip(parts, store.next_rows)):
            if first_row >= part.bottom:
                continue
            before = bar.count
            first = _tiles_done(part, first_row)
            batches = tiles.prefetch(
                tiles.read_batches(
                    sources,
                    part.grid.enlarged(stride),
                    batch_size=batch_size,
                    read=read,
                    first=first,
                    columns=(part.columns[0] * stride, part.columns[1] * stride),
                    memory=memory,
                    every_date=every_date,
                    area=area,
                    reuse=True,
                )
            )
            stitcher = STITCHERS[blend](_writer(store, number), grid, part, layers, first_row)
            try:
                for batch in batches:
                    for slot, outputs in compute.parts(batch.pixels):
                        for tile, output, absent in zip(batch.tiles[slot], outputs, batch.absent[slot]):
                            if stride > 1:
                                corner = int(tile.read.row_off), int(tile.read.col_off)
                                absent = coarsen_absent(absent, corner, sources[0].shape, stride)
                                tile = coarsen_tile(tile, stride)
                            stitcher.put(tile, output, absent)
                    advance(bar, before + batch.through + 1 - first, pixels_per_tile, progress)
                stitcher.finish()
            finally:
                batches.close()
                stitcher.close()
            left = before + len(part.grid.rows) * len(part.grid.cols) - first
            advance(bar, left, pixels_per_tile, progress)


def write_map(
    store: PieceStore,
    target: Path,
    layers: Sequence[Layer],
    parts: Sequence[Part],
    *,
    cog: bool,
    progress: ProgressFn | None = None,
) -> None:
    """Make the files of a map of its pieces; all of them appear together.

    Args:
        store: Of the pieces.
        target: The map.
        layers: Its files.
        parts: All of them.
        cog: Whether GeoTIFFs are cloud-optimized.
        progress: Called with how far the files are.

    Raises:
        RasterError: If one cannot be written.
    """
    steps = sum(len(part.grid.rows) * len(part.grid.cols) for part in parts)
    megapixels = sum(part.core.height * part.core.width for part in parts) / 1e6
    with (
        files.atomic_write_all(target, error=errors.RasterError, replaces=sidecars(layers, target)) as part,
        watch_files(steps, megapixels, progress) as watch,
    ):
        store.join(part.parent, cog=cog, watch=watch)


def _writer(store: RowStore, part: int) -> Callable[[int, Sequence[np.ndarray]], None]:
    return lambda row, pixels: store.write(part, row, pixels)


def _tiles_done(part: Part, row: int) -> int:
    """Return how many tiles of a part, row by row, only pixels above `row`, which are written, depend on."""
    finished = part.first_row_of_tiles(row) if row < part.bottom else len(part.grid.rows)
    return finished * len(part.grid.cols)

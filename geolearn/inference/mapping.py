"""Map a raster of any size: one thread reads block rows, this one computes, one thread writes."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rasterio.windows import Window
from torch import nn

from geolearn._version import __version__
from geolearn.backbones.compiling import compile_for_inference
from geolearn.device import choose_device
from geolearn.inference.encoding import Encoding
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.inference.reading import RasterSource, check_target, open_dates
from geolearn.inference.source import Source
from geolearn.inference.tiles import TileBatch, prefetch, read_batches
from geolearn.networks.network import Network
from geolearn.networks.spec import ModelSpec
from geolearn.progress import ProgressBar
from geolearn.raster import GeoBox, RasterWriter
from geolearn.raster.nodata import missing
from geolearn.raster.writing import BLOCK_SIZE
from geolearn.tiling import TileGrid, lattice_origin, make_grid


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


def map_raster(
    spec: ModelSpec,
    network: Network,
    encoding: Encoding,
    src: RasterSource,
    dst: str | Path,
    *,
    read: ReadOptions,
    tiling: TilingOptions,
    every_date: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the map of a raster of any size, or of rasters of several dates of one grid.

    Args:
        spec: What the network was trained on.
        network: Maps images to outputs (N, C, H, W).
        encoding: From its outputs to the map's pixels.
        src: A raster, several that make one mosaic, or one such for each date.
        dst: GeoTIFF to write.
        read: How the raster is read.
        tiling: How tiles are cut and computed.
        every_date: Whether a pixel needs data at every date, as change does; else one date is enough.
        overwrite: Replace `dst` if it exists.

    Returns:
        The path written.

    Raises:
        RasterError: If bands, units, dates or pixel sizes do not fit, `dst` exists, or reading or writing fails; no
            part of `dst` is left.
    """
    target = check_target(src, Path(dst).expanduser(), overwrite=overwrite)
    side, halo = choose_tile(spec, network, tiling)
    tags = {'MODEL': spec.model, 'BACKBONE': spec.backbone, 'SOFTWARE': f'geolearn {__version__}'}
    with ExitStack() as stack:
        sources = open_dates(src, spec, read, stack)
        grid = cut_raster(network, sources[0].box, tile_size=side, halo=halo)
        network = network.to(choose_device(tiling.device))
        return map_sources(
            sources, network, encoding, grid, target, read=read, tiling=tiling, every_date=every_date, tags=tags
        )


def map_sources(
    sources: Sequence[Source],
    network: nn.Module,
    encoding: Encoding,
    grid: TileGrid,
    dst: str | Path,
    *,
    read: ReadOptions,
    tiling: TilingOptions,
    every_date: bool = False,
    tags: Mapping[str, str] | None = None,
) -> Path:
    """Write the map of an open raster, or of several dates of one grid.

    Args:
        sources: One for each date.
        network: Maps (N, bands, H, W) float32, or (N, dates, bands, H, W) where there are several, NaN where there is
            no data, to outputs (N, C, H, W).
        encoding: From the network's outputs to the map's pixels.
        grid: How the raster is cut.
        dst: GeoTIFF to write.
        read: How stored values become the network's units.
        tiling: Its batch size and whether to compile; the network stays on its device.
        every_date: Whether a pixel needs data at every date.
        tags: Metadata to store in the map.

    Returns:
        The path written.

    Raises:
        RasterError: If reading or writing fails; no part of `dst` is left.
    """
    geobox = sources[0].box
    writer = RasterWriter(
        dst,
        geobox,
        dtype=encoding.dtype,
        nodata=encoding.nodata,
        colors=encoding.colors,
        class_names=encoding.class_names,
        tags=tags,
    )
    device = next(network.parameters()).device
    network.eval()
    compute: Callable[[torch.Tensor], Any] = network
    if tiling.compile:
        dates = (len(sources),) if len(sources) > 1 else ()
        shape = (tiling.batch_size, *dates, len(sources[0].indexes), *grid.tile_shape)
        compute = compile_for_inference(network, torch.zeros(shape, device=device))
    with writer:
        assembler = MapAssembler(writer, grid, geobox.shape, encoding.dtype, encoding.nodata)
        batches = prefetch(read_batches(sources, grid, batch_size=tiling.batch_size, read=read))
        total = len(grid.rows) * len(grid.cols)
        try:
            with ProgressBar(total, 'mapping', 'tile') as bar, torch.inference_mode():
                for batch in batches:
                    for core, pixels in _cores(batch, compute, encoding, device, every_date=every_date):
                        assembler.put(core, pixels)
                    bar.update(len(batch.tiles))
            assembler.finish()
        finally:
            batches.close()
            assembler.close()
    return Path(dst)


def _cores(
    batch: TileBatch,
    compute: Callable[[torch.Tensor], Any],
    encoding: Encoding,
    device: torch.device,
    *,
    every_date: bool,
) -> Iterator[tuple[Window, np.ndarray]]:
    """Compute a batch of tiles, and yield the core of each with its pixels (height, width) of the map."""
    encoded = encoding.encode(compute(batch.pixels.to(device)))
    for tile, mapped, pixels in zip(batch.tiles, encoded, batch.pixels):
        row, col = int(tile.core.row_off - tile.read.row_off), int(tile.core.col_off - tile.read.col_off)
        part = np.s_[row : row + int(tile.core.height), col : col + int(tile.core.width)]
        core, absent = mapped[part], missing(pixels.numpy(), every_date=every_date)[part]
        if absent.any():
            core[absent] = encoding.nodata
        yield tile.core, core


CONVOLUTION_TILE = 512
"""Convolutions run fastest per pixel at about this side: smaller tiles overlap more, larger ones leave caches."""

CONVOLUTION_HALO = 32

MULTIPLE = 32
"""Tile sides and starts are multiples of this at least; most networks have no coarser stride."""

POSITION_GRID_SIDES = 2
"""Tiles of networks with embedded positions, in sides of the training chips: as accurate, with half the overlap."""


def cut_raster(network: Network, box: GeoBox, *, tile_size: int, halo: int) -> TileGrid:
    """Cut a raster into tiles that start on the lattice of the network's coarsest stride.

    The lattice hangs on the origin of the CRS, so that a map does not depend on which part of a scene the raster holds.
    """
    multiple = math.lcm(MULTIPLE, *network.backbone.strides)
    origin = lattice_origin(box.transform, multiple)
    return make_grid(box.shape, tile_size=tile_size, halo=halo, multiple=multiple, origin=origin)


def choose_tile(spec: ModelSpec, network: Network, tiling: TilingOptions) -> tuple[int, int]:
    """Return tile side and halo: near the training size where positions are embedded, else what is fastest."""
    if network.backbone.has_position_grid:
        side, halo = POSITION_GRID_SIDES * spec.chip_size, spec.chip_size // 8
    else:
        side = max(spec.chip_size, CONVOLUTION_TILE)
        halo = CONVOLUTION_HALO
    side = side if tiling.tile_size is None else tiling.tile_size
    return side, min(halo, side // 8) if tiling.halo is None else tiling.halo

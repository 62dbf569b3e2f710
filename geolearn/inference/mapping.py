"""Map a raster of any size: one thread reads block rows, this one computes, one thread writes."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rasterio.windows import Window
from torch import Tensor, nn

from geolearn._version import __version__
from geolearn.backbones.compiling import compile_for_inference
from geolearn.classes import ClassInfo
from geolearn.device import choose_device
from geolearn.inference.reading import RasterSource, open_dates
from geolearn.inference.targets import check_space, check_target
from geolearn.inference.tiles import (
    MicroBatches,
    ReadOptions,
    Source,
    TilingOptions,
    fit_batch_size,
    prefetch,
    read_batches,
)
from geolearn.networks.network import Network
from geolearn.networks.spec import ModelSpec
from geolearn.progress import ProgressBar
from geolearn.raster import GeoBox, RasterWriter
from geolearn.raster.nodata import missing
from geolearn.raster.writing import BLOCK_SIZE
from geolearn.tiling import Tile, TileGrid, blend_weights, lattice_origin, make_grid


class Encoding(Protocol):
    """How a network's outputs become a map's pixels."""

    @property
    def dtype(self) -> str:
        """Of the map."""

    @property
    def nodata(self) -> float:
        """Value of pixels without data."""

    @property
    def colors(self) -> Mapping[int, tuple[int, int, int]] | None:
        """Color of each pixel value, where they are classes."""

    @property
    def class_names(self) -> Mapping[int, str] | None:
        """Name of each pixel value, where they are classes."""

    def encode(self, outputs: Tensor) -> np.ndarray:
        """Turn outputs (N, C, H, W) into pixels (N, H, W) of `dtype`."""


class ClassEncoding:
    """The most likely class of each pixel, as its value.

    Args:
        classes: Position is the network's output channel.
    """

    def __init__(self, classes: Sequence[ClassInfo]) -> None:
        self.dtype, self.nodata = output_encoding(classes)
        self.colors = {info.value: info.color for info in classes}
        self.class_names = {info.value: info.name for info in classes}
        self._values = np.array([info.value for info in classes], self.dtype)

    def encode(self, outputs: Tensor) -> np.ndarray:
        """Turn logits (N, classes, H, W) into class values (N, H, W)."""
        # argmax on channels-first logits takes eight times as long as max
        return self._values[outputs.max(1).indices.byte().cpu().numpy()]


@dataclass(frozen=True)
class RegressionEncoding:
    """The regressed quantity of each pixel; NaN where there is no data."""

    dtype: str = 'float32'
    nodata: float = float('nan')
    colors: None = None
    class_names: None = None

    def encode(self, outputs: Tensor) -> np.ndarray:
        """Turn outputs (N, 1, H, W) into (N, H, W) float32."""
        return outputs[:, 0].float().cpu().numpy()


def output_encoding(classes: Sequence[ClassInfo]) -> tuple[str, int]:
    """Choose the map's dtype and NoData value: 0 unless a class has it, else the largest value that no class has.

    Every class here was trained and can be predicted, whatever its name: also value 0 of labels that name no classes.
    """
    values = {info.value for info in classes}
    dtype, limit = ('uint8', 255) if max(values) <= 255 else ('uint16', 65535)
    return dtype, 0 if 0 not in values else max(set(range(limit + 1)) - values)


class MapAssembler:
    """Collect the cores of tiles into rows, and write these in whole block rows from a thread of its own.

    Args:
        writer: Where rows go.
        bands: First and last row + 1 of each row of cores, which come in this order; those that never come are NoData.
        shape: Height and width of the raster.
        dtype: Of the output.
        nodata: Value of pixels that no core covers.
    """

    def __init__(
        self,
        writer: RasterWriter,
        bands: Sequence[tuple[int, int]],
        shape: tuple[int, int],
        dtype: str,
        nodata: float,
    ) -> None:
        self._writer, self._shape = writer, shape
        self._bands = list(bands)
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


class CoreStitcher:
    """Make a map of the cores of tiles, side by side.

    Args:
        writer: Where rows go.
        grid: The tiles.
        shape: Height and width of the raster.
        encoding: From outputs to pixels.
    """

    def __init__(self, writer: RasterWriter, grid: TileGrid, shape: tuple[int, int], encoding: Encoding) -> None:
        bands = [(top, bottom) for _, top, bottom in grid.rows]
        self._assembler = MapAssembler(writer, bands, shape, encoding.dtype, encoding.nodata)
        self._encoding = encoding

    def put(self, tiles: Sequence[Tile], outputs: Tensor, absent: np.ndarray) -> None:
        """Place a batch of tiles.

        Args:
            tiles: In the order of the grid.
            outputs: Of the network, (n, C, h, w).
            absent: (n, h, w), True where there is no data.
        """
        encoded = self._encoding.encode(outputs)
        encoded[absent] = self._encoding.nodata
        for tile, pixels in zip(tiles, encoded):
            row, col = int(tile.core.row_off - tile.read.row_off), int(tile.core.col_off - tile.read.col_off)
            core = pixels[row : row + int(tile.core.height), col : col + int(tile.core.width)]
            self._assembler.put(tile.core, core)

    def finish(self) -> None:
        """Write what is left."""
        self._assembler.finish()

    def close(self) -> None:
        """Stop the writing thread."""
        self._assembler.close()


class BlendStitcher:
    """Make a map of the outputs of tiles, which fade into each other where they overlap.

    Memory holds the outputs of one row of tiles.

    Args:
        writer: Where rows go.
        grid: The tiles.
        shape: Height and width of the raster.
        encoding: From outputs to pixels.
    """

    def __init__(self, writer: RasterWriter, grid: TileGrid, shape: tuple[int, int], encoding: Encoding) -> None:
        rows, cols = ([start for start, _, _ in spans] for spans in (grid.rows, grid.cols))
        # rows above the next row of tiles are complete
        self._ends = [*rows[1:], shape[0]]
        bands = list(zip([0, *rows[1:]], self._ends))
        self._assembler = MapAssembler(writer, bands, shape, encoding.dtype, encoding.nodata)
        self._encoding, self._shape, self._height = encoding, shape, grid.tile_shape[0]
        self._down = dict(zip(rows, blend_weights(rows, grid.tile_shape[0], shape[0])))
        self._across = dict(zip(cols, blend_weights(cols, grid.tile_shape[1], shape[1])))
        self._top = 0
        self._sums: Tensor | None = None
        self._weights = torch.zeros(self._height, shape[1])
        self._absent = np.ones((self._height, shape[1]), bool)

    def put(self, tiles: Sequence[Tile], outputs: Tensor, absent: np.ndarray) -> None:
        """Place a batch of tiles; see `CoreStitcher.put`."""
        outputs = outputs.float().cpu()
        if self._sums is None:
            self._sums = torch.zeros(outputs.shape[1], *self._weights.shape)
        for tile, values, missing_there in zip(tiles, outputs, absent):
            row, col = int(tile.read.row_off), int(tile.read.col_off)
            self._advance(row)
            weights = torch.from_numpy(np.outer(self._down[row], self._across[col]))
            top, left = max(-row, 0), max(-col, 0)
            bottom, right = (
                min(weights.shape[axis], self._shape[axis] - start) for axis, start in ((0, row), (1, col))
            )
            inside = np.s_[top:bottom, left:right]
            place = np.s_[row + top - self._top : row + bottom - self._top, col + left : col + right]
            self._sums[:, *place] += values[:, *inside] * weights[inside]
            self._weights[place] += weights[inside]
            self._absent[place] = missing_there[inside]

    @torch.inference_mode()
    def _advance(self, row: int) -> None:
        """Write the rows above `row`."""
        while self._ends and self._ends[0] <= row:
            end = self._ends.pop(0)
            count = end - self._top
            if self._sums is not None:
                means = self._sums[:, :count] / self._weights[:count].clamp(min=1e-6)
                pixels = self._encoding.encode(means[None])[0]
                pixels[self._absent[:count]] = self._encoding.nodata
                self._assembler.put(Window(0, self._top, self._shape[1], count), pixels)
                for held in (self._sums, self._weights[None]):
                    held[:, : self._height - count] = held[:, count:].clone()
                    held[:, self._height - count :] = 0
            self._absent[: self._height - count] = self._absent[count:].copy()
            self._absent[self._height - count :] = True
            self._top = end

    def finish(self) -> None:
        """Write what is left."""
        self._advance(self._shape[0])
        self._assembler.finish()

    def close(self) -> None:
        """Stop the writing thread."""
        self._assembler.close()


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
    cog: bool = True,
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
        cog: Whether the map is a cloud-optimized GeoTIFF, with overviews, instead of a plain one.

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
        check_space(target, math.prod(sources[0].shape) * np.dtype(encoding.dtype).itemsize)
        grid = cut_raster(network, sources[0].box, tiling, tile_size=side, halo=halo)
        network = network.to(choose_device(tiling.device))
        return map_sources(
            sources,
            network,
            encoding,
            grid,
            target,
            read=read,
            tiling=tiling,
            every_date=every_date,
            blend=network.backbone.has_position_grid,
            tags=tags,
            cog=cog,
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
    blend: bool = False,
    tags: Mapping[str, str] | None = None,
    cog: bool = False,
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
        blend: Let outputs fade from tile to tile where they overlap, instead of cutting there. Transformers see all of
            a tile and its positions, so that what two of them say of one place differs at any distance from the edge.
        tags: Metadata to store in the map.
        cog: Whether the map is a cloud-optimized GeoTIFF.

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
        band_names=('prediction' if encoding.class_names is None else 'class',),
        tags=tags,
        cog=cog,
    )
    device = next(network.parameters()).device
    network.eval()
    compute: Callable[[torch.Tensor], Any] = network
    if tiling.compile:
        dates = (len(sources),) if len(sources) > 1 else ()
        shape = (*dates, len(sources[0].indexes), *grid.tile_shape)
        count = fit_batch_size(tiling.batch_size, len(grid.rows) * len(grid.cols), 4 * math.prod(shape))
        compute = compile_for_inference(network, torch.zeros((count, *shape), device=device))
    micro = MicroBatches(lambda pixels: compute(pixels.to(device)))
    with writer:
        stitcher = (BlendStitcher if blend else CoreStitcher)(writer, grid, geobox.shape, encoding)
        batches = prefetch(read_batches(sources, grid, batch_size=tiling.batch_size, read=read))
        total = len(grid.rows) * len(grid.cols)
        try:
            with ProgressBar(total, 'mapping', 'tile') as bar, torch.inference_mode():
                for batch in batches:
                    absent = np.stack([missing(pixels.numpy(), every_date=every_date) for pixels in batch.pixels])
                    for part, outputs in micro.parts(batch.pixels):
                        stitcher.put(batch.tiles[part], outputs, absent[part])
                    bar.update(len(batch.tiles))
            stitcher.finish()
        finally:
            batches.close()
            stitcher.close()
    return Path(dst)


CONVOLUTION_TILE = 512
"""Convolutions run fastest per pixel at about this side: smaller tiles overlap more, larger ones leave caches."""

CONVOLUTION_HALO = 32

MULTIPLE = 32
"""Tile sides and starts are multiples of this at least; most networks have no coarser stride."""

POSITION_GRID_SIDES = 2
"""Tiles of networks with embedded positions, in sides of the training chips: as accurate, with half the overlap."""


def cut_raster(network: Network, box: GeoBox, tiling: TilingOptions, *, tile_size: int, halo: int) -> TileGrid:
    """Cut a raster into tiles that start on the lattice of the network's coarsest stride.

    The lattice is counted from the origin of the CRS, so that a map does not depend on which part of a scene the raster
    is. A raster that one tile of the size that the caller asks for holds is computed in one, from its corner on.
    """
    multiple = math.lcm(MULTIPLE, *network.backbone.strides)
    origin = lattice_origin(box.transform, multiple)
    if tiling.tile_size is not None and max(box.shape) <= tiling.tile_size:
        origin = (0, 0)
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

"""Map a raster of any size: one thread reads block rows, this one computes, one thread writes."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rasterio.windows import Window
from torch import nn
from tqdm.auto import tqdm

from geolearn._version import __version__
from geolearn.backbones.compiling import compile_for_inference
from geolearn.device import choose_device
from geolearn.inference.encoding import Encoding
from geolearn.inference.reading import RasterSource, Reading, check_reading, check_target, open_dates
from geolearn.inference.tiles import PixelScale, Source, TileBatch, prefetch, read_batches
from geolearn.networks.network import Network
from geolearn.networks.spec import ModelSpec
from geolearn.raster import RasterWriter, raster_geobox
from geolearn.raster.writing import BLOCK_SIZE
from geolearn.tiling import TileGrid, make_grid


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


@dataclass(frozen=True)
class MapPlan:
    """Everything about a run but the raster's content.

    Args:
        grid: How the raster is cut.
        batch_size: Tiles computed together.
        scale: From stored values to the network's units.
        encoding: From the network's outputs to the map's pixels.
        compile: Whether to compile the network first. It takes up to a minute and gave convolutions 1.1 to 1.4 times
            the speed, plain transformers hardly any on processors without AVX-512: for thousands of tiles.
        every_date: Whether a pixel needs data at every date, as change does; else one date is enough.
    """

    grid: TileGrid
    batch_size: int
    scale: PixelScale
    encoding: Encoding
    compile: bool = False
    every_date: bool = False


def map_raster(
    sources: Sequence[Source], network: nn.Module, plan: MapPlan, dst: str | Path, *, tags: dict[str, str]
) -> Path:
    """Write the map of an open raster, or of several dates of one grid.

    Args:
        sources: One for each date.
        network: Maps (N, bands, H, W) float32, or (N, dates, bands, H, W) where there are several, NaN where there is
            no data, to outputs (N, C, H, W).
        plan: How to go about it.
        dst: GeoTIFF to write.
        tags: Metadata to store in it.

    Returns:
        The path written.

    Raises:
        RasterError: If reading or writing fails; no part of `dst` is left.
    """
    encoding, geobox = plan.encoding, raster_geobox(sources[0].dataset)
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
    if plan.compile:
        dates = (len(sources),) if len(sources) > 1 else ()
        shape = (plan.batch_size, *dates, len(sources[0].indexes), *plan.grid.tile_shape)
        compute = compile_for_inference(network, torch.zeros(shape, device=device))
    with writer:
        assembler = MapAssembler(writer, plan.grid, geobox.shape, encoding.dtype, encoding.nodata)
        batches = prefetch(read_batches(sources, plan.grid, batch_size=plan.batch_size, scale=plan.scale))
        total = len(plan.grid.rows) * len(plan.grid.cols)
        try:
            with tqdm(total=total, desc='mapping', unit='tile', leave=False) as bar, torch.inference_mode():
                for batch in batches:
                    _place(assembler, batch, encoding.encode(compute(batch.pixels.to(device))), plan)
                    bar.update(len(batch.tiles))
            assembler.finish()
        finally:
            batches.close()
            assembler.close()
    return Path(dst)


def _place(assembler: MapAssembler, batch: TileBatch, found: np.ndarray, plan: MapPlan) -> None:
    for tile, mapped, pixels in zip(batch.tiles, found, batch.pixels):
        row, col = int(tile.core.row_off - tile.read.row_off), int(tile.core.col_off - tile.read.col_off)
        part = np.s_[row : row + int(tile.core.height), col : col + int(tile.core.width)]
        core, missing = mapped[part], _missing(pixels, every_date=plan.every_date)[part]
        if missing.any():
            core[missing] = plan.encoding.nodata
        assembler.put(tile.core, core)


def _missing(pixels: torch.Tensor, *, every_date: bool) -> np.ndarray:
    """Return where a tile (bands, H, W) or (dates, bands, H, W) has no data; a date lacks all bands or none."""
    if pixels.dim() == 3:
        return np.isnan(pixels[0].numpy())
    missing = np.isnan(pixels[:, 0].numpy())
    return missing.any(axis=0) if every_date else missing.all(axis=0)


CONVOLUTION_TILE = 512
"""Convolutions run fastest per pixel at about this side: smaller tiles overlap more, larger ones leave caches."""

CONVOLUTION_HALO = 32

POSITION_GRID_SIDES = 2
"""Tiles of networks with embedded positions, in sides of the training chips: as accurate, with half the overlap."""


class Running(NamedTuple):
    """How tiles are cut and computed; None leaves it to the model."""

    tile_size: int | None = None
    halo: int | None = None
    batch_size: int = 4
    device: str | None = None
    compile: bool = False


class MapModel(NamedTuple):
    """What maps: a network, what it was trained on, and what its outputs mean.

    Args:
        spec: Of the model.
        network: Of the model.
        encoding: From its outputs to the map's pixels.
        every_date: Whether a pixel needs data at every date.
    """

    spec: ModelSpec
    network: Network
    encoding: Encoding
    every_date: bool = False


def map_with_model(model: MapModel, src: RasterSource, dst: str | Path, reading: Reading, running: Running) -> Path:
    """Do what `predict_raster` says."""
    spec, network = model.spec, model.network
    check_reading(reading)
    _check_running(running)
    target = check_target(src, Path(dst).expanduser())
    side, halo = choose_tile(spec, network, running)
    with ExitStack() as stack:
        sources = open_dates(src, spec, reading, stack)
        first = sources[0].dataset
        grid = make_grid((first.height, first.width), tile_size=side, halo=halo)
        plan = MapPlan(grid, running.batch_size, reading.pixel_scale, model.encoding, running.compile, model.every_date)
        tags = {'MODEL': spec.model, 'BACKBONE': spec.backbone, 'SOFTWARE': f'geolearn {__version__}'}
        return map_raster(sources, network.to(choose_device(running.device)), plan, target, tags=tags)


def _check_running(running: Running) -> None:
    if running.batch_size < 1:
        raise ValueError(f'batch_size must be at least 1, got {running.batch_size}')
    if running.tile_size is not None and running.tile_size < 1:
        raise ValueError(f'tile_size must be at least 1 pixel, got {running.tile_size}')


def choose_tile(spec: ModelSpec, network: Network, running: Running) -> tuple[int, int]:
    """Return tile side and halo: near the training size where positions are embedded, else what is fastest."""
    if network.backbone.has_position_grid:
        side, halo = POSITION_GRID_SIDES * spec.chip_size, spec.chip_size // 8
    else:
        side = max(spec.chip_size, CONVOLUTION_TILE)
        halo = CONVOLUTION_HALO
    side = side if running.tile_size is None else running.tile_size
    return side, min(halo, side // 8) if running.halo is None else running.halo

"""Map a raster of any size: one thread reads block rows, this one computes, one thread writes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from geolearn.backbones.compiling import compile_for_inference
from geolearn.inference.assemble import MapAssembler
from geolearn.inference.encoding import Encoding
from geolearn.inference.tiles import PixelScale, Source, TileBatch, prefetch, read_batches
from geolearn.raster import RasterWriter, raster_geobox
from geolearn.tiling import TileGrid


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

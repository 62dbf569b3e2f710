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
from geolearn.classes import ClassInfo, is_unlabelled
from geolearn.inference.assemble import MapAssembler
from geolearn.inference.tiles import PixelScale, TileBatch, prefetch, read_batches
from geolearn.raster import RasterWriter, raster_geobox
from geolearn.tiling import TileGrid


@dataclass(frozen=True)
class MapPlan:
    """Everything about a run but the raster's content.

    Args:
        indexes: 1-based bands to read, in the network's order.
        grid: How the raster is cut.
        batch_size: Tiles computed together.
        scale: From stored values to the network's units.
        classes: Position is the network's output channel.
        compile: Whether to compile the network first. It takes up to a minute and gave convolutions 1.1 to 1.4 times
            the speed, plain transformers hardly any on processors without AVX-512: for thousands of tiles.
    """

    indexes: tuple[int, ...]
    grid: TileGrid
    batch_size: int
    scale: PixelScale
    classes: tuple[ClassInfo, ...]
    compile: bool = False


def output_encoding(classes: Sequence[ClassInfo]) -> tuple[str, int]:
    """Choose the map's dtype and NoData value: 0 unless a class has it, else the largest value that is free."""
    values = {info.value for info in classes}
    dtype, limit = ('uint8', 255) if max(values) <= 255 else ('uint16', 65535)
    # what is unlabelled in the chips is what the map calls NoData
    if not any(info.value == 0 and not is_unlabelled(info) for info in classes):
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
    geobox = raster_geobox(src)
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
    compute: Callable[[torch.Tensor], Any] = network
    if plan.compile:
        shape = (plan.batch_size, len(plan.indexes), *plan.grid.tile_shape)
        compute = compile_for_inference(network, torch.zeros(shape, device=device))
    with writer:
        assembler = MapAssembler(writer, plan.grid, geobox.shape, dtype, nodata)
        batches = prefetch(read_batches(src, plan.indexes, plan.grid, batch_size=plan.batch_size, scale=plan.scale))
        total = len(plan.grid.rows) * len(plan.grid.cols)
        try:
            with tqdm(total=total, desc='mapping', unit='tile', leave=False) as bar, torch.inference_mode():
                for batch in batches:
                    # argmax on channels-first logits takes eight times as long as max
                    found = compute(batch.pixels.to(device)).max(1).indices.to(torch.uint8).cpu().numpy()
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

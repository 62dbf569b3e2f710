"""Find objects in a raster of any size: one thread reads, this one computes, and tiles' objects become the raster's."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms
from tqdm.auto import tqdm

from geolearn.extras import require
from geolearn.inference.found import Found, join_found
from geolearn.inference.merging import (
    SAME_OVERLAP,
    Merge,
    Pieces,
    join_pieces,
    merge_pieces,
    seen_better_elsewhere,
)
from geolearn.inference.outlines import Outline, outline_mask
from geolearn.inference.overlaps import mean_boxes, suppress
from geolearn.inference.progress import Progress
from geolearn.inference.tiles import PixelScale, Source, prefetch, read_batches
from geolearn.tiling import TileGrid

FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-1, -2))
"""Axes that are turned round in each look of test-time augmentation."""

Look = Callable[[Tensor], Sequence[Found]]
"""Finds objects in images (N, [dates,] bands, H, W)."""


@dataclass(frozen=True)
class DetectPlan:
    """Everything about a run but the raster's content.

    Args:
        grid: How the raster is cut.
        batch_size: Tiles computed together.
        scale: From stored values to the network's units.
        threshold: Lowest score of an object, 0..1.
        nms_overlap: Of two objects of one class, above which they are merged, 0..1.
        outline: How plain outlines are; objects without masks are boxes.
        augment: Whether each tile is looked at four times, flipped.
        merge: What becomes of objects of one class that overlap; see `merge_pieces`.
    """

    grid: TileGrid
    batch_size: int
    scale: PixelScale
    threshold: float
    nms_overlap: float
    outline: Outline = 'exact'
    augment: bool = False
    merge: Merge = 'nms'

    @property
    def overlap_in_tile(self) -> float:
        """Overlap from which on, in one tile, the less sure goes.

        Soft-NMS looks at all objects of the raster at once, so tiles leave it all that the network found.
        """
        if self.merge != 'soft_nms':
            return self.nms_overlap
        return SAME_OVERLAP if self.augment else 1.0


def looker(network: nn.Module, *, threshold: float, nms_overlap: float, augment: bool) -> Look:
    """Return what finds the objects in images that are on the CPU, with a detector in evaluation.

    Args:
        network: Returns found objects and losses.
        threshold: Lowest score.
        nms_overlap: Of two objects of one class, from which on the less sure goes.
        augment: Whether images are looked at four times, flipped. Objects that are not found each time lose in score.
    """
    device = next(network.parameters()).device

    def once(images: Tensor) -> list[Found]:
        return [found.cpu() for found in network(images.to(device))[0]]

    def look(images: Tensor) -> list[Found]:
        if not augment:
            return [_distinct(found.select(found.scores >= threshold), nms_overlap) for found in once(images)]
        looks = [[_flip(found, images.shape, axes) for found in once(images.flip(axes))] for axes in FLIPS]
        fused = [fuse_looks(list(row), overlap=nms_overlap) for row in zip(*looks)]
        return [found.select(found.scores >= threshold) for found in fused]

    return look


def _distinct(found: Found, overlap: float) -> Found:
    return found.select(batched_nms(found.boxes, found.scores, found.labels, overlap))


def _flip(found: Found, shape: torch.Size, axes: tuple[int, ...]) -> Found:
    boxes = found.boxes.clone()
    for axis in axes:
        edge = 0 if axis == -1 else 1
        boxes[:, [edge, edge + 2]] = shape[axis] - boxes[:, [edge + 2, edge]]
    return Found(boxes, found.labels, found.scores, None if found.masks is None else found.masks.flip(axes))


def fuse_looks(looks: list[Found], *, overlap: float) -> Found:
    """Make one of several looks at one image: the mean box, the surest one's mask, the sum of scores over the looks.

    Args:
        looks: What was found in each.
        overlap: From which on two objects of one class are one.
    """
    every = join_found(looks)
    boxes, scores = every.boxes.double().numpy(), every.scores.double().numpy()
    kept, owners = suppress(boxes, every.labels.numpy(), scores, overlap=overlap)
    totals = np.zeros(len(scores))
    np.add.at(totals, owners, scores)
    fused = np.minimum(totals / len(looks), scores)
    means = boxes if every.masks is not None else mean_boxes(boxes, scores, owners)
    both = Found(torch.from_numpy(means).float(), every.labels, torch.from_numpy(fused).float(), every.masks)
    return both.select(torch.from_numpy(kept))


def detect_raster(
    sources: Sequence[Source], network: nn.Module, plan: DetectPlan, progress: Progress | None = None
) -> Pieces:
    """Return the objects of an open raster in its pixels.

    Memory depends on the tiles, the raster's width and the number of objects, some hundred bytes each, and more where
    they have outlines.

    Args:
        sources: From `open_dates`.
        network: Maps (N, bands, H, W) float32, NaN where there is no data, to objects and losses.
        plan: How to go about it.
        progress: Keeps what is finished, and holds what an earlier run had finished.

    Raises:
        RasterError: If reading fails.
        CheckpointError: If what is finished cannot be kept.
    """
    network.eval()
    look = looker(network, threshold=plan.threshold, nms_overlap=plan.overlap_in_tile, augment=plan.augment)
    parts = [] if progress is None else list(progress.pieces)
    for pieces, tiles_done in _look_at_tiles(sources, look, plan, first=progress.tiles_done if progress else 0):
        parts.append(pieces)
        if progress is not None:
            progress.add(pieces, tiles_done)
    return merge_pieces(
        join_pieces(parts), plan.grid, overlap=plan.nms_overlap, merge=plan.merge, threshold=plan.threshold
    )


def _look_at_tiles(
    sources: Sequence[Source], look: Look, plan: DetectPlan, *, first: int
) -> Iterator[tuple[Pieces, int]]:
    """Yield the objects of each batch of tiles, and how many tiles are done with it."""
    corners = [(row, col) for row, _, _ in plan.grid.rows for col, _, _ in plan.grid.cols]
    numbers = {corner: number for number, corner in enumerate(corners)}
    height, width = sources[0].dataset.shape
    batches = prefetch(read_batches(sources, plan.grid, batch_size=plan.batch_size, scale=plan.scale, first=first))
    bar = tqdm(total=len(numbers), initial=first, desc='detecting', unit='tile', leave=False)
    try:
        with bar, torch.inference_mode():
            for batch in batches:
                spots = [(int(tile.read.row_off), int(tile.read.col_off)) for tile in batch.tiles]
                places = zip(look(batch.pixels), spots)
                parts = [_place(found, plan, spot, numbers[spot], (height, width)) for found, spot in places]
                yield join_pieces(parts), numbers[spots[-1]] + 1
                bar.update(len(batch.tiles))
    finally:
        batches.close()


def _place(found: Found, plan: DetectPlan, corner: tuple[int, int], number: int, shape: tuple[int, int]) -> Pieces:
    """Bring a tile's objects to pixels of the raster, without those that another tile shows better."""
    row, col = corner
    # a raster smaller than a tile is padded; nothing is there
    limits = (shape[1], shape[0], shape[1], shape[0])
    boxes = np.clip(found.boxes.double().numpy() + np.array([col, row, col, row]), 0, limits)
    tiles = np.full(len(boxes), number)
    kept = ~seen_better_elsewhere(boxes, tiles, plan.grid) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    outlines = None
    if found.masks is not None:
        masks = found.masks[:, : shape[0] - row, : shape[1] - col].numpy()
        kept &= masks.any(axis=(1, 2))
        outlines = _outlines(masks[kept], found.boxes.numpy()[kept], plan.outline, np.array([col, row]))
    return Pieces(boxes[kept], found.labels.numpy()[kept], found.scores.double().numpy()[kept], tiles[kept], outlines)


def _outlines(masks: np.ndarray, boxes: np.ndarray, kind: Outline, offset: np.ndarray) -> np.ndarray:
    """Return the outlines (n,) in pixels of the raster of masks in a tile whose corner is at `offset`."""
    shapely = require('shapely', extra='vector', to='outline objects')
    outlines = np.empty(len(masks), object)
    for number, (mask, box) in enumerate(zip(masks, boxes)):
        outlines[number] = outline_mask(mask, box, kind=kind)
    moved: np.ndarray = shapely.transform(outlines, lambda points: points + offset) if len(masks) else outlines
    return moved

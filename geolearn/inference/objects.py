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
from geolearn.inference.merging import Pieces, mean_boxes, merge_pieces, seen_better_elsewhere, suppress
from geolearn.inference.outlines import Outline, outline_mask
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
        nms_overlap: Of two objects of one class, from which on the less sure goes, 0..1.
        outline: How plain outlines are; objects without masks are boxes.
        augment: Whether each tile is looked at four times, flipped.
        weighted: Whether boxes that are one object are averaged, instead of taking the surest.
    """

    grid: TileGrid
    batch_size: int
    scale: PixelScale
    threshold: float
    nms_overlap: float
    outline: Outline = 'exact'
    augment: bool = False
    weighted: bool = False


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


def detect_raster(sources: Sequence[Source], network: nn.Module, plan: DetectPlan) -> Pieces:
    """Return the objects of an open raster in its pixels.

    Memory depends on the tiles, the raster's width and the number of objects, some hundred bytes each, and more where
    they have outlines.

    Args:
        sources: From `open_dates`.
        network: Maps (N, bands, H, W) float32, NaN where there is no data, to objects and losses.
        plan: How to go about it.

    Raises:
        RasterError: If reading fails.
    """
    network.eval()
    look = looker(network, threshold=plan.threshold, nms_overlap=plan.nms_overlap, augment=plan.augment)
    shape = sources[0].dataset.shape
    parts = list(_look_at_tiles(sources, look, plan, (shape[0], shape[1])))
    pieces = join_pieces(parts)
    return merge_pieces(pieces, plan.grid, overlap=plan.nms_overlap, weighted=plan.weighted)


def _look_at_tiles(sources: Sequence[Source], look: Look, plan: DetectPlan, shape: tuple[int, int]) -> Iterator[Pieces]:
    corners = [(row, col) for row, _, _ in plan.grid.rows for col, _, _ in plan.grid.cols]
    numbers = {corner: number for number, corner in enumerate(corners)}
    batches = prefetch(read_batches(sources, plan.grid, batch_size=plan.batch_size, scale=plan.scale))
    try:
        with tqdm(total=len(numbers), desc='detecting', unit='tile', leave=False) as bar, torch.inference_mode():
            for batch in batches:
                for tile, found in zip(batch.tiles, look(batch.pixels)):
                    corner = int(tile.read.row_off), int(tile.read.col_off)
                    if len(found):
                        yield _place(found, plan, corner, numbers[corner], shape)
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


def join_pieces(parts: Sequence[Pieces]) -> Pieces:
    """Put the objects of all tiles into one."""
    if not parts:
        nothing = np.zeros(0, np.int64)
        return Pieces(np.zeros((0, 4)), nothing, np.zeros(0), nothing)
    outlines = [part.outlines for part in parts if part.outlines is not None]
    return Pieces(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.tiles for part in parts]),
        np.concatenate(outlines) if outlines else None,
    )

"""Objects of tiles in pixels of the raster: what is asked for, how far tiles overlap, and all tiles together."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

from geolearn import errors, extras
from geolearn.inference import merging
from geolearn.inference.options import ReadOptions
from geolearn.inference.outlines import ObjectOutline, Outline, outline_mask
from geolearn.inference.plan import Part
from geolearn.inference.resume import RunCheckpoint
from geolearn.inference.source import Source
from geolearn.inference.tiles import prefetch, read_batches
from geolearn.oriented import geometry
from geolearn.progress import ProgressBar
from geolearn.raster.area import PixelArea
from geolearn.tiling import TileGrid

log = logging.getLogger('geolearn')

MAX_OVERLAP = 0.5
"""Largest share of a tile's side that its neighbor may show too."""


@dataclass(frozen=True)
class DetectOptions:
    """What is detected, and how detections become objects.

    Args:
        threshold: Lowest score of an object, 0..1.
        nms_overlap: Intersection over union, 0..1, above which two objects of one class are merged.
        augment: Test-time augmentation: predict each tile four times, flipped; True and ``'flips'`` are the same.
        outline: How plain the outlines of masks are; objects without masks are boxes.
        overlap: Pixels that neighboring tiles share; None takes what the largest usual object needs.
        merge: What becomes of objects of one class that overlap; see `merge_detections`.
        resume: Continue a run that was interrupted.

    Raises:
        ValueError: If a number is out of its range.
        UnknownNameError: If there is no such outline or way to merge.
    """

    threshold: float = 0.5
    nms_overlap: float = 0.3
    augment: bool | Literal['flips'] = False
    outline: ObjectOutline = 'exact'
    overlap: int | None = None
    merge: merging.Merge = 'nms'
    resume: bool = False

    def __post_init__(self) -> None:
        for name, value in (('threshold', self.threshold), ('nms_overlap', self.nms_overlap)):
            if not 0 <= value <= 1:
                raise ValueError(f'{name} must be in 0..1, got {value}')
        for name, choices in (('outline', ObjectOutline), ('merge', merging.Merge)):
            if getattr(self, name) not in get_args(choices):
                raise errors.UnknownNameError(name, str(getattr(self, name)), get_args(choices))
        if not isinstance(self.augment, bool) and self.augment != 'flips':
            raise errors.UnknownNameError('augment', str(self.augment), ('flips',))

    @property
    def overlap_in_tile(self) -> float:
        """Overlap above which, in one tile, the lower-scoring of two objects is suppressed.

        Soft-NMS needs all objects of the raster at once, so tiles keep all that the network detected.
        """
        if self.merge != 'soft_nms':
            return self.nms_overlap
        return merging.SAME_OVERLAP if self.augment else 1.0


@dataclass(frozen=True, eq=False)
class ArrayDetections:
    """The objects that were detected in one image, as `geolearn.batch.Detections` without torch.

    Args:
        boxes: (n, 4) float32 left, top, right, bottom in pixels.
        labels: (n,) int64 class indices.
        scores: (n,) float32, 0..1.
        masks: (n, height, width) bool, or None where objects have no outlines.
        turned: (n, 5) float32 oriented boxes in the form le90; None where boxes are level.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None = None
    turned: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: np.ndarray) -> 'ArrayDetections':
        """Return some of the objects, by a boolean mask (n,) or by their numbers."""
        masks = None if self.masks is None else self.masks[rows]
        turned = None if self.turned is None else self.turned[rows]
        return ArrayDetections(self.boxes[rows], self.labels[rows], self.scores[rows], masks, turned)

    @classmethod
    def concatenate(cls, parts: Sequence['ArrayDetections']) -> 'ArrayDetections':
        """Return the objects of several detections in one image together."""
        masks = [part.masks for part in parts if part.masks is not None]
        turned = [part.turned for part in parts if part.turned is not None]
        return cls(
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate(masks) if masks else None,
            np.concatenate(turned) if turned else None,
        )


def choose_halo(side: int, halo: int, *, typical_side: float, overlap: int | None) -> int:
    """Let tiles overlap by the largest usual object, so that one of them shows it whole.

    Args:
        side: Of the tiles, in pixels.
        halo: Least pixels to drop at inner tile edges.
        typical_side: Side in pixels that nearly no training box exceeds.
        overlap: In pixels; None takes that of the training boxes, at most half a tile.

    Raises:
        ValueError: If tiles would overlap by more than half, or less than nothing.
    """
    most = int(side * MAX_OVERLAP)
    if overlap is None:
        overlap = min(most, max(2 * halo, math.ceil(typical_side + 4 * merging.EDGE_MARGIN)))
    elif not 0 <= overlap <= most:
        raise ValueError(f'overlap must be in 0..{most} pixels, half of tile_size {side}, got {overlap}')
    return min(-(-overlap // 2), (side - 1) // 2)


def number_tiles(grid: TileGrid) -> dict[tuple[int, int], int]:
    """Return the number of each tile, counted row by row, by its corner."""
    corners = [(row, col) for row, _, _ in grid.rows for col, _, _ in grid.cols]
    return {corner: number for number, corner in enumerate(corners)}


def place(
    detections: ArrayDetections,
    grid: TileGrid,
    corner: tuple[int, int],
    number: int,
    shape: tuple[int, int],
    kind: ObjectOutline = 'exact',
) -> merging.TileDetections:
    """Bring a tile's objects to pixels of the raster, without those that another tile shows whole.

    Args:
        detections: In pixels of the tile.
        grid: All tiles.
        corner: Row and column of the tile's first pixel.
        number: Of the tile, counted row by row.
        shape: Height and width of the raster.
        kind: How plain the outlines of masks are.
    """
    row, col = corner
    # tiles are padded at the raster's edge; nothing is there
    limits = (shape[1], shape[0], shape[1], shape[0])
    boxes = np.clip(detections.boxes.astype(np.float64) + np.array([col, row, col, row]), 0, limits)
    tiles = np.full(len(boxes), number)
    kept = ~merging.shown_whole_elsewhere(boxes, tiles, grid) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    outlines = None
    if detections.masks is not None:
        # windows begin and end a few pixels outside of the raster
        top, left = max(-row, 0), max(-col, 0)
        masks = detections.masks[:, top : shape[0] - row, left : shape[1] - col]
        kept &= masks.any(axis=(1, 2))
        offset = np.array([col + left, row + top])
        # of rectangles, once parts are joined
        drawn: Outline = 'exact' if kind == 'rectangle' else kind
        outlines = _outlines(masks[kept], boxes[kept] - np.tile(offset, 2), drawn, offset)
    turned = None
    if detections.turned is not None:
        turned = geometry.moved(detections.turned.astype(np.float64), col, row)
        # what has its middle beyond the raster is seen in the padding
        kept &= ((turned[:, :2] >= 0) & (turned[:, :2] <= limits[:2])).all(axis=1)
        turned = turned[kept]
    return merging.TileDetections(
        boxes[kept],
        detections.labels[kept],
        detections.scores.astype(np.float64)[kept],
        tiles[kept],
        outlines,
        turned,
    )


def _outlines(masks: np.ndarray, boxes: np.ndarray, kind: Outline, offset: np.ndarray) -> np.ndarray:
    """Return the outlines (n,) in pixels of the raster of masks in a tile whose corner is at `offset`."""
    shapely = extras.require('shapely', extra='vector', to='outline objects')
    outlines = np.empty(len(masks), object)
    for number, (mask, box) in enumerate(zip(masks, boxes)):
        outlines[number] = outline_mask(mask, box, kind=kind)
    moved: np.ndarray = shapely.transform(outlines, lambda points: points + offset) if len(masks) else outlines
    return moved


class ObjectCompute(Protocol):
    """Detects objects in tiles: `MicroBatches` of torch, or a graph."""

    def parts(self, pixels: np.ndarray) -> Iterator[tuple[slice, Sequence[ArrayDetections]]]:
        """Yield which tiles (n, [dates,] bands, h, w) were computed, and the objects of each of these."""


def detect_in_tiles(
    sources: Sequence[Source],
    compute: ObjectCompute,
    grid: TileGrid,
    *,
    read: ReadOptions,
    batch_size: int,
    options: DetectOptions,
    checkpoint: RunCheckpoint | None = None,
    area: PixelArea | None = None,
    part: Part | None = None,
) -> list[merging.TileDetections]:
    """Return the detections of all tiles of an open raster, or of a part of it, in the order of the tiles.

    Args:
        sources: From `open_dates`.
        compute: From tiles to their objects.
        grid: All tiles.
        read: How stored values become the network's units.
        batch_size: Tiles that are read together.
        options: What is detected.
        checkpoint: Keeps the detections of finished tiles, and holds those of an earlier run.
        area: Tiles that show nothing of it are left out; None for all of the raster.
        part: Whose tiles are computed; None for all.

    Raises:
        RasterError: If reading fails.
        CheckpointError: If the checkpoint cannot be written.
    """
    found = [] if checkpoint is None else list(checkpoint.detections)
    first = checkpoint.tiles_done if checkpoint else 0
    tiles = grid if part is None else part.grid
    numbers, order = number_tiles(grid), number_tiles(tiles)
    columns = None if part is None else part.columns
    batches = read_batches(sources, tiles, batch_size=batch_size, read=read, first=first, columns=columns, area=area)
    bar = ProgressBar(len(order), 'detecting', 'tile', initial=first)
    with closing(prefetch(batches)) as ahead, bar:
        for batch in ahead:
            corners = [(int(tile.read.row_off), int(tile.read.col_off)) for tile in batch.tiles]
            placed = [
                place(detections, grid, corner, numbers[corner], sources[0].shape, options.outline)
                for slot, objects in compute.parts(batch.pixels)
                for detections, corner in zip(objects, corners[slot])
            ]
            found.append(merging.TileDetections.concatenate(placed))
            if checkpoint is not None:
                checkpoint.add(found[-1], order[corners[-1]] + 1)
            bar.update(len(batch.tiles))
    if not found and part is None:
        log.warning('%s holds no data where objects are detected; none can be', sources[0].dataset.name)
    return found


def merge_tiles(
    parts: Sequence[merging.TileDetections], grid: TileGrid, options: DetectOptions, area: PixelArea | None
) -> merging.TileDetections:
    """Return the objects of a raster, from the detections of all its tiles.

    Args:
        parts: In the order of the tiles.
        grid: The tiles.
        options: How detections become objects.
        area: That holds the middles of the objects' boxes; None for all of the raster.
    """
    merged = merging.merge_detections(
        merging.TileDetections.concatenate(parts),
        grid,
        overlap=options.nms_overlap,
        merge=options.merge,
        threshold=options.threshold,
    )
    if options.outline == 'rectangle' and merged.turned is None:
        merged = merged.with_rectangles()
    return merged if area is None else merged.select(area.holds(merged.centers))

"""Use a detector: on one image, or on a raster of any size whose objects become a layer."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms
from tqdm.auto import tqdm

from geolearn.batch import Found, join_found
from geolearn.device import choose_device
from geolearn.errors import RasterError, UnknownNameError
from geolearn.extras import require
from geolearn.inference.mapping import Running, choose_tile
from geolearn.inference.merging import (
    EDGE_MARGIN,
    SAME_OVERLAP,
    Merge,
    Pieces,
    join_pieces,
    mean_boxes,
    merge_pieces,
    seen_better_elsewhere,
    suppress,
)
from geolearn.inference.outlines import Outline, outline_mask
from geolearn.inference.reading import Image, RasterSource, Reading, check_reading, check_target, load_image, open_dates
from geolearn.inference.resume import Progress, source_facts, weights_digest
from geolearn.inference.tiles import PixelScale, Source, prefetch, read_batches
from geolearn.inference.vectors import check_vector_target, objects_to_features, write_layer
from geolearn.networks.detection.detector import Detector
from geolearn.networks.spec import ModelSpec
from geolearn.raster import raster_geobox
from geolearn.tiling import TileGrid, make_grid

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


MOST_SHARED = 0.5
"""Share of a tile's side that its neighbour may show too."""


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, surest first.

    Args:
        boxes: (n, 4) float32 left, top, right, bottom in pixels.
        labels: (n,) int64 class indices.
        values: (n,) int64 class values.
        names: (n,) names of classes.
        scores: (n,) float32, 0..1.
        masks: (n, height, width) bool, or None where objects have no outline.
    """

    boxes: np.ndarray
    labels: np.ndarray
    values: np.ndarray
    names: tuple[str, ...]
    scores: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


class DetectOptions(NamedTuple):
    """What the caller of predict or detect_objects asked for."""

    threshold: float
    nms_overlap: float
    augment: bool = False
    outline: Outline = 'exact'
    overlap: int | None = None
    merge: Merge = 'nms'
    resume: bool = False


def detect_in_image(
    spec: ModelSpec, network: Detector, image: Image, reading: Reading, options: DetectOptions, *, device: str | None
) -> Detections:
    """Do what `predict` says."""
    _check(options, has_masks=True)
    if spec.dates > 1:
        raise RasterError(
            f'this model takes images of {spec.dates} dates, and predict takes one; use detect_objects with a list of '
            'one raster for each date'
        )
    pixels = load_image(image, spec, reading).pixels
    network.to(choose_device(device)).eval()
    look = looker(network, threshold=options.threshold, nms_overlap=options.nms_overlap, augment=options.augment)
    with torch.inference_mode():
        (found,) = look(pixels[None])
    return _as_detections(found, spec)


def _as_detections(found: Found, spec: ModelSpec) -> Detections:
    found = found.select(torch.argsort(found.scores, descending=True, stable=True))
    labels = found.labels.numpy()
    return Detections(
        found.boxes.numpy(),
        labels,
        np.array([spec.class_infos[label].value for label in labels], np.int64),
        tuple(spec.class_infos[label].name for label in labels),
        found.scores.numpy(),
        None if found.masks is None else found.masks.numpy(),
    )


class DetectModel(NamedTuple):
    """What detects: a network, what it was trained on, and what its objects are.

    Args:
        spec: Of the model.
        network: Of the model.
        typical_side: Side in pixels that nearly no training box exceeds.
        masks: Whether objects have outlines.
    """

    spec: ModelSpec
    network: Detector
    typical_side: float
    masks: bool


def detect_to_layer(
    model: DetectModel, src: RasterSource, dst: str | Path, reading: Reading, running: Running, options: DetectOptions
) -> Path:
    """Do what `detect_objects` says."""
    spec, network = model.spec, model.network
    check_reading(reading)
    _check(options, has_masks=model.masks)
    if running.batch_size < 1:
        raise ValueError(f'batch_size must be at least 1, got {running.batch_size}')
    target = check_target(src, check_vector_target(dst))
    with ExitStack() as stack:
        sources = open_dates(src, spec, reading, stack)
        box = raster_geobox(sources[0].dataset)
        if target.suffix.lower() == '.geojson' and box.crs is None:
            raise RasterError(f'GeoJSON is in WGS84, but {src} names no CRS; write a .gpkg, or give the raster its CRS')
        grid = choose_grid(box.shape, model, running, overlap=options.overlap)
        plan = DetectPlan(
            grid,
            running.batch_size,
            reading.pixel_scale,
            options.threshold,
            options.nms_overlap,
            options.outline,
            options.augment,
            options.merge,
        )
        progress = stack.enter_context(Progress(target, _run_facts(model, sources, plan), resume=options.resume))
        objects = detect_raster(sources, network.to(choose_device(running.device)), plan, progress)
        write_layer(
            objects_to_features(objects, box, spec.class_infos, outlined=model.masks),
            target,
            geometry_type='MultiPolygon' if model.masks else 'Polygon',
        )
        progress.remove()
    return target


def _run_facts(model: DetectModel, sources: list[Source], plan: DetectPlan) -> dict[str, Any]:
    """Return what must be equal for a run to be gone on with; the device may be another."""
    names = ('batch_size', 'threshold', 'nms_overlap', 'outline', 'augment', 'merge')
    return {
        'model': model.spec.model,
        'options of the model': model.spec.options,
        'weights': weights_digest(model.network),
        'raster': [source_facts(source) for source in sources],
        'tiles': [plan.grid.tile_shape, plan.grid.rows, plan.grid.cols],
        'scale': plan.scale.scale,
        'offset': plan.scale.offset,
        **{name: getattr(plan, name) for name in names},
    }


def choose_grid(shape: tuple[int, int], model: DetectModel, running: Running, *, overlap: int | None) -> TileGrid:
    """Cut a raster into tiles that overlap by the largest usual object, so that one of them shows it whole.

    Args:
        shape: Height and width of the raster.
        model: What detects.
        running: Says how large tiles are, where the caller does.
        overlap: In pixels; None takes that of the training boxes, at most half a tile.

    Raises:
        ValueError: If tiles would overlap by more than half, or less than nothing.
    """
    side, halo = choose_tile(model.spec, model.network, running)
    most = int(side * MOST_SHARED)
    if overlap is None:
        overlap = min(most, max(2 * halo, math.ceil(model.typical_side + 4 * EDGE_MARGIN)))
    elif not 0 <= overlap <= most:
        raise ValueError(f'overlap must be in 0..{most} pixels, half of tile_size {side}, got {overlap}')
    return make_grid(shape, tile_size=side, halo=min(-(-overlap // 2), (side - 1) // 2))


def _check(options: DetectOptions, *, has_masks: bool) -> None:
    for name, value in (('threshold', options.threshold), ('nms_overlap', options.nms_overlap)):
        if not 0 <= value <= 1:
            raise ValueError(f'{name} must be in 0..1, got {value}')
    for name, choices in (('outline', Outline), ('merge', Merge)):
        if getattr(options, name) not in get_args(choices):
            raise UnknownNameError(name, str(getattr(options, name)), get_args(choices))
    if options.outline != 'exact' and not has_masks:
        raise ValueError(f'outline={options.outline!r} is for models that draw masks; the others give boxes')

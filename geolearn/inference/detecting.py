"""Run a detector: on one image, or on a raster of any size whose objects become a layer."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from geolearn import errors
from geolearn.batch import Detections
from geolearn.bundle import DetectionFacts
from geolearn.device import choose_device
from geolearn.inference import merging, overlapping
from geolearn.inference.computing import most_at_once
from geolearn.inference.images import Image, load_image
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.inference.picking import pick_objects
from geolearn.inference.placing import ArrayDetections, DetectOptions, detect_in_tiles
from geolearn.inference.plan import Part
from geolearn.inference.resume import RunCheckpoint
from geolearn.inference.scene import enter_image
from geolearn.inference.source import Source
from geolearn.inference.tiles import BATCH_SIZE, MicroBatches
from geolearn.networks.detection.detector import Detector
from geolearn.networks.spec import ModelSpec
from geolearn.oriented import geometry
from geolearn.raster.area import PixelArea
from geolearn.tiling import TileGrid

FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-1, -2))
"""Axes flipped in each pass of test-time augmentation."""

PredictFn = Callable[[Tensor], Sequence[Detections]]
"""Detects objects in images (N, [dates,] bands, H, W)."""


def make_graph_detector(run: Callable[[Tensor], Tensor], facts: DetectionFacts) -> PredictFn:
    """Return the function that detects objects in images by a graph, as the network does.

    Args:
        run: Computes boxes and scores of images whose sides are multiples of the network's coarsest stride.
        facts: Of the graph.
    """

    def detect(images: Tensor) -> list[Detections]:
        shape = (images.shape[-2], images.shape[-1])
        return [
            Detections(
                torch.from_numpy(each.boxes),
                torch.from_numpy(each.labels),
                torch.from_numpy(each.scores),
                turned=None if each.turned is None else torch.from_numpy(each.turned),
            )
            for each in pick_objects(run(images).numpy(), facts, shape, shape)
        ]

    return detect


def make_predict_fn(
    network: nn.Module, *, threshold: float, nms_overlap: float, augment: bool, detect: PredictFn | None = None
) -> PredictFn:
    """Return the function that detects objects in images on the CPU.

    Args:
        network: A detector in evaluation; returns detections and losses.
        threshold: Lowest score.
        nms_overlap: Overlap of two objects of one class above which the lower-scoring is suppressed.
        augment: Whether images are predicted four times, flipped. Objects that are not detected each time lose score.
        detect: Detects objects in place of the network.
    """
    device = next(network.parameters()).device

    def predict_once(images: Tensor) -> Sequence[Detections]:
        if detect is not None:
            return detect(images)
        return [detections.cpu() for detections in network(images.to(device))[0]]

    def predict(images: Tensor) -> list[Detections]:
        if not augment:
            return [_suppress(each.filter_by_score(threshold), nms_overlap) for each in predict_once(images)]
        passes = [[_flip(each, images.shape, axes) for each in predict_once(images.flip(axes))] for axes in FLIPS]
        merged = [merge_augmented(list(row), overlap=nms_overlap) for row in zip(*passes)]
        return [each.filter_by_score(threshold) for each in merged]

    return predict


def _suppress(detections: Detections, overlap: float) -> Detections:
    if detections.masks is None and detections.turned is None:
        return detections.select(batched_nms(detections.boxes, detections.scores, detections.labels, overlap))
    kept, _ = _nms(detections, overlap)
    return detections.select(torch.from_numpy(kept))


def _nms(detections: Detections, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Suppress by masks or oriented boxes where objects have them, else by boxes; see `nms`.

    The boxes of slender slanted objects side by side overlap although the objects do not.
    """
    if detections.turned is not None:
        turned = detections.turned.double().numpy()
        shown, order = geometry.hulls(turned), detections.scores.double().numpy()
        return overlapping.nms(shown, detections.labels.numpy(), order, overlap=overlap, turned=turned)
    boxes, scores = detections.boxes.double().numpy(), detections.scores.double().numpy()
    measure = None
    if detections.masks is not None:
        masks = detections.masks.numpy()
        measure = partial(_mask_overlap, masks, masks.sum(axis=(1, 2)), boxes)
    return overlapping.nms(boxes, detections.labels.numpy(), scores, overlap=overlap, measure=measure)


def _mask_overlap(
    masks: np.ndarray, areas: np.ndarray, boxes: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Return the intersection over union (n,) of pairs of masks, which lie within a pixel of their boxes."""
    shared = np.zeros(len(first))
    corners = overlapping.intersect(boxes[first], boxes[second])
    for pair, (one, other) in enumerate(zip(first, second)):
        (left, top), (right, bottom) = np.floor(corners[pair, :2]) - 1, np.ceil(corners[pair, 2:]) + 1
        part = np.s_[max(int(top), 0) : max(int(bottom), 0), max(int(left), 0) : max(int(right), 0)]
        shared[pair] = np.count_nonzero(masks[one][part] & masks[other][part])
    overlap: np.ndarray = shared / np.maximum(areas[first] + areas[second] - shared, 1)
    return overlap


def _flip(detections: Detections, shape: torch.Size, axes: tuple[int, ...]) -> Detections:
    boxes = detections.boxes.clone()
    for axis in axes:
        edge = 0 if axis == -1 else 1
        boxes[:, [edge, edge + 2]] = shape[axis] - boxes[:, [edge + 2, edge]]
    masks = None if detections.masks is None else detections.masks.flip(axes)
    turned = detections.turned
    if turned is not None:
        turned = geometry.mirrored(
            turned, width=shape[-1] if -1 in axes else None, height=shape[-2] if -2 in axes else None
        )
    return Detections(boxes, detections.labels, detections.scores, masks, turned)


def merge_augmented(passes: Sequence[Detections], *, overlap: float) -> Detections:
    """Merge the detections of several passes over one image.

    An object gets the mean box, the mask of the highest-scoring, and the sum of scores over the number of passes.

    Args:
        passes: Detections of each.
        overlap: Above which two detections of one class are one object.
    """
    every = Detections.concatenate(passes)
    boxes, scores = every.boxes.double().numpy(), every.scores.double().numpy()
    kept, owners = _nms(every, overlap)
    totals = np.zeros(len(scores))
    np.add.at(totals, owners, scores)
    means = boxes if every.masks is not None else overlapping.mean_boxes(boxes, scores, owners)
    merged = torch.from_numpy(np.minimum(totals / len(passes), scores)).float()
    turned = every.turned
    if turned is not None:
        turned = torch.from_numpy(overlapping.mean_oriented(turned.double().numpy(), scores, owners)).float()
    found = Detections(torch.from_numpy(means).float(), every.labels, merged, every.masks, turned)
    return found.select(torch.from_numpy(kept))


def detect_tiles(
    sources: Sequence[Source],
    network: nn.Module,
    grid: TileGrid,
    *,
    read: ReadOptions,
    tiling: TilingOptions,
    options: DetectOptions,
    checkpoint: RunCheckpoint | None = None,
    area: PixelArea | None = None,
    part: Part | None = None,
    detect: PredictFn | None = None,
) -> list[merging.TileDetections]:
    """Return the detections of all tiles of an open raster, or of a part of it, in the order of the tiles.

    Memory depends on the tiles, the raster's width and the number of objects, some hundred bytes each, and more where
    they have outlines. `merge_tiles` of `geolearn.inference.placing` makes objects of them.

    Args:
        sources: From `open_dates`.
        network: Maps (N, bands, H, W) float32, NaN where there is no data, to detections and losses.
        grid: All tiles.
        read: How stored values become the network's units.
        tiling: Its batch size; the network stays on its device.
        options: What is detected.
        checkpoint: Keeps the detections of finished tiles, and holds those of an earlier run.
        area: Tiles that show nothing of it are left out; None for all of the raster.
        part: Whose tiles are computed; None for all.
        detect: Detects objects in place of the network.

    Raises:
        RasterError: If reading fails.
        CheckpointError: If the checkpoint cannot be written.
    """
    network.eval()
    predict = make_predict_fn(
        network,
        threshold=options.threshold,
        nms_overlap=options.overlap_in_tile,
        augment=options.augment,
        detect=detect,
    )

    @torch.inference_mode()
    def compute(images: Tensor) -> list[ArrayDetections]:
        return [as_arrays(detections) for detections in predict(images)]

    return detect_in_tiles(
        sources,
        MicroBatches(compute, most=most_at_once(next(network.parameters()).device)),
        grid,
        read=read,
        batch_size=tiling.batch_size or BATCH_SIZE,
        options=options,
        checkpoint=checkpoint,
        area=area,
        part=part,
    )


def as_arrays(detections: Detections) -> ArrayDetections:
    """Return detections on the CPU as NumPy arrays, which share their memory."""
    parts = (detections.boxes, detections.labels, detections.scores, detections.masks, detections.turned)
    return ArrayDetections(*(None if part is None else part.numpy() for part in parts))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class ImageDetections:
    """The objects detected in one image, by descending score.

    Args:
        boxes: (n, 4) float32 left, top, right, bottom in pixels.
        labels: (n,) int64 class indices.
        values: (n,) int64 class values.
        names: (n,) names of classes.
        scores: (n,) float32, 0..1.
        masks: (n, height, width) bool, or None where objects have no outline.
        turned: (n, 5) float32 oriented boxes x, y, width, height, angle: width >= height, and the angle of the longer
            side in radians, clockwise, -pi/2 <= angle < pi/2; None where boxes are level.
    """

    boxes: np.ndarray
    labels: np.ndarray
    values: np.ndarray
    names: tuple[str, ...]
    scores: np.ndarray
    masks: np.ndarray | None = None
    turned: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


def detect_image(
    spec: ModelSpec,
    network: Detector,
    image: Image,
    *,
    read: ReadOptions,
    options: DetectOptions,
    device: str | None = None,
) -> ImageDetections:
    """Detect the objects in one image that fits in memory.

    Args:
        spec: What the network was trained on.
        network: The detector.
        image: Pixels (bands, H, W) in the spec's order of bands, NaN where there is no data; or a file.
        read: How bands and values are read.
        options: What is detected.
        device: Torch device; None means CUDA where there is one.

    Raises:
        RasterError: If the model takes several dates, bands or units do not fit, or the file cannot be read.
        ValueError: If an array has another shape.
    """
    if spec.dates > 1:
        raise errors.RasterError(
            f'this model takes images of {spec.dates} dates, and predict takes one; use detect_objects with a list of '
            'one raster for each date'
        )
    loaded = load_image(image, spec, read)
    network.to(choose_device(device)).eval()
    predict = make_predict_fn(
        network, threshold=options.threshold, nms_overlap=options.nms_overlap, augment=options.augment
    )
    with ExitStack() as stack, torch.inference_mode():
        enter_image(stack, spec, network, loaded, read)
        (detections,) = predict(loaded.pixels[None])
    detections = detections.select(torch.argsort(detections.scores, descending=True, stable=True))
    labels = detections.labels.numpy()
    return ImageDetections(
        detections.boxes.numpy(),
        labels,
        np.array([spec.class_infos[label].value for label in labels], np.int64),
        tuple(spec.class_infos[label].name for label in labels),
        detections.scores.numpy(),
        None if detections.masks is None else detections.masks.numpy(),
        None if detections.turned is None else detections.turned.numpy(),
    )

"""Run a detector: on one image, or on a raster of any size whose objects become a layer."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from geolearn import errors
from geolearn.batch import Detections
from geolearn.bundle import DetectionFacts
from geolearn.device import choose_device
from geolearn.inference import merging
from geolearn.inference.computing import most_at_once
from geolearn.inference.flipped import detect_flipped, suppress_by_shape
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
from geolearn.raster.area import PixelArea
from geolearn.tiling import TileGrid

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
        return [as_tensors(each) for each in pick_objects(run(images).numpy(), facts, shape, shape)]

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
        merged = detect_flipped(
            lambda flipped: [as_arrays(each) for each in predict_once(flipped)],
            images,
            torch,
            threshold=threshold,
            nms_overlap=nms_overlap,
        )
        return [as_tensors(each) for each in merged]

    return predict


def _suppress(detections: Detections, overlap: float) -> Detections:
    if detections.masks is None and detections.turned is None:
        return detections.select(batched_nms(detections.boxes, detections.scores, detections.labels, overlap))
    kept, _ = suppress_by_shape(as_arrays(detections), overlap)
    return detections.select(torch.from_numpy(kept))


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
        augment=bool(options.augment),
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


def as_tensors(detections: ArrayDetections) -> Detections:
    """Return detections as tensors on the CPU, which share their memory where torch allows it."""
    parts = (detections.boxes, detections.labels, detections.scores, detections.masks, detections.turned)
    made = (None if part is None else torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
    return Detections(*made)  # type: ignore[arg-type]


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
        network, threshold=options.threshold, nms_overlap=options.nms_overlap, augment=bool(options.augment)
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

"""Detect the objects of images that are flipped too, and make one of what each pass gives, in NumPy alone."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from geolearn.inference import overlapping
from geolearn.inference.placing import ArrayDetections
from geolearn.oriented import geometry

FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-1, -2))
"""Axes flipped in each pass of test-time augmentation."""


def detect_flipped(
    detect: Callable[[Any], Sequence[ArrayDetections]],
    images: Any,
    library: Any,
    *,
    threshold: float,
    nms_overlap: float,
) -> list[ArrayDetections]:
    """Detect the objects in images four times, flipped; those that are not detected each time lose score.

    Args:
        detect: Detects objects of any score in images.
        images: (N, [dates,] bands, h, w), tensors or arrays.
        library: That they are of: torch, or numpy.
        threshold: Lowest score of an object, after the passes are one.
        nms_overlap: Above which two detections of one class are one object.
    """
    size = (images.shape[-2], images.shape[-1])
    passes = [[flip(each, size, axes) for each in detect(library.flip(images, axes))] for axes in FLIPS]
    merged = [merge_passes(row, overlap=nms_overlap) for row in zip(*passes)]
    return [each.select(each.scores >= threshold) for each in merged]


def flip(detections: ArrayDetections, size: tuple[int, int], axes: tuple[int, ...]) -> ArrayDetections:
    """Return the objects of an image of this height and width as they lie in the image that is flipped."""
    boxes = detections.boxes.copy()
    for axis in axes:
        edge = 0 if axis == -1 else 1
        boxes[:, [edge, edge + 2]] = size[axis] - boxes[:, [edge + 2, edge]]
    masks = None if detections.masks is None else np.flip(detections.masks, axes)
    turned = detections.turned
    if turned is not None:
        turned = geometry.mirrored(
            turned, width=size[-1] if -1 in axes else None, height=size[-2] if -2 in axes else None
        )
    return ArrayDetections(boxes, detections.labels, detections.scores, masks, turned)


def merge_passes(passes: Sequence[ArrayDetections], *, overlap: float) -> ArrayDetections:
    """Merge the detections of several passes over one image.

    An object gets the mean box, the mask of the highest-scoring, and the sum of scores over the number of passes.

    Args:
        passes: Detections of each.
        overlap: Above which two detections of one class are one object.
    """
    every = ArrayDetections.concatenate(passes)
    boxes, scores = every.boxes.astype(np.float64), every.scores.astype(np.float64)
    kept, owners = suppress_by_shape(every, overlap)
    totals = np.zeros(len(scores))
    np.add.at(totals, owners, scores)
    means = boxes if every.masks is not None else overlapping.mean_boxes(boxes, scores, owners)
    merged = np.minimum(totals / len(passes), scores).astype(np.float32)
    turned = every.turned
    if turned is not None:
        turned = overlapping.mean_oriented(turned.astype(np.float64), scores, owners).astype(np.float32)
    return ArrayDetections(means.astype(np.float32), every.labels, merged, every.masks, turned).select(kept)


def suppress_by_shape(detections: ArrayDetections, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Suppress by masks or oriented boxes where objects have them, else by boxes; returns what `overlapping.nms` does.

    The boxes of slender slanted objects side by side overlap although the objects do not.
    """
    boxes, labels = detections.boxes.astype(np.float64), detections.labels
    scores = detections.scores.astype(np.float64)
    if detections.turned is not None:
        turned = detections.turned.astype(np.float64)
        return overlapping.nms(geometry.hulls(turned), labels, scores, overlap=overlap, turned=turned)
    measure = None
    if detections.masks is not None:
        measure = partial(_mask_overlap, detections.masks, detections.masks.sum(axis=(1, 2)), boxes)
    return overlapping.nms(boxes, labels, scores, overlap=overlap, measure=measure)


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

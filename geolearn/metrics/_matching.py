"""Match found objects to true ones, image by image, at one overlap."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from geolearn.extras import require

HIT, ALARM, MISS = range(3)
"""What can become of an object: found, found where there is none, not found."""


class Image(NamedTuple):
    """Found and true objects of one image.

    Args:
        shapes: Found ones: (n, 4) left, top, width, height; or run-length encoded masks as pycocotools keeps them.
        labels: (n,) int64 class indices.
        scores: (n,) float.
        true_shapes: As `shapes`.
        true_labels: As `labels`.
    """

    shapes: Any
    labels: np.ndarray
    scores: np.ndarray
    true_shapes: Any
    true_labels: np.ndarray


def count_image(image: Image, count: int, *, iou: float, score: float) -> np.ndarray:
    """Return (classes, 3) int64: objects found, false alarms, and objects missed.

    As in COCO the surest object is matched first, to the true one of its class that it overlaps most and that no surer
    one has taken.

    Args:
        image: Its objects.
        count: Number of classes.
        iou: Overlap from which on an object is found.
        score: Objects with a lower score are left out.
    """
    cases = np.zeros((count, 3), np.int64)
    order = np.argsort(-image.scores, kind='stable')
    chosen = order[image.scores[order] >= score]
    labels = image.labels[chosen]
    overlaps = _overlaps([image.shapes[i] for i in chosen], list(image.true_shapes))
    overlaps[labels[:, None] != image.true_labels[None]] = 0
    for label, row in zip(labels, overlaps):
        best = int(row.argmax()) if len(row) else -1
        hit = best >= 0 and row[best] >= iou
        cases[label, HIT if hit else ALARM] += 1
        if hit:
            overlaps[:, best] = 0  # taken
    cases[:, MISS] = np.bincount(image.true_labels, minlength=count) - cases[:, HIT]
    return cases


def _overlaps(found: Sequence[Any], truth: Sequence[Any]) -> np.ndarray:
    """Return intersection over union (found, true) of boxes or of masks."""
    if not found or not truth:
        return np.zeros((len(found), len(truth)))
    masks = require('pycocotools.mask', extra='detection', to='score detected objects')
    both = [_as_coco(shapes) for shapes in (found, truth)]
    return np.array(masks.iou(*both, [0] * len(truth)))


def _as_coco(shapes: Sequence[Any]) -> Any:
    if isinstance(shapes[0], tuple):
        return [{'size': size, 'counts': counts} for size, counts in shapes]
    return np.array([np.asarray(shape) for shape in shapes], np.float64)

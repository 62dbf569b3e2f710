"""Average precision as in Pascal VOC and DOTA, from overlaps of any kind."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class VocDetections(NamedTuple):
    """Detections and true objects of one image.

    Args:
        labels: (n,) class indices of the detections.
        scores: (n,).
        true_labels: (m,) class indices of the true objects.
        difficult: (m,) bool, True for objects that are neither to be detected nor wrong to detect.
        overlaps: (n, m) intersection over union.
    """

    labels: np.ndarray
    scores: np.ndarray
    true_labels: np.ndarray
    difficult: np.ndarray
    overlaps: np.ndarray


def average_precision_voc(
    images: Sequence[VocDetections], class_count: int, *, iou: float, eleven: bool
) -> list[float]:
    """Return the average precision of each class; NaN without true objects.

    The detections of all images go by falling score. Each is compared with the true object of its class that it
    overlaps most: above `iou`, it is a true positive where the object is free, false where it is taken, and neither
    where the object is difficult.

    Args:
        images: Of the data set.
        class_count: Number of classes.
        iou: Overlap that a true positive exceeds.
        eleven: The mean of the best precision at the recalls 0, 0.1, ... 1 (VOC 2007, and the tables of DOTA), instead
            of the area below the curve (VOC 2010).
    """
    return [_of_class(images, label, iou=iou, eleven=eleven) for label in range(class_count)]


def _of_class(images: Sequence[VocDetections], label: int, *, iou: float, eleven: bool) -> float:
    total, scores, right, wrong = 0, list[float](), list[bool](), list[bool]()
    for image in images:
        true = np.flatnonzero(image.true_labels == label)
        found = np.flatnonzero(image.labels == label)
        total += int((~image.difficult[true]).sum())
        found = found[np.argsort(-image.scores[found], kind='stable')]
        taken = np.zeros(len(true), bool)
        for row in found.tolist():
            overlaps = image.overlaps[row, true]
            best = int(overlaps.argmax()) if len(true) else -1
            hit = best >= 0 and bool(overlaps[best] > iou)
            scores.append(float(image.scores[row]))
            if hit and image.difficult[true[best]]:
                right.append(False)
                wrong.append(False)
                continue
            right.append(hit and not taken[best])
            wrong.append(not right[-1])
            if hit:
                taken[best] = True
    if not total:
        return math.nan
    order = np.argsort(-np.array(scores), kind='stable')
    tp, fp = (np.cumsum(np.array(part, np.int64)[order]) for part in (right, wrong))
    recall, precision = tp / total, tp / np.maximum(tp + fp, 1)
    if eleven:
        return float(np.mean([precision[recall >= level].max(initial=0.0) for level in np.arange(0, 1.1, 0.1)]))
    best_after = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * best_after).sum())

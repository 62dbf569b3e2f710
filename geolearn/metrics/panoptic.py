"""Panoptic quality: how well segments agree, stuff and things alike (Kirillov et al. 2019, arXiv:1801.00868)."""

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from geolearn.batch import Objects, PanopticMap
from geolearn.classes import IGNORE_INDEX
from geolearn.metrics.scores import Metric, sum_over_processes

VOID = IGNORE_INDEX
"""Class of pixels that belong to no segment."""

_SHIFT = 2**32


def true_map(classes: Tensor, objects: Objects, things: Sequence[int]) -> PanopticMap:
    """Return the segments that labels describe: those of things are numbered from 1.

    Pixels of a thing's class in no object are void, and so is what is unlabelled; where objects overlap, the last
    counts.

    Args:
        classes: (H, W) class indices, IGNORE_INDEX where unlabelled.
        objects: With masks.
        things: Indices of the countable classes.
    """
    found, ids = classes.clone(), torch.zeros_like(classes)
    for thing in things:
        found[classes == thing] = VOID
    if objects.masks is not None:
        for number, (mask, label) in enumerate(zip(objects.masks, objects.labels.tolist()), 1):
            if label in things:
                mask = mask.to(found.device)
                found[mask], ids[mask] = label, number
    return PanopticMap(found, ids)


def count_segments(predicted: PanopticMap, truth: PanopticMap, class_count: int) -> np.ndarray:
    """Return for each class (classes, 4) the sum of IoU of its true positives, and TP, FP and FN.

    A predicted and a true segment of one class whose IoU is over 0.5 are a true positive; there is no other such pair
    of either. Void pixels of the truth leave the union, and so do void pixels of the prediction; segments of which more
    than half is void in the other count for nothing. This is what torchmetrics computes.

    Args:
        predicted: Class VOID where nothing is predicted.
        truth: Class VOID where nothing is known.
        class_count: Number of classes.
    """
    one, other = ((part.classes.long() * _SHIFT + part.ids.long()).cpu().numpy().ravel() for part in (predicted, truth))
    one[one // _SHIFT == VOID] = VOID * _SHIFT
    other[other // _SHIFT == VOID] = VOID * _SHIFT
    colors, first = np.unique(one, return_inverse=True)
    true_colors, second = np.unique(other, return_inverse=True)
    shared = np.zeros((len(colors), len(true_colors)), np.int64)
    np.add.at(shared, (first, second), 1)
    areas, true_areas = shared.sum(axis=1), shared.sum(axis=0)
    kinds, true_kinds = colors // _SHIFT, true_colors // _SHIFT
    in_void = shared[:, true_kinds == VOID].sum(axis=1)
    void_in = shared[kinds == VOID].sum(axis=0)
    union = (areas - in_void)[:, None] + (true_areas - void_in)[None] - shared
    same = (kinds[:, None] == true_kinds[None]) & (kinds != VOID)[:, None]
    overlap = np.where(same, shared / np.maximum(union, 1), 0)
    matched = overlap > 0.5
    rows, cols = np.nonzero(matched)
    wrong = (kinds != VOID) & ~matched.any(axis=1) & (in_void <= 0.5 * areas)
    missed = (true_kinds != VOID) & ~matched.any(axis=0) & (void_in <= 0.5 * true_areas)
    columns = (
        np.bincount(kinds[rows], overlap[rows, cols], class_count),
        *(np.bincount(part, minlength=class_count) for part in (kinds[rows], kinds[wrong], true_kinds[missed])),
    )
    return np.stack(columns, axis=1).astype(np.float64)


class PanopticScores:
    """Panoptic, segmentation and recognition quality, means over the classes that occur; see `Scores`.

    Panoptic quality is segmentation quality (mean IoU of true positives) times recognition quality (their F1). As a
    segment that is left void counts for nothing, ``covered``, the share of the labelled pixels that have a class, says
    how much of the images these qualities are of.

    Args:
        count: Number of classes.
        things: Indices of the countable ones.
    """

    columns: ClassVar = (
        Metric('pq', 'PQ', True),
        Metric('sq', 'SQ', True),
        Metric('rq', 'RQ', True),
        Metric('pq_things', 'PQ of things', True),
        Metric('pq_stuff', 'PQ of stuff', True),
        Metric('covered', 'covered', True),
    )

    def __init__(self, count: int, things: Sequence[int]) -> None:
        self.count, self.things = count, tuple(things)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.counts = torch.zeros(self.count, 4, dtype=torch.float64)
        self.pixels = torch.zeros(2, dtype=torch.float64)
        self.per_image: list[float] = []

    def add(self, output: Sequence[PanopticMap], target: tuple[Tensor, Sequence[Objects]]) -> None:
        """Count the segments of a batch: what was predicted, and class indices (N, H, W) with objects."""
        for predicted, classes, objects in zip(output, *target, strict=True):
            truth = true_map(classes, objects, self.things)
            counts = count_segments(predicted, truth, self.count)
            known = truth.classes != VOID
            covered = known & (predicted.classes.to(known.device) != VOID)
            self.pixels += torch.tensor([float(covered.sum()), float(known.sum())], dtype=torch.float64)
            self.counts += torch.from_numpy(counts)
            self.per_image.append(_mean(panoptic_quality(counts)[0]))

    def reduce(self) -> None:
        """Add up the counts of all processes."""
        self.counts, self.pixels = sum_over_processes(self.counts), sum_over_processes(self.pixels)

    def values(self) -> dict[str, float]:
        """Return the scores; NaN where no class of the kind occurs."""
        quality, segmentation, recognition = panoptic_quality(self.counts.numpy())
        thing = np.isin(np.arange(self.count), self.things)
        return {
            'pq': _mean(quality),
            'sq': _mean(segmentation),
            'rq': _mean(recognition),
            'pq_things': _mean(quality[thing]),
            'pq_stuff': _mean(quality[~thing]),
            'covered': float(self.pixels[0] / self.pixels[1]) if self.pixels[1] else math.nan,
        }

    def per_class(self) -> dict[str, list[float]]:
        """Return `pq`, `sq` and `rq` of each class; NaN for classes that do not occur."""
        return {
            name: column.tolist() for name, column in zip(('pq', 'sq', 'rq'), panoptic_quality(self.counts.numpy()))
        }


def panoptic_quality(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return PQ, SQ and RQ (classes,) of what `count_segments` returns, or sums of it; NaN for absent classes.

    Segmentation quality is 0 where no segment was found.
    """
    overlap, tp, fp, fn = counts.T
    present = tp + fp + fn > 0
    total = np.where(present, tp + (fp + fn) / 2, 1)
    quality, recognition = (np.where(present, part / total, np.nan) for part in (overlap, tp))
    return quality, np.where(present, overlap / np.maximum(tp, 1), np.nan), recognition


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan

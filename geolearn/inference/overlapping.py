"""Boxes of one class that overlap: which stays, how scores fall, which are one object and what is their mean."""

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np

from geolearn import extras
from geolearn.oriented import geometry
from geolearn.oriented.overlap import array_overlaps
from geolearn.oriented.suppression import suppress

DENSE_LIMIT = 400
"""Up to so many boxes are compared each with each; more through a spatial index."""

Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes the indices of pairs (n,), (n,) of objects to their intersection over union (n,)."""


def nms(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    *,
    overlap: float,
    measure: Measure | None = None,
    turned: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy non-maximum suppression: of boxes of one class that overlap, keep the highest-scoring.

    Args:
        boxes: (n, 4) left, top, right, bottom.
        labels: (n,).
        scores: (n,).
        overlap: Intersection over union above which the lower-scoring is suppressed.
        measure: How much objects overlap whose boxes touch, such as by their masks; None compares the boxes.
        turned: (n, 5) oriented boxes, compared exactly in the place of the boxes around them; or None.

    Returns:
        The indices of the boxes that are kept, by descending score, and for each box (n,) the index of the one that
        represents it: its own where it is kept.
    """
    measure = oriented_measure(turned) if turned is not None else measure
    first, second, _ = _overlapping(boxes, labels, overlap, measure)
    return suppress(scores, first, second)


def oriented_measure(turned: np.ndarray) -> Measure:
    """Return what compares oriented boxes (n, 5) exactly."""
    return lambda first, second: array_overlaps(turned[first], turned[second])


def soft_nms(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    *,
    overlap: float,
    least: float = 0.0,
    measure: Measure | None = None,
) -> np.ndarray:
    """Lower the scores of boxes that a higher-scoring one of their class overlaps (linear soft-NMS; Bodla et al. 2017).

    The highest-scoring box stays as it is. Each that overlaps it by more than `overlap` has its score multiplied by one
    minus their intersection over union. Then the highest-scoring of the rest is taken, and so on.

    Args:
        boxes: (n, 4).
        labels: (n,).
        scores: (n,), 0..1.
        overlap: Intersection over union above which the score of the lower-scoring is lowered.
        least: Boxes that fall below this lower no other; the caller drops them.
        measure: As for `nms`.

    Returns:
        (n,) float64. A box with a higher-scoring twin has 0.
    """
    first, second, shared = _overlapping(boxes, labels, overlap, measure)
    starts, rivals, pairs = _neighbours(len(boxes), first, second)
    left = 1 - shared[pairs]
    lowered = scores.astype(np.float64).tolist()
    settled = [False] * len(boxes)
    queue = [(-score, number) for number, score in enumerate(lowered)]
    heapq.heapify(queue)
    while queue and -queue[0][0] >= least:
        score, number = heapq.heappop(queue)
        if settled[number] or -score != lowered[number]:  # lowered since it was queued
            continue
        settled[number] = True
        near = slice(starts[number], starts[number + 1])
        for rival, share in zip(rivals[near].tolist(), left[near].tolist()):
            if not settled[rival]:
                lowered[rival] *= share
                heapq.heappush(queue, (-lowered[rival], rival))
    return np.array(lowered, np.float64)


def cluster_boxes(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, *, overlap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Group the boxes that are one object, as weighted boxes fusion does (Solovyev et al. 2021).

    By descending score, each box joins the cluster of its class whose mean box, weighted by scores, it overlaps most,
    if by more than `overlap`; else it begins one. Only clusters with a box that touches it are compared.

    Args:
        boxes: (n, 4).
        labels: (n,).
        scores: (n,).
        overlap: Intersection over union with the mean box.

    Returns:
        The indices of the boxes that began a cluster, each the highest-scoring of its own, by descending score; and for
        each box (n,) the index of the one that began its cluster. `mean_boxes` and `mean_scores` merge the clusters.
    """
    order = np.argsort(-scores, kind='stable')
    starts, near, _ = _neighbours(len(boxes), *touching_pairs(boxes, labels))
    owners = np.full(len(boxes), -1)
    means, weights = boxes.astype(np.float64), np.zeros(len(boxes))
    for number in order.tolist():
        owner = number
        known = owners[near[starts[number] : starts[number + 1]]]
        known = known[known >= 0]
        if len(known):
            shared = intersection_over_union(means[known], boxes[number])
            best = shared.argmax()
            owner = int(known[best]) if shared[best] > overlap else number
        owners[number] = owner
        weights[owner] += scores[number]
        if weights[owner] > 0:
            means[owner] += (boxes[number] - means[owner]) * (scores[number] / weights[owner])
    return order[owners[order] == order], owners


def mean_boxes(boxes: np.ndarray, scores: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Return for each box the mean of those that it represents, weighted by their scores (Solovyev et al. 2021)."""
    sums, weights = np.zeros_like(boxes), np.zeros(len(boxes))
    np.add.at(sums, owners, boxes * scores[:, None])
    np.add.at(weights, owners, scores)
    mean: np.ndarray = np.where(weights[:, None] > 0, sums / np.maximum(weights, 1e-12)[:, None], boxes)
    return mean


def mean_oriented(turned: np.ndarray, scores: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Return for each oriented box (n, 5) the mean of those that it represents, weighted by their scores.

    Sides are averaged by their logarithms, and angles with the period of half a turn.
    """
    boxes = geometry.canonical(turned)
    parts = np.stack(
        [*boxes[:, :2].T, *np.log(np.maximum(boxes[:, 2:4], 1e-9)).T, np.cos(2 * boxes[:, 4]), np.sin(2 * boxes[:, 4])],
        1,
    )
    mean = mean_boxes(parts, scores, owners)
    angle = np.arctan2(mean[:, 5], mean[:, 4]) / 2
    return geometry.canonical(np.concatenate([mean[:, :2], np.exp(mean[:, 2:4]), angle[:, None]], 1))


def mean_scores(scores: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Return for each box the mean score (n,) of those that it represents; 0 for boxes that another represents."""
    counts = np.bincount(owners, minlength=len(scores))
    mean: np.ndarray = np.bincount(owners, scores, minlength=len(scores)) / np.maximum(counts, 1)
    return mean


def intersection_over_union(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the overlap (n,) of boxes (n, 4) with boxes (n, 4), or with one box (4,), 0..1."""
    shared = _areas(intersect(first, second))
    found: np.ndarray = shared / np.maximum(_areas(first) + _areas(second) - shared, 1e-12)
    return found


def intersect(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return what boxes (..., 4) share with boxes (..., 4); right before left where that is nothing."""
    low = np.maximum(first[..., :2], second[..., :2])
    return np.concatenate([low, np.minimum(first[..., 2:], second[..., 2:])], axis=-1)


def touching_pairs(boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of all pairs of boxes of one class that touch each other, the smaller number first."""
    if len(boxes) <= DENSE_LIMIT:
        first, second = np.nonzero(_touch(boxes[:, None], boxes[None]))
    elif extras.is_installed('shapely'):
        shapely: Any = extras.require('shapely', extra='vector', to='compare thousands of boxes')
        shapes = shapely.box(*boxes.T)
        first, second = shapely.STRtree(shapes).query(shapes)
    else:
        first, second = _sweep(boxes)
    chosen = (first < second) & (labels[first] == labels[second])
    return first[chosen], second[chosen]


ROWS_AT_ONCE = 2_000_000
"""Pairs that a sweep looks at in one go."""


def _sweep(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of all pairs of boxes that touch, the smaller first, without a spatial index.

    Boxes are sorted along the axis on which they overlap least, and each is compared with those that begin before it
    ends.
    """
    spread = np.ptp(boxes[:, :2], axis=0) / np.maximum((boxes[:, 2:] - boxes[:, :2]).mean(0), 1e-9)
    axis = int(spread.argmax())
    order = np.argsort(boxes[:, axis], kind='stable')
    lows, highs = boxes[order, axis], boxes[order, axis + 2]
    counts = np.maximum(np.searchsorted(lows, highs, side='right') - np.arange(len(boxes)) - 1, 0)
    ends = np.cumsum(counts)
    parts, row = [], 0
    while row < len(boxes):
        stop = max(row + 1, int(np.searchsorted(ends, ends[row] - counts[row] + ROWS_AT_ONCE, side='right')))
        many = counts[row:stop]
        ones = np.repeat(np.arange(row, stop), many)
        others = ones + 1 + np.arange(len(ones)) - np.repeat(np.cumsum(many) - many, many)
        ones, others = order[ones], order[others]
        near = _touch(boxes[ones], boxes[others])
        ones, others = ones[near], others[near]
        parts.append(np.stack([np.minimum(ones, others), np.maximum(ones, others)]))
        row = stop
    first, second = np.concatenate(parts, axis=1)
    return first, second


def _overlapping(
    boxes: np.ndarray, labels: np.ndarray, overlap: float, measure: Measure | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the numbers of pairs of one class that overlap more, and by how much."""
    first, second = touching_pairs(boxes, labels)
    shared = intersection_over_union(boxes[first], boxes[second]) if measure is None else measure(first, second)
    close = shared > overlap
    return first[close], second[close], shared[close]


def _neighbours(count: int, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort pairs by box: where each box's partners begin (n + 1,), the partners, and the pair that each is of."""
    ones, others = np.concatenate([first, second]), np.concatenate([second, first])
    order = np.argsort(ones, kind='stable')
    return np.searchsorted(ones[order], np.arange(count + 1)), others[order], order % max(len(first), 1)


def _touch(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    inner = intersect(first, second)
    touching: np.ndarray = (inner[..., 2] >= inner[..., 0]) & (inner[..., 3] >= inner[..., 1])
    return touching


def _areas(boxes: np.ndarray) -> np.ndarray:
    sides = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None)
    areas: np.ndarray = sides[..., 0] * sides[..., 1]
    return areas

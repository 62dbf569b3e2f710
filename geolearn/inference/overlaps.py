"""Boxes of one class that overlap: the surest stays, or the others count less, or they become one.

Only boxes that touch are compared, so all of it is n log n in the number of boxes, unless very many overlap each other.
"""

import heapq
from typing import Any

import numpy as np

from geolearn.extras import require

FEW = 400
"""So many boxes are compared each with each; more through a tree."""


def suppress(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, *, overlap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the surest of boxes of one class that overlap (greedy non-maximum suppression).

    Args:
        boxes: (n, 4) left, top, right, bottom.
        labels: (n,).
        scores: (n,).
        overlap: Intersection over union above which the less sure goes.

    Returns:
        The numbers of those that stay, surest first, and for each box (n,) the number of the one that it goes for: its
        own where it stays.
    """
    order = np.argsort(-scores, kind='stable')
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    first, second, _ = _overlapping(boxes, labels, overlap)
    swapped = rank[first] > rank[second]
    surer, other = np.where(swapped, second, first), np.where(swapped, first, second)
    by_rank = np.argsort(rank[surer], kind='stable')
    surer, other = surer[by_rank], other[by_rank]
    owners = np.arange(len(boxes))
    heads, starts = np.unique(rank[surer], return_index=True)
    for head, rivals in zip(order[heads], np.split(other, starts[1:])):
        if owners[head] == head:
            owners[rivals[owners[rivals] == rivals]] = head
    return order[owners[order] == order], owners


def soften(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, *, overlap: float, least: float = 0.0
) -> np.ndarray:
    """Lower the scores of boxes that a surer one of their class overlaps (soft-NMS, linear; Bodla et al. 2017).

    The surest box stays as it is. Each that overlaps it by more than `overlap` has its score multiplied by one minus
    their intersection over union. Then the surest of the rest is taken, and so on.

    Args:
        boxes: (n, 4).
        labels: (n,).
        scores: (n,), 0..1.
        overlap: Intersection over union above which the less sure counts less.
        least: Boxes that fall below this lower no other; they are for the caller to leave out.

    Returns:
        (n,) float64. A box whose twin is surer has 0.
    """
    first, second, shared = _overlapping(boxes, labels, overlap)
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


def cluster(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, *, overlap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Gather the boxes that are one object, as weighted boxes fusion does (Solovyev et al. 2021).

    Surest first, each box goes to the cluster of its class whose mean box, weighted by scores, it overlaps most, if by
    more than `overlap`; else it begins one. Clusters are asked only where one of their boxes touches it.

    Args:
        boxes: (n, 4).
        labels: (n,).
        scores: (n,).
        overlap: Intersection over union with the mean box.

    Returns:
        The numbers of the boxes that began a cluster, each the surest of its own, surest first; and for each box (n,)
        the number of the one that began its cluster. `mean_boxes` and `mean_scores` say what clusters become.
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
    """Return for each box the mean of those that go for it, weighted by their scores (Solovyev et al. 2021)."""
    sums, weights = np.zeros_like(boxes), np.zeros(len(boxes))
    np.add.at(sums, owners, boxes * scores[:, None])
    np.add.at(weights, owners, scores)
    mean: np.ndarray = np.where(weights[:, None] > 0, sums / np.maximum(weights, 1e-12)[:, None], boxes)
    return mean


def mean_scores(scores: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Return for each box the mean score (n,) of those that go for it; 0 for boxes that go for another."""
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
    if len(boxes) <= FEW:
        first, second = np.nonzero(_touch(boxes[:, None], boxes[None]))
    else:
        shapely: Any = require('shapely', extra='vector', to='compare thousands of boxes')
        shapes = shapely.box(*boxes.T)
        first, second = shapely.STRtree(shapes).query(shapes)
    chosen = (first < second) & (labels[first] == labels[second])
    return first[chosen], second[chosen]


def _overlapping(boxes: np.ndarray, labels: np.ndarray, overlap: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the numbers of pairs of one class that overlap more, and by how much."""
    first, second = touching_pairs(boxes, labels)
    shared = intersection_over_union(boxes[first], boxes[second])
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

"""Non-maximum suppression: of objects that overlap, the highest-scoring stays."""

import numpy as np

from geolearn.oriented import geometry, overlap


def suppress(scores: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy non-maximum suppression over the pairs that overlap too much.

    Args:
        scores: (n,).
        first: (pairs,) number of one object of each pair.
        second: (pairs,) number of the other.

    Returns:
        The indices of the objects that are kept, by descending score, and for each object (n,) the index of the one
        that represents it: its own where it is kept.
    """
    order = np.argsort(-scores, kind='stable')
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    swapped = rank[first] > rank[second]
    higher, other = np.where(swapped, second, first), np.where(swapped, first, second)
    by_rank = np.argsort(rank[higher], kind='stable')
    higher, other = higher[by_rank], other[by_rank]
    owners = np.arange(len(scores))
    heads, starts = np.unique(rank[higher], return_index=True)
    for head, rivals in zip(order[heads], np.split(other, starts[1:])):
        if owners[head] == head:
            owners[rivals[owners[rivals] == rivals]] = head
    return order[owners[order] == order], owners


def suppress_oriented(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, *, threshold: float, most: int
) -> np.ndarray:
    """Return the indices of the oriented boxes that greedy suppression within classes keeps, by descending score.

    Args:
        boxes: (n, 5) float64; some thousands at most, for all pairs are compared.
        labels: (n,).
        scores: (n,).
        threshold: Exact intersection over union above which the lower-scoring is suppressed.
        most: So many are kept at most.
    """
    around = geometry.hulls(boxes)
    low, high = around[:, None, :2], around[:, None, 2:]
    touching = (low < high.swapaxes(0, 1)).all(-1) & (low.swapaxes(0, 1) < high).all(-1)
    first, second = np.nonzero(np.triu(touching & (labels[:, None] == labels[None]), 1))
    close = overlap.array_overlaps(boxes[first], boxes[second]) > threshold
    kept, _ = suppress(scores, first[close], second[close])
    return kept[:most]

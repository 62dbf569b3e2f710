"""Anchors: the boxes that a detector corrects, of sizes and shapes that the training boxes have."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

USUAL_SIDE = 32.0
"""Side in pixels of the anchors on the finest level; it doubles from level to level (torchvision's values)."""

USUAL_RATIOS = (0.5, 1.0, 2.0)
"""Heights over widths of anchors where the training boxes say nothing."""

MOST_BOXES = 20_000
"""More boxes are thinned out before they are grouped."""


class LevelAnchors(AnchorGenerator):
    """torchvision's anchors, at the strides that the levels have.

    torchvision divides the image's size by the map's, which moves anchors where a size is no multiple of the stride, so
    that they lie otherwise in tiles of another size.

    Args:
        sizes: Sides of square anchors by level, in pixels.
        ratios: Height over width; the area stays that of the square.
        strides: Of the levels, in pixels.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], ratios: Sequence[float], strides: Sequence[int]) -> None:
        super().__init__(tuple(tuple(row) for row in sizes), (tuple(ratios),) * len(sizes))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors (n, 4) of each image, all levels one after the other."""
        return [torch.cat(self.by_level(feature_maps))] * len(image_list.image_sizes)

    def by_level(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the anchors (n, 4) of each level."""
        self.set_cell_anchors(maps[0].dtype, maps[0].device)
        grids = [list(level.shape[-2:]) for level in maps]
        found: list[Tensor] = self.grid_anchors(grids, [[stride, stride] for stride in self.strides])
        return found


def choose_sizes(boxes: np.ndarray, *, levels: int, per_level: int) -> tuple[tuple[float, ...], ...]:
    """Choose the sides of square anchors by level from the sides of training boxes.

    Each level takes the boxes whose size is nearest to its usual anchor, and k-means over the logarithm of their sizes
    gives its anchors. A level without boxes keeps the usual ones.

    Args:
        boxes: (n, 2) widths and heights in pixels, above 0.
        levels: Number of levels.
        per_level: Anchors of each.
    """
    logs = np.log2(np.sqrt(boxes.prod(axis=1))) if len(boxes) else np.zeros(0)
    usual = math.log2(USUAL_SIDE)
    level_of = np.clip(np.rint(logs - usual), 0, levels - 1)
    rows = []
    for level in range(levels):
        centers = _centers(logs[level_of == level], per_level)
        if not centers:
            centers = [usual + level + step / 3 for step in range(per_level)]
        elif len(centers) < per_level:  # too few different sizes to tell apart: thirds of octaves around them
            middle = sum(centers) / len(centers)
            centers = [middle + (step - (per_level - 1) / 2) / 3 for step in range(per_level)]
        rows.append(tuple(round(2**center, 2) for center in sorted(centers)))
    return tuple(rows)


def choose_ratios(boxes: np.ndarray, *, count: int = 3) -> tuple[float, ...]:
    """Choose heights over widths of anchors by k-means over the logarithm of those of training boxes.

    Args:
        boxes: (n, 2) widths and heights in pixels, above 0.
        count: Most ratios; alike ones are one.
    """
    if not len(boxes):
        return USUAL_RATIOS
    logs = np.log2(boxes[:, 1] / boxes[:, 0])
    found: list[float] = []
    for center in sorted(_centers(logs, count)):
        if not found or center - found[-1] > 0.15:  # a tenth longer: the overlap of the two is still 0.9
            found.append(center)
    return tuple(round(2**center, 3) for center in found)


def _centers(values: np.ndarray, count: int) -> list[float]:
    """Group numbers by k-means; fewer groups where there are fewer different numbers."""
    count = min(count, len(np.unique(values.round(3))))
    if count < 2:
        return [float(values.mean())] if count else []
    # takes a second to import
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]

    thinned = values[:: -(-len(values) // MOST_BOXES)].reshape(-1, 1)
    groups = KMeans(min(count, len(np.unique(thinned))), n_init=4, random_state=0).fit(thinned)
    return [float(center) for center in groups.cluster_centers_.ravel()]

"""Boundary IoU: how well predicted boundaries follow the true ones."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from geolearn.classes import IGNORE_INDEX
from geolearn.metrics.scores import (
    Metric,
    add_to,
    count_indices,
    main_output,
    predict_classes,
    sum_over_processes,
    undefined,
)

_ABOVE_ALL = 1000
"""Larger than any class index, so that a minimum does not see it."""


class BoundaryIoU:
    """IoU of the bands along the inner side of outlines (Cheng et al. 2021, arXiv:2103.16562); see `Scores`.

    A pixel lies in the band of its class if a pixel of another class is at most a distance away (in a square window).
    Large objects, whose inside is easily right, then count for no more than their outline. Ignored pixels belong to no
    class: they take no part, and no outline runs along them.

    Args:
        count: Number of classes.
        share: Distance as share of the image's diagonal, at least one pixel; the paper takes 0.02.
        edges: Whether an outline runs along the edge of an image, as in the paper. For chips cut from a larger scene it
            does not: nobody knows what lies beyond.
    """

    columns: ClassVar = (Metric('boundary_iou', 'boundary IoU', True),)

    def __init__(self, count: int, *, share: float = 0.02, edges: bool = False) -> None:
        self.count, self.share, self.edges = count, share, edges
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.invalid = torch.tensor(0)
        # of true bands, predicted ones, and what both share
        self.counts = torch.zeros(3, self.count, dtype=torch.int64)

    def add(self, output: Tensor | tuple[Tensor, ...], target: Tensor) -> None:
        """Count logits (N, classes, H, W), or (main, auxiliary), against (N, H, W) indices or IGNORE_INDEX."""
        predicted, target, invalid = predict_classes(main_output(output), target, ignored=IGNORE_INDEX)
        self.invalid = add_to(self.invalid, invalid)
        counted = target != IGNORE_INDEX
        distance = max(1, round(self.share * math.hypot(*target.shape[-2:])))
        true_band = self._band(target, counted, distance)
        predicted_band = self._band(predicted, counted, distance)
        both = true_band & predicted_band & (predicted == target)
        found = [
            count_indices(classes.long().where(band, self.count), self.count + 1)[:-1]
            for classes, band in ((target, true_band), (predicted, predicted_band), (target, both))
        ]
        self.counts = add_to(self.counts, torch.stack(found))

    def reduce(self) -> None:
        """Add up the counts of all processes."""
        self.counts, self.invalid = sum_over_processes(self.counts), sum_over_processes(self.invalid)

    @property
    def iou(self) -> Tensor:
        """Boundary IoU per class, float64 on the CPU; NaN for classes whose truth has no boundary.

        Labels that are sparse polygons have hardly any: where a polygon ends at unlabelled pixels, nobody knows whether
        its class does.
        """
        true, predicted, both = self.counts.cpu().double()
        return torch.where(true > 0, both / (true + predicted - both), torch.nan)

    def values(self) -> dict[str, float]:
        """Return the mean over the classes whose truth has a boundary; NaN without one, or if logits are not finite."""
        if self.invalid:
            return undefined(self)
        return {'boundary_iou': float(self.iou.nanmean())}

    def describe_undefined(self, names: Sequence[str]) -> str:
        """Say which classes have no boundary in the labels; empty if all have one.

        Args:
            names: Of the classes.
        """
        missing = [repr(name) for name, value in zip(names, self.iou.isnan().tolist()) if value]
        if not missing:
            return ''
        return f'boundary IoU is undefined for {", ".join(missing)}: the labels show no boundary to another class'

    def _band(self, classes: Tensor, counted: Tensor, distance: int) -> Tensor:
        """Mark the counted pixels (N, H, W) that have another class at most `distance` away."""
        # two sliding windows serve all classes: one of them meets another class if its extremes are not the pixel's own
        own = classes.to(torch.int16)
        largest = _window_max(own.where(counted, -1), distance, beyond=-1)
        smallest = -_window_max(-own.where(counted, _ABOVE_ALL), distance, beyond=1 if self.edges else -_ABOVE_ALL)
        return counted & ((largest > own) | (smallest < own))


def _window_max(maps: Tensor, distance: int, *, beyond: int) -> Tensor:
    """Return the largest value of each square window, of 2 * distance + 1 pixels a side, in maps (N, H, W)."""
    found = functional.pad(maps, [distance] * 4, value=beyond)
    for dim in (1, 2):
        width = 1  # of the windows so far; it doubles, so that a wide window takes few passes
        while width <= 2 * distance:
            step = min(width, 2 * distance + 1 - width)
            length = found.shape[dim] - step
            found = torch.maximum(found.narrow(dim, 0, length), found.narrow(dim, step, length))
            width += step
    return found

"""Scores of pixel classification, of all chips and of each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
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


@dataclass(eq=False)
class ConfusionMatrix:
    """Counts of truth (rows) against prediction (columns), added to batch by batch.

    Metrics are computed in float64 on the CPU; reading one is the first time that a device is waited for.

    Args:
        count: Number of classes.
        counts: (classes, classes) int64, rows are truth; on the device of the first batch that is added.
    """

    count: int
    counts: Tensor

    @classmethod
    def empty(cls, count: int) -> 'ConfusionMatrix':
        """Start without any pixel."""
        return cls(count, torch.zeros(count, count, dtype=torch.int64))

    def add(self, predicted: Tensor, target: Tensor, *, ignored: int = IGNORE_INDEX) -> None:
        """Count class indices of any equal shape.

        Args:
            predicted: Indices, 0..classes-1 wherever the target is not ignored.
            target: Indices, 0..classes-1 or `ignored`.
            ignored: Index of targets that are left out.

        Raises:
            ValueError: If an index is no class; on the CPU alone, because other devices would have to be waited for.
        """
        counted = target != ignored
        if target.device.type == 'cpu':
            self._check('predicted', predicted[counted])
            self._check('target', target[counted])
        pairs = torch.where(counted, target.long() * self.count + predicted.long(), self.count**2)
        found = count_indices(pairs, self.count**2 + 1)[:-1]  # the last counter takes what is ignored
        self.counts = add_to(self.counts, found.view(self.count, self.count))

    def _check(self, name: str, indices: Tensor) -> None:
        if indices.numel() and not (indices.min() >= 0 and indices.max() < self.count):
            found = f'{int(indices.min())}..{int(indices.max())}'
            raise ValueError(f'{name} classes must lie in 0..{self.count - 1}, got {found}')

    def __add__(self, other: 'ConfusionMatrix') -> 'ConfusionMatrix':
        if other.count != self.count:
            raise ValueError(f'matrices of {self.count} and {other.count} classes cannot be added')
        return ConfusionMatrix(self.count, add_to(self.counts, other.counts.to(self.counts.device)))

    @property
    def _cells(self) -> Tensor:
        return self.counts.cpu().double()

    @property
    def accuracy(self) -> float:
        """Share of the counted pixels that are right; NaN if there are none."""
        return float(self._cells.diagonal().sum() / self._cells.sum())

    @property
    def kappa(self) -> float:
        """Cohen's kappa (1960), accuracy beyond chance; NaN if chance alone would be right everywhere."""
        shares = self._cells / self._cells.sum()
        chance = shares.sum(0) @ shares.sum(1)
        return float((shares.diagonal().sum() - chance) / (1 - chance))

    @property
    def iou(self) -> Tensor:
        """Intersection over union per class; NaN for classes in neither truth nor prediction."""
        cells = self._cells
        return cells.diagonal() / (cells.sum(0) + cells.sum(1) - cells.diagonal())

    @property
    def precision(self) -> Tensor:
        """Share of the pixels predicted as a class that are of it; NaN where none is predicted."""
        return self._cells.diagonal() / self._cells.sum(0)

    @property
    def recall(self) -> Tensor:
        """Share of the pixels of a class that are predicted as such; NaN for absent classes."""
        return self._cells.diagonal() / self._cells.sum(1)

    @property
    def f1(self) -> Tensor:
        """Harmonic mean of precision and recall (dice); NaN for classes in neither truth nor prediction."""
        return 2 * self._cells.diagonal() / (self._cells.sum(0) + self._cells.sum(1))

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur in truth or prediction."""
        return float(self.iou.nanmean())

    def describe_mean(self, names: Sequence[str]) -> str:
        """Say over which classes means are, where these are not all; empty where they are.

        Args:
            names: Of the classes.

        Returns:
            Such as ``"means are over 4 of 6 classes: 'rice', 'water' have no labelled validation pixels"``.
        """
        truth, occurring = self._cells.sum(1), ~self.iou.isnan()
        absent = [name for name, pixels in zip(names, truth.tolist()) if not pixels]
        if not absent:
            return ''
        if len(absent) == self.count:
            return 'no validation pixel is labelled: all metrics are undefined'
        wrong = [name for name, occurs in zip(names, (occurring & (truth == 0)).tolist()) if occurs]
        text = f'means are over {int(occurring.sum())} of {self.count} classes: {", ".join(map(repr, absent))} '
        text += f'{"has" if len(absent) == 1 else "have"} no labelled validation pixels'
        if wrong:
            text += f'; {", ".join(map(repr, wrong))}, predicted all the same, count as IoU 0'
        return text

    @property
    def mean_recall(self) -> float:
        """Mean recall over the classes that occur in the truth (balanced accuracy)."""
        return float(self.recall.nanmean())

    @property
    def mean_f1(self) -> float:
        """Mean F1 over the classes that occur in truth or prediction."""
        return float(self.f1.nanmean())


def reduce(matrix: ConfusionMatrix) -> ConfusionMatrix:
    """Return the matrix of all processes, each of which must call this; alone, the matrix of this one."""
    return ConfusionMatrix(matrix.count, sum_over_processes(matrix.counts))


class PixelScores:
    """Accuracy, mean IoU and mean dice (F1), from one confusion matrix; see `Scores`.

    Args:
        count: Number of classes.
    """

    columns: ClassVar = (
        Metric('accuracy', higher_is_better=True),
        Metric('miou', 'mean IoU', True),
        Metric('dice', higher_is_better=True),
    )

    def __init__(self, count: int) -> None:
        self.count = count
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.matrix, self.invalid = ConfusionMatrix.empty(self.count), torch.tensor(0)

    def add(self, output: Tensor | tuple[Tensor, ...], target: Tensor) -> None:
        """Count logits (N, classes, H, W), or (main, auxiliary), against (N, H, W) indices or IGNORE_INDEX."""
        predicted, target, invalid = predict_classes(main_output(output), target, ignored=IGNORE_INDEX)
        self.matrix.add(predicted, target)
        self.invalid = add_to(self.invalid, invalid)

    def reduce(self) -> None:
        """Add up the matrices of all processes."""
        self.matrix, self.invalid = reduce(self.matrix), sum_over_processes(self.invalid)

    def values(self) -> dict[str, float]:
        """Return the scores; NaN if nothing was counted, or the logits of some pixel are not finite."""
        if self.invalid:
            return undefined(self)
        matrix = ConfusionMatrix(self.count, self.matrix.counts.cpu())
        return {'accuracy': matrix.accuracy, 'miou': matrix.miou, 'dice': matrix.mean_f1}


def score_chips(predictions: Tensor, masks: Tensor, class_count: int) -> list[float]:
    """Return the mean IoU of each chip over the classes in its truth or prediction; NaN where nothing is labelled.

    Args:
        predictions: (n, height, width) class indices.
        masks: (n, height, width) class indices or IGNORE_INDEX.
        class_count: Number of classes.
    """
    scores = []
    for prediction, mask in zip(predictions, masks):
        matrix = ConfusionMatrix.empty(class_count)
        matrix.add(prediction, mask)
        scores.append(matrix.miou)
    return scores


def rank_chips(scores: Sequence[float], *, highest_first: bool) -> list[int]:
    """Order chips by a score each; those of NaN, where nothing is labelled, come last.

    Args:
        scores: One for each chip, such as its IoU or its loss.
        highest_first: True for the worst first by loss, False for the worst first by IoU.
    """
    values = np.asarray(scores, np.float64)
    # stable, so that equal chips keep their order whatever their number
    return np.argsort(-values if highest_first else values, kind='stable').tolist()


def choose_typical(scores: Sequence[float], count: int) -> list[int]:
    """Return up to `count` chips around the middle of all that have a score, the worst first by IoU."""
    ranked = [index for index in rank_chips(scores, highest_first=False) if not np.isnan(scores[index])]
    start = max(0, (len(ranked) - count) // 2)
    return ranked[start : start + count]


_VISIBLE = 0.05
"""Share of a chip from which on a class is easily seen in a figure."""


def cover_classes(amounts: np.ndarray, *, least: int, most: int) -> list[int]:
    """Choose chips that together show every class, those first that show most classes not shown before.

    Args:
        amounts: (chips, classes) pixels or objects of each class in each chip.
        least: Chips to choose, even where fewer show every class.
        most: Chips to choose at most, where more would be needed.
    """
    held = amounts > 0
    shares = np.minimum(amounts / np.maximum(amounts.sum(1, keepdims=True), 1), _VISIBLE)
    left = np.ones(len(amounts), bool)
    shown = np.zeros(amounts.shape[1], bool)
    chosen: list[int] = []
    wanted = min(most, len(amounts))
    while len(chosen) < wanted:
        if not (held[left].any(0) & ~shown).any():
            shown[:] = False  # all are shown: what is chosen to fill up differs too
            wanted = min(least, len(amounts))
            if len(chosen) >= wanted:
                break
        gains = (held & ~shown).sum(1) + (shares * ~shown).sum(1)
        best = int(np.where(left, gains, -1).argmax())
        chosen.append(best)
        left[best] = False
        shown |= held[best]
    return chosen


def spread_chips(values: Sequence[float], count: int) -> list[int]:
    """Choose up to `count` chips evenly from the lowest value to the highest; those of NaN only where there are few."""
    ranked = rank_chips(values, highest_first=False)
    known = len(ranked) - int(np.isnan(np.asarray(values, np.float64)).sum())
    if known < count:
        return ranked[:count]
    return [ranked[place] for place in np.linspace(0, known - 1, count).round().astype(int).tolist()]


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

"""Metrics of pixel classification, all from one confusion matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor

from geolearn.classes import IGNORE_INDEX


@dataclass
class ConfusionMatrix:
    """Counts of truth (rows) against prediction (columns), added to batch by batch.

    Args:
        count: Number of classes.
        counts: (classes, classes) int64 on the CPU; rows are truth.
    """

    count: int
    counts: Tensor

    @classmethod
    def empty(cls, count: int) -> 'ConfusionMatrix':
        """Start without any pixel."""
        return cls(count, torch.zeros(count, count, dtype=torch.int64))

    def add(self, predicted: Tensor, target: Tensor) -> None:
        """Count class indices of any equal shape; targets of IGNORE_INDEX are left out."""
        counted = target != IGNORE_INDEX
        pairs = target[counted].long() * self.count + predicted[counted].long()
        self.counts += torch.bincount(pairs, minlength=self.count**2).view(self.count, self.count).cpu()

    @property
    def accuracy(self) -> float:
        """Share of the counted pixels that are right; NaN if there are none."""
        return float(self.counts.diagonal().sum() / self.counts.sum())

    @property
    def iou(self) -> Tensor:
        """Intersection over union per class; NaN for classes in neither truth nor prediction."""
        hits = self.counts.diagonal().double()
        return hits / (self.counts.sum(0) + self.counts.sum(1) - hits)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur in truth or prediction."""
        return float(self.iou.nanmean())

    @property
    def precision(self) -> Tensor:
        """Share of the pixels predicted as a class that are of it; NaN where none is predicted."""
        return self.counts.diagonal().double() / self.counts.sum(0)

    @property
    def recall(self) -> Tensor:
        """Share of the pixels of a class that are found; NaN for absent classes."""
        return self.counts.diagonal().double() / self.counts.sum(1)

    @property
    def f1(self) -> Tensor:
        """Harmonic mean of precision and recall; NaN for classes in neither truth nor prediction."""
        return 2 * self.counts.diagonal().double() / (self.counts.sum(0) + self.counts.sum(1))

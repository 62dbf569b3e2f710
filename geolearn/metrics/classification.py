"""Scores of whole chips: of one class each, or of any number of classes."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from geolearn.metrics.pixels import ConfusionMatrix, reduce
from geolearn.metrics.scores import (
    Metric,
    add_to,
    predict_classes,
    sum_over_processes,
    undefined,
)

_NOTHING_IGNORED = -100
"""No chip is left out; IGNORE_INDEX may be one of their classes, because their indices need not fit a byte."""


class ChipScores:
    """Accuracy and mean F1 of chips that belong to one class each, from one confusion matrix; see `Scores`.

    Args:
        count: Number of classes.
    """

    columns: ClassVar = (Metric('accuracy', higher_is_better=True), Metric('f1', 'F1', True))

    def __init__(self, count: int) -> None:
        self.count = count
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.matrix, self.invalid = ConfusionMatrix.empty(self.count), torch.tensor(0)

    def add(self, output: Tensor, target: Tensor) -> None:
        """Count logits (n, classes) against indices (n,), or shares (n, classes) of which the largest counts."""
        truth = target if target.dim() == 1 else target.max(1).indices
        predicted, truth, invalid = predict_classes(output, truth, ignored=_NOTHING_IGNORED)
        self.matrix.add(predicted, truth, ignored=_NOTHING_IGNORED)
        self.invalid = add_to(self.invalid, invalid)

    def reduce(self) -> None:
        """Add up the matrices of all processes."""
        self.matrix, self.invalid = reduce(self.matrix), sum_over_processes(self.invalid)

    def values(self) -> dict[str, float]:
        """Return the scores; NaN if nothing was counted, or the logits of some chip are not finite."""
        if self.invalid:
            return undefined(self)
        matrix = ConfusionMatrix(self.count, self.matrix.counts.cpu())
        return {'accuracy': matrix.accuracy, 'f1': matrix.mean_f1}


class MultiLabelScores:
    """Scores of chips in which any number of classes is present; see `Scores`.

    Micro scores, precision and recall pool the decisions on all classes; macro scores are means over the classes that
    occur in truth or prediction. F2 weighs recall above precision. Hamming loss is the share of wrong decisions.
    Probes take macro means over the classes in the truth alone, as published ones do; see `geolearn.probe.scores`.

    Args:
        count: Number of classes.
        threshold: Probability from which on a class is predicted, 0..1.
    """

    columns: ClassVar = (
        Metric('f1_micro', higher_is_better=True),
        Metric('f1_macro', higher_is_better=True),
        Metric('f2_micro', higher_is_better=True),
        Metric('f2_macro', higher_is_better=True),
        Metric('precision', higher_is_better=True),
        Metric('recall', higher_is_better=True),
        Metric('hamming_loss', higher_is_better=False),
    )

    def __init__(self, count: int, *, threshold: float = 0.5) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f'threshold must be a probability between 0 and 1, got {threshold}')
        self.count, self.threshold = count, threshold
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.invalid = torch.tensor(0)
        self.counts = torch.zeros(
            4, self.count, dtype=torch.int64
        )  # true and false positives, false and true negatives

    def add(self, output: Tensor, target: Tensor) -> None:
        """Count logits (n, classes) against (n, classes), of which 0.5 and more is present."""
        predicted, present = output >= math.log(self.threshold / (1 - self.threshold)), target >= 0.5
        cells = [predicted & present, predicted & ~present, ~predicted & present, ~predicted & ~present]
        self.counts = add_to(self.counts, torch.stack(cells).sum(1))
        self.invalid = add_to(self.invalid, output.isnan().any(1).sum())

    def reduce(self) -> None:
        """Add up the counts of all processes."""
        self.counts, self.invalid = sum_over_processes(self.counts), sum_over_processes(self.invalid)

    @property
    def precision(self) -> Tensor:
        """Share of the chips predicted to hold a class that do; float64, NaN where none is."""
        tp, fp, _, _ = self._cells
        return tp / (tp + fp)

    @property
    def recall(self) -> Tensor:
        """Share of the chips that hold a class where it is predicted; float64, NaN where none does."""
        tp, _, fn, _ = self._cells
        return tp / (tp + fn)

    def f_score(self, beta: float = 1.0) -> Tensor:
        """Return F-beta of each class, float64; NaN for classes in neither truth nor prediction."""
        return _f_score(self._cells, beta)

    def values(self) -> dict[str, float]:
        """Return the scores; NaN where undefined, and if the logits of some chip are NaN."""
        if self.invalid:
            return undefined(self)
        pooled = self._cells.sum(1)
        tp, fp, fn, _ = pooled
        scores = (
            _f_score(pooled, 1),
            self.f_score(1).nanmean(),
            _f_score(pooled, 2),
            self.f_score(2).nanmean(),
            tp / (tp + fp),
            tp / (tp + fn),
            (fp + fn) / pooled.sum(),
        )
        return {metric.name: float(score) for metric, score in zip(self.columns, scores)}

    @property
    def _cells(self) -> Tensor:
        return self.counts.cpu().double()


def _f_score(cells: Tensor, beta: float) -> Tensor:
    tp, fp, fn, _ = cells
    return (1 + beta**2) * tp / ((1 + beta**2) * tp + beta**2 * fn + fp)

"""Whether a network is as sure as it is right."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from geolearn.classes import IGNORE_INDEX
from geolearn.metrics._counting import add_to, count_indices, sum_by_index, sum_over_processes
from geolearn.metrics.scores import main_output


class ReliabilityBin(NamedTuple):
    """The predictions whose confidence lies between two bounds.

    Args:
        low: Lower bound.
        high: Upper bound.
        predictions: How many there are.
        confidence: Their mean confidence; NaN if there are none.
        accuracy: Share of them that is right; NaN if there are none.
    """

    low: float
    high: float
    predictions: int
    confidence: float
    accuracy: float


class Calibration:
    """Expected calibration error of the predicted class (Guo et al. 2017, arXiv:1706.04599); see `Scores`.

    Predictions are put into bins of equal width by their confidence, the largest probability. The error is the mean
    distance between confidence and accuracy of the bins, weighted by their predictions: 0 is calibrated.

    Args:
        bins: Number of bins.
        temperature: Logits are divided by it, as `fit_temperature` found.
    """

    names: ClassVar = ('ece',)

    def __init__(self, bins: int = 15, *, temperature: float = 1.0) -> None:
        self.bins, self.temperature = bins, temperature
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.counts = torch.zeros(2, self.bins, dtype=torch.int64)  # of all predictions and of the right ones
        self.confidences = torch.zeros(self.bins, dtype=torch.float64)

    def add(self, output: Tensor | tuple[Tensor, ...], target: Tensor) -> None:
        """Count logits (N, classes, ...), or (main, auxiliary), against (N, ...) indices or IGNORE_INDEX."""
        logits = main_output(output).float() / self.temperature
        highest, predicted = logits.max(1)
        confidence = torch.exp(highest - logits.logsumexp(1))
        bins = (confidence * self.bins).long().clamp(max=self.bins - 1)
        bins = bins.where(target != IGNORE_INDEX, self.bins)  # one more bin takes what is ignored
        right = bins.where(predicted == target, self.bins)
        found = [count_indices(indices, self.bins + 1)[:-1] for indices in (bins, right)]
        self.counts = add_to(self.counts, torch.stack(found))
        sums = sum_by_index(confidence, bins, self.bins + 1)[:-1]
        self.confidences = add_to(self.confidences.to(sums.dtype), sums)

    def reduce(self) -> None:
        """Add up the bins of all processes."""
        self.counts, self.confidences = sum_over_processes(self.counts), sum_over_processes(self.confidences)

    def table(self) -> list[ReliabilityBin]:
        """Return the bins, the least sure first: what a reliability diagram draws."""
        counts, right = self.counts.cpu()
        means = zip(counts.tolist(), (self.confidences.cpu() / counts).tolist(), (right / counts).tolist())
        return [ReliabilityBin(i / self.bins, (i + 1) / self.bins, *row) for i, row in enumerate(means)]

    def values(self) -> dict[str, float]:
        """Return the expected calibration error, 0..1; NaN if nothing was counted."""
        counts, right = self.counts.cpu().double()
        return {'ece': float((self.confidences.cpu() - right).abs().sum() / counts.sum())}

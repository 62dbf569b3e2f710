"""Calibration: whether confidence agrees with accuracy, and temperature scaling, which makes it agree."""

from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from geolearn import classes, errors
from geolearn.metrics import scores


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
        temperature: Logits are divided by it, from `fit_temperature`.
    """

    columns: ClassVar = (scores.Metric('ece', 'calibration error', False),)

    def __init__(self, bins: int = 15, *, temperature: float = 1.0) -> None:
        self.bins, self.temperature = bins, temperature
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.invalid = torch.tensor(0)
        self.counts = torch.zeros(2, self.bins, dtype=torch.int64)  # of all predictions and of the right ones
        self.confidences = torch.zeros(self.bins, dtype=torch.float64)

    def add(self, output: Tensor | tuple[Tensor, ...], target: Tensor) -> None:
        """Count logits (N, classes, ...), or (main, auxiliary), against (N, ...) indices or IGNORE_INDEX."""
        logits = scores.main_output(output).float() / self.temperature
        predicted, target, invalid = scores.predict_classes(logits, target, ignored=classes.IGNORE_INDEX)
        self.invalid = scores.add_to(self.invalid, invalid)
        confidence = torch.exp(logits.amax(1) - logits.logsumexp(1)).nan_to_num()
        bins = (confidence * self.bins).long().clamp(max=self.bins - 1)
        bins = bins.where(target != classes.IGNORE_INDEX, self.bins)  # one more bin takes what is ignored
        right = bins.where(predicted == target, self.bins)
        found = [scores.count_indices(indices, self.bins + 1)[:-1] for indices in (bins, right)]
        self.counts = scores.add_to(self.counts, torch.stack(found))
        sums = scores.sum_by_index(confidence, bins, self.bins + 1)[:-1]
        self.confidences = scores.add_to(self.confidences.to(sums.dtype), sums)

    def reduce(self) -> None:
        """Add up the bins of all processes."""
        self.counts, self.confidences = (
            scores.sum_over_processes(self.counts),
            scores.sum_over_processes(self.confidences),
        )
        self.invalid = scores.sum_over_processes(self.invalid)

    def table(self) -> list[ReliabilityBin]:
        """Return the bins, the lowest confidence first: what a reliability diagram draws."""
        counts, right = self.counts.cpu()
        means = zip(counts.tolist(), (self.confidences.cpu() / counts).tolist(), (right / counts).tolist())
        return [ReliabilityBin(i / self.bins, (i + 1) / self.bins, *row) for i, row in enumerate(means)]

    def values(self) -> dict[str, float]:
        """Return the expected calibration error, 0..1; NaN if nothing was counted, or some logits are not finite."""
        if self.invalid:
            return scores.undefined(self)
        counts, right = self.counts.cpu().double()
        return {'ece': float((self.confidences.cpu() - right).abs().sum() / counts.sum())}


TEMPERATURES = (0.01, 100.0)
"""Bounds of the search; for predictions without any mistake the best temperature would be 0."""


@torch.no_grad()
def fit_temperature(
    batches: Iterable[tuple[Tensor | tuple[Tensor, ...], Tensor]], *, max_pixels: int = 200_000, seed: int = 0
) -> float:
    """Temperature scaling: find what logits must be divided by (Guo et al. 2017, arXiv:1706.04599).

    It minimizes the negative log-likelihood of the validation split. Predicted classes do not change.

    Args:
        batches: Logits (N, classes, ...), or (main, auxiliary), and (N, ...) indices or IGNORE_INDEX. Read once.
        max_pixels: Pixels to keep, drawn evenly from all batches.
        seed: Of the draw.

    Returns:
        Above 1 where the network is overconfident, below 1 where it is underconfident; within `TEMPERATURES`.

    Raises:
        ValueError: If no pixel has a label.
        TrainingError: If logits are NaN or infinite.
    """
    sample = PixelSample(max_pixels, seed=seed)
    for logits, target in batches:
        sample.add(scores.main_output(logits), target)
    if not len(sample.labels):
        raise ValueError('a temperature is fitted to labelled pixels, and the validation split has none; label some')
    if invalid := int((~sample.logits.isfinite()).any(1).sum()):
        raise errors.TrainingError(
            f'the network returns NaN or infinity for {invalid} of {len(sample.logits)} labelled pixels, to which no '
            'temperature can be fitted; train again with a lower learning rate'
        )
    return _best_temperature(sample.logits.double(), sample.labels)


class PixelSample:
    """A uniform sample, without replacement, of the pixels of a stream of unknown length.

    Each pixel gets a random number, and those with the lowest numbers stay.

    Args:
        max_pixels: Number of pixels to keep.
        seed: Of the draw, which does not depend on the device.
    """

    def __init__(self, max_pixels: int, *, seed: int = 0) -> None:
        self.max_pixels = max_pixels
        self.logits, self.labels = torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
        self._numbers = torch.empty(0)
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Draw from logits (N, classes, ...) and (N, ...) indices or IGNORE_INDEX; the sample is kept on the CPU."""
        logits, target = logits.reshape(*logits.shape[:2], -1), target.reshape(len(target), -1)
        numbers = torch.rand(target.numel(), generator=self._generator)
        limit = self._numbers.max() if len(self._numbers) == self.max_pixels else torch.inf
        chosen = ((target != classes.IGNORE_INDEX).flatten().cpu() & (numbers < limit)).nonzero()[:, 0]
        images, pixels = chosen // target.shape[1], chosen % target.shape[1]
        rows = logits[images.to(logits.device), :, pixels.to(logits.device)].float().cpu()
        labels = target.flatten()[chosen.to(target.device)].cpu()
        numbers = torch.cat([self._numbers, numbers[chosen]])
        kept = numbers.topk(min(self.max_pixels, len(numbers)), largest=False).indices
        self._numbers = numbers[kept]
        self.logits = torch.cat([self.logits.reshape(-1, logits.shape[1]), rows])[kept]
        self.labels = torch.cat([self.labels, labels])[kept]


def _best_temperature(logits: Tensor, labels: Tensor) -> float:
    """Minimize the negative log-likelihood, which is convex in 1 / temperature, by halving the interval."""
    low, high = TEMPERATURES
    true = logits.gather(1, labels[:, None])[:, 0].mean()
    for _ in range(40):
        middle = (low * high) ** 0.5
        expected = ((logits / middle).softmax(1) * logits).sum(1).mean()
        # an overconfident network expects a higher logit than the true class has
        low, high = (middle, high) if expected > true else (low, middle)
    return (low * high) ** 0.5

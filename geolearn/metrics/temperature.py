"""The one number that makes a trained network as sure as it is right."""

from collections.abc import Iterable

import torch
from torch import Tensor

from geolearn.classes import IGNORE_INDEX
from geolearn.metrics.scores import main_output

TEMPERATURES = (0.01, 100.0)
"""Between which temperatures are looked for; a set without any mistake would have none above 0."""


@torch.no_grad()
def fit_temperature(
    batches: Iterable[tuple[Tensor | tuple[Tensor, ...], Tensor]], *, most: int = 200_000, seed: int = 0
) -> float:
    """Find the temperature that logits must be divided by (Guo et al. 2017, arXiv:1706.04599).

    It minimises the negative log-likelihood of the validation split. Predicted classes do not change.

    Args:
        batches: Logits (N, classes, ...), or (main, auxiliary), and (N, ...) indices or IGNORE_INDEX. Read once.
        most: Pixels to keep, drawn evenly from all batches.
        seed: Of the draw.

    Returns:
        Above 1 where the network is too sure, below 1 where it is not sure enough; within `TEMPERATURES`.

    Raises:
        ValueError: If no pixel has a label.
    """
    sample = PixelSample(most, seed=seed)
    for logits, target in batches:
        sample.add(main_output(logits), target)
    if not len(sample.labels):
        raise ValueError('a temperature is fitted to labelled pixels, and the validation split has none; label some')
    return _best_temperature(sample.logits.double(), sample.labels)


class PixelSample:
    """An even draw, without replacement, of the pixels of a stream whose length nobody knows.

    Each pixel gets a random number, and those with the lowest numbers stay.

    Args:
        most: Number of pixels to keep.
        seed: Of the draw, which does not depend on the device.
    """

    def __init__(self, most: int, *, seed: int = 0) -> None:
        self.most = most
        self.logits, self.labels = torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
        self._numbers = torch.empty(0)
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Draw from logits (N, classes, ...) and (N, ...) indices or IGNORE_INDEX; the sample is kept on the CPU."""
        logits, target = logits.reshape(*logits.shape[:2], -1), target.reshape(len(target), -1)
        numbers = torch.rand(target.numel(), generator=self._generator)
        limit = self._numbers.max() if len(self._numbers) == self.most else torch.inf
        chosen = ((target != IGNORE_INDEX).flatten().cpu() & (numbers < limit)).nonzero()[:, 0]
        images, pixels = chosen // target.shape[1], chosen % target.shape[1]
        rows = logits[images.to(logits.device), :, pixels.to(logits.device)].float().cpu()
        labels = target.flatten()[chosen.to(target.device)].cpu()
        numbers = torch.cat([self._numbers, numbers[chosen]])
        kept = numbers.topk(min(self.most, len(numbers)), largest=False).indices
        self._numbers = numbers[kept]
        self.logits = torch.cat([self.logits.reshape(-1, logits.shape[1]), rows])[kept]
        self.labels = torch.cat([self.labels, labels])[kept]


def _best_temperature(logits: Tensor, labels: Tensor) -> float:
    """Minimise the negative log-likelihood, which is convex in 1 / temperature, by halving the interval."""
    low, high = TEMPERATURES
    true = logits.gather(1, labels[:, None])[:, 0].mean()
    for _ in range(40):
        middle = (low * high) ** 0.5
        expected = ((logits / middle).softmax(1) * logits).sum(1).mean()
        # a network that is too sure expects a higher logit than the true class has
        low, high = (middle, high) if expected > true else (low, middle)
    return (low * high) ** 0.5

"""Scores of pixel classification."""

from typing import ClassVar

from torch import Tensor

from geolearn.metrics.confusion import ConfusionMatrix, reduce
from geolearn.metrics.scores import main_output


class PixelScores:
    """Accuracy, mean IoU and mean dice (F1), from one confusion matrix; see `Scores`.

    Args:
        count: Number of classes.
    """

    names: ClassVar = ('accuracy', 'miou', 'dice')

    def __init__(self, count: int) -> None:
        self.count = count
        self.matrix = ConfusionMatrix.empty(count)

    def reset(self) -> None:
        """Forget all batches."""
        self.matrix = ConfusionMatrix.empty(self.count)

    def add(self, output: Tensor | tuple[Tensor, ...], target: Tensor) -> None:
        """Count logits (N, classes, H, W), or (main, auxiliary), against (N, H, W) indices or IGNORE_INDEX."""
        self.matrix.add(main_output(output).max(1).indices, target)

    def reduce(self) -> None:
        """Add up the matrices of all processes."""
        self.matrix = reduce(self.matrix)

    def values(self) -> dict[str, float]:
        """Return the scores; NaN if nothing was counted."""
        matrix = ConfusionMatrix(self.count, self.matrix.counts.cpu())
        return dict(zip(self.names, (matrix.accuracy, matrix.miou, matrix.mean_f1)))

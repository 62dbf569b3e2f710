"""Losses of whole chips."""

import torch
from torch import Tensor
from torch.nn import functional

from geolearn.losses.per_pixel import ClassWeighted, full_precision, weighted_mean


class SoftCrossEntropy(ClassWeighted):
    """Cross-entropy of chips that belong to one class each, or to several in shares after mixing.

    No index is ignored: chips may be of more classes than fit a byte.

    Args:
        class_weights: (classes,) weight of each class, or None; the average is weighted by the targets' weights.
        label_smoothing: Share of the target, 0..1, that is spread evenly over all classes.
    """

    def __init__(self, class_weights: Tensor | None = None, *, label_smoothing: float = 0.0) -> None:
        super().__init__(class_weights)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss; 0 for a batch without chips.

        Args:
            logits: (n, classes).
            target: (n,) int64 class indices, or (n, classes) shares that add up to 1.
        """
        logits = full_precision(logits)
        weights = logits.new_ones(logits.shape[1]) if self.class_weights is None else self.class_weights
        losses = functional.cross_entropy(
            logits, target, weights, reduction='none', label_smoothing=self.label_smoothing
        )
        # torch divides by the weights for indices and by the number of chips for shares: here it is always the weights
        return weighted_mean(losses, weights[target] if target.dim() == 1 else target.to(weights) @ weights)


class MultiLabelCrossEntropy(ClassWeighted):
    """Binary cross-entropy of chips in which any number of classes is present.

    Args:
        class_weights: (classes,) weight of each class in the average, or None.
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss; 0 for a batch without chips.

        Args:
            logits: (n, classes).
            target: (n, classes) float, 1 where a class is present, fractions after mixing.
        """
        logits = full_precision(logits)
        weights = torch.ones_like(logits) if self.class_weights is None else self.class_weights.expand_as(logits)
        losses = functional.binary_cross_entropy_with_logits(logits, target.to(logits), weights, reduction='none')
        return weighted_mean(losses, weights)

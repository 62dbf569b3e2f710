"""Losses per pixel that leave IGNORE_INDEX out."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from geolearn.classes import IGNORE_INDEX


class PixelCrossEntropy(nn.Module):
    """Cross-entropy averaged over the pixels that count.

    Args:
        class_weights: (classes,) weight of each class, or None; the average is weighted by the targets' weights.
    """

    def __init__(self, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer('class_weights', class_weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of logits (N, classes, H, W) against indices (N, H, W); 0 if no pixel counts."""
        weights = self.class_weights if isinstance(self.class_weights, Tensor) else None
        total = functional.cross_entropy(logits, target, weights, ignore_index=IGNORE_INDEX, reduction='sum')
        counted = target != IGNORE_INDEX
        share = counted.sum() if weights is None else weights[torch.where(counted, target, 0)].mul(counted).sum()
        # the plain mean of torch is 0/0 where a batch has no labelled pixel
        return total / share.clamp(min=1e-8)

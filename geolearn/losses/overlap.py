"""Losses of the overlap between truth and prediction, class by class over a whole batch."""

import torch
from torch import Tensor, nn

from geolearn.classes import IGNORE_INDEX
from geolearn.losses.options import Average, PixelLossOptions, register_pixel_loss
from geolearn.losses.per_pixel import ClassWeighted, full_precision, weighted_mean


class OverlapLoss(ClassWeighted):
    """A loss of all labelled pixels of a batch together."""

    def counted(self, target: Tensor) -> Tensor:
        """Return the number of labelled pixels, by which batches weigh where they are added up."""
        return (target != IGNORE_INDEX).sum()


class Tversky(OverlapLoss):
    """1 - TP / (TP + alpha * FP + beta * FN), of probabilities.

    Salehi et al. 2017, arXiv:1706.05721. Classes that the truth of a batch does not hold are left out of the macro
    average; class 0 is as good as any other.

    Args:
        alpha: Weight of false positives, >= 0.
        beta: Weight of false negatives, >= 0; above `alpha` it favors the recall of rare classes.
        average: `'micro'` or `'macro'`.
        class_weights: (classes,) weight of each class in the average, or None.
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        *,
        average: Average = 'macro',
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__(class_weights)
        if average not in ('micro', 'macro'):
            raise ValueError(f"average must be 'micro' or 'macro', got {average!r}")
        self.alpha, self.beta, self.average = alpha, beta, average

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, classes, H, W) against indices (N, H, W), 0..1; 0 if no pixel counts."""
        counted = (target != IGNORE_INDEX)[:, None]
        predicted = full_precision(logits).softmax(1).where(counted, 0)
        truth = class_maps(target, logits.shape[1])
        tp, true = predicted.where(truth, 0).sum((0, 2, 3)), truth.sum((0, 2, 3))
        wrong = self.alpha * (predicted.sum((0, 2, 3)) - tp) + self.beta * (true - tp)
        weights = torch.ones_like(tp) if self.class_weights is None else self.class_weights.to(tp)
        if self.average == 'micro':
            return (weights * wrong).sum() / (weights * (tp + wrong)).sum().clamp(min=1e-8)
        present = weights * (true > 0)
        return weighted_mean(present * wrong / (tp + wrong).clamp(min=1e-8), present)


class Dice(Tversky):
    """1 - 2 * overlap / (truth + prediction), of probabilities (Milletari et al. 2016, arXiv:1606.04797).

    Args:
        average: `'micro'` or `'macro'`; classes absent from the truth of a batch are left out of the latter.
        class_weights: (classes,) weight of each class in the average, or None.
    """

    def __init__(self, average: Average = 'micro', class_weights: Tensor | None = None) -> None:
        super().__init__(0.5, 0.5, average=average, class_weights=class_weights)


class Lovasz(OverlapLoss):
    """Lovasz-Softmax: a convex surrogate of 1 - IoU, averaged over classes (Berman et al. 2018, arXiv:1705.08790).

    Classes that the truth of a batch does not hold are left out.

    Args:
        class_weights: (classes,) weight of each class in the average, or None.
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, classes, H, W) against indices (N, H, W), 0..1; 0 if no pixel counts."""
        predicted = full_precision(logits).softmax(1).movedim(1, 0).flatten(1)
        truth = class_maps(target, logits.shape[1]).movedim(1, 0).flatten(1)
        # all errors are >= 0, so that -1 puts ignored pixels behind all others, where they change no slope
        errors = (truth.to(predicted) - predicted).abs().where(target.flatten() != IGNORE_INDEX, -1)
        errors, order = errors.sort(1, descending=True)
        losses = (errors.clamp(min=0) * _slopes(truth.gather(1, order))).sum(1)
        weights = torch.ones_like(losses) if self.class_weights is None else self.class_weights.to(losses)
        present = weights * truth.any(1)
        return weighted_mean(present * losses, present)


def class_maps(target: Tensor, class_count: int) -> Tensor:
    """Spread indices (N, H, W) into bool maps (N, classes, H, W); ignored pixels are False in all of them."""
    return target[:, None] == torch.arange(class_count, device=target.device)[:, None, None]


def _slopes(truth: Tensor) -> Tensor:
    """Return by how much 1 - IoU grows when one more pixel is wrong.

    Closed form of the paper's algorithm 1; differences of neighboring IoU would lose most digits in float32.

    Args:
        truth: (classes, pixels) bool, the largest error first.
    """
    tp = truth.cumsum(1, dtype=torch.int32)
    total = tp[:, -1:]
    ranks = torch.arange(1, truth.shape[1] + 1, dtype=torch.int32, device=truth.device)
    union = (total + ranks - tp).float()
    return torch.where(truth, 1 / union, (total - tp) / (union * (union - 1).clamp(min=1)))


@register_pixel_loss('dice')
def _build_dice(options: PixelLossOptions, class_weights: Tensor | None) -> nn.Module:
    return Dice(options.dice_average, class_weights)


@register_pixel_loss('tversky')
def _build_tversky(options: PixelLossOptions, class_weights: Tensor | None) -> nn.Module:
    beta = options.tversky_beta
    return Tversky(1 - beta, beta, average=options.dice_average, class_weights=class_weights)


@register_pixel_loss('lovasz')
def _build_lovasz(_: PixelLossOptions, class_weights: Tensor | None) -> nn.Module:
    return Lovasz(class_weights)

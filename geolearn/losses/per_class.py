"""Losses that are an average over pixels: cross-entropy, focal loss, and the hardest pixels of either."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from geolearn.classes import IGNORE_INDEX
from geolearn.losses.options import Average, PixelLossOptions, register_pixel_loss


class ClassWeighted(nn.Module):
    """A loss that may weigh classes; the weights move with it to a device, and are not part of its state.

    Args:
        class_weights: (classes,) weight of each class, or None.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer('class_weights', class_weights, persistent=False)


class PixelLoss(ClassWeighted):
    """The mean loss of the labelled pixels, weighted by their classes; subclasses compute the loss of each pixel.

    Args:
        class_weights: (classes,) weight of each class, or None for equal weights. The sum of the weighted losses is
            divided by the sum of the weights of the pixels, as torch does, so that a class of weight 0 does not count.
    """

    def pixel_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each pixel.

        Args:
            logits: (N, classes, H, W), at least float32.
            target: (N, H, W) int64 class indices or IGNORE_INDEX.

        Returns:
            (N, H, W) losses >= 0, times the weight of the pixel's class; 0 where the pixel is ignored.
        """
        raise NotImplementedError

    def pixel_weights(self, target: Tensor) -> Tensor:
        """Return the weight (N, H, W) that each pixel has in the average; 0 where it is ignored."""
        counted = target != IGNORE_INDEX
        if self.class_weights is None:
            return counted.float()
        return self.class_weights[torch.where(counted, target, 0)] * counted

    def counted(self, target: Tensor) -> Tensor:
        """Return what the mean is over: the sum of the weights of the pixels (N, H, W) that count."""
        return self.pixel_weights(target).sum()

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of logits (N, classes, H, W) against indices (N, H, W); 0 if no pixel is labelled."""
        return weighted_mean(self.pixel_losses(full_precision(logits), target), self.pixel_weights(target))


class PixelCrossEntropy(PixelLoss):
    """Cross-entropy averaged over the pixels that count.

    Args:
        class_weights: (classes,) weight of each class, or None; the average is weighted by the targets' weights.
        label_smoothing: Share of the target, 0..1, that is spread evenly over all classes (Szegedy et al. 2016,
            arXiv:1512.00567).
    """

    def __init__(self, class_weights: Tensor | None = None, *, label_smoothing: float = 0.0) -> None:
        super().__init__(class_weights)
        self.label_smoothing = label_smoothing

    def pixel_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the weighted cross-entropy of each pixel, (N, H, W)."""
        return _cross_entropies(logits, target, self.class_weights, label_smoothing=self.label_smoothing)


class PixelFocal(PixelLoss):
    """Focal loss of each pixel: cross-entropy times (1 - p)^gamma, p being the probability of the true class.

    Lin et al. 2017, arXiv:1708.02002. Pixels that are already right hardly count. ArcGIS applies the factor
    to the average of the batch, where it focuses on nothing.

    Args:
        gamma: How strongly easy pixels are discounted, >= 0; 0 is cross-entropy.
        class_weights: (classes,) weight of each class, or None.
    """

    def __init__(self, gamma: float = 2.0, class_weights: Tensor | None = None) -> None:
        super().__init__(class_weights)
        self.gamma = gamma

    def pixel_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the weighted focal loss of each pixel, (N, H, W)."""
        entropy = _cross_entropies(logits, target)
        # below a gamma of 1 the slope at p = 1 is infinite, and infinity times a loss of 0 is NaN
        wrong = (-torch.expm1(-entropy)).clamp(min=1e-12)  # 1 - p
        losses = wrong**self.gamma * entropy
        return losses if self.class_weights is None else losses * self.pixel_weights(target)


class HardPixels(nn.Module):
    """Average only the pixels of the highest loss in a batch: online hard example mining.

    Shrivastava et al. 2016, arXiv:1604.03540.

    Args:
        base: Computes the loss of each pixel.
        fraction: Share of the counted pixels that is kept, 0..1 without 0.
        min_kept: Fewest pixels of a batch that are kept, as long as so many count.
    """

    def __init__(self, base: PixelLoss, fraction: float = 0.25, *, min_kept: int = 1) -> None:
        super().__init__()
        self.base, self.fraction, self.min_kept = base, fraction, min_kept

    def counted(self, target: Tensor) -> Tensor:
        """Return the weight of all pixels that could be among the hardest."""
        return self.base.counted(target)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of the hardest pixels of logits (N, classes, H, W); 0 if no pixel is labelled."""
        losses = self.base.pixel_losses(full_precision(logits), target).flatten()
        weights = self.base.pixel_weights(target).flatten()
        return weighted_mean(losses, weights * self._hardest(losses.detach(), weights > 0))

    def _hardest(self, losses: Tensor, counted: Tensor) -> Tensor:
        """Mark the counted pixels of the highest loss, without asking the device how many there are."""
        limit = min(len(losses), max(math.ceil(self.fraction * len(losses)), self.min_kept))
        order = losses.masked_fill(~counted, -1).topk(limit).indices  # losses are >= 0: ignored pixels are last
        kept = (counted.sum() * self.fraction).ceil().clamp(min=self.min_kept)
        chosen = torch.arange(limit, device=losses.device) < kept
        return torch.zeros_like(counted).scatter(0, order, chosen) & counted


def full_precision(logits: Tensor) -> Tensor:
    """Return logits in float32 at least: sums over a million pixels are wrong in half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Divide the sum of losses that are weighted already by the sum of their weights; 0 where that is 0.

    Args:
        losses: Any shape; where the weight is 0 they do not count.
        weights: The same shape.
    """
    # the plain mean of torch is 0/0 where a batch has no labelled pixel
    return losses.where(weights > 0, 0).sum() / weights.sum().clamp(min=1e-8)


def _cross_entropies(
    logits: Tensor, target: Tensor, weights: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    rows, indices = logits, target
    if logits.is_cuda and torch.are_deterministic_algorithms_enabled():
        # torch has a deterministic kernel for rows of pixels, and none for maps
        rows, indices = logits.movedim(1, -1).flatten(0, -2), target.flatten()
    losses = functional.cross_entropy(
        rows, indices, weights, ignore_index=IGNORE_INDEX, reduction='none', label_smoothing=label_smoothing
    )
    return losses.view_as(target)


@register_pixel_loss('cross_entropy', options=('label_smoothing', 'hard_fraction'))
def _build_cross_entropy(options: PixelLossOptions, class_weights: Tensor | None) -> nn.Module:
    return _hardest(PixelCrossEntropy(class_weights, label_smoothing=options.label_smoothing), options)


@register_pixel_loss('focal', options=('hard_fraction',))
def _build_focal(options: PixelLossOptions, class_weights: Tensor | None) -> nn.Module:
    return _hardest(PixelFocal(options.focal_gamma, class_weights), options)


def _hardest(loss: PixelLoss, options: PixelLossOptions) -> nn.Module:
    return HardPixels(loss, options.hard_fraction) if options.hard_fraction < 1 else loss


class SoftCrossEntropy(ClassWeighted):
    """Cross-entropy of chips that belong to one class each, or to several in shares after mixing.

    No index is ignored: chips may be of more classes than fit a byte.

    Args:
        class_weights: (classes,) weight of each class, or None; the average is weighted by the targets' weights.
        label_smoothing: Share of the target, 0..1, that is spread evenly over all classes.
        gamma: How strongly chips that are right already are discounted, as in focal loss; 0 for plain cross-entropy.
    """

    def __init__(
        self, class_weights: Tensor | None = None, *, label_smoothing: float = 0.0, gamma: float = 0.0
    ) -> None:
        super().__init__(class_weights)
        self.label_smoothing, self.gamma = label_smoothing, gamma

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
        if self.gamma:
            probabilities = logits.softmax(1)
            likely = (
                probabilities.gather(1, target[:, None])[:, 0] if target.dim() == 1 else (probabilities * target).sum(1)
            )
            losses = losses * (1 - likely) ** self.gamma
        # torch divides by the weights for indices and by the number of chips for shares: here it is always the weights
        return weighted_mean(losses, weights[target] if target.dim() == 1 else target.to(weights) @ weights)


class MultiLabelCrossEntropy(ClassWeighted):
    """Binary cross-entropy of chips in which any number of classes is present.

    Args:
        class_weights: (classes,) weight of each class in the average, or None.
        gamma: How strongly decisions that are right already are discounted, as in focal loss.
    """

    def __init__(self, class_weights: Tensor | None = None, *, gamma: float = 0.0) -> None:
        super().__init__(class_weights)
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss; 0 for a batch without chips.

        Args:
            logits: (n, classes).
            target: (n, classes) float, 1 where a class is present, fractions after mixing.
        """
        logits = full_precision(logits)
        weights = torch.ones_like(logits) if self.class_weights is None else self.class_weights.expand_as(logits)
        losses = functional.binary_cross_entropy_with_logits(logits, target.to(logits), weights, reduction='none')
        if self.gamma:
            likely = torch.where(target >= 0.5, logits.sigmoid(), 1 - logits.sigmoid())
            losses = losses * (1 - likely) ** self.gamma
        return weighted_mean(losses, weights)


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

"""The choice of a loss as plain values that a bundle can keep."""

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor, nn

from geolearn.errors import UnknownNameError
from geolearn.losses.overlap import Average, Dice, Lovasz, Tversky
from geolearn.losses.per_pixel import HardPixels, PixelCrossEntropy, PixelFocal, PixelLoss
from geolearn.losses.regression import VALUE_KINDS, ValueKind, ValueLoss, check_delta

Logits = Tensor | tuple[Tensor, Tensor]
"""What a network returns: the main logits, or these and those of an auxiliary head."""


class Mixed(nn.Module):
    """(1 - fraction) * base + fraction * dice, which ArcGIS calls `dice_loss_fraction`.

    Args:
        base: Loss of logits and indices.
        dice: Another one.
        fraction: Share of the latter, 0..1.
    """

    def __init__(self, base: nn.Module, dice: nn.Module, fraction: float) -> None:
        super().__init__()
        self.base, self.dice, self.fraction = base, dice, fraction

    def counted(self, target: Tensor) -> Tensor:
        """Return what the base's mean is over."""
        return cast(Any, self.base).counted(target)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mix for logits (N, classes, H, W) and indices (N, H, W)."""
        return (1 - self.fraction) * self.base(logits, target) + self.fraction * self.dice(logits, target)


class WithAuxiliary(nn.Module):
    """Add the loss of an auxiliary head, where the network has one and is in training.

    Args:
        base: Loss of logits and targets.
        weight: Of the auxiliary loss, >= 0 (0.4: Zhao et al. 2017, arXiv:1612.01105).
    """

    def __init__(self, base: nn.Module, weight: float = 0.4) -> None:
        super().__init__()
        self.base, self.weight = base, weight

    def counted(self, target: Tensor) -> Tensor:
        """Return what the base's mean is over."""
        return cast(Any, self.base).counted(target)

    def forward(self, logits: Logits, target: Tensor) -> Tensor:
        """Return the loss of logits, or of (main, auxiliary), all of the target's height and width."""
        if isinstance(logits, Tensor):
            return self.base(logits, target)
        main, auxiliary = logits
        return self.base(main, target) + self.weight * self.base(auxiliary, target)


PixelLossName = Literal['cross_entropy', 'focal', 'dice', 'tversky', 'lovasz']

PIXEL_LOSSES: tuple[PixelLossName, ...] = ('cross_entropy', 'focal', 'dice', 'tversky', 'lovasz')


@dataclass(frozen=True, kw_only=True)
class PixelLossOptions:
    """What pixel classification minimises; `dataclasses.asdict` makes JSON of it.

    Args:
        loss: One of `PIXEL_LOSSES`.
        focal_gamma: How strongly focal loss discounts easy pixels, >= 0.
        tversky_beta: Weight of misses in Tversky loss, 0..1; false alarms weigh 1 - `tversky_beta`.
        dice_fraction: Share of dice that is mixed in, 0..1.
        dice_average: `'micro'` or `'macro'`, for dice, mixed in or alone, and Tversky.
        label_smoothing: Share of the target that cross-entropy spreads over all classes, 0..1 without 1.
        hard_fraction: Share of the pixels, the hardest, that cross-entropy and focal loss average; 1 takes all.
        auxiliary_weight: Weight of the auxiliary head's loss, >= 0, where the decoder has such a head.

    Raises:
        UnknownNameError: If there is no such loss.
        ValueError: If a number is out of its range, or an option has no meaning for the loss.
    """

    loss: PixelLossName = 'cross_entropy'
    focal_gamma: float = 2.0
    tversky_beta: float = 0.7
    dice_fraction: float = 0.0
    dice_average: Average = 'micro'
    label_smoothing: float = 0.0
    hard_fraction: float = 1.0
    auxiliary_weight: float = 0.4

    def __post_init__(self) -> None:
        if self.loss not in PIXEL_LOSSES:
            raise UnknownNameError('loss', self.loss, PIXEL_LOSSES)
        if self.dice_average not in ('micro', 'macro'):
            raise ValueError(f"dice_average must be 'micro' or 'macro', got {self.dice_average!r}")
        self._check_ranges()
        if self.dice_fraction and self.loss == 'dice':
            raise ValueError(f"dice_fraction is {self.dice_fraction}, but loss is 'dice' already; leave one out")
        if self.label_smoothing and self.loss != 'cross_entropy':
            raise ValueError(f"label_smoothing works with loss='cross_entropy' alone, not with {self.loss!r}")
        if self.hard_fraction < 1 and self.loss not in ('cross_entropy', 'focal'):
            raise ValueError(f"hard_fraction needs a loss per pixel, 'cross_entropy' or 'focal', not {self.loss!r}")

    def _check_ranges(self) -> None:
        for name in ('focal_gamma', 'auxiliary_weight'):
            _check_not_negative(name, getattr(self, name))
        for name in ('tversky_beta', 'dice_fraction'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} must lie in 0..1, got {getattr(self, name)}')
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f'label_smoothing must be at least 0 and below 1, got {self.label_smoothing}')
        if not 0 < self.hard_fraction <= 1:
            raise ValueError(f'hard_fraction must be above 0 and at most 1, got {self.hard_fraction}')


@dataclass(frozen=True, kw_only=True)
class ValueLossOptions:
    """What the regression of values minimises; `dataclasses.asdict` makes JSON of it.

    Args:
        loss: One of `VALUE_KINDS`.
        delta: Error at which `'huber'` turns from squared to absolute, in units of the target, > 0.
        auxiliary_weight: Weight of the auxiliary head's loss, >= 0, where the decoder has such a head.

    Raises:
        UnknownNameError: If there is no such loss.
        ValueError: If a number is out of its range.
    """

    loss: ValueKind = 'mse'
    delta: float = 1.0
    auxiliary_weight: float = 0.4

    def __post_init__(self) -> None:
        if self.loss not in VALUE_KINDS:
            raise UnknownNameError('loss of values', self.loss, VALUE_KINDS)
        check_delta(self.delta)
        _check_not_negative('auxiliary_weight', self.auxiliary_weight)


def make_pixel_loss(options: PixelLossOptions, class_weights: Tensor | None = None) -> nn.Module:
    """Build the loss of logits (N, classes, H, W), alone or with those of an auxiliary head, and indices (N, H, W).

    Args:
        options: Which loss.
        class_weights: (classes,) weight of each class, or None.
    """
    loss = _base(options, class_weights)
    if options.dice_fraction:
        loss = Mixed(loss, Dice(options.dice_average, class_weights), options.dice_fraction)
    return WithAuxiliary(loss, options.auxiliary_weight)


def make_value_loss(options: ValueLossOptions) -> nn.Module:
    """Build the loss of predictions (N, 1, H, W), alone or with an auxiliary head's, and targets (N, H, W)."""
    return WithAuxiliary(ValueLoss(options.loss, delta=options.delta), options.auxiliary_weight)


def _base(options: PixelLossOptions, weights: Tensor | None) -> nn.Module:
    match options.loss:
        case 'cross_entropy':
            return _hardest(PixelCrossEntropy(weights, label_smoothing=options.label_smoothing), options)
        case 'focal':
            return _hardest(PixelFocal(options.focal_gamma, weights), options)
        case 'dice':
            return Dice(options.dice_average, weights)
        case 'tversky':
            beta = options.tversky_beta
            return Tversky(1 - beta, beta, average=options.dice_average, class_weights=weights)
        case 'lovasz':
            return Lovasz(weights)


def _hardest(loss: PixelLoss, options: PixelLossOptions) -> nn.Module:
    return HardPixels(loss, options.hard_fraction) if options.hard_fraction < 1 else loss


def _check_not_negative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f'{name} must be 0 or more, got {value}')

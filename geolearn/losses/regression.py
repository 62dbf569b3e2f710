"""The losses of per-pixel regression, such as of height or biomass, by name."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from geolearn.errors import UnknownNameError
from geolearn.losses.options import WithAuxiliary, check_not_negative
from geolearn.losses.per_class import full_precision, weighted_mean

REGRESSION_LOSSES: MappingProxyType[str, Callable[[Tensor, Tensor, float], Tensor]] = MappingProxyType(
    {
        'mse': lambda predicted, target, _: functional.mse_loss(predicted, target, reduction='none'),
        'l1': lambda predicted, target, _: functional.l1_loss(predicted, target, reduction='none'),
        'huber': lambda predicted, target, delta: functional.huber_loss(
            predicted, target, reduction='none', delta=delta
        ),
    }
)
"""The loss of each pixel from prediction, target and delta: squared error, absolute error, and squared near 0 but
absolute beyond delta."""


@dataclass(frozen=True, kw_only=True)
class RegressionLossOptions:
    """The loss of per-pixel regression; `dataclasses.asdict` makes JSON of it.

    Args:
        loss: One of `REGRESSION_LOSSES`.
        delta: Error at which `'huber'` turns from squared to absolute, in units of the target, > 0.
        auxiliary_weight: Weight of the auxiliary head's loss, >= 0, where the decoder has such a head.

    Raises:
        UnknownNameError: If there is no such loss.
        ValueError: If a number is out of its range.
    """

    loss: str = 'mse'
    delta: float = 1.0
    auxiliary_weight: float = 0.4

    def __post_init__(self) -> None:
        _check(self.loss, self.delta)
        check_not_negative('auxiliary_weight', self.auxiliary_weight)


def make_regression_loss(options: RegressionLossOptions) -> nn.Module:
    """Build the loss of predictions (N, 1, H, W), alone or with an auxiliary head's, and targets (N, H, W)."""
    return WithAuxiliary(RegressionLoss(options.loss, delta=options.delta), options.auxiliary_weight)


class RegressionLoss(nn.Module):
    """Mean error of the pixels that have a truth.

    Args:
        loss: One of `REGRESSION_LOSSES`.
        delta: Error at which `'huber'` (Huber 1964) turns from squared to absolute, in units of the target, > 0.

    Raises:
        UnknownNameError: If there is no such loss.
        ValueError: If delta is not positive.
    """

    def __init__(self, loss: str = 'mse', *, delta: float = 1.0) -> None:
        super().__init__()
        _check(loss, delta)
        self.loss, self.delta = loss, delta

    def counted(self, target: Tensor) -> Tensor:
        """Return the number of pixels (N, H, W) that have a truth."""
        return (~target.isnan()).sum()

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the mean error; 0 if no pixel has a truth.

        Args:
            predicted: (N, 1, H, W), or (N, C, H, W) of images.
            target: (N, H, W), or (N, C, H, W), NaN where there is no truth.

        Raises:
            ValueError: If the shapes do not fit.
        """
        given = tuple(target.shape)
        if target.dim() != 4:
            target = target[:, None]
        if predicted.shape != target.shape:
            raise ValueError(
                f'predictions must be (N, 1, H, W) for targets (N, H, W), or (N, C, H, W) for both, '
                f'got {tuple(predicted.shape)} for {given}'
            )
        predicted, known = full_precision(predicted), ~target.isnan()
        # both are filled: NaN times 0 is NaN, also in the gradient
        predicted, target = predicted.where(known, 0), target.to(predicted).where(known, 0)
        return weighted_mean(REGRESSION_LOSSES[self.loss](predicted, target, self.delta), known)


class NormalizedLoss(nn.Module):
    """A loss of predictions and truth divided by the target's standard deviation, so that rates do not depend on units.

    Args:
        loss: Of predictions (N, 1, H, W) and targets (N, H, W), NaN where there is no truth.
        std: Of the target; of images one for each band.
    """

    def __init__(self, loss: nn.Module, std: float | Sequence[float]) -> None:
        super().__init__()
        self.loss = loss
        self.std: Any
        if isinstance(std, int | float):
            self.std = std
        else:
            self.register_buffer('std', torch.tensor(list(std), dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def counted(self, target: Tensor) -> Tensor:
        """Return the number of pixels that have a truth."""
        return cast(Any, self.loss).counted(target)

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return self.loss(predicted / self.std, target / self.std)


def _check(loss: str, delta: float) -> None:
    if loss not in REGRESSION_LOSSES:
        raise UnknownNameError('regression loss', loss, REGRESSION_LOSSES)
    if not 0 < delta < math.inf:
        raise ValueError(f'delta must be positive, in units of the target, got {delta}')

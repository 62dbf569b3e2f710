"""The loss of continuous values per pixel, such as height or biomass."""

import math
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import Tensor, nn
from torch.nn import functional

from geolearn.errors import UnknownNameError
from geolearn.losses.per_pixel import full_precision, weighted_mean

if TYPE_CHECKING:
    pass


ValueKind = Literal['mse', 'l1', 'huber']

VALUE_KINDS: tuple[ValueKind, ...] = ('mse', 'l1', 'huber')
"""Squared error, absolute error, and squared near 0 but absolute beyond `delta`."""


class ValueLoss(nn.Module):
    """Mean error of the pixels that have a truth.

    Args:
        kind: One of `VALUE_KINDS`.
        delta: Error at which `'huber'` (Huber 1964) turns from squared to absolute, in units of the target, > 0.

    Raises:
        UnknownNameError: If the kind is none of these.
        ValueError: If delta is not positive.
    """

    def __init__(self, kind: ValueKind = 'mse', *, delta: float = 1.0) -> None:
        super().__init__()
        if kind not in VALUE_KINDS:
            raise UnknownNameError('loss of values', kind, VALUE_KINDS)
        check_delta(delta)
        self.kind, self.delta = kind, delta

    def counted(self, target: Tensor) -> Tensor:
        """Return the number of pixels (N, H, W) that have a truth."""
        return (~target.isnan()).sum()

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the mean error; 0 if no pixel has a truth.

        Args:
            predicted: (N, 1, H, W).
            target: (N, H, W), NaN where there is no truth.

        Raises:
            ValueError: If the shapes do not fit.
        """
        if predicted.shape != (len(target), 1, *target.shape[1:]):
            raise ValueError(
                f'predictions must be (N, 1, H, W) for targets (N, H, W), '
                f'got {tuple(predicted.shape)} for {tuple(target.shape)}'
            )
        predicted, known = full_precision(predicted)[:, 0], ~target.isnan()
        # both are filled: NaN times 0 is NaN, also in the gradient
        return weighted_mean(self._costs(predicted.where(known, 0), target.to(predicted).where(known, 0)), known)

    def _costs(self, predicted: Tensor, target: Tensor) -> Tensor:
        match self.kind:
            case 'mse':
                return functional.mse_loss(predicted, target, reduction='none')
            case 'l1':
                return functional.l1_loss(predicted, target, reduction='none')
            case 'huber':
                return functional.huber_loss(predicted, target, reduction='none', delta=self.delta)


def check_delta(delta: float) -> None:
    """Refuse a turning point that is none.

    Raises:
        ValueError: If it is not positive and finite.
    """
    if not 0 < delta < math.inf:
        raise ValueError(f'delta must be positive, in units of the target, got {delta}')


class InSpreads(nn.Module):
    """A loss of predictions and truth in multiples of the target's spread, so that rates do not depend on its units.

    Args:
        loss: Of predictions (N, 1, H, W) and targets (N, H, W), NaN where there is no truth.
        std: Of the target.
    """

    def __init__(self, loss: nn.Module, std: float) -> None:
        super().__init__()
        self.loss, self.std = loss, std

    def counted(self, target: Tensor) -> Tensor:
        """Return the number of pixels that have a truth."""
        return cast(Any, self.loss).counted(target)

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return self.loss(predicted / self.std, target / self.std)

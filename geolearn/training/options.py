"""FitOptions: how a network is trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from geolearn.precision import Precision, check_precision

Rate = float | slice | Sequence[float]
"""One learning rate, a slice from the first group's to the last one's, or one for each parameter group."""

EMA_DECAY = 0.999
"""Share of the average that each step keeps, where ``ema=True``."""


@dataclass(frozen=True)
class FitOptions:
    """How a network is trained.

    Args:
        epochs: Passes over the training chips.
        learning_rate: Highest rate, or a slice from the trunk's to the head's, or one for each parameter group; None
            where a checkpoint is resumed, for the rate that it was written with.
        one_cycle: Warm up and anneal (Smith & Topin 2017, arXiv:1708.07120) instead of a constant rate.
        weight_decay: Decoupled weight decay; biases and norms have none.
        early_stopping: End when `monitor` has not improved for `patience` epochs.
        patience: So many epochs may pass without an improvement.
        min_delta: Smaller changes are no improvement.
        checkpoint: Write the last and the best state after each epoch, and end with the best weights; ``'all'`` also
            keeps the weights of every epoch.
        monitor: Column of the epoch table that says what is best; None where no column does: the last weights stay.
        mixed_precision: ``'bf16'``, ``'fp16'`` (CUDA only), True for the better of them on a GPU, None or False for
            float32 throughout.
        accumulate: So many batches make one step, which is that of one batch of all their chips (but for batch
            normalization and for augmentations that mix chips, which see each batch by itself).
        ema: Keep a running mean of the weights, and end with it: True, or how much of it each step keeps.
        clip: Longest norm of the gradient; None for any.
        seed: Fixes dropout and whatever else is drawn at random; None leaves the generators as they are. Order and
            augmentation of the chips are fixed by the data's own seed.
        deterministic: Only algorithms that give the same numbers each time; slower on a GPU. Without a seed, 0.
        callbacks: fastai's, for whatever is not here.
        verbose: Show a bar over the batches and a row for each epoch.

    Raises:
        ValueError: If a value is not valid.
    """

    epochs: int
    learning_rate: Rate | None = None
    one_cycle: bool = True
    weight_decay: float = 0.01
    early_stopping: bool = False
    patience: int = 5
    min_delta: float = 0.001
    checkpoint: bool | Literal['all'] = False
    monitor: str | None = 'valid_loss'
    mixed_precision: Precision | bool | None = None
    accumulate: int = 1
    ema: bool | float = False
    clip: float | None = 1.0
    seed: int | None = None
    deterministic: bool = False
    callbacks: tuple[Any, ...] = ()
    verbose: bool = True

    def __post_init__(self) -> None:
        for name in ('epochs', 'accumulate', 'patience'):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f'{name} must be a whole number from 1, got {value!r}')
            object.__setattr__(self, name, int(value))  # numpy's numbers are no JSON
        for name in ('one_cycle', 'early_stopping', 'deterministic', 'verbose'):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f'{name} must be True or False, got {getattr(self, name)!r}')
        if not isinstance(self.monitor, str | None):
            raise ValueError(f"monitor must be the name of a column such as 'valid_loss', got {self.monitor!r}")
        if self.monitor is None and self.early_stopping:
            raise ValueError('early_stopping needs a monitor that says what is better, got monitor=None')
        if self.seed is not None:
            if not isinstance(self.seed, Integral) or isinstance(self.seed, bool):
                raise ValueError(f'seed must be a whole number, or None, got {self.seed!r}')
            object.__setattr__(self, 'seed', int(self.seed))
        for name in ('weight_decay', 'min_delta'):
            if not _is_number(getattr(self, name)) or getattr(self, name) < 0:
                raise ValueError(f'{name} must be a number from 0, got {getattr(self, name)!r}')
        if self.clip is not None and not (_is_number(self.clip) and self.clip > 0):
            raise ValueError(f'clip must be a number over 0, or None, got {self.clip!r}')
        if not isinstance(self.ema, bool) and not (_is_number(self.ema) and 0 < self.ema < 1):
            raise ValueError(f'ema must be True, False or a number between 0 and 1, got {self.ema!r}')
        check_precision(self.mixed_precision)
        if not isinstance(self.checkpoint, str | bool) or self.checkpoint not in (True, False, 'all'):
            raise ValueError(f"checkpoint must be True, False or 'all', got {self.checkpoint!r}")

    @property
    def ema_decay(self) -> float | None:
        """Share of the mean weights that each step keeps, or None for no mean."""
        if isinstance(self.ema, bool):
            return EMA_DECAY if self.ema else None
        return self.ema


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(float(value))


def choose_rates(rate: float | slice, *, scales: Sequence[float] | None, pretrained: bool) -> Rate:
    """Spread a rate over the parameter groups.

    Args:
        rate: Of the new layers; a slice stays as it is.
        scales: Share of the rate that each group gets, where rates decay by layer.
        pretrained: Whether the trunk holds published weights: without `scales` it then learns at a tenth.
    """
    if isinstance(rate, slice):
        return rate
    if scales is not None:
        return [rate * scale for scale in scales]
    return slice(rate / 10, rate) if pretrained else rate


def top_rate(rate: Rate) -> float:
    """Return the highest of some rates."""
    if isinstance(rate, slice):
        return float(rate.stop)
    return float(max(rate)) if isinstance(rate, Sequence) else float(rate)


def check_rate(lr: float | slice | None) -> None:
    """Raise ValueError unless a learning rate is positive, or a slice of two that are; None is left alone."""
    rates = [lr.stop if lr.start is None else lr.start, lr.stop] if isinstance(lr, slice) else [lr]
    if lr is not None and not all(_is_rate(rate) for rate in rates):
        raise ValueError(f'lr must be a positive number, or a slice of two, got {lr!r}')


def _is_rate(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf

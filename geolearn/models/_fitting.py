"""Check what a training is asked for, build its learner, and choose the rate of each parameter group."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch

from geolearn.backbones.adapt import RateGroup
from geolearn.data import ChipData
from geolearn.losses import PixelCrossEntropy
from geolearn.models.segmenter import Segmenter

Rate = float | slice | list[float]
"""One rate, a slice from the trunk's to that of new layers, or one for each parameter group."""


def check_training(data: ChipData, epochs: int, lr: float | slice | None, layer_decay: float | None) -> None:
    """Refuse trainings that cannot be.

    Raises:
        ValueError: If there are too few epochs or chips, or the learning rate is none.
    """
    if epochs < 1:
        raise ValueError(f'epochs must be at least 1, got {epochs}')
    _check_rate(lr)
    if layer_decay is not None and isinstance(lr, slice):
        raise ValueError(
            f'lr must be one number where layer_decay ({layer_decay}) sets the rate of each block, got {lr}'
        )
    if len(data.train_ds) < 2:
        raise ValueError(f'{len(data.train_ds)} chip is left to train on; at least 2 are needed: export more chips')
    if data.batch_size < 2:
        raise ValueError('batch_size must be at least 2: batch normalisation needs several values per channel')


def build_learner(network: Segmenter, data: ChipData, groups: Sequence[RateGroup], *, balanced: bool) -> Any:
    """Build fastai's Learner.

    Args:
        network: To train.
        data: To train it on.
        groups: Of the network's parameters.
        balanced: Whether rare classes weigh more in the loss.
    """
    # fastai takes seconds to import, and mapping does without it
    from geolearn.training import make_learner

    weights = torch.tensor(data.class_weights, dtype=torch.float32) if balanced else None
    return make_learner(
        network,
        data.train_dl,
        data.valid_dl,
        PixelCrossEntropy(weights),
        class_count=data.c,
        splitter=lambda _: [group.parameters for group in groups],
    )


def choose_rates(rate: float | slice, *, scales: Sequence[float] | None, pretrained: bool) -> Rate:
    """Spread a rate over the parameter groups.

    Args:
        rate: Of the new layers; a slice stays as it is.
        scales: Share of the rate that each group learns at, where rates decay by layer.
        pretrained: Whether the trunk holds published weights: without `scales` it then learns at a tenth.
    """
    if isinstance(rate, slice):
        return rate
    if scales is not None:
        return [rate * scale for scale in scales]
    return slice(rate / 10, rate) if pretrained else rate


def _check_rate(lr: float | slice | None) -> None:
    rates = [lr.stop if lr.start is None else lr.start, lr.stop] if isinstance(lr, slice) else [lr]
    if lr is not None and not all(_is_rate(rate) for rate in rates):
        raise ValueError(f'lr must be a positive number, or a slice of two, got {lr!r}')


def _is_rate(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf

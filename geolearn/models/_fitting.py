"""Check what a training is asked for, build its learner, and choose the rate of each parameter group."""

import math
import re
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from torch import nn

from geolearn.backbones.adapt import RateGroup
from geolearn.data import ChipData
from geolearn.metrics import Scores
from geolearn.models.network import Network
from geolearn.models.spec import ModelSpec

Rate = float | slice | Sequence[float]
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


def build_learner(
    network: Network,
    data: ChipData,
    groups: Sequence[RateGroup],
    *,
    loss: nn.Module,
    scores: Scores,
    gives_targets: bool,
) -> Any:
    """Build fastai's Learner.

    Args:
        network: To train.
        data: To train it on.
        groups: Of the network's parameters.
        loss: Of its output and the targets.
        scores: Count the validation chips.
        gives_targets: Whether the network takes the targets too.
    """
    # fastai takes seconds to import, and mapping does without it
    from geolearn.training import make_learner

    return make_learner(
        network,
        data.train_dl,
        data.valid_dl,
        loss,
        scores=scores,
        splitter=lambda _: [group.parameters for group in groups],
        gives_targets=gives_targets,
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


def top_rate(rate: Rate) -> float:
    """Return the highest of some rates."""
    if isinstance(rate, slice):
        return float(rate.stop)
    return float(max(rate)) if isinstance(rate, Sequence) else float(rate)


def _check_rate(lr: float | slice | None) -> None:
    rates = [lr.stop if lr.start is None else lr.start, lr.stop] if isinstance(lr, slice) else [lr]
    if lr is not None and not all(_is_rate(rate) for rate in rates):
        raise ValueError(f'lr must be a positive number, or a slice of two, got {lr!r}')


def _is_rate(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf


def training_folder(data: ChipData, spec: ModelSpec) -> Path:
    """Return where checkpoints of a model go: beside its data, apart from those of other models and backbones."""
    name = re.sub(r'[^\w.-]+', '_', f'{spec.model}-{spec.backbone}')
    return (data.working_dir or data.path) / 'models' / 'training' / name

"""Make a model of what the command line says."""

import argparse
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from geolearn.backbones.adapt import Adaptation
from geolearn.data import ChipData
from geolearn.errors import UnknownNameError
from geolearn.losses import PixelLossOptions, ValueLossOptions
from geolearn.models import Model, PixelRegressor, PSPNetClassifier, UnetClassifier
from geolearn.models._registry import MODELS

ARGUMENTS = {
    'backbone': 'backbone',
    'weights': 'weights',
    'decoder': 'decoder',
    'fusion': 'fusion',
    'temporal': 'temporal',
    'resolution': 'resolution_m',
    'class_balancing': 'class_balancing',
    'auxiliary_head': 'auxiliary_head',
    'oversample': 'oversample',
    'mixup': 'mixup',
}
"""Options of the command line, None where they are not given, and what the constructors of models call them."""

LOSS_ARGUMENTS = {
    'loss': 'loss',
    'dice_fraction': 'dice_fraction',
    'label_smoothing': 'label_smoothing',
    'hard_pixels': 'hard_fraction',
}
"""The same for losses."""


def find_model(name: str) -> type[Model]:
    """Return a class of models by its name, or by ArcGIS's.

    Raises:
        UnknownNameError: If there is none.
    """
    known = MODELS | {'UnetClassifier': UnetClassifier, 'PSPNetClassifier': PSPNetClassifier}
    if name not in known:
        raise UnknownNameError('model', name, known)
    return known[name]


def choose_options(cls: type[Model], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of a class of models that the command line gives.

    Raises:
        ValueError: If the class has no such argument, or a value makes no sense.
    """
    given = _given(arguments, ARGUMENTS)
    taken = inspect.signature(cls).parameters
    for option, argument in ARGUMENTS.items():
        if argument in given and argument not in taken:
            raise ValueError(f'--{option.replace("_", "-")} is nothing that {cls.__name__} takes; leave it out')
    loss = _choose_loss(cls, arguments, taken)
    if loss is not None:
        given['loss'] = loss
    return given | {'pretrained': not arguments.from_scratch, 'adapt': _choose_adaptation(arguments)}


def construct(cls: type[Model], data: ChipData, options: Mapping[str, Any], *, seed: int) -> Model:
    """Make a model; new layers are drawn from `seed`."""
    torch.manual_seed(seed)
    make: Any = cls  # each class has arguments of its own
    return make(data, **options)


def _given(arguments: argparse.Namespace, names: Mapping[str, str]) -> dict[str, Any]:
    values = {argument: getattr(arguments, option) for option, argument in names.items()}
    return {argument: value for argument, value in values.items() if value is not None}


def _choose_loss(
    cls: type[Model], arguments: argparse.Namespace, taken: Mapping[str, Any]
) -> PixelLossOptions | ValueLossOptions | None:
    given = _given(arguments, LOSS_ARGUMENTS)
    if not given:
        return None
    if issubclass(cls, PixelRegressor):
        if set(given) != {'loss'}:
            raise ValueError(f'{cls.__name__} learns numbers and takes no more than --loss mse, l1 or huber')
        return ValueLossOptions(**given)
    if 'loss' not in taken:
        raise ValueError(f'{cls.__name__} has a loss of its own; leave out --loss and what goes with it')
    return PixelLossOptions(**given)


def _choose_adaptation(arguments: argparse.Namespace) -> Adaptation:
    freeze = arguments.freeze or 'none'
    return Adaptation(
        freeze=int(freeze) if freeze.isdecimal() else freeze,
        layer_decay=arguments.layer_decay,
        lora_rank=arguments.lora_rank or 0,
    )

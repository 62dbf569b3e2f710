"""geolearn train: any class of model on any backbone."""

import argparse
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from geolearn.backbones.adapt import Adaptation
from geolearn.cli.arguments import add_division, number, read_chips, whole
from geolearn.data import ChipData
from geolearn.errors import UnknownNameError
from geolearn.losses import REGRESSION_LOSSES, PixelLossOptions, RegressionLossOptions, pixel_loss_names
from geolearn.metrics import name_metric
from geolearn.models import Model, PixelRegressor, PSPNetClassifier, UnetClassifier
from geolearn.models.base import MODELS


def print_scores(model: Model) -> None:
    """Print the validation results: a row for each class, where there are classes, and the metrics."""
    evaluation = model.evaluate()
    if evaluation.per_class is not None:
        print(evaluation.per_class.to_string(float_format='{:.3f}'.format))
    print(', '.join(f'{name_metric(name)} {value:.4f}' for name, value in evaluation.metrics.items()), end=' ')
    print('on the validation chips')


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
) -> PixelLossOptions | RegressionLossOptions | None:
    given = _given(arguments, LOSS_ARGUMENTS)
    if not given:
        return None
    if issubclass(cls, PixelRegressor):
        if set(given) != {'loss'}:
            raise ValueError(
                f'{cls.__name__} takes no other option of losses than --loss {" or ".join(REGRESSION_LOSSES)}'
            )
        return RegressionLossOptions(**given)
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


HELP = 'train a model on exported chips'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument('chips', nargs='+', help='chip folder, or several to merge')
    parser.add_argument('name', help='name of the model, which goes beside the chips, or path of the .dlpk to write')
    parser.add_argument('--model', default='DeepLab', help='class of model, such as UNet (default %(default)s)')
    parser.add_argument('--report', metavar='HTML', help='write a page on the data, the training and the result')
    add_division(parser)
    parser.add_argument('--chip-size', type=whole(1), default=224, help='side of the training images in pixels')
    parser.add_argument('--normalize', default='dataset', help='dataset, minmax, robust, imagenet or pretraining')
    parser.add_argument('--ignore-classes', type=int, nargs='*', default=[], help='label values to leave out')
    parser.add_argument('--values', action='store_true', help='label rasters hold numbers to learn, even if whole')
    _add_network(parser.add_argument_group('the network'))
    _add_loss(parser.add_argument_group('the loss'))
    _add_fit(parser.add_argument_group('the training'))
    parser.set_defaults(run=run, refuse=parser.error)


def _add_network(group: Any) -> None:
    group.add_argument('--backbone', help="such as dofa_base or resnet50; the class of model's own if not given")
    group.add_argument('--weights', help="file or folder with the backbone's weights, or another model's .dlpk")
    group.add_argument('--from-scratch', action='store_true', help='start from random weights')
    group.add_argument('--decoder', help='such as unet, of PixelRegressor and ChangeDetector')
    group.add_argument('--fusion', help='of ChangeDetector: difference, concat or attention')
    group.add_argument('--temporal', help='how the dates of a chip become one: mean, concat or ltae')
    group.add_argument('--resolution', type=number(0), help='metres per pixel, where the backbone depends on it')
    group.add_argument('--freeze', help='what of the backbone stays: none, all, "all but norms" or a number of blocks')
    group.add_argument('--layer-decay', type=number(0, 1), help='factor on the rate from block to block, such as 0.7')
    group.add_argument('--lora-rank', type=whole(1), help='low-rank updates of a transformer alone')


def _add_loss(group: Any) -> None:
    switch = {'action': 'store_true', 'default': None}
    regression = ', '.join(REGRESSION_LOSSES)
    group.add_argument('--loss', help=f'{", ".join(pixel_loss_names())}; of PixelRegressor: {regression}')
    group.add_argument('--dice-fraction', type=number(0, 1), help='share of dice in the loss')
    group.add_argument('--label-smoothing', type=number(0, 1), help='share of the target spread over all classes')
    group.add_argument('--hard-pixels', type=number(0, 1), help='share of the pixels, the hardest, that count')
    group.add_argument('--class-balancing', **switch, help='weigh rare classes more')
    group.add_argument('--auxiliary-head', **switch, help='train a small head on a coarse map beside the decoder')
    group.add_argument('--oversample', **switch, help='show chips of rare classes more often (FeatureClassifier)')
    group.add_argument('--mixup', **switch, help='blend chips with one another (FeatureClassifier)')


def _add_fit(group: Any) -> None:
    group.add_argument('--epochs', type=whole(1), default=10)
    group.add_argument('--lr', type=number(1e-12), help='learning rate; searched for if not given')
    group.add_argument('--early-stopping', action='store_true', help='end when nothing got better for 5 epochs')
    group.add_argument('--monitor', default='valid_loss', help='what is to get better, such as miou')
    group.add_argument('--resume', action='store_true', help='go on with the same training after an interruption')
    group.add_argument('--accumulate', type=whole(1), default=1, help='so many batches make one step')
    group.add_argument('--precision', choices=['bf16', 'fp16', 'auto'], help='compute in half precision')
    group.add_argument('--ema', action='store_true', help='end with a running mean of the weights')
    group.add_argument('--tensorboard', action='store_true', help='write a log beside the checkpoints')


def run(arguments: argparse.Namespace) -> None:
    """Train, save, and say how good the model is."""
    pass
    pass

    cls = find_model(arguments.model)
    try:
        options = choose_options(cls, arguments)
    except ValueError as error:
        arguments.refuse(str(error))
    data = read_chips(
        arguments,
        arguments.chips,
        chip_size=arguments.chip_size,
        ignore_classes=arguments.ignore_classes,
        normalize=arguments.normalize,
        target='values' if arguments.values else None,
    )
    print(data)
    model = construct(cls, data, options, seed=arguments.seed)
    model.fit(
        arguments.epochs,
        arguments.lr,
        early_stopping=arguments.early_stopping,
        monitor=arguments.monitor,
        resume=arguments.resume,
        accumulate=arguments.accumulate,
        mixed_precision=True if arguments.precision == 'auto' else arguments.precision,
        ema=arguments.ema,
        tensorboard=arguments.tensorboard,
    )
    print_scores(model)
    print(f'wrote {model.save(arguments.name)}')
    if arguments.report:
        print(f'wrote {model.report(arguments.report)}')

"""geolearn train: any class of model on any backbone."""

import argparse
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geolearn.cli.arguments import (
    NO_WAVELENGTH,
    NORMALIZATIONS,
    add_chips,
    class_name,
    class_names,
    class_value_or_name,
    day,
    number,
    read_chips,
    wavelength,
    whole,
)
from geolearn.cli.config import write_config

if TYPE_CHECKING:
    from geolearn.adaptation import Adaptation
    from geolearn.data import ChipData
    from geolearn.losses import PixelLossOptions, RegressionLossOptions
    from geolearn.models import Model

MODEL_ARGUMENTS = {
    'backbone': 'backbone',
    'weights': 'weights',
    'wavelengths': 'wavelengths',
    'decoder': 'decoder',
    'fusion': 'fusion',
    'temporal': 'temporal',
    'resolution': 'resolution_m',
    'class_balancing': 'class_balancing',
    'auxiliary_head': 'auxiliary_head',
    'mixup': 'mixup',
    'head': 'head',
    'hidden': 'hidden',
    'trees': 'trees',
    'neighbors': 'neighbors',
    'dates': 'dates',
    'location': 'location',
}
"""Options of the command line, None where they are not given, and what the constructors of models call them."""

FUSIONS = ('difference', 'concat', 'attention')
TEMPORALS = ('mean', 'concat', 'ltae')
HEADS = ('linear', 'mlp', 'random_forest', 'knn')
"""As in `geolearn.networks`, which must not be imported to show help."""

LOSS_ARGUMENTS = {
    'loss': 'loss',
    'dice_fraction': 'dice_fraction',
    'cldice_fraction': 'cldice_fraction',
    'label_smoothing': 'label_smoothing',
    'hard_pixels': 'hard_fraction',
}
"""The same for losses."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument('chips', nargs='+', help='chip folder, or several to merge')
    parser.add_argument('name', help='name of the model, which goes beside the chips, or path of the .dlpk to write')
    parser.add_argument('--model', default='DeepLab', help='class of model, such as UNet')
    parser.add_argument('--report', metavar='HTML', help='write a page on the data, the training and the result')
    add_chips(parser)
    add_data(parser.add_argument_group('classes and values'))
    _add_network(parser.add_argument_group('the network'))
    _add_loss(parser.add_argument_group('the loss'))
    _add_fit(parser.add_argument_group('the training'))
    parser.set_defaults(run=run, inputs=('chips', 'valid_path'), targets=('report',))


def add_data(group: Any) -> None:
    """Add how images and labels of a training are taken."""
    group.add_argument('--chip-size', type=whole(1), default=224, help='side of the training images in pixels')
    group.add_argument(
        '--extract-bands', nargs='+', type=class_value_or_name, help='bands to use, by name or from 0 on'
    )
    kinds = 'dataset, minmax, robust, imagenet or pretraining'
    group.add_argument('--normalize', choices=NORMALIZATIONS, metavar='KIND', default='dataset', help=kinds)
    group.add_argument(
        '--class-mapping', nargs='+', type=class_name, metavar='VALUE=NAME', help='names of classes, such as 1=Water'
    )
    ignored = 'classes that are neither trained nor evaluated, by label value or name; 0 for sparse labels'
    group.add_argument('--ignore-classes', type=class_value_or_name, nargs='+', default=[], help=ignored)
    target = group.add_mutually_exclusive_group()
    target.add_argument('--values', action='store_true', help='label rasters hold regression targets, even if whole')
    images = 'predict images: those in images2/, or with --downsample the images themselves'
    target.add_argument('--images', action='store_true', help=images)
    coarser = 'with --images: times that the pixels of what is predicted from are larger than those of the images'
    group.add_argument('--downsample', type=whole(1), help=coarser)
    group.add_argument('--oversample', action='store_true', help='show chips of rare classes more often')
    group.add_argument('--label-fraction', type=number(0, 1, above=True), help='share of the training chips to use')


def _add_network(group: Any) -> None:
    group.add_argument('--backbone', help="such as dofa_base or resnet50; the class of model's own if not given")
    group.add_argument('--weights', help="file or folder with the backbone's weights, or another model's .dlpk")
    group.add_argument('--from-scratch', action='store_true', help='start from random weights, and fetch nothing')
    um = f'center wavelength of each band in micrometers, {NO_WAVELENGTH} for radar, where the data does not tell'
    group.add_argument('--wavelengths', type=wavelength, nargs='+', metavar='UM', help=um)
    group.add_argument('--decoder', help='such as unet, of PixelRegressor and ChangeDetector')
    group.add_argument('--fusion', choices=FUSIONS, help='how ChangeDetector compares the dates')
    group.add_argument('--temporal', choices=TEMPORALS, help='how the dates of a chip are merged')
    group.add_argument('--head', choices=HEADS, help='of PixelHead')
    group.add_argument('--hidden', nargs='+', type=whole(1), help='width of each hidden layer of --head mlp')
    group.add_argument('--trees', type=whole(1), help='of --head random_forest')
    group.add_argument('--neighbors', type=whole(1), help='of --head knn')
    dates = 'when the images of each date were taken, as 2024-05-31, for --backbone presto'
    group.add_argument('--dates', nargs='+', type=day, help=dates)
    place = 'where the images lie, for --backbone presto'
    group.add_argument('--location', nargs=2, type=number(-180, 180), metavar=('LAT', 'LON'), help=place)
    meters = 'pixel size of the chips in meters, where the backbone depends on it'
    group.add_argument('--resolution', type=number(0, above=True), help=meters)
    group.add_argument(
        '--freeze', help='part of the backbone to freeze: none, all, "all but norms" or a number of blocks'
    )
    group.add_argument('--layer-decay', type=number(0, 1), help='factor on the rate from block to block, such as 0.7')
    group.add_argument('--lora-rank', type=whole(1), help='train low-rank updates of a transformer alone')


def _add_loss(group: Any) -> None:
    switch = {'action': 'store_true', 'default': None}
    group.add_argument('--loss', help='such as focal, dice, tversky or lovasz; for regression mse, l1 or huber')
    group.add_argument('--dice-fraction', type=number(0, 1), help='share of dice in the loss')
    centerlines = 'share of centerline dice in the loss, for lines such as roads'
    group.add_argument('--cldice-fraction', type=number(0, 0.5), help=centerlines)
    group.add_argument('--label-smoothing', type=number(0, 1), help='share of the target spread over all classes')
    group.add_argument('--hard-pixels', type=number(0, 1), help='share of the pixels, the hardest, that count')
    group.add_argument('--class-balancing', **switch, help='weight rare classes more')
    group.add_argument('--auxiliary-head', **switch, help='train a small head on a coarse map beside the decoder')
    group.add_argument('--mixup', **switch, help='blend chips with one another (FeatureClassifier)')


def _add_fit(group: Any) -> None:
    group.add_argument('--epochs', type=whole(1), help='passes over the training chips (default 10)')
    group.add_argument('--lr', type=number(1e-12), help='learning rate; searched for if not given')
    group.add_argument('--early-stopping', action='store_true', help='end when --monitor has not improved for 5 epochs')
    group.add_argument('--monitor', default='valid_loss', help='metric that chooses the best epoch, such as miou')
    group.add_argument('--resume', action='store_true', help='continue the same training after an interruption')
    group.add_argument('--accumulate', type=whole(1), default=1, help='batches per optimizer step')
    group.add_argument('--precision', choices=['bf16', 'fp16', 'auto'], help='compute in half precision')
    group.add_argument('--ema', action='store_true', help='end with the running mean of the weights')
    group.add_argument('--tensorboard', action='store_true', help='write a log beside the checkpoints')


def read_training_chips(arguments: argparse.Namespace) -> 'ChipData':
    """Prepare the chips that `add_chips` and `add_data` took."""
    return read_chips(
        arguments,
        arguments.chips,
        chip_size=arguments.chip_size,
        extract_bands=arguments.extract_bands,
        class_mapping=class_names(arguments.class_mapping),
        ignore_classes=arguments.ignore_classes,
        normalize=arguments.normalize,
        target='values' if arguments.values else 'images' if arguments.images else None,
        **({} if arguments.downsample is None else {'downsample': arguments.downsample}),
        oversample=arguments.oversample,
        label_fraction=arguments.label_fraction,
    )


def run(arguments: argparse.Namespace) -> None:
    """Train, save, and print the validation results."""
    check_model_name(arguments.model)
    _choose_adaptation(arguments)
    import torch

    from geolearn.cli.evaluate import print_data, print_results
    from geolearn.models.registry import find_model

    cls = find_model(arguments.model)
    options = choose_options(cls, arguments)
    data = read_training_chips(arguments)
    print_data(data, arguments.option_names)
    torch.manual_seed(arguments.seed)  # new layers are drawn from it
    make: Any = cls  # each class has arguments of its own
    model: Model = make(data, **options)
    try:
        model.fit(**choose_training(model, arguments))
    finally:
        arguments.resumable = bool(model.history.epochs)
    print_results(model)
    saved = Path(model.save(arguments.name))
    print(f'wrote {saved}')
    print(f'wrote {write_config(saved.with_suffix(".yaml"), arguments)}; "geolearn train" of that file trains it again')
    if arguments.report:
        print(f'wrote {model.report(arguments.report)}')


def check_model_name(name: str) -> None:
    """Refuse what is no class of models, before torch is imported.

    Raises:
        UnknownNameError: If there is none of that name.
    """
    import geolearn
    from geolearn.errors import UnknownNameError

    known = set(geolearn.__all__) - {*geolearn.HOMES, 'load_model', '__version__'}
    if name not in known:
        raise UnknownNameError('model', name, known)


def choose_options(cls: 'type[Model]', arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of a class of models that the command line gives.

    Raises:
        ValueError: If the class has no such argument, or a value is not valid.
    """
    given = _given(arguments, MODEL_ARGUMENTS)
    taken = inspect.signature(cls).parameters
    for option, argument in MODEL_ARGUMENTS.items():
        if argument in given and argument not in taken:
            raise ValueError(f'--{option.replace("_", "-")} does not apply to {cls.__name__}; leave it out')
    loss = _choose_loss(cls, arguments, taken)
    if loss is not None:
        given['loss'] = loss
    fixed = {'pretrained': not arguments.from_scratch, 'adapt': _choose_adaptation(arguments)}
    usual = {'pretrained': True, 'adapt': fixed['adapt'].__class__()}
    if wrong := [name for name, value in fixed.items() if name not in taken and value != usual[name]]:
        named = '--from-scratch' if wrong[0] == 'pretrained' else '--freeze, --layer-decay or --lora-rank'
        raise ValueError(f'{named} does not apply to {cls.__name__}, which has no backbone; leave it out')
    return given | {name: value for name, value in fixed.items() if name in taken}


def choose_training(model: 'Model', arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of fit that the command line gives.

    Raises:
        ValueError: If the class of models has no such argument.
    """
    given: dict[str, Any] = {
        'early_stopping': arguments.early_stopping,
        'monitor': arguments.monitor,
        'resume': arguments.resume,
        'accumulate': arguments.accumulate,
        'mixed_precision': True if arguments.precision == 'auto' else arguments.precision,
        'ema': arguments.ema,
        'tensorboard': arguments.tensorboard,
    }
    taken = inspect.signature(model.fit).parameters
    usual = {'monitor': 'valid_loss', 'accumulate': 1}
    for name, value in given.items():
        if name not in taken and value not in (usual.get(name), None, False):
            option = {'mixed_precision': 'precision'}.get(name, name).replace('_', '-')
            raise ValueError(f'--{option} does not apply to {type(model).__name__}; leave it out')
    given = {name: value for name, value in given.items() if name in taken}
    return given | {name: getattr(arguments, name) for name in ('epochs', 'lr') if getattr(arguments, name) is not None}


def _given(arguments: argparse.Namespace, names: Mapping[str, str]) -> dict[str, Any]:
    values = {argument: getattr(arguments, option) for option, argument in names.items()}
    return {argument: value for argument, value in values.items() if value is not None}


def _choose_loss(
    cls: 'type[Model]', arguments: argparse.Namespace, taken: Mapping[str, Any]
) -> 'PixelLossOptions | RegressionLossOptions | str | None':
    from geolearn.chips.label import Task
    from geolearn.losses import REGRESSION_LOSSES, PixelLossOptions, RegressionLossOptions

    given = _given(arguments, LOSS_ARGUMENTS)
    if not given:
        return None
    if 'loss' not in taken or {Task.OBJECTS, Task.INSTANCES, Task.ORIENTED} & set(cls.tasks):
        raise ValueError(f'{cls.__name__} has a loss of its own; leave out --loss and the options of losses')
    if {Task.PIXELS, Task.CHANGE} & set(cls.tasks):
        return PixelLossOptions(**given)
    if Task.REGRESSION not in cls.tasks:
        if set(given) != {'loss'}:
            raise ValueError(f'{cls.__name__} takes no other option of losses than --loss')
        return str(given['loss'])
    if set(given) != {'loss'}:
        raise ValueError(f'{cls.__name__} takes no other option of losses than --loss {" or ".join(REGRESSION_LOSSES)}')
    return RegressionLossOptions(**given)


def _choose_adaptation(arguments: argparse.Namespace) -> 'Adaptation':
    from geolearn.adaptation import Adaptation

    freeze = arguments.freeze or 'none'
    return Adaptation(
        freeze=int(freeze) if freeze.isdecimal() else freeze,
        layer_decay=arguments.layer_decay,
        lora_rank=arguments.lora_rank or 0,
    )

"""geolearn train: any class of model on any backbone."""

import argparse
from typing import Any

from geolearn.cli._arguments import add_division, number, read_chips, whole

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
    group.add_argument('--loss', help='cross_entropy, focal, dice, tversky or lovasz; of numbers: mse, l1 or huber')
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
    from geolearn.cli._building import choose_options, construct, find_model
    from geolearn.cli._judging import print_scores

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

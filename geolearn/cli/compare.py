"""geolearn compare: several classes of models and backbones on the same chips, under one budget."""

import argparse

from geolearn.cli.arguments import add_chips, number, whole
from geolearn.cli.train import add_data, check_model_name, read_training_chips


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument('chips', nargs='+', help='chip folder, or several to merge')
    parser.add_argument('name', help='name of the best model, which goes beside the chips, or path of the .dlpk')
    parser.add_argument('--models', nargs='+', help='classes such as UNet; all that the labels allow if not given')
    parser.add_argument('--backbones', nargs='+', help="such as resnet50; each class's own if not given")
    parser.add_argument('--from-scratch', action='store_true', help='start from random weights, and fetch nothing')
    parser.add_argument('--table', metavar='CSV', help='write the table')
    add_chips(parser)
    add_data(parser.add_argument_group('classes and values'))
    group = parser.add_argument_group('the budget')
    group.add_argument('--time-limit', type=number(0, above=True), metavar='MINUTES', help='for all candidates')
    group.add_argument('--epochs', type=whole(1), default=16, help='of the best candidate; the worst end early')
    group.add_argument('--lr', type=number(1e-12), help='learning rate; searched for if not given')
    group.add_argument('--monitor', help='metric to compare by, such as miou; what is usual for the labels')
    group.add_argument('--resume', action='store_true', help='continue the same comparison after an interruption')
    parser.set_defaults(run=run, inputs=('chips', 'valid_path'), targets=('table',))


def run(arguments: argparse.Namespace) -> None:
    """Compare, save the best model, and print the table."""
    for name in arguments.models or ():
        check_model_name(name)
    from geolearn.cli.evaluate import print_data
    from geolearn.files import atomic_write
    from geolearn.models.compare import compare

    data = read_training_chips(arguments)
    print_data(data, arguments.option_names)
    arguments.resumable = True
    found = compare(
        data,
        arguments.models,
        backbones=arguments.backbones or (None,),
        time_limit=arguments.time_limit,
        epochs=arguments.epochs,
        lr=arguments.lr,
        monitor=arguments.monitor,
        pretrained=not arguments.from_scratch,
        seed=arguments.seed,
        resume=arguments.resume,
    )
    print(found)
    print(f'wrote {found.model.save(arguments.name)}')
    if arguments.table:
        with atomic_write(arguments.table) as part:
            found.table.to_csv(part, index=False)
        print(f'wrote {arguments.table}')

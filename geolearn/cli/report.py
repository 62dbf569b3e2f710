"""geolearn report: a page on a model, from its bundle and its chips."""

import argparse

from geolearn.cli.arguments import add_division, read_chips

HELP = 'write a page on a model and its chips'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument('model', help='the .dlpk')
    parser.add_argument('chips', nargs='+', help='the chips it was trained on, divided in the same way')
    parser.add_argument('out', help='the page to write, such as report.html, the last of the paths')
    add_division(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Judge the model on the validation chips and write the page."""
    from geolearn.chips.label import Task
    from geolearn.models import load_model

    model = load_model(arguments.model)
    spec = model.spec
    data = read_chips(
        arguments,
        arguments.chips,
        chip_size=spec.chip_size,
        class_mapping={info.value: info.name for info in spec.class_infos},
        ignore_classes=spec.ignored_values,
        extract_bands=spec.band_indexes,
        target='values' if Task.REGRESSION in model.tasks else None,
    )
    print(f'wrote {load_model(arguments.model, data).report(arguments.out)}')

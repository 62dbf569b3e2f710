"""geolearn evaluate, geolearn report: the metrics of a saved model on chips, as a table or as a page."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geolearn.cli.arguments import add_chips, check_model, class_name, class_names, class_value_or_name, read_chips
from geolearn.cli.messages import as_options

if TYPE_CHECKING:
    from geolearn.data import ChipData
    from geolearn.history import Evaluation
    from geolearn.models import Model


INPUTS = ('model', 'chips', 'valid_path')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `evaluate` takes."""
    parser.add_argument('model', help='the .dlpk')
    parser.add_argument('chips', nargs='+', help='chip folder, or several; those of the training, or others')
    parser.add_argument('--all', action='store_true', help='use every chip, none of which was trained on')
    parser.add_argument('--csv', help='write the metrics of each class to this file')
    parser.add_argument('--json', action='store_true', help='print one JSON object and nothing else')
    add_chips(parser)
    add_classes(parser)
    parser.set_defaults(run=run, inputs=INPUTS, targets=('csv',))


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `report` takes."""
    parser.add_argument('model', help='the .dlpk')
    parser.add_argument('chips', nargs='+', help='the chips it was trained on, split in the same way')
    parser.add_argument('out', help='the page to write, such as report.html, the last of the paths')
    add_chips(parser)
    add_classes(parser)
    parser.set_defaults(run=run_report, all=False, inputs=INPUTS, targets=('out',))


def add_classes(parser: argparse.ArgumentParser) -> None:
    """Add what relates the classes of chips to those of the model, which are matched by name."""
    renamed = "the model's names of classes that the chips call otherwise, such as 1=Water"
    parser.add_argument('--class-mapping', nargs='+', type=class_name, metavar='VALUE=NAME', help=renamed)
    ignored = 'classes of the chips to leave out, by label value or name; 0 for sparse labels'
    parser.add_argument('--ignore-classes', type=class_value_or_name, nargs='+', default=[], help=ignored)


def run(arguments: argparse.Namespace) -> None:
    """Print the metrics of a model on the validation chips, or on all."""
    from geolearn.files import atomic_write

    model = load_with_chips(arguments)
    if arguments.json:
        print(json.dumps(_as_json(model.evaluate()), ensure_ascii=False))
    evaluation = model.evaluate() if arguments.json else print_results(model)
    if arguments.csv:
        if evaluation.per_class is None:
            raise ValueError(f'{type(model).__name__} has no classes, so there is no table for --csv')
        with atomic_write(arguments.csv) as part:
            evaluation.per_class.to_csv(part)
        if not arguments.json:
            print(f'wrote {arguments.csv}')


def run_report(arguments: argparse.Namespace) -> None:
    """Evaluate the model on the validation chips and write the page."""
    if Path(arguments.out).is_dir():
        raise ValueError(f'{arguments.out} is a folder; name the page to write last, such as report.html')
    print(f'wrote {load_with_chips(arguments).report(arguments.out)}')


def load_with_chips(arguments: argparse.Namespace) -> 'Model':
    """Load the model with its chips, which are read as those of its training were."""
    check_model(arguments.model)
    from geolearn.models import load_model

    model = load_model(arguments.model)
    spec = model.spec
    data = read_chips(
        arguments,
        arguments.chips,
        chip_size=spec.chip_size,
        class_mapping=class_names(arguments.class_mapping),
        ignore_classes=arguments.ignore_classes,
        model_classes=spec.model_classes,
        extract_bands=spec.band_indexes,
        **_targets(model, arguments.chips),
    )
    return load_model(arguments.model, data.validating_on_all() if arguments.all else data)


def _targets(model: 'Model', chips: Sequence[str]) -> dict[str, Any]:
    """Return what the labels are, as `prepare_data` takes it: the values or images that the model predicts."""
    from geolearn.chips.label import Task
    from geolearn.models import PixelRegressor

    image = model.image_target if isinstance(model, PixelRegressor) else None
    if image is None:
        return {'target': 'values'} if Task.REGRESSION in model.tasks else {}
    # where the images are their own targets, they are made coarser; others are as fine as they lie
    alone = not any(Path(folder, name).is_dir() for folder in chips for name in ('images2', 'labels'))
    return {'target': 'images', 'downsample': image.times if alone else 1}


def _as_json(evaluation: 'Evaluation') -> dict[str, Any]:
    """Return metrics, and the table of classes by class and column; null where a metric is undefined."""
    found: dict[str, Any] = {'metrics': {name: _finite(value) for name, value in evaluation.metrics.items()}}
    if evaluation.per_class is not None:
        table = evaluation.per_class.to_dict('index')
        found['classes'] = {
            name: {column: _finite(value) for column, value in row.items()} for name, row in table.items()
        }
    return found


def _finite(value: Any) -> Any:
    number = value.item() if hasattr(value, 'item') else value
    return None if isinstance(number, float) and not math.isfinite(number) else number


def print_data(data: 'ChipData', names: Mapping[str, str]) -> None:
    """Print what was read, with its notes in words of the command line.

    Args:
        data: Chips.
        names: Options by the names of the Python arguments that they stand for.
    """
    print('\n'.join(as_options(line, names) for line in repr(data).splitlines()))


def print_results(model: 'Model') -> 'Evaluation':
    """Print and return the validation results: a row for each class, where there are classes, and the metrics."""
    from geolearn.metrics import name_metric

    evaluation = model.evaluate()
    if evaluation.per_class is not None:
        print(evaluation.per_class.to_string(float_format='{:.3f}'.format))
    metrics = [(name, math.nan if value is None else value) for name, value in evaluation.metrics.items()]
    print(', '.join(f'{name_metric(name)} {value:.4f}' for name, value in metrics), 'on the validation chips')
    return evaluation

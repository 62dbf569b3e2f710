"""geolearn show: chips with their labels, or with what a model makes of them, as a picture."""

import argparse
from pathlib import Path

from geolearn.cli.arguments import add_chips, read_chips, whole
from geolearn.cli.evaluate import load_with_chips

SUFFIXES = ('.png', '.jpg', '.jpeg', '.pdf', '.svg')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument('chips', nargs='+', help='chip folder, or several to merge')
    parser.add_argument('out', help=f'picture to write, the last of the paths: {", ".join(SUFFIXES)}')
    parser.add_argument('--model', help='a .dlpk; draw its results on the validation chips, and not training chips')
    parser.add_argument('--chip-size', type=whole(1), default=224, help='side of the images in pixels, without --model')
    add_chips(parser)
    parser.set_defaults(run=run, all=False, inputs=('chips', 'valid_path', 'model'))


def run(arguments: argparse.Namespace) -> None:
    """Draw, and say where the picture is.

    Raises:
        ValueError: If the target is no picture.
    """
    out = Path(arguments.out)
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f'{out} is no name of a picture; end it in one of {", ".join(SUFFIXES)}')
    if arguments.model:
        figure = load_with_chips(arguments).show_results()
    else:
        figure = read_chips(arguments, arguments.chips, chip_size=arguments.chip_size).show_batch()
    figure.savefig(out)
    print(f'wrote {out}')

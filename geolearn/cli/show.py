"""geolearn show: chips with their labels, what a model makes of them, or a raster; as a picture or a web page."""

import argparse
from pathlib import Path
from typing import Any

from geolearn.cli.arguments import add_chips, class_names, read_chips, whole
from geolearn.cli.evaluate import add_classes, load_with_chips
from geolearn.errors import ArgumentError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.pdf', '.svg')

CHIP_SIZE = 224

PAGES = ('.html', '.htm')
"""Suffixes of interactive maps."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument('chips', nargs='+', help='chip folder, or several to merge; or a raster, such as a map')
    out = f'picture to write, the last of the paths: {", ".join(SUFFIXES)}; or .html, an interactive map of a raster'
    parser.add_argument('out', help=out)
    parser.add_argument('--image', help='the scene to lay beneath the map, for .html')
    parser.add_argument('--model', help='a .dlpk; draw its results on the validation chips, and not training chips')
    size = f'side of the images in pixels (default {CHIP_SIZE}); a model has its own'
    parser.add_argument('--chip-size', type=whole(1), help=size)
    add_classes(parser)
    add_chips(parser)
    inputs = ('chips', 'valid_path', 'model', 'image')
    parser.set_defaults(run=run, all=False, inputs=inputs, targets=('out',))


def run(arguments: argparse.Namespace) -> None:
    """Draw, and say where the picture is.

    Raises:
        ValueError: If the target is neither a picture nor a page, or an option does not apply.
    """
    out = Path(arguments.out)
    suffix = out.suffix.lower()
    first = arguments.chips[0]
    is_raster = len(arguments.chips) == 1 and not arguments.model and _names_raster(first)
    if suffix not in SUFFIXES and not (is_raster and suffix in PAGES):
        more = ' or .html' if is_raster else ''
        raise ValueError(f'{out} is no name of a picture; end it in one of {", ".join(SUFFIXES)}{more}')
    if arguments.image and suffix not in PAGES:
        raise ValueError(f'image lies beneath an interactive map; end {out} in .html, and name a raster to show')
    refuse_unused(arguments, is_raster=is_raster)
    from geolearn.files import atomic_write

    if is_raster and suffix in PAGES:
        from geolearn.plotting.maps import show_map

        page = show_map(first, image=arguments.image).get_root().render()
        with atomic_write(out) as part:
            part.write_text(page, encoding='utf-8')
        print(f'wrote {out}')
        return
    if is_raster:
        from geolearn.plotting.maps import plot_map

        figure: Any = plot_map(first)
    elif arguments.model:
        figure = load_with_chips(arguments).show_results()
    else:
        reading: dict[str, Any] = {
            'chip_size': arguments.chip_size or CHIP_SIZE,
            'class_mapping': class_names(arguments.class_mapping),
            'ignore_classes': arguments.ignore_classes,
        }
        figure = read_chips(arguments, arguments.chips, **reading).show_batch()
    with atomic_write(out) as part:
        figure.savefig(part, format=suffix.removeprefix('.'))
    print(f'wrote {out}')


def refuse_unused(arguments: argparse.Namespace, *, is_raster: bool) -> None:
    """Refuse options that what is shown has no use for.

    Args:
        arguments: Of the command.
        is_raster: Whether a raster is shown, which has no chips; a model says itself how large its chips are.

    Raises:
        ArgumentError: With the first of them.
    """
    used = {'chips', 'out', 'image', 'model', 'help', 'verbose'}
    names = [name for name in arguments.option_names if name not in used] if is_raster else []
    if arguments.model:
        names = ['chip_size']
    parser = arguments.command_parser
    for name in names:
        if getattr(arguments, name, None) != parser.get_default(name):
            why = 'a raster is shown as it is' if is_raster else 'the model has a chip size of its own'
            option = arguments.option_names[name]
            raise ArgumentError(f'{option} does not apply, because {why}; leave it out')


def _names_raster(path: str) -> bool:
    """Whether a path is that of a file, or on another host, and not of a folder of chips."""
    return '://' in path or path.startswith('/vsi') or Path(path).is_file() or path.lower().endswith('.zarr')

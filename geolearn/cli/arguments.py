"""Arguments that several commands take, and the types of their values."""

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geolearn.data import ChipData


def whole(least: int) -> Callable[[str], int]:
    """Make an argument type: a whole number from `least`."""

    def parse(text: str) -> int:
        if not text.removeprefix('-').isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'must be a whole number from {least}, got {text!r}')
        return int(text)

    return parse


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """Make an argument type: a number from `low` to `high`."""
    span = f'from {low:g}' if high == math.inf else f'in {low:g}..{high:g}'

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f'must be a number {span}, got {text!r}')
        return value

    return parse


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add how a raster's bands and values are understood."""
    group = parser.add_argument_group('the raster')
    group.add_argument('--bands', nargs='+', help="names of the raster's bands in file order, where it names none")
    group.add_argument('--sensor', help='whose names the bands have, such as Sentinel-2 for B04')
    group.add_argument('--scale', type=float, help='multiply pixel values, where units differ')
    group.add_argument('--offset', type=float, default=0.0, help='add to pixel values after scaling')


def reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_reading` took, as the methods of models call it."""
    return {name: getattr(arguments, name) for name in ('bands', 'sensor', 'scale', 'offset')}


def add_division(parser: argparse.ArgumentParser) -> None:
    """Add how chips are read and divided; a report needs what the training was told."""
    group = parser.add_argument_group('the chips')
    group.add_argument('--batch-size', type=whole(2), default=8)
    group.add_argument('--valid', type=number(0, 1), default=0.1, help='share to validate on (default %(default)s)')
    group.add_argument('--split', default='random', help='random, stratified, blocks, latitude, or a file of lists')
    group.add_argument('--block-size', type=number(0), help='side of a block in map units, for --split blocks')
    group.add_argument('--dataset-type', help='format of the chips, where they do not say')
    group.add_argument('--chip-bands', '--bands', nargs='+', help='names of the bands, where the export names none')
    group.add_argument('--seed', type=whole(0), default=42)


def read_chips(arguments: argparse.Namespace, chips: list[str], **more: Any) -> 'ChipData':
    """Prepare chip folders as `add_division` took it.

    Args:
        arguments: Of the command line.
        chips: The folders.
        more: Other arguments of `geolearn.prepare_data`.
    """
    from geolearn.prepare import prepare_data

    return prepare_data(
        chips,
        val_split_pct=arguments.valid,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        dataset_type=arguments.dataset_type,
        split=arguments.split,
        block_size=arguments.block_size,
        bands=arguments.chip_bands,
        **more,
    )

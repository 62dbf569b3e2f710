"""Arguments that several commands take, and the types of their values."""

import argparse
import difflib
import errno
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, Literal, NoReturn

if TYPE_CHECKING:
    from geolearn.bands import Band
    from geolearn.data import ChipData

NO_WAVELENGTH = 'none'
"""Stands for a radar band among wavelengths."""


class Formatter(argparse.HelpFormatter):
    """Help that ends with the default of an option, where there is one; examples stay in lines of their own."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith('examples:') else super()._fill_text(text, width, indent)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ''
        told = '%(default)' in text or 'default' in text or action.default == argparse.SUPPRESS
        nothing = action.default is None or action.default is False or action.default == []
        if not action.option_strings or told or nothing:
            return text
        return f'{text} (default %(default)s)'.lstrip()


_NEGATIVE = re.compile(r'-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?(=.*)?$')
"""Words that are values and no options: negative numbers, and those with a name."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are a line, and whose help that cannot be written is an error: argparse passes over it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # argparse takes -3.4028235e+38, a usual NoData value, and -1=void for options
        self._negative_number_matcher = _NEGATIVE

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse words; those that no option takes are an error of the command, which names the nearest option."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            command: Parser = getattr(found, 'command_parser', self)
            options = [option for action in command._actions for option in action.option_strings]
            near = difflib.get_close_matches(rest[0].partition('=')[0], options, 1) if rest[0][:1] == '-' else []
            hint = f'; did you mean {near[0]}?' if near else ''
            command.error(f'unrecognized arguments: {" ".join(rest)}{hint}')
        return found

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the options are listed, which argparse prints whole."""
        self.exit(2, f'{self.prog}: error: {message}; see {self.prog} --help\n')

    def _print_message(self, message: str, file: Any = None) -> None:
        stream = file or sys.stderr
        try:
            stream.write(message)
            stream.flush()
        except OSError as error:
            if stream is sys.stdout:
                raise OSError(error.errno, error.strerror, 'standard output') from error


class PrintCompletion(argparse.Action):
    """Print what makes a shell complete commands, options and files, and end."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Print the script of the shell that was named."""
        from geolearn import extras

        shtab = extras.require('shtab', extra='completion', to='complete commands')
        commands = next(action for action in parser._actions if action.dest == 'command').choices or {}
        for command in dict(commands).values():
            for action in command._actions:
                if action.choices is None and action.nargs != 0 and not isinstance(action.default, int | float):
                    action.complete = shtab.FILE
        print(shtab.complete(parser, shell=values))
        parser.exit()


def check_paths(arguments: argparse.Namespace) -> None:
    """Refuse inputs that do not exist and results that cannot be written, before torch is imported and work begins.

    Args:
        arguments: With the names of those that are inputs as `inputs`, and of files to write as `targets`. What GDAL
            opens by other names is left to it: URLs, `/vsi` paths, and subdatasets such as ``NETCDF:a.nc:ndvi``.

    Raises:
        FileNotFoundError: If an input or the folder of a result does not exist.
        ValueError: If a result exists and is not to be replaced.
    """
    for name in getattr(arguments, 'inputs', ()):
        for path in _paths(arguments, name):
            if not os.path.exists(path):
                raise FileNotFoundError(errno.ENOENT, 'does not exist', path)
    if getattr(arguments, 'each', False):  # the result is a folder, which is made
        return
    for name in getattr(arguments, 'targets', ()):
        for path in _paths(arguments, name):
            folder = os.path.dirname(os.path.expanduser(path)) or os.curdir
            if not os.path.isdir(folder):
                raise FileNotFoundError(errno.ENOENT, f'the folder {folder} does not exist; create it first', path)
            if name == 'dst' and not arguments.overwrite and os.path.exists(os.path.expanduser(path)):
                # a forgotten target would make the last image the target
                raise ValueError(f'{path} exists; name the result to write last, or pass --overwrite to replace it')


def check_model(path: str) -> None:
    """Refuse what is no bundle of geolearn, before torch is imported.

    Raises:
        BundleError: If it is none.
    """
    from geolearn.bundle import read_emd

    read_emd(path)


def _paths(arguments: argparse.Namespace, name: str) -> list[str]:
    """Return the values of an argument that are paths of this machine."""
    given = getattr(arguments, name, None) or []
    listed = [given] if isinstance(given, str) else given
    return [path for path in listed if ':' not in path and not path.startswith('/vsi') and '\0' not in path]


def whole(minimum: int) -> Callable[[str], int]:
    """Make an argument type: a whole number from `minimum`."""

    def parse(text: str) -> int:
        if not (text.removeprefix('-').isascii() and text.removeprefix('-').isdecimal()) or int(text) < minimum:
            raise argparse.ArgumentTypeError(f'must be a whole number from {minimum}, got {text!r}')
        if int(text) > 2**31 - 1:
            raise argparse.ArgumentTypeError(f'must be at most {2**31 - 1}, got {text!r}')
        return int(text)

    return parse


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    """Make an argument type: a finite number from `low` to `high`; or `above` low, without it."""
    span = 'finite' if low == -math.inf else f'{"above" if above else "from"} {low:g}'
    span = span if high == math.inf else f'in {low:g}..{high:g}'

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)) or (above and value == low):
            wanted = 'a finite number' if span == 'finite' else f'a number {span}'
            raise argparse.ArgumentTypeError(f'must be {wanted}, got {text!r}')
        return value

    return parse


def part(text: str) -> tuple[int, int]:
    """Parse which of several parts of a map to compute, such as ``3/40``."""
    number, slash, count = text.partition('/')
    found = whole(1)(number), whole(1)(count) if slash else 0
    if found[0] > found[1]:
        raise argparse.ArgumentTypeError(f'must be a part and how many there are, such as 3/40, got {text!r}')
    return found


def scale_factor(text: str) -> float | Literal['db']:
    """Parse a factor of pixel values, which is never 0, or ``'db'``."""
    if text == 'db':
        return 'db'
    value = number()(text)
    if value == 0:
        raise argparse.ArgumentTypeError('must not be 0, which makes all pixels equal')
    return value


def class_value_or_name(text: str) -> int | str:
    """Parse a class: a whole number is a label value, all else a name."""
    return int(text) if text.removeprefix('-').isdecimal() and text.isascii() else text


def class_name(text: str) -> tuple[int, str]:
    """Parse the name of a class, such as ``1=Water``."""
    value, sign, name = text.partition('=')
    if not sign or not name.strip() or not (value.removeprefix('-').isdecimal() and value.isascii()):
        raise argparse.ArgumentTypeError(f'must be VALUE=NAME, such as 1=Water, got {text!r}')
    return int(value), name


def class_names(pairs: Sequence[tuple[int, str]] | None) -> dict[int, str] | None:
    """Return the names of classes by label value, None where none are given.

    Raises:
        ValueError: If a label value has two names.
    """
    names: dict[int, str] = {}
    for value, name in pairs or ():
        if names.setdefault(value, name) != name:
            raise ValueError(f'--class-mapping names the label value {value} twice: {names[value]!r} and {name!r}')
    return names or None


SPLITS = ('published', 'random', 'stratified', 'blocks', 'latitude')
"""Those of `geolearn.chips.splits.divide`, which help does not wait for."""

NORMALIZATIONS = ('dataset', 'minmax', 'robust', 'imagenet', 'pretraining')
"""Those of `geolearn.normalize`."""


def split(text: str) -> str:
    """Parse how chips are divided: a word, or a file of lists."""
    if text in SPLITS or os.path.isfile(text):
        return text
    if os.path.splitext(text)[1]:
        raise argparse.ArgumentTypeError(f'there is no file {text!r}')
    from geolearn.errors import UnknownNameError

    raise argparse.ArgumentTypeError(str(UnknownNameError('split', text, SPLITS)))


def sensor(text: str) -> str:
    """Parse the name of a sensor."""
    from geolearn.bands import find_sensor, list_sensors
    from geolearn.errors import UnknownNameError

    if text != 'Undefined' and find_sensor(text) is None:
        raise argparse.ArgumentTypeError(str(UnknownNameError('sensor', text, list_sensors())))
    return text


def wavelength(text: str) -> float | None:
    """Parse a wavelength in micrometers, or ``none`` for a radar band."""
    return None if text.lower() == NO_WAVELENGTH else number(0, above=True)(text)


def day(text: str) -> date:
    """Parse a day, such as ``2024-05-31``."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'must be a day such as 2024-05-31, got {text!r}') from None


def nodata_value(text: str) -> float | None:
    """Parse a NoData value: a number, ``nan``, or ``none`` for a band that has none."""
    if text.lower() == 'none':
        return None
    return math.nan if text.lower() == 'nan' else number()(text)


def one_or_each(values: Sequence[float | None] | None) -> Any:
    """Return one NoData value for all bands, or the list of one for each."""
    return values[0] if values is not None and len(values) == 1 else values


def pixel_size(text: str) -> float | str:
    """Parse a pixel size, or ``training``, which stands for that of the training chips."""
    return text if text == 'training' else number(0, above=True)(text)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add how a raster's bands and values are understood."""
    group = parser.add_argument_group('the raster')
    group.add_argument('--bands', nargs='+', help="names of the raster's bands in file order, where it names none")
    group.add_argument('--sensor', type=sensor, help='whose names the bands have, such as Sentinel-2 for B04')
    group.add_argument(
        '--scale',
        type=scale_factor,
        help='multiply pixel values, where units differ; db makes decibels of radar bands that are linear power',
    )
    group.add_argument('--offset', type=number(), default=0.0, help='add to pixel values after scaling')
    add_nodata(group)
    add_embeddings(group)
    size = 'pixel size to resample to while reading, in units of the CRS, or "training" for that of the chips'
    group.add_argument('--resolution', type=pixel_size, help=size)
    taken = 'when the image of each date was taken, as 2024-05-31, for models that read it, where the files do not say'
    group.add_argument('--dates', nargs='+', type=day, metavar='DAY', help=taken)


def add_nodata(group: Any) -> None:
    """Add the value of pixels without data, where a raster does not tell."""
    text = 'value of missing pixels where the file tells none: one, or one for each band; nan and none are values too'
    group.add_argument('--nodata', type=nodata_value, nargs='+', metavar='VALUE', help=text)


def add_unlabelled(group: Any) -> None:
    """Add the label values that mean no class, where a label raster does not tell."""
    text = 'label values that mean "not labelled", such as -1 or 255, besides NoData of the label rasters; '
    text += 'without a value, 0 is a class too'
    group.add_argument('--unlabelled', type=number(), nargs='*', metavar='VALUE', help=text)


def add_embeddings(group: Any) -> None:
    """Add how precomputed embeddings are read."""
    text = 'read the codes of precomputed embeddings as vectors; predict does what the model was trained with'
    group.add_argument('--dequantize', choices=['alphaearth', 'tessera'], help=text)
    text = 'name and version of precomputed embeddings, such as "alphaearth v1", where the file does not say'
    group.add_argument('--product', help=text)


def reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_reading` took, as the methods of models call it."""
    given = {name: getattr(arguments, name) for name in ('bands', 'sensor', 'scale', 'offset', 'resolution')}
    dates = {} if arguments.dates is None else {'dates': arguments.dates}
    return given | dates | {'nodata': one_or_each(arguments.nodata)}


def add_chips(parser: argparse.ArgumentParser) -> None:
    """Add how chips are read and split; an evaluation needs what the training had."""
    group = parser.add_argument_group('the chips')
    group.add_argument('--batch-size', type=whole(2), default=8, help='chips per batch')
    group.add_argument('--valid', type=number(0, 1), default=0.1, help='share to validate on')
    group.add_argument('--valid-path', nargs='+', default=[], help='folders to validate on, instead of a share')
    parts = (
        'published (random where the data set states none), random, stratified, blocks, latitude, or a file of lists'
    )
    group.add_argument('--split', type=split, default='published', help=parts)
    group.add_argument(
        '--block-size', type=number(0, above=True), help='side of a block in map units, for --split blocks'
    )
    kinds = 'format of the chips, where they do not say, or the data set, such as hls_burn_scars'
    group.add_argument('--dataset-type', '--dataset', help=kinds)
    group.add_argument('--bands', nargs='+', help='names of the bands, where the export names none')
    whose = 'whose bands they are, such as Sentinel-2; alone, or with --bands'
    group.add_argument('--sensor', type=sensor, help=whose)
    add_nodata(group)
    add_unlabelled(group)
    _add_oriented(group)
    add_embeddings(group)
    group.add_argument('--seed', type=whole(0), default=42, help='of the split, the order, crops and augmentation')


BOX_ANGLES = 'deg_cw deg_ccw rad_cw rad_ccw detectron2 mmrotate opencv torchvision ultralytics'.split()
"""Those of `geolearn.chips.formats.angles`, which the help does not wait for."""


def _add_oriented(group: Any) -> None:
    text = 'program or unit of the angles of boxes of five numbers, for --dataset-type COCO_OBB'
    group.add_argument('--box-angles', choices=BOX_ANGLES, help=text)
    text = 'least share of an oriented object in the chip for it to stay (default 0.7)'
    group.add_argument('--keep-visible', type=number(0, 1), help=text)
    text = 'with a smaller share, down to this one, it is ignored; below it is left out'
    group.add_argument('--ignore-visible', type=number(0, 1), help=text)


def read_chips(arguments: argparse.Namespace, chips: Sequence[str], **more: Any) -> 'ChipData':
    """Prepare chip folders as `add_chips` took it.

    Args:
        arguments: Of the command line.
        chips: The folders.
        more: Other arguments of `geolearn.prepare_data`.
    """
    from geolearn.prepare import prepare_data

    shares = {name: getattr(arguments, name) for name in ('keep_visible', 'ignore_visible')}
    return prepare_data(
        chips,
        **{
            'val_split_pct': arguments.valid,
            'valid_path': arguments.valid_path,
            'batch_size': arguments.batch_size,
            'seed': arguments.seed,
            'dataset_type': arguments.dataset_type,
            'split': arguments.split,
            'block_size': arguments.block_size,
            'bands': choose_bands(arguments.bands, arguments.sensor),
            'nodata': one_or_each(arguments.nodata),
            'unlabelled': arguments.unlabelled,
            'dequantize': arguments.dequantize,
            'product': arguments.product,
            'box_angles': arguments.box_angles,
        }
        | {name: share for name, share in shares.items() if share is not None}
        | more,
    )


def choose_bands(names: Sequence[str] | None, sensor: str | None) -> 'Sequence[Band] | Sequence[str] | None':
    """Return the bands that ``--bands`` and ``--sensor`` name: a sensor alone means all of its bands.

    Raises:
        UnknownNameError: If there is no such sensor.
        BandError: If the sensor has no fixed bands, and none are named.
    """
    from geolearn.bands import find_sensor, get_bands, list_sensors, resolve_bands
    from geolearn.errors import UnknownNameError

    if sensor is None:
        return names
    if find_sensor(sensor) is None:
        raise UnknownNameError('sensor', sensor, list_sensors())
    return get_bands(sensor) if names is None else resolve_bands(names, sensor=sensor)

"""Classes as people know them (value, name, color) and the index that training uses."""

import colorsys
import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

import numpy as np
import yaml

from geolearn.errors import ChipFolderError

IGNORE_INDEX = 255
"""Label of pixels that take no part in loss or metrics. 255 keeps masks in one byte."""

MAX_CLASSES = 255
"""Indices 0..254 are classes; more would collide with IGNORE_INDEX."""


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """One class of a label raster.

    Args:
        value: Pixel value in the label raster and in predicted maps.
        name: Name shown to people.
        color: Red, green, blue in 0..255.
    """

    value: int
    name: str
    color: tuple[int, int, int]


UNLABELLED = ClassInfo(0, 'NoData', (0, 0, 0))
"""What label value 0 is called when it is trained as a class of its own, as ArcGIS does unless it is ignored."""


def is_unlabelled(info: ClassInfo) -> bool:
    """Whether a class is `UNLABELLED`, whatever its color, and not one that the user gave the value 0."""
    return (info.value, info.name) == (UNLABELLED.value, UNLABELLED.name)


_DEFAULT_NAMES = (UNLABELLED.name, 'NoChange', 'Change')


def is_default_name(value: int, name: str) -> bool:
    """Whether a class has no name of its own: it is called by its value, or as geolearn calls unnamed classes."""
    return name == str(value) or name in _DEFAULT_NAMES


def same_class(one: ClassInfo, other: ClassInfo) -> bool:
    """Whether two classes have the same label value and name; a class without a name of its own is any of its value."""
    unnamed = any(is_default_name(info.value, info.name) for info in (one, other))
    return one.value == other.value and (unnamed or tidy_name(one.name) == tidy_name(other.name))


@dataclass(frozen=True, slots=True)
class ModelClasses:
    """What a model makes of label values.

    Args:
        infos: Its classes; position is the output channel.
        ignored: Label values that took no part in its training.
    """

    infos: tuple[ClassInfo, ...]
    ignored: tuple[int, ...] = ()


MANY_CLASSES = 1024
"""Above this many classes colors repeat, and choosing them by name takes seconds that nobody sees the use of."""


@cache
def default_color(position: int) -> tuple[int, int, int]:
    """Choose a color for the class at `position`; neighbors differ strongly (golden-ratio hues)."""
    hue = (0.33 + position * 0.61803398875) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + 0.3 * (position % 2), 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def _plain(name: str) -> str:
    """Return a name in lower case with single blanks and without accents; ``SeaLake`` becomes ``sea lake``."""
    apart = re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', name)
    folded = unicodedata.normalize('NFKD', apart.casefold().translate(str.maketrans('łøđæœı', 'lodaoi')))
    return ' '.join(
        re.split(r'[^a-z0-9\']+', ''.join(sign for sign in folded if not unicodedata.combining(sign)))
    ).strip()


@cache
def _usual_colors() -> tuple[tuple[tuple[int, int, int], tuple[str, ...], frozenset[str]], ...]:
    """Return color, parts of names and whole words of each row of class_colors.yaml."""
    text = (files('geolearn') / 'class_colors.yaml').read_text(encoding='utf-8')
    return tuple(
        (tuple(row['color']), tuple(map(str, row['within'])), frozenset(map(str, row.get('words', ()))))
        for row in yaml.load(text, Loader=yaml.CSafeLoader)
    )


@lru_cache(maxsize=1024)
def named_color(name: str) -> tuple[int, int, int] | None:
    """Return the usual color of what a class is called, such as blue for water; None where the name says nothing.

    Known are the classes of ESA WorldCover, CORINE, NLCD and other tables of land cover, and the main words for them in
    other European languages.
    """
    plain = _plain(name)
    words = set(plain.split())
    return next(
        (color for color, parts, whole in _usual_colors() if words & whole or any(p in plain for p in parts)), None
    )


DISTINCT = 0.12
"""Distance of two colors in OKLab from which on nobody takes one for the other in a figure."""

MANY_COLORS = 64
"""Among more colors than these there is none that is far from all."""

# to cone responses, to OKLab (Ottosson 2020), and what linear colors look like to deuteranopes (Machado et al. 2009)
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_DEUTERANOPE = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)


def _seen(colors: Iterable[tuple[int, int, int]]) -> np.ndarray:
    """Return colors (n) as (2, n, 3) in OKLab: as most people see them, and as deuteranopes do."""
    parts = np.array(list(colors), np.float64).reshape(-1, 3) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    both = np.stack([linear, np.clip(linear @ _DEUTERANOPE.T, 0, 1)])
    made: np.ndarray = np.cbrt(both @ _TO_CONES.T) @ _TO_OKLAB.T
    return made


def color_distances(one: Iterable[tuple[int, int, int]], other: Iterable[tuple[int, int, int]]) -> np.ndarray:
    """Return how far colors are apart in OKLab, (n, m), as seen by whom they are less so: about 0 to 1."""
    first, second = _seen(one), _seen(other)
    distances: np.ndarray = np.linalg.norm(first[:, :, None] - second[:, None], axis=-1).min(axis=0)
    return distances


def _distinct_color(position: int, taken: Collection[tuple[int, int, int]]) -> tuple[int, int, int]:
    """Return the first `default_color` from a position on that is far from those taken, else the farthest."""
    candidates = [default_color(at) for at in range(position, position + MANY_COLORS)]
    free = [color for color in candidates if color not in taken] or candidates
    if not taken or len(taken) > MANY_COLORS:
        return free[0]
    nearest = color_distances(free, taken).min(axis=1)
    far = np.flatnonzero(nearest >= DISTINCT)
    return free[int(far[0]) if len(far) else int(nearest.argmax())]


def choose_color(name: str, position: int, taken: Collection[tuple[int, int, int]] = ()) -> tuple[int, int, int]:
    """Choose a color for a class that has none: what is usual for its name, in another shade if that is taken.

    Names that say nothing get a `default_color` that people, color-blind ones too, do not take for one of the others.

    Args:
        name: Of the class.
        position: Of the class among all.
        taken: Colors of other classes.
    """
    usual = named_color(name)
    if usual is None:
        return _distinct_color(position, taken)
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in usual))
    for step in range(64):
        # darker and lighter in turn, of the same hue: all kinds of forest stay green
        factor = 1 + (0.14 * ((step + 1) // 2)) * (-1 if step % 2 else 1)
        shade = colorsys.hsv_to_rgb(hue, min(1, max(0, saturation * (2 - factor))), min(1, max(0.15, value * factor)))
        color = round(shade[0] * 255), round(shade[1] * 255), round(shade[2] * 255)
        if color not in taken:
            return color
    return usual


def color_classes(rows: Iterable[tuple[int, str, tuple[int, int, int] | None]]) -> tuple[ClassInfo, ...]:
    """Make classes of values, names and colors; those without a color get one that suits the name and is not taken."""
    listed = list(rows)
    if len(listed) > MANY_CLASSES:
        return tuple(
            ClassInfo(value, name, default_color(position) if color is None else color)
            for position, (value, name, color) in enumerate(listed)
        )
    chosen = {at: color for at, (_, _, color) in enumerate(listed) if color is not None}
    # names that have a usual color come first: the others go out of their way
    for usual in (True, False):
        for at, (_, name, _) in enumerate(listed):
            if at not in chosen and (named_color(name) is not None) == usual:
                chosen[at] = choose_color(name, at, set(chosen.values()))
    return tuple(ClassInfo(value, name, chosen[at]) for at, (value, name, _) in enumerate(listed))


def tidy_name(text: object) -> str:
    """Return the name of a class as names are compared: accents written in one way, no blanks at the ends."""
    return unicodedata.normalize('NFC', str(text)).strip()


def index_table(
    classes: Iterable[ClassInfo],
    ignored_values: Iterable[int] = (),
    *,
    max_classes: int = MAX_CLASSES,
    ignored_index: int = IGNORE_INDEX,
) -> np.ndarray:
    """Build the lookup from label value to class index.

    Args:
        classes: Trained classes; their order gives the index.
        ignored_values: Values that take no part.
        max_classes: How many classes there may be; more only where indices need not fit a byte.
        ignored_index: What ignored values become.

    Returns:
        int16 array of 65,536 entries: index, `ignored_index`, or -1 for a value that belongs to no class.

    Raises:
        ChipFolderError: If there are more than `max_classes` classes or a value does not fit 16 bits.
    """
    trained = list(classes)
    if len(trained) > max_classes:
        raise ChipFolderError(f'found {len(trained)} classes, but at most {max_classes} can be trained; merge some')
    table = np.full(65536, -1, np.int16)
    for value in ignored_values:
        table[_checked(value)] = ignored_index
    for index, info in enumerate(trained):
        table[_checked(info.value)] = index
    return table


def _checked(value: int) -> int:
    if not 0 <= value < 65536:
        raise ChipFolderError(f'class value {value} is outside 0..65535, the range of a label raster')
    return value

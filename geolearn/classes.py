"""Classes as people know them (value, name, color) and the index that training uses."""

import colorsys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

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


def default_color(position: int) -> tuple[int, int, int]:
    """Choose a color for the class at `position`; neighbours differ strongly (golden-ratio hues)."""
    hue = (0.33 + position * 0.61803398875) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + 0.3 * (position % 2), 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


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

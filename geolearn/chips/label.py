"""What is known about a chip, whatever format it came in."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, get_args

import numpy as np

from geolearn.classes import ClassInfo
from geolearn.errors import UnknownNameError

Target = Literal['classes', 'values']
"""What the pixels of label rasters are: values of classes, or numbers to learn as they are."""


def check_target(target: object) -> None:
    """Raise UnknownNameError unless `target` is None or one of `Target`."""
    if target is not None and target not in get_args(Target):
        raise UnknownNameError('target', str(target), get_args(Target))


class Task(StrEnum):
    """What the labels of a chip folder teach."""

    PIXELS = 'pixels'
    """A class per pixel: `Label.raster`."""
    REGRESSION = 'values'
    """A number per pixel, such as biomass or height: `Label.raster` of float32."""
    CHANGE = 'change'
    """Two dates of one place and a class per pixel of what changed: `Label.raster`."""
    OBJECTS = 'objects'
    """Boxes: `Label.class_ids` and `Label.boxes`."""
    INSTANCES = 'instances'
    """Outlined objects: `Label.class_ids`, `Label.boxes` and `Label.masks`."""
    PANOPTIC = 'panoptic'
    """A class per pixel and outlined objects: all of them."""
    LABEL = 'label'
    """One class per chip: a single entry in `Label.class_ids`."""
    LABELS = 'labels'
    """Any number of classes per chip: `Label.class_ids`."""
    UNLABELLED = 'unlabelled'
    """Images alone, for pretraining and inference."""


def _no_class_ids() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """The truth about one chip, in class values and in pixels of the chip.

    Args:
        raster: (height, width) integers, 0 where unlabelled; or float32 numbers, NaN where there is no truth; or None.
        class_ids: (n,) int64 class values of the objects, or of the chip as a whole.
        boxes: (n, 4) float32 left, top, right, bottom, 0 <= left < right <= width and so downwards; or None.
        masks: For each object a boolean (height, width); objects may overlap. None where objects have no outline.
        skipped: Why something in the label was left out, one text for each thing, such as ``'box outside the chip'``;
            equal texts are counted together over all chips.
    """

    raster: np.ndarray | None = None
    class_ids: np.ndarray = field(default_factory=_no_class_ids)
    boxes: np.ndarray | None = None
    masks: tuple[np.ndarray, ...] | None = None
    skipped: tuple[str, ...] = ()


def class_lookup(classes: Iterable[ClassInfo]) -> dict[str, int]:
    """Return the class value of each text that names a class: its value as digits, or its name; values go first."""
    known = list(classes)
    return {info.name: info.value for info in known} | {str(info.value): info.value for info in known}


def mask_boxes(masks: Iterable[np.ndarray]) -> np.ndarray:
    """Return the tight box (n, 4) float32 of each boolean mask (height, width), none of which may be empty."""
    boxes = []
    for mask in masks:
        rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append((cols[0], rows[0], cols[-1] + 1, rows[-1] + 1))
    return np.array(boxes, np.float32).reshape(-1, 4)

"""What is known about a chip, whatever format it came in."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from geolearn.classes import ClassInfo
from geolearn.errors import UnknownNameError
from geolearn.raster import Dequantize, GeoBox
from geolearn.raster.scaling import Scaling

Target = Literal['classes', 'values', 'images']
"""What the pixels of label rasters are: values of classes, regression targets as they are, or images to predict."""


def check_target(target: object) -> None:
    """Raise UnknownNameError unless `target` is None or one of `Target`."""
    if target is not None and target not in get_args(Target):
        raise UnknownNameError('target', str(target), get_args(Target))


class Task(StrEnum):
    """Task of the labels of a chip folder."""

    PIXELS = 'pixels'
    """A class per pixel: `Label.raster`."""
    REGRESSION = 'values'
    """A number per pixel, such as biomass or height: `Label.raster` of float32."""
    CHANGE = 'change'
    """Two dates of one place and a class per pixel of what changed: `Label.raster`."""
    OBJECTS = 'objects'
    """Boxes: `Label.class_ids` and `Label.boxes`."""
    ORIENTED = 'oriented'
    """Oriented boxes: `Label.class_ids`, `Label.turned`, and `Label.boxes` around them."""
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
        raster: (height, width) integers, any where `unlabelled`; or float32 numbers, NaN where there is no truth; or of
            images to predict (bands, height, width) float32, which may be finer by a whole number; or None.
        class_ids: (n,) int64 class values of the objects, or of the chip as a whole.
        boxes: (n, 4) float32 left, top, right, bottom, 0 <= left < right <= width and so downwards; or None.
        masks: For each object a boolean (height, width); objects may overlap. None where objects have no outline.
        skipped: Why something in the label was left out, one text for each thing, such as ``'box outside the chip'``;
            equal texts are counted together over all chips.
        unlabelled: (height, width) bool, True where `raster` says nothing; None where it does everywhere.
        turned: (n, 5) float32 oriented boxes x, y, width, height, angle in the form le90, which may reach beyond the
            chip; or None. See `geolearn.oriented.geometry`.
        place: Where the file of the label lies; None where it has no place, or is no raster.
        scaling: Scale and offset that the file of numbers states.
        ignored: (n,) bool, True for objects that are neither to be detected nor background, such as DOTA's difficult
            ones; or None.
    """

    raster: np.ndarray | None = None
    class_ids: np.ndarray = field(default_factory=_no_class_ids)
    boxes: np.ndarray | None = None
    masks: tuple[np.ndarray, ...] | None = None
    skipped: tuple[str, ...] = ()
    unlabelled: np.ndarray | None = None
    turned: np.ndarray | None = None
    ignored: np.ndarray | None = None
    place: GeoBox | None = None
    scaling: Scaling = ()


BOX_TASKS = frozenset({Task.OBJECTS, Task.ORIENTED, Task.INSTANCES, Task.PANOPTIC})
"""Tasks whose labels list objects."""


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


LabelReader = Callable[[tuple[int, int]], Label]
"""Reads a label, given height and width of its image. Picklable (a `functools.partial` of a module's function), because
worker processes read too. Raises ChipFolderError or RasterError, naming the file."""


ImageReader = Callable[[], tuple[np.ndarray, np.ndarray | None, GeoBox]]


@dataclass(frozen=True, slots=True)
class ChipSource:
    """The files of one chip.

    Args:
        name: Unique within the folder, such as ``'000000001'`` or ``'forest/000000001'``.
        dates: For each date the files of its image: one that holds all bands, or one for each band.
        labels: Files that the label is read from; the pack is made anew when one of them changes.
        read_label: Reads the label.
        dates_in_file: Dates that the one file in `dates` holds, the bands of a date together.
        nodata: Values that mean NoData beside what the files say: one for all bands, or one for each; empty for none.
        read_image: Returns pixels, mask and geobox of chips that lie in no file of their own; None reads `dates`.
        dequantize: Read the codes of embeddings in the file as vectors.
        read_as: What decides how the files are read besides themselves, such as the convention of angles or the dates
            that are taken; the pack is made anew when it changes.
    """

    name: str
    dates: tuple[tuple[Path, ...], ...]
    labels: tuple[Path, ...]
    read_label: LabelReader
    dates_in_file: int = 1
    nodata: tuple[float, ...] = ()
    read_image: ImageReader | None = None
    dequantize: Dequantize | None = None
    read_as: str = ''

    @property
    def image(self) -> Path:
        """The first file, for messages."""
        return self.dates[0][0]


@dataclass(frozen=True)
class Listing:
    """What a folder of chips holds, before any image is read.

    Args:
        task: Task of its labels.
        chips: In order of name.
        classes: Classes that the folder lists; None where only the labels' pixels tell, as in plain label rasters.
        band_names: What the format itself says about the bands; None leaves it to the .emd and the images.
        sensor: The same about the sensor.
        notes: What was left out and why, for people, such as ``'3 images have no label and were left out'``.
        nodata: The chips' `nodata`.
        unlabelled: Label values that mean "not labelled" beside what label rasters declare.
        target_bands: Names of the bands of images to predict; empty where labels are no images.
        downsample: Times that the pixels of the images are larger than those of the files, which are the targets.
        pixel_meters: Side of the images' pixels in meters, where labels say it; None where they do not.
        acquired: When the images of each date were taken, where the format itself says it.
        parts: Names of the chips of each part, ``'train'``, ``'valid'`` and ``'test'``, that a data set publishes;
            chips in none of them are in no part. Empty where it publishes none.
        numbered: Whether class values only count the names in their order, as nothing states them: another folder may
            count others.
    """

    task: Task
    chips: tuple[ChipSource, ...]
    classes: tuple[ClassInfo, ...] | None
    band_names: tuple[str, ...] | None = None
    sensor: str | None = None
    notes: tuple[str, ...] = ()
    nodata: tuple[float, ...] = ()
    unlabelled: tuple[float, ...] = ()
    target_bands: tuple[str, ...] = ()
    downsample: int = 1
    pixel_meters: float | None = None
    acquired: tuple[date, ...] = ()
    parts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    numbered: bool = False


def read_no_label(shape: tuple[int, int]) -> Label:
    """Return an empty label: the reader of images that have none."""
    return Label()

"""Which files make up a chip, and what a folder of them amounts to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from geolearn.chips.label import Label, Task
from geolearn.classes import ClassInfo

LabelReader = Callable[[tuple[int, int]], Label]
"""Reads a label, given height and width of its image. Picklable (a `functools.partial` of a module's function), because
worker processes read too. Raises ChipFolderError or RasterError, naming the file."""


@dataclass(frozen=True, slots=True)
class ChipSource:
    """The files of one chip.

    Args:
        name: Unique within the folder, such as ``'000000001'`` or ``'forest/000000001'``.
        dates: For each date the files of its image: one that holds all bands, or one for each band.
        labels: Files that the label is read from; the pack is made anew when one of them changes.
        read_label: Reads the label.
        dates_in_file: Dates that the one file in `dates` holds, the bands of a date together.
    """

    name: str
    dates: tuple[tuple[Path, ...], ...]
    labels: tuple[Path, ...]
    read_label: LabelReader
    dates_in_file: int = 1

    @property
    def image(self) -> Path:
        """The first file, for messages."""
        return self.dates[0][0]


@dataclass(frozen=True)
class Listing:
    """What a folder of chips holds, before any image is read.

    Args:
        task: What its labels teach.
        chips: In order of name.
        classes: Classes that the folder lists; None where only the labels' pixels tell, as in plain label rasters.
        band_names: What the format itself says about the bands; None leaves it to the .emd and the images.
        sensor: The same about the sensor.
        notes: What was left out and why, for people, such as ``'3 images have no label and were left out'``.
    """

    task: Task
    chips: tuple[ChipSource, ...]
    classes: tuple[ClassInfo, ...] | None
    band_names: tuple[str, ...] | None = None
    sensor: str | None = None
    notes: tuple[str, ...] = ()


def read_no_label(shape: tuple[int, int]) -> Label:
    """Return an empty label: the reader of images that have none."""
    return Label()

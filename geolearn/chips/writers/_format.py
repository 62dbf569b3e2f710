"""What every format writer is: it names the image of a chip, writes its label, and finishes the folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from geolearn.chips.label import Label, Task
from geolearn.classes import ClassInfo
from geolearn.errors import ChipFolderError
from geolearn.raster import GeoBox
from geolearn.raster.images import write_image


@dataclass(frozen=True, slots=True)
class ChipFile:
    """An image that is being written.

    Args:
        stem: Twelve digits.
        suffix: Of the image, such as ``'.tif'``.
        bands: Number of bands.
        shape: Height and width.
        place: Where it lies; None where chips are not georeferenced.
    """

    stem: str
    suffix: str
    bands: int
    shape: tuple[int, int]
    place: GeoBox | None

    @property
    def file(self) -> str:
        """Name of the image."""
        return self.stem + self.suffix


class FormatWriter:
    """Write the labels of one format; threads call `write` at the same time, each for another chip.

    Args:
        root: Folder that is being filled.
        classes: All classes, in the order of the .emd.
        compress: Compression of label rasters.
    """

    task: ClassVar[Task]
    folders: ClassVar[tuple[str, ...]] = ('images', 'labels')

    def __init__(self, root: Path, classes: Sequence[ClassInfo], compress: str) -> None:
        self.root, self.classes, self.compress = root, tuple(classes), compress
        self.names = {info.value: info.name for info in classes}
        self.check()

    def check(self) -> None:
        """Raise ChipFolderError if the format cannot hold these classes."""

    def prepare(self) -> None:
        """Make the folders."""
        for name in self.folders:
            self.make(name)

    def make(self, name: str) -> Path:
        """Make a folder below the root unless it is there, and return it."""
        path = self.root / name
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ChipFolderError(f'cannot make {path}: {error.strerror}') from error
        return path

    def image(self, chip: ChipFile, label: Label) -> str:
        """Return where the image goes, relative to the root, with forward slashes."""
        return f'images/{chip.file}'

    def write(self, chip: ChipFile, label: Label) -> tuple[str, ...]:
        """Write a label; return its files, relative to the root, with forward slashes."""
        raise NotImplementedError

    def finish(self) -> None:
        """Write what belongs to all chips together."""

    def emd(self) -> Mapping[str, Any]:
        """Return what the format adds to the .emd."""
        return {}

    def write_text(self, relative: str, text: str) -> str:
        """Write a UTF-8 file below the root; return its name."""
        try:
            (self.root / relative).write_bytes(text.encode('utf-8'))
        except OSError as error:
            raise ChipFolderError(f'cannot write {self.root / relative}: {error.strerror}') from error
        return relative

    def write_raster(self, relative: str, raster: np.ndarray, chip: ChipFile, *, nodata: float | None = None) -> str:
        """Write (bands, height, width) or (height, width) pixels as a GeoTIFF below the root; return its name."""
        block = raster if raster.ndim == 3 else raster[None]
        write_image(self.root / relative, block, chip.place, compress=self.compress, nodata=nodata)
        return relative


def need(found: np.ndarray | None, what: str, chip: ChipFile) -> np.ndarray:
    """Return a part of a label, or refuse a label without it."""
    if found is None:
        raise ChipFolderError(f'label of chip {chip.stem} has no {what}, which this format is made of')
    return found


def boxes_of(label: Label, chip: ChipFile) -> list[tuple[int, tuple[float, ...]]]:
    """Return class value and left, top, right, bottom of each object."""
    if not len(label.values):
        return []
    boxes = need(label.boxes, 'boxes', chip)
    return [(value, tuple(map(float, box))) for value, box in zip(label.values.tolist(), boxes)]


def digits(number: float) -> str:
    """Write a float32 with the fewest digits that give it back."""
    return np.format_float_positional(np.float32(number), unique=True, trim='0')

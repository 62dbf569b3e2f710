"""What every format writer is: it names the image of a chip, writes its label, and finishes the folder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rasterio.crs import CRS
from rasterio.errors import CRSError

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
    if not len(label.class_ids):
        return []
    boxes = need(label.boxes, 'boxes', chip)
    return [(value, tuple(map(float, box))) for value, box in zip(label.class_ids.tolist(), boxes)]


def oriented_of(label: Label, chip: ChipFile) -> list[tuple[int, np.ndarray]]:
    """Return class value and oriented box (5,) float64 of each object."""
    if not len(label.class_ids):
        return []
    turned = need(label.turned, 'oriented boxes', chip).astype(np.float64)
    return list(zip(label.class_ids.tolist(), turned))


def in_meters(place: GeoBox) -> bool:
    """Whether the CRS of a chip is in meters."""
    try:
        crs = CRS.from_user_input(place.crs)
        return bool(crs.is_projected and crs.linear_units_factor[1] == 1)
    except CRSError:
        return False


def digits(number: float) -> str:
    """Write a float32 with the fewest digits that give it back."""
    return np.format_float_positional(np.float32(number), unique=True, trim='0')


_DEVICES = {'con', 'prn', 'aux', 'nul'} | {f'{device}{number}' for device in ('com', 'lpt') for number in range(1, 10)}

_FORBIDDEN = set('/\\:*?"<>|')

MAX_LENGTH = 200
"""Bytes of a folder name; file systems allow 255."""


RENAME = (
    'rename it in the labels, or list it under another name with classes= where labels hold class values (texts that '
    'differ in blanks alone are found too)'
)


def check_folders(classes: Iterable[ClassInfo], metadata_format: str) -> None:
    """Refuse class names that are no folder names on every system.

    Raises:
        ChipFolderError: If a name is empty, reserved, too long or ends in a dot or blank, or two differ in case alone.
    """
    listed = list(classes)
    check_texts(listed, metadata_format)
    for info in listed:
        name = info.name
        reserved = name.split('.')[0].rstrip().lower() in _DEVICES
        if reserved or _FORBIDDEN & set(name) or name.endswith('.') or len(name.encode()) > MAX_LENGTH:
            raise ChipFolderError(
                f'class {info.value} is called {name!r}, which is no folder name on every system, and '
                f'{metadata_format} has a folder for each class; {RENAME}'
            )
        if name.startswith('.'):
            raise ChipFolderError(
                f'class {info.value} is called {name!r}; folders whose names begin with a dot are hidden, and '
                f'{metadata_format} has a folder for each class; {RENAME}'
            )


def check_texts(classes: Iterable[ClassInfo], metadata_format: str, *, forbidden: str = '') -> None:
    """Refuse class names that do not tell classes apart where labels hold names.

    Args:
        classes: All classes.
        metadata_format: For messages.
        forbidden: Letters that separate names.
    """
    listed = list(classes)
    seen: dict[str, ClassInfo] = {}
    values = {str(info.value): info for info in listed}
    for info in listed:
        name = info.name
        if not name or name != ' '.join(name.split()) or not name.isprintable() or set(forbidden) & set(name):
            raise ChipFolderError(
                f'class {info.value} is called {name!r}; {metadata_format} needs printable names with single blanks '
                f'between words{f" and without {forbidden!r}" if forbidden else ""}; {RENAME}'
            )
        other = seen.setdefault(name.casefold(), info)
        if name in values and values[name] is not info:
            other = values[name]
        if other is not info:
            raise ChipFolderError(
                f'classes {other.value} and {info.value} cannot be distinguished by their names {other.name!r} and '
                f'{name!r}, which is what {metadata_format} stores; {RENAME}'
            )


def write_masks(writer: FormatWriter, folder: str, chip: ChipFile, label: Label) -> tuple[str, ...]:
    """Write a raster for each class that occurs; objects are numbered 1, 2, 3, ... through all bands."""
    if label.masks is None and len(label.class_ids):
        raise ChipFolderError(f'label of chip {chip.stem} has no masks, which this format is made of')
    groups: dict[int, list[np.ndarray]] = {}
    for value, mask in zip(label.class_ids.tolist(), label.masks or ()):
        groups.setdefault(value, []).append(mask)
    written = []
    for value, masks in sorted(groups.items()):
        name = f'{folder}/{writer.names[value]}'
        writer.make(name)
        written.append(writer.write_raster(f'{name}/{chip.stem}.tif', number_objects(masks, chip.shape), chip))
    return tuple(written)


def number_objects(masks: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return (bands, height, width) with 1, 2, 3, ... where each object is; objects of one band do not overlap."""
    dtype = np.uint8 if len(masks) < 256 else np.uint16 if len(masks) < 65536 else np.uint32
    bands: list[np.ndarray] = [np.zeros(shape, dtype)]
    for number, mask in enumerate(masks, 1):
        if not mask.any():
            raise ChipFolderError(f'object {number} of a label covers no pixel; leave it out')
        free = next((band for band in bands if not band[mask].any()), None)
        if free is None:
            free = np.zeros(shape, dtype)
            bands.append(free)
        free[mask] = number
    return np.stack(bands)

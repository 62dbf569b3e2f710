"""What readers of published data sets share: rows of images, labels and parts, and errors that show the layout."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

from geolearn.chips.formats.tiles import read_class_raster
from geolearn.chips.label import ChipSource, ImageReader, LabelReader, Listing, Task
from geolearn.classes import ClassInfo
from geolearn.errors import ChipFolderError
from geolearn.files import decode_text

PARTS = {
    **dict.fromkeys(('train', 'training'), 'train'),
    **dict.fromkeys(('valid', 'val', 'validation', 'validate'), 'valid'),
    'test': 'test',
}
"""The part that a folder or a list is of, by what data sets call it."""


class Row(NamedTuple):
    """One chip of a data set.

    Args:
        name: Unique within the data set.
        images: Files of each date.
        label: Its file; None where there is none.
        part: ``'train'``, ``'valid'`` or ``'test'``; empty where the data set does not say it.
        read_label: Reads the label; None for a raster of class values.
        read_image: Reads the image where it is in no raster file; None reads `images`.
        dates_in_file: Dates that the one file holds.
        read_as: See `ChipSource.read_as`.
        fault: What the image lacks, so that it is left out; empty where it is whole.
    """

    name: str
    images: tuple[tuple[Path, ...], ...]
    label: Path | None
    part: str = ''
    read_label: LabelReader | None = None
    read_image: ImageReader | None = None
    dates_in_file: int = 1
    read_as: str = ''
    fault: str = ''


@dataclass(frozen=True)
class Published:
    """One published data set.

    Args:
        title: Its name for people.
        layout: Which files it needs, as published.
        task: Of its labels.
        classes: Of its labels; None where any value but 0 means change.
        bands: Names of the bands in their order.
        sensor: Whose names they are.
        nodata: Value that means NoData in the images, beside what files declare.
        unlabelled: Label values that mean "not labelled".
        acquired: About when the images of each date were taken; empty for one date, or where it is not said.
        rows: Finds the chips below the folder; it raises nothing where they are missing.
    """

    title: str
    layout: str
    task: Task
    classes: tuple[ClassInfo, ...] | None
    rows: Callable[[Path], Iterable[Row]] = field(repr=False)
    bands: tuple[str, ...] | None = None
    sensor: str | None = None
    nodata: tuple[float, ...] = ()
    unlabelled: tuple[float, ...] = ()
    acquired: tuple[date, ...] = ()

    def list(self, folder: Path, metadata: object) -> Listing:
        """List the chips of a folder in the published layout.

        Args:
            folder: The data set.
            metadata: Of an .emd, which these data sets do not have; not read.

        Raises:
            ChipFolderError: If there is no chip with a label; the message shows the layout that is needed.
        """
        rows = sorted(self.rows(folder), key=lambda row: row.name)
        faulty = [row for row in rows if row.fault]
        found = [row for row in rows if not row.fault]
        whole = [row for row in found if row.label is not None]
        if not whole:
            held = f'{len(found)} images without labels' if found else 'no whole image' if faulty else 'no image of it'
            self.refuse(folder, held + (f', and {_say_faults(faulty)}' if faulty else ''))
        notes = []
        if faulty:
            notes.append(f'{_say_faults(faulty)}; left out')
        if lonely := [row.name for row in found if row.label is None]:
            notes.append(f'{len(lonely)} images have no label and were left out, the first is {lonely[0]}')
        parts: dict[str, list[str]] = {}
        for row in whole:
            if row.part:
                parts.setdefault(row.part, []).append(row.name)
        return Listing(
            self.task,
            tuple(_chip(row) for row in whole),
            self.classes,
            band_names=self.bands,
            sensor=self.sensor,
            notes=tuple(notes),
            nodata=self.nodata,
            unlabelled=self.unlabelled,
            acquired=self.acquired,
            parts=tuple((part, tuple(names)) for part, names in parts.items()),
        )

    def refuse(self, folder: Path, held: str) -> NoReturn:
        """Say that a folder does not hold the data set, what it holds, and what is needed.

        Raises:
            ChipFolderError: Always.
        """
        entries = sorted(child.name + '/' * child.is_dir() for child in folder.iterdir())
        shown = ', '.join(entries[:8]) + (', ...' if len(entries) > 8 else '') if entries else 'nothing'
        raise ChipFolderError(
            f'{folder} holds {held} in the layout of {self.title}; found are {shown}. Needed is, as published: '
            f'{self.layout}. Pass the folder that holds these'
        )


def _say_faults(rows: Sequence[Row]) -> str:
    images = f'{len(rows)} images lack' if len(rows) > 1 else '1 image lacks'
    return f'{images} files, the first is {rows[0].name}: {rows[0].fault}'


def _chip(row: Row) -> ChipSource:
    assert row.label is not None  # others are left out
    read = partial(read_class_raster, row.label) if row.read_label is None else row.read_label
    return ChipSource(
        row.name, row.images, (row.label,), read, row.dates_in_file, read_image=row.read_image, read_as=row.read_as
    )


def glob_files(folder: Path, pattern: str) -> Iterator[Path]:
    """Yield the files of a folder that match a pattern, in order; none where there is no such folder."""
    if folder.is_dir():
        yield from sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith('.'))


def existing(path: Path) -> Path | None:
    """Return a path where there is such a file, else None."""
    return path if path.is_file() else None


def read_names(paths: Iterable[Path]) -> list[str] | None:
    """Read lists of names, one on each line, the first of several columns; None where no such file is there.

    Raises:
        ChipFolderError: If a list cannot be read.
    """
    names, found = list[str](), False
    for path in paths:
        if not path.is_file():
            continue
        found = True
        try:
            lines = decode_text(path.read_bytes()).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ChipFolderError(f'cannot read the list of chips {path}: {error}') from error
        names += [line.split(',')[0].strip() for line in lines if line.strip()]
    return names if found else None


def parts_by_list(folder: Path, lists: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the part of each name in lists.

    Args:
        folder: Of the lists.
        lists: Name of the file and part of each.
    """
    found: dict[str, str] = {}
    for file, part in lists:
        for name in read_names([folder / file]) or ():
            found.setdefault(name, part)
    return found


def find_root(folder: Path, *children: str) -> Path:
    """Return the folder itself or, where it does not hold one of some paths, a folder in it that does; else itself."""
    for place in (folder, *(Path(entry.path) for entry in sorted(os.scandir(folder), key=lambda e: e.name))):
        if place.is_dir() and any((place / child).exists() for child in children):
            return place
    return folder

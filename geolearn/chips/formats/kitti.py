"""KITTI_rectangles: a text file for each image, one box a line."""

from collections.abc import Iterator, Mapping
from math import isnan
from pathlib import Path

from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats import shapes, text_labels, writing
from geolearn.chips.formats.content import FolderContent
from geolearn.chips.label import Label, Listing, Task
from geolearn.errors import ChipFolderError

NUMBERS = 14
"""Columns after the class: truncated, occluded, alpha, the box at 3..6, then size, place and angle in space."""

IGNORED = 'DontCare'
"""KITTI's name of regions that were not annotated."""


def is_kitti(content: FolderContent) -> bool:
    """Whether labels are text in lines of KITTI."""
    return content.line_format == 'KITTI'


def list_kitti(folder: Path, metadata: ExportMetadata) -> Listing:
    """List images with a KITTI file each, in images/ and labels/.

    Classes come from the .emd; without one they are the names in all files, sorted, with the values 1, 2, 3, ..., or
    with their own values where all names are whole numbers, as ArcGIS writes them.

    Raises:
        ChipFolderError: If a folder is missing, no image has a text file or no class is known.
    """
    paired = text_labels.pair_files(folder, '.txt', ignored=('classes',))
    return text_labels.list_named_boxes(folder, metadata, paired, kitti_names, read_kitti)


def kitti_names(path: Path) -> Iterator[str]:
    """Yield the class of each line.

    Raises:
        ChipFolderError: If a line is broken, or may as well end in a score, which only known classes can settle.
    """
    for number, words in text_labels.read_lines(path):
        name, _ = _split(words, path, number, {})
        if words[0] != IGNORED and len(words) == NUMBERS + 2 and not isnan(text_labels.parse_number(words[1])):
            raise ChipFolderError(
                f'{path}, line {number}: either the class is {name!r} or the last column is a score; add an .emd that '
                'lists the classes, or remove the scores'
            )
        if name != IGNORED:
            yield name


def read_kitti(path: Path, values: Mapping[str, int], shape: tuple[int, int]) -> Label:
    """Read the boxes of a chip; an empty file says that it holds no object.

    A class may have several words. A score after the last column, as in files of results, is passed over.

    Args:
        path: The text file.
        values: Class value of each text that names a class.
        shape: Height and width of the chip.

    Raises:
        ChipFolderError: If a line is broken; the message names file and line.
    """
    found, boxes, skipped = list[int](), list[shapes.Box](), list[str]()
    for number, words in text_labels.read_lines(path):
        name, box = _split(words, path, number, values)
        if name in values:
            found.append(values[name])
            boxes.append(box)
        else:
            skipped.append('region marked DontCare' if name == IGNORED else text_labels.unknown_class(name))
    return shapes.box_label(found, boxes, shape, skipped)


def _split(words: list[str], path: Path, number: int, values: Mapping[str, int]) -> tuple[str, shapes.Box]:
    """Return class and box of a line.

    The last 14 words are numbers and the class stands before them, unless only the word before the last 15 is a class.
    """
    tail = NUMBERS
    name, scored = ' '.join(words[:-NUMBERS]), ' '.join(words[: -NUMBERS - 1])
    if name not in values and (scored in values or scored == IGNORED):
        name, tail = scored, NUMBERS + 1
    columns = [text_labels.parse_number(word) for word in words[-tail:]]
    readable = [not isnan(column) or word.lower() == 'nan' for column, word in zip(columns, words[-tail:])]
    if not name or not all(readable):
        line = ' '.join(words)[:120]
        raise ChipFolderError(
            f'{path}, line {number}: a class and {NUMBERS} numbers are needed, found {line!r} ({len(words)} words)'
        )
    left, top, right, bottom = columns[3:7]
    return name, (left, top, right, bottom)


class KittiWriter(writing.FormatWriter):
    """``labels/<chip>.txt``, a line for each object; empty for a chip without objects."""

    task = Task.OBJECTS

    def write(self, chip: writing.ChipFile, label: Label) -> tuple[str, ...]:
        """Write the boxes."""
        lines = [
            f'{value} 0.00 0 0 {" ".join(map(writing.digits, box))} 0 0 0 0 0 0 0\n'
            for value, box in writing.boxes_of(label, chip)
        ]
        return (self.write_text(f'labels/{chip.stem}.txt', ''.join(lines)),)

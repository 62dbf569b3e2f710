"""YOLO_rectangles: a text file for each image, a box or a polygon a line, in fractions of the image."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats import shapes, text_labels, writing
from geolearn.chips.formats.content import HIGHEST, LOWEST, FolderContent
from geolearn.chips.label import ChipSource, Label, Listing, Task
from geolearn.classes import ClassInfo, color_classes
from geolearn.errors import ChipFolderError
from geolearn.oriented.geometry import corners, minimum_rectangle

MAX_NAMES_BYTES = 2**18
"""Enough for thousands of names; YAML takes seconds for a megabyte."""

YAML_NAMES = ('data.yaml', 'data.yml', 'dataset.yaml')

SUBSETS = frozenset({'train', 'val', 'valid', 'test'})


def read_names(folder: Path) -> dict[int, str] | None:
    """Return the class names by index, None where no file tells them.

    Looks in the folder and in its labels/; for a folder such as train/ also one level up, where data.yaml then lies.

    Raises:
        ChipFolderError: If a file is broken, or two files give different names.
    """
    places = [folder, folder / 'labels', *([folder.parent] if folder.name in SUBSETS else [])]
    found: dict[Path, dict[int, str]] = {}
    for place in places:
        for path in sorted([place / 'classes.txt', *place.glob('*.names')]):
            if path.is_file():
                found[path] = _lines(path)
        for path in (place / name for name in YAML_NAMES):
            if path.is_file() and (names := _yaml_names(path)):
                found[path] = names
    named = {path: names for path, names in found.items() if names}
    if not named:
        return None
    first = next(iter(named))
    for path, names in named.items():
        if names != named[first]:
            raise ChipFolderError(f'{first} and {path} give different class names; remove the wrong one')
    return named[first]


def _lines(path: Path) -> dict[int, str]:
    """Take a name from each line; its place counts, so only empty lines at the end are passed over."""
    names = [
        ' '.join(line.split()) for line in text_labels.read_text(path, limit=MAX_NAMES_BYTES).rstrip().splitlines()
    ]
    if '' in names:
        raise ChipFolderError(
            f'{path}, line {names.index("") + 1} is empty; each line must name the class of its place'
        )
    return dict(enumerate(names))


def _read_yaml(path: Path) -> Any:
    text = text_labels.read_text(path, limit=MAX_NAMES_BYTES)
    try:
        # the base loader makes texts only: no objects, and a class called `no` stays one
        return yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise ChipFolderError(f'{path} is not valid YAML: {reason}') from error


def _yaml_names(path: Path) -> dict[int, str]:
    content = _read_yaml(path)
    names = content.get('names') if isinstance(content, dict) else None
    if names is None or names == '':
        return {}
    pairs = (
        list(enumerate(names)) if isinstance(names, list) else list(names.items()) if isinstance(names, dict) else []
    )
    result = {_index(key): name for key, name in pairs}
    if not result or -1 in result or not all(isinstance(name, str) and name for name in result.values()):
        raise ChipFolderError(f'{path}: names must be a list of texts, or texts by whole numbers')
    return result


def _index(key: Any) -> int:
    """Read up to five ASCII digits, -1 for whatever else a key may be."""
    text = str(key)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else -1


NOT_FRACTIONS = 'object in pixels, where YOLO gives fractions of the image'


@dataclass(frozen=True, slots=True)
class Line:
    """One object: class index and its numbers, 4 for a box (center x, y, width, height), more for a polygon (x, y)."""

    index: int
    numbers: tuple[float, ...]

    @property
    def is_polygon(self) -> bool:
        """Whether it is an outline."""
        return len(self.numbers) > 4


def is_yolo(content: FolderContent) -> bool:
    """Whether labels are text in lines of YOLO, and nothing says that they are oriented boxes."""
    return content.line_format == 'YOLO' and not is_yolo_obb(content)


OBB_FOLDERS = ('labels_obb', 'labels_yolo_obb')
"""Names of folders of oriented boxes, beside that of the images or one level above."""


def is_yolo_obb(content: FolderContent) -> bool:
    """Whether data.yaml says ``task: obb``, or a folder is called so and there are no labels of another kind."""
    if says_obb(content.root):
        # whatever the lines look like: reading them says what is wrong
        return content.line_format == 'YOLO' or (content.label_kinds == {'txt'} and not content.dota_folders)
    alone = not content.labels.is_dir() and not content.dota_folders
    return alone and content.images.is_dir() and obb_labels(content.root) is not None


def obb_labels(root: Path) -> Path | None:
    """Return the folder that is called as one of oriented boxes, for the images in `root`."""
    found = (place / name for place in (root, root.parent) for name in OBB_FOLDERS)
    return next((path for path in found if path.is_dir()), None)


def says_obb(folder: Path) -> bool:
    """Whether a data.yaml of a folder, or one level up for a subset such as train/, says ``task: obb``."""
    places = [folder, *([folder.parent] if folder.name in SUBSETS else [])]
    for path in (place / name for place in places for name in YAML_NAMES):
        if path.is_file():
            content = _read_yaml(path)
            if isinstance(content, dict) and content.get('task') == 'obb':
                return True
    return False


def list_yolo_obb(folder: Path, metadata: ExportMetadata) -> Listing:
    """List images with a YOLO file of oriented boxes each: a class number and x, y of four corners a line.

    Corners are fractions of the image. Classes are those of `list_yolo`; a line with more corners, or a level box,
    counts with the rectangle of least area around it.

    Raises:
        ChipFolderError: As `list_yolo` does.
    """
    content = FolderContent(folder)
    labels = None if content.line_format == 'YOLO' else obb_labels(folder)
    pairs, notes = text_labels.pair_files(folder, '.txt', ignored=('classes',), labels=labels)
    found, broken = set[int](), list[ChipFolderError]()
    for pair in pairs:
        try:
            found.update(line.index for line in parse_yolo(pair.label, oriented=True))
        except ChipFolderError as error:
            broken.append(error)  # reading the chip tells it again
    if broken and len(broken) == len(pairs):
        raise broken[0]
    classes = _classes(folder, metadata, found)
    values = {index: info.value for index, info in classes.items()}
    chips = tuple(ChipSource(p.name, ((p.image,),), (p.label,), partial(read_yolo_obb, p.label, values)) for p in pairs)
    return Listing(Task.ORIENTED, chips, tuple(classes.values()), notes=tuple(notes))


def read_yolo_obb(path: Path, values: Mapping[int, int], shape: tuple[int, int]) -> Label:
    """Read the oriented boxes of a chip; as `read_yolo_boxes`. Corners are brought to pixels before they are turned."""
    lines, skipped = _usable(path, values, oriented=True)
    turned = [minimum_rectangle(_corners(line, shape)) for line in lines]
    return shapes.oriented_label(
        [values[line.index] for line in lines],
        np.array(turned).reshape(-1, 5),
        shape,
        skipped,
        least_area=shapes.SMALLEST_AREA,
        too_small=shapes.TWO_POINTS,
    )


def list_yolo(folder: Path, metadata: ExportMetadata) -> Listing:
    """List images with a YOLO file each, in images/ and labels/ and folders of equal names in them, such as train/.

    YOLO counts classes from 0, where ArcGIS keeps 0 for unlabelled: class i gets the value i + 1. Names come from
    classes.txt, data.yaml or *.names, and their values from the .emd where it names all of them; else from the classes
    of the .emd in their order; else the numbers serve as names. An empty file says that a chip holds no object; an
    image without one is left out. Where every line is a polygon the task is INSTANCES, else OBJECTS, and polygons among
    boxes count with their box.

    Raises:
        ChipFolderError: If a folder is missing, no image has a text file, no class is known, or names are broken.
        MissingExtraError: If all lines are polygons and pycocotools is not installed.
    """
    pairs, notes = text_labels.pair_files(folder, '.txt', ignored=('classes',))
    found, polygons, objects, broken = set[int](), 0, 0, list[ChipFolderError]()
    for pair in pairs:
        try:
            lines = parse_yolo(pair.label)
        except ChipFolderError as error:
            broken.append(error)  # reading the chip tells it again
            continue
        found.update(line.index for line in lines)
        polygons += sum(line.is_polygon for line in lines)
        objects += len(lines)
    if broken and len(broken) == len(pairs):
        raise broken[0]
    outlined = 0 < polygons == objects
    if outlined:
        shapes.need_drawing()
    elif polygons:
        notes.append(f'{objects - polygons} of {objects} objects have no outline, so only boxes are used')
    classes = _classes(folder, metadata, found)
    values = {index: info.value for index, info in classes.items()}
    read = read_yolo_outlines if outlined else read_yolo_boxes
    chips = tuple(ChipSource(p.name, ((p.image,),), (p.label,), partial(read, p.label, values)) for p in pairs)
    return Listing(Task.INSTANCES if outlined else Task.OBJECTS, chips, tuple(classes.values()), notes=tuple(notes))


def _classes(folder: Path, metadata: ExportMetadata, found: set[int]) -> dict[int, ClassInfo]:
    """Return the class of each index."""
    names = read_names(folder)
    if names is None and metadata.classes:
        return dict(enumerate(metadata.classes))
    if names is None:
        names = {index: str(index) for index in sorted(found)}
    if not names:
        raise ChipFolderError(f'no label below {folder} has an object and no classes.txt or data.yaml names a class')
    listed = {info.name: info for info in metadata.classes}
    if listed and set(names.values()) <= set(listed) and len(set(names.values())) == len(names):
        # an export says which value each name has; the class file only numbers them
        return {index: listed[name] for index, name in names.items()}
    ordered = sorted(names.items())
    return dict(zip((index for index, _ in ordered), color_classes((i + 1, name, None) for i, name in ordered)))


def parse_yolo(path: Path, *, oriented: bool = False) -> list[Line]:
    """Return the objects in a text file; a confidence, 0..1, after a level box is passed over.

    Args:
        path: The text file.
        oriented: Whether they are oriented boxes, where a number after a box may be an angle.

    Raises:
        ChipFolderError: If the file cannot be read or a line is broken; the message names file and line.
    """
    lines = []
    for number, words in text_labels.read_lines(path):
        columns = [text_labels.parse_number(word) for word in words]
        if len(columns) == 6 and (oriented or not 0 <= columns[5] <= 1) and all(map(isfinite, columns)):
            raise ChipFolderError(
                f'{path}, line {number}: found a class number and five numbers, {" ".join(words)[:99]!r}; the last may '
                'be an angle, and angles are not read, as programs differ in what they mean. Needed for oriented boxes '
                'are a class number and the x, y of four corners, as fractions: class x1 y1 x2 y2 x3 y3 x4 y4'
            )
        index, numbers = columns[0], tuple(columns[1:5] if len(columns) == 6 else columns[1:])
        shaped = len(numbers) == 4 or (len(numbers) >= 6 and len(numbers) % 2 == 0)
        if not (shaped and all(map(isfinite, columns)) and 0 <= index < text_labels.MAX_NUMBER and index == int(index)):
            raise ChipFolderError(
                f'{path}, line {number}: a class number and 4 fractions (x, y, width, height) or the x, y of three or '
                f'more corners are needed, found {" ".join(words)[:120]!r}'
            )
        lines.append(Line(int(index), numbers))
    return lines


def read_yolo_boxes(path: Path, values: Mapping[int, int], shape: tuple[int, int]) -> Label:
    """Read the boxes of a chip; a polygon counts with the box around it.

    Args:
        path: The text file.
        values: Class value of each class index.
        shape: Height and width of the chip.

    Raises:
        ChipFolderError: If the file cannot be read or a line is broken.
    """
    lines, skipped = _usable(path, values)
    return shapes.box_label(
        [values[line.index] for line in lines], [_box(line, shape) for line in lines], shape, skipped
    )


def read_yolo_outlines(path: Path, values: Mapping[int, int], shape: tuple[int, int]) -> Label:
    """Read the outlined objects of a chip; as `read_yolo_boxes`, where a box counts with its corners."""
    lines, skipped = _usable(path, values)
    objects = [(values[line.index], shapes.Polygons((_corners(line, shape).tobytes(),))) for line in lines]
    return shapes.outline_label(objects, shape, skipped)


def _usable(path: Path, values: Mapping[int, int], *, oriented: bool = False) -> tuple[list[Line], list[str]]:
    lines, skipped = [], []
    for line in parse_yolo(path, oriented=oriented):
        if line.index not in values:
            skipped.append(f'object of class number {line.index}, which has no name')
        elif min(line.numbers) < LOWEST or max(line.numbers) > HIGHEST:
            skipped.append(NOT_FRACTIONS)
        else:
            lines.append(line)
    return lines, skipped


def _box(line: Line, shape: tuple[int, int]) -> shapes.Box:
    corners = _corners(line, shape)
    low, high = (corners.min(axis=0), corners.max(axis=0)) if line.is_polygon else (corners[0], corners[2])
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _corners(line: Line, shape: tuple[int, int]) -> np.ndarray:
    """Return corners (n, 2) float64 x, y in pixels; those of a box from the upper left clockwise."""
    numbers = line.numbers
    if not line.is_polygon:
        x, y, width, height = line.numbers
        left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        numbers = left, top, right, top, right, bottom, left, bottom
    return np.array(numbers, np.float64).reshape(-1, 2) * shape[::-1]


class YoloWriter(writing.FormatWriter):
    """``labels/<chip>.txt`` with class indices in order of value, and ``classes.txt`` with their names."""

    task = Task.OBJECTS

    def check(self) -> None:
        """Refuse names that a list of lines cannot hold."""
        writing.check_texts(self.classes, 'YOLO_rectangles')

    def write(self, chip: writing.ChipFile, label: Label) -> tuple[str, ...]:
        """Write the boxes."""
        index = {value: position for position, value in enumerate(sorted(self.names))}
        height, width = chip.shape
        lines = []
        for value, (left, top, right, bottom) in writing.boxes_of(label, chip):
            numbers = (
                (left + right) / 2 / width,
                (top + bottom) / 2 / height,
                (right - left) / width,
                (bottom - top) / height,
            )
            lines.append(f'{index[value]} {" ".join(map(repr, numbers))}\n')
        return (self.write_text(f'labels/{chip.stem}.txt', ''.join(lines)),)

    def finish(self) -> None:
        """Write the names."""
        self.write_text('classes.txt', ''.join(f'{self.names[value]}\n' for value in sorted(self.names)))


class YoloObbWriter(YoloWriter):
    """``labels/<chip>.txt`` with class indices and four corners, and ``data.yaml`` that names the classes."""

    task = Task.ORIENTED

    def write(self, chip: writing.ChipFile, label: Label) -> tuple[str, ...]:
        """Write the boxes."""
        index = {value: position for position, value in enumerate(sorted(self.names))}
        size = np.array(chip.shape[::-1], np.float64)
        lines = []
        for value, box in writing.oriented_of(label, chip):
            fractions = (corners(box[None])[0] / size).ravel().tolist()
            lines.append(f'{index[value]} {" ".join(map(repr, fractions))}\n')
        return (self.write_text(f'labels/{chip.stem}.txt', ''.join(lines)),)

    def finish(self) -> None:
        """Write the names."""
        names = {index: self.names[value] for index, value in enumerate(sorted(self.names))}
        self.write_text('data.yaml', yaml.safe_dump({'task': 'obb', 'names': names}, allow_unicode=True))

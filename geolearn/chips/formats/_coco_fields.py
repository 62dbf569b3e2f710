"""Take COCO's categories, images and annotations out of JSON that may hold anything."""

import reprlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

from geolearn.chips.formats._boxes import Box
from geolearn.chips.formats._outlines import Outline, Polygons, RunLengths
from geolearn.classes import ClassInfo, default_color
from geolearn.errors import ChipFolderError

Key = int | str
"""Images are known by whole numbers, in some files by texts."""

NO_BOX: Box = (nan, nan, nan, nan)


@dataclass(frozen=True, slots=True)
class Picture:
    """What a COCO file says about an image.

    Args:
        file_name: As it stands there.
        shape: Height and width, or None where they are not stated.
    """

    file_name: str
    shape: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object: class value, left, top, right, bottom (NaN where there is no box), and outline."""

    value: int
    box: Box
    outline: Outline | None


@dataclass(frozen=True)
class Content:
    """A COCO file.

    Args:
        classes: In the order of the file.
        pictures: Images by id.
        annotations: Objects of each image that has any, by its id.
        notes: What was left out.
    """

    classes: tuple[ClassInfo, ...]
    pictures: Mapping[Key, Picture]
    annotations: Mapping[Key, list[Annotation]]
    notes: tuple[str, ...]


def parse_categories(path: Path, content: Mapping[str, Any]) -> tuple[ClassInfo, ...]:
    """Return the classes; ids are their values.

    Raises:
        ChipFolderError: If there is none, or one has no whole, non-negative id, or two have the same.
    """
    classes: dict[int, ClassInfo] = {}
    for position, row in enumerate(_rows(path, content, 'categories')):
        value = _whole(row.get('id'))
        if value is None:
            raise ChipFolderError(f'{path}: category {position} has no whole, non-negative id: {reprlib.repr(row)}')
        if value in classes:
            raise ChipFolderError(f'{path}: two categories have the id {value}; ids must differ')
        name = row.get('name')
        classes[value] = ClassInfo(
            value, name if isinstance(name, str) and name else str(value), default_color(position)
        )
    if not classes:
        raise ChipFolderError(f'{path} has no categories; each class needs an id and a name')
    return tuple(classes.values())


def parse_images(path: Path, content: Mapping[str, Any]) -> dict[Key, Picture]:
    """Return the images by id.

    Raises:
        ChipFolderError: If one has no id or no file_name, or two have one id.
    """
    pictures: dict[Key, Picture] = {}
    for position, row in enumerate(_rows(path, content, 'images')):
        key, file_name = _key(row.get('id')), row.get('file_name')
        if key is None or not isinstance(file_name, str) or not file_name:
            raise ChipFolderError(f'{path}: image {position} needs an id and a file_name: {reprlib.repr(row)}')
        if key in pictures:
            raise ChipFolderError(f'{path}: two images have the id {key!r}; ids must differ')
        height, width = _whole(row.get('height')), _whole(row.get('width'))
        pictures[key] = Picture(file_name, (height, width) if height and width else None)
    return pictures


def parse_annotations(
    path: Path, content: Mapping[str, Any], classes: tuple[ClassInfo, ...], pictures: Mapping[Key, Picture]
) -> tuple[dict[Key, list[Annotation]], tuple[str, ...]]:
    """Return the objects of each image, and notes on what was left out: crowds, unknown images and classes.

    Raises:
        ChipFolderError: If there is no list of objects.
    """
    known, grouped = {info.value for info in classes}, dict[Key, list[Annotation]]()
    crowds, strays, unknown = 0, 0, 0
    for row in _rows(path, content, 'annotations'):
        key, value = _key(row.get('image_id')), _whole(row.get('category_id'))
        if key is None or key not in pictures:
            strays += 1
        elif value is None or value not in known:
            unknown += 1
        elif row.get('iscrowd') not in (None, 0, False):
            crowds += 1
        else:
            found = Annotation(value, _box(row.get('bbox')), _outline(row.get('segmentation')))
            grouped.setdefault(key, []).append(found)
    told = (
        (crowds, 'annotations mark crowds (iscrowd) and were left out'),
        (strays, 'annotations belong to no image of the file and were left out'),
        (unknown, 'annotations belong to no category of the file and were left out'),
    )
    return grouped, tuple(f'{count} {text}' for count, text in told if count)


def _rows(path: Path, content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    rows = content.get(name)
    if not isinstance(rows, list):
        raise ChipFolderError(f'{path} needs a list named {name!r}, found {reprlib.repr(rows)}')
    for position, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ChipFolderError(f'{path}: entry {position} of {name!r} must be an object, found {reprlib.repr(row)}')
    return rows


def _number(value: Any) -> float:
    """Return a finite number, NaN for whatever else JSON may hold there."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    return nan


def _whole(value: Any) -> int | None:
    """Return a whole number that fits int64 and is not negative; some programs write it as 1.0."""
    number = _number(value)
    return int(value) if isfinite(number) and 0 <= number < 2**62 and number == int(number) else None


def _key(value: Any) -> Key | None:
    return value if isinstance(value, str) and value else _whole(value)


def _box(value: Any) -> Box:
    if not isinstance(value, list) or len(value) != 4:
        return NO_BOX
    left, top, width, height = map(_number, value)
    return left, top, left + width, top + height


def _outline(value: Any) -> Outline | None:
    """Return polygons (lists of numbers, or one list alone) or run lengths, None where there is nothing of the kind."""
    if isinstance(value, dict):
        return _run_lengths(value)
    if not isinstance(value, list):
        return None
    nested = [ring for ring in value if isinstance(ring, list)]
    rings = [ring for ring in nested or [value] if ring]
    if not rings:
        return None
    return Polygons(tuple(array('d', map(_number, ring)).tobytes() for ring in rings))


def _run_lengths(value: dict[str, Any]) -> RunLengths | None:
    size, counts = value.get('size'), value.get('counts')
    sides = [_whole(side) for side in size] if isinstance(size, list) and len(size) == 2 else []
    if len(sides) != 2 or sides[0] is None or sides[1] is None:
        return None
    if isinstance(counts, str):
        # signs beyond ASCII, lone surrogates too, become bytes that decoding refuses
        return RunLengths((sides[0], sides[1]), counts.encode('utf-8', 'surrogatepass'))
    if isinstance(counts, list):
        lengths = [_whole(count) for count in counts]
        return RunLengths((sides[0], sides[1]), tuple(-1 if length is None else length for length in lengths))
    return None

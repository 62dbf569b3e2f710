"""COCO_rectangles: one JSON file of categories, images and annotations for a whole folder."""

import json
import mmap
import reprlib
import threading
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite, nan
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats import angles, files, shapes, text_labels, writing
from geolearn.chips.formats.content import FolderContent
from geolearn.chips.label import ChipSource, Label, LabelReader, Listing, Task
from geolearn.classes import ClassInfo, color_classes
from geolearn.errors import ChipFolderError
from geolearn.oriented.geometry import corners, hulls

Key = int | str
"""Images are known by whole numbers, in some files by texts."""

NO_BOX: shapes.Box = (nan, nan, nan, nan)


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
    """One object: class value, left, top, right, bottom (NaN where there is no box), outline, and oriented box.

    The last are five numbers, the angle as the file has it, or None.
    """

    value: int
    box: shapes.Box
    outline: shapes.Outline | None
    oriented: tuple[float, ...] | None = None


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
    classes: dict[int, tuple[int, str, None]] = {}
    for position, row in enumerate(_rows(path, content, 'categories')):
        value = _whole(row.get('id'))
        if value is None:
            raise ChipFolderError(f'{path}: category {position} has no whole, non-negative id: {reprlib.repr(row)}')
        if value in classes:
            raise ChipFolderError(f'{path}: two categories have the id {value}; ids must differ')
        name = row.get('name')
        classes[value] = value, name if isinstance(name, str) and name else str(value), None
    if not classes:
        raise ChipFolderError(f'{path} has no categories; each class needs an id and a name')
    return color_classes(classes.values())


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
            oriented = _oriented(row.get('rotated_bbox')) or _oriented(row.get('bbox'))
            found = Annotation(value, _box(row.get('bbox')), _outline(row.get('segmentation')), oriented)
            grouped.setdefault(key, []).append(found)
    more = (
        (
            crowds,
            'annotations mark crowds (iscrowd) and were left out; what is detected in them counts as false positives',
        ),
        (strays, 'annotations belong to no image of the file and were left out'),
        (unknown, 'annotations belong to no category of the file and were left out'),
    )
    return grouped, tuple(f'{count} {text}' for count, text in more if count)


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
    """Return a whole number that fits int64 and is not negative; some programs write it as 1.0 or as text."""
    if isinstance(value, str) and len(value) < 19 and value.isascii() and value.isdigit() and str(int(value)) == value:
        value = int(value)
    number = _number(value)
    return int(value) if isfinite(number) and 0 <= number < 2**62 and number == int(number) else None


def _key(value: Any) -> Key | None:
    if isinstance(value, str):
        number = _whole(value)
        return value or None if number is None else number
    return _whole(value)


def _box(value: Any) -> shapes.Box:
    if not isinstance(value, list) or len(value) != 4:
        return NO_BOX
    left, top, width, height = map(_number, value)
    return left, top, left + width, top + height


def _oriented(value: Any) -> tuple[float, ...] | None:
    return tuple(map(_number, value)) if isinstance(value, list) and len(value) == 5 else None


def _outline(value: Any) -> shapes.Outline | None:
    """Return polygons (lists of numbers, or one list alone) or run lengths, None where there is nothing of the kind."""
    if isinstance(value, dict):
        return _run_lengths(value)
    if not isinstance(value, list):
        return None
    nested = [ring for ring in value if isinstance(ring, list)]
    rings = [ring for ring in nested or [value] if ring]
    if not rings:
        return None
    return shapes.Polygons(tuple(array('d', map(_number, ring)).tobytes() for ring in rings))


def _run_lengths(value: dict[str, Any]) -> shapes.RunLengths | None:
    size, counts = value.get('size'), value.get('counts')
    sides = [_whole(side) for side in size] if isinstance(size, list) and len(size) == 2 else []
    if len(sides) != 2 or sides[0] is None or sides[1] is None:
        return None
    if isinstance(counts, str):
        # signs beyond ASCII, lone surrogates too, become bytes that decoding refuses
        return shapes.RunLengths((sides[0], sides[1]), counts.encode('utf-8', 'surrogatepass'))
    if isinstance(counts, list):
        lengths = [_whole(count) for count in counts]
        return shapes.RunLengths((sides[0], sides[1]), tuple(-1 if length is None else length for length in lengths))
    return None


MAX_JSON_BYTES = 2**30
"""COCO's own training labels are 470 MB."""

JSON_NAMES = ('labels.json', 'annotations.json', 'instances*.json', '*coco*.json')

JSON_FOLDERS = ('.', 'labels', 'annotations')


def is_coco(content: FolderContent) -> bool:
    """Whether there is a COCO file, and labels/ holds nothing else."""
    alone = 'json' not in content.label_kinds or content.label_kinds == {'json'}
    return alone and any(_has_keys(path) for path in coco_files(content.root))


def coco_files(folder: Path) -> list[Path]:
    """Return the files of a chip folder that are called like COCO files; else those that are some, whatever called."""
    usual = {path for place in JSON_FOLDERS for name in JSON_NAMES for path in (folder / place).glob(name)}
    others = (path for place in JSON_FOLDERS for path in (folder / place).glob('*.json'))
    return sorted(usual or {path for path in others if _has_keys(path)})


def coco_fault(folder: Path) -> str | None:
    """Say which file is called like a COCO file and is none, or None where there is no such file."""
    for path in coco_files(folder):
        if not _has_keys(path):
            return f'{path} is no COCO file, which needs "images", "annotations" and "categories"'
    return None


def _has_keys(path: Path) -> bool:
    """Search a file for COCO's keys; it is not parsed, since some are huge."""
    try:
        with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(key) >= 0 for key in (b'"images"', b'"annotations"', b'"categories"'))
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


def list_coco(folder: Path, metadata: ExportMetadata, *, level: bool = False) -> Listing:
    """List the images that a COCO file names, in images/, beside the file, or where their names lead.

    The file is ``labels.json``, ``annotations.json``, ``instances*.json`` or ``*coco*.json`` in the folder, in labels/
    or in annotations/; where there is none of these, any JSON file there with COCO's keys. Category ids are the class
    values, 0 included; the classes of an .emd are not asked. An image without annotations holds no object. Where every
    annotation has an outline the task is INSTANCES, else OBJECTS.
    Crowds (``iscrowd``) are left out.

    Args:
        folder: The chip folder.
        metadata: Not asked.
        level: Take the level box of objects that have an oriented one too; otherwise such files are refused.

    Raises:
        ChipFolderError: If there is no such file or several, it is broken, none of its images is there, or its objects
            are oriented boxes.
        MissingExtraError: If there are polygons and pycocotools is not installed.
    """
    return list_coco_file(find_coco(folder), folder, level=level)


def find_coco(folder: Path) -> Path:
    """Return the COCO file of a chip folder.

    Raises:
        ChipFolderError: If there is none, or several; the message names them.
    """
    found = coco_files(folder)
    if not found:
        raise ChipFolderError(
            f'{folder} has no COCO file; labels.json, or another JSON file with "images", "annotations" and '
            '"categories", is needed in it, in labels/ or in annotations/'
        )
    if len(found) > 1:
        names = ', '.join(path.relative_to(folder).as_posix() for path in found[:5])
        raise ChipFolderError(f'{folder} has {len(found)} COCO files: {names}; keep one, give the others a folder each')
    return found[0]


def read_coco(path: Path) -> Content:
    """Read a COCO file.

    Raises:
        ChipFolderError: If it cannot be read or is broken; the message names the file.
    """
    try:
        content = json.loads(text_labels.read_text(path, limit=MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ChipFolderError):
            raise
        raise ChipFolderError(f'{path} is not valid JSON: {error}') from error
    if not isinstance(content, dict):
        raise ChipFolderError(f'{path} holds a {type(content).__name__}; a JSON object is needed')
    classes, pictures = parse_categories(path, content), parse_images(path, content)
    annotations, notes = parse_annotations(path, content, classes, pictures)
    return Content(classes, pictures, annotations, notes)


def list_coco_obb(folder: Path, metadata: ExportMetadata, *, box_angles: str | None = None) -> Listing:
    """List the images that a COCO file of oriented boxes names; where it lies, see `list_coco`.

    An object is a polygon in ``segmentation``, of which the rectangle of least area is taken, or five numbers in
    ``rotated_bbox`` or ``bbox``: x and y of the middle, width, height and angle. What this angle is differs from
    program to program, so it must be said.

    Args:
        folder: The chip folder.
        metadata: Not asked.
        box_angles: A key of `angles.BOX_ANGLES`, such as ``'detectron2'``; needed for boxes of five numbers.

    Raises:
        ChipFolderError: As `list_coco` does; if an object is no oriented box; or if the file has boxes of five numbers,
            and `box_angles` does not say what they are.
    """
    return list_coco_file(find_coco(folder), folder, box_angles=box_angles)


ANY_BOXES = 'any'
"""What `list_coco_file` takes for files of level boxes or outlines."""


def _oriented_task(path: Path, content: Content, box_angles: str | None) -> tuple[Task, list[str]]:
    _refuse_mixtures(path, content)
    every = [item for items in content.annotations.values() for item in items]
    numbers = sum(not isinstance(item.outline, shapes.Polygons) and item.oriented is not None for item in every)
    if numbers and box_angles is None:
        raise ChipFolderError(
            f'{path}: {numbers} of {len(every)} objects are boxes of five numbers, and their angles may be degrees or '
            f'radians, clockwise or not; pass box_angles=, one of {", ".join(angles.BOX_ANGLES)}'
        )
    bare = sum(not isinstance(item.outline, shapes.Polygons) and item.oriented is None for item in every)
    if bare:
        raise ChipFolderError(
            f'{path}: {bare} of {len(every)} objects have neither a polygon nor a box of five numbers; read it as '
            "dataset_type='COCO_rectangles'"
        )
    return Task.ORIENTED, []


def _refuse_mixtures(path: Path, content: Content) -> None:
    """Refuse files of which some objects have a box of five numbers alone, and others one of four alone."""
    bare = [item for items in content.annotations.values() for item in items if not item.outline]
    fives = sum(item.oriented is not None and item.box is NO_BOX for item in bare)
    fours = sum(item.oriented is None for item in bare)
    if fives and fours:
        raise ChipFolderError(
            f'{path}: {fives} objects are boxes of five numbers, the last of which is an angle, and {fours} are not, '
            'so they can be read neither as oriented boxes nor as level ones; give all of them five numbers (x and y '
            'of the middle, width, height and the angle 0 for level boxes), or all of them a polygon'
        )


def list_coco_file(path: Path, folder: Path, *, box_angles: str | None = ANY_BOXES, level: bool = False) -> Listing:
    """List the images below `folder` that a COCO file names; see `list_coco` and `list_coco_obb`."""
    content = read_coco(path)
    task, more = (
        _task(path, content, level=level) if box_angles == ANY_BOXES else _oriented_task(path, content, box_angles)
    )
    notes = [*content.notes, *more]
    images = _Images(path, folder)
    chips: dict[str, ChipSource] = {}
    missing = []
    for key, picture in content.pictures.items():
        image = images.find(picture.file_name)
        if image is None:
            missing.append(picture.file_name)
            continue
        name = images.name(image)
        if name in chips:
            raise ChipFolderError(f'{path} lists {chips[name].image} and {image}, which are one chip twice')
        read = _reader(path, picture, content.annotations.get(key, ()), task, box_angles or '')
        read_as = box_angles or '' if task is Task.ORIENTED else ''
        chips[name] = ChipSource(name, ((image,),), (path,), read, read_as=read_as)
    if missing:
        notes.append(f'{len(missing)} images of {path.name} are not there, the first is {missing[0][:120]!r}')
    if not chips:
        raise ChipFolderError(
            f'none of {len(content.pictures)} images in {path} is below {folder}; see their file_name'
        )
    if extra := len(images) - len(chips):
        notes.append(f'{extra} images are not in {path.name} and were left out')
    ordered = tuple(chips[name] for name in sorted(chips))
    return Listing(task, ordered, content.classes, notes=tuple(notes))


def _task(path: Path, content: Content, *, level: bool) -> tuple[Task, list[str]]:
    _refuse_mixtures(path, content)
    fives = [item for items in content.annotations.values() for item in items if item.oriented and not item.outline]
    both = all(item.box is not NO_BOX for item in fives)
    if fives and not (level and both):
        other = ", or dataset_type='COCO_rectangles' for the level boxes that they have too" if both else ''
        raise ChipFolderError(
            f'{path}: {len(fives)} boxes have five numbers, the last of which is an angle; pass '
            f"dataset_type='COCO_OBB' and box_angles= to read them as oriented boxes{other}"
        )
    every = [item.outline for items in content.annotations.values() for item in items]
    bare = every.count(None)
    if not every or bare:
        mixed = [f'{bare} of {len(every)} annotations have no outline, so only boxes are used']
        return Task.OBJECTS, mixed if 0 < bare < len(every) else []
    if any(isinstance(outline, shapes.Polygons) for outline in every):
        shapes.need_drawing()
    return Task.INSTANCES, []


class _Images:
    """The images below a folder by their path in it; names out of a file never touch the disk."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._path, self._folder = path, folder
        try:
            paths = sorted(item for item in folder.rglob('*') if item.suffix.lower() in files.IMAGE_SUFFIXES)
        except OSError as error:
            raise ChipFolderError(f'cannot list {folder}: {error.strerror}') from error
        places = {item.relative_to(folder): item for item in paths}
        self._paths = {
            place.as_posix(): item
            for place, item in places.items()
            if not any(part.startswith('.') for part in place.parts)
        }
        self._by_last: dict[str, list[str]] = {}
        for place in self._paths:
            self._by_last.setdefault(place.rsplit('/', 1)[-1], []).append(place)

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, image: Path) -> str:
        """Return the name of a chip: its path within images/, if there it is, without suffix."""
        return image.relative_to(self._folder).with_suffix('').as_posix().removeprefix('images/')

    def find(self, file_name: str) -> Path | None:
        """Return the image in images/, in the folder, beside the JSON, or else the only one whose path ends so."""
        wanted = PurePosixPath(file_name.replace('\\', '/'))
        if wanted.is_absolute() or '..' in wanted.parts or PureWindowsPath(file_name).drive:
            raise ChipFolderError(
                f'{self._path}: the image {file_name[:120]!r} may lie outside the folder; a path within it is needed'
            )
        beside = self._path.parent.relative_to(self._folder)
        for place in (PurePosixPath('images') / wanted, wanted, PurePosixPath(beside.as_posix()) / wanted):
            if place.as_posix() in self._paths:
                return self._paths[place.as_posix()]
        ending = f'/{wanted.as_posix()}'
        near = [place for place in self._by_last.get(wanted.name, ()) if place.endswith(ending)]
        if len(near) > 1:
            raise ChipFolderError(
                f'{self._path}: {file_name[:120]!r} may be {near[0]} or {near[1]}; give the folder too'
            )
        return self._paths[near[0]] if near else None


def _reader(
    path: Path, picture: Picture, annotations: Sequence[Annotation], task: Task, box_angles: str
) -> LabelReader:
    if task is Task.ORIENTED:
        return partial(read_coco_oriented, path, picture, tuple(annotations), box_angles)
    if task is Task.INSTANCES:
        outlines = tuple((item.value, item.outline) for item in annotations if item.outline is not None)
        return partial(read_coco_outlines, path, picture, outlines)
    return partial(read_coco_boxes, path, picture, tuple((item.value, item.box) for item in annotations))


def read_coco_boxes(
    path: Path, picture: Picture, objects: tuple[tuple[int, shapes.Box], ...], shape: tuple[int, int]
) -> Label:
    """Return the label of a chip whose annotations are boxes.

    Args:
        path: The COCO file, for messages.
        picture: What it says about the image.
        objects: Class value and box of each annotation of the image.
        shape: Height and width of the chip.

    Raises:
        ChipFolderError: If the file states another size than the chip's.
    """
    _check_size(path, picture, shape)
    return shapes.box_label([value for value, _ in objects], [box for _, box in objects], shape)


def read_coco_oriented(
    path: Path, picture: Picture, objects: tuple[Annotation, ...], box_angles: str, shape: tuple[int, int]
) -> Label:
    """Return the label of a chip whose annotations are oriented boxes; as `read_coco_boxes`."""
    _check_size(path, picture, shape)
    turned = np.full((len(objects), 5), np.nan)
    for row, item in zip(turned, objects):
        if isinstance(item.outline, shapes.Polygons):
            row[:] = shapes.polygons_rectangle(item.outline)
        elif item.oriented is not None:
            row[:] = angles.as_oriented(np.array([item.oriented]), box_angles)[0]
    return shapes.oriented_label(
        [item.value for item in objects], turned, shape, least_area=shapes.SMALLEST_AREA, too_small=shapes.TWO_POINTS
    )


def read_coco_outlines(
    path: Path, picture: Picture, objects: tuple[tuple[int, shapes.Outline], ...], shape: tuple[int, int]
) -> Label:
    """Return the label of a chip whose annotations are outlines; as `read_coco_boxes`."""
    _check_size(path, picture, shape)
    return shapes.outline_label(objects, shape)


def _check_size(path: Path, picture: Picture, shape: tuple[int, int]) -> None:
    if picture.shape is not None and picture.shape != shape:
        height, width = picture.shape
        raise ChipFolderError(
            f'{path} states {width}x{height} pixels for {picture.file_name[:120]!r}, but the image is '
            f'{shape[1]}x{shape[0]}; its boxes would not fit'
        )


class CocoWriter(writing.FormatWriter):
    """``labels.json``; a category's id is the class value, an image's id is its number."""

    task = Task.INSTANCES
    folders = ('images',)

    def __init__(self, root: Path, classes: Any, compress: str) -> None:
        super().__init__(root, classes, compress)
        self._lock = threading.Lock()
        self._rows: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}

    def write(self, chip: writing.ChipFile, label: Label) -> tuple[str, ...]:
        """Keep the objects for `finish`."""
        number = int(chip.stem)
        picture = {'id': number, 'file_name': chip.file, 'width': chip.shape[1], 'height': chip.shape[0]}
        masks = label.masks or (None,) * len(label.class_ids)
        rows = []
        for (value, (left, top, right, bottom)), mask in zip(writing.boxes_of(label, chip), masks):
            row: dict[str, Any] = {
                'image_id': number,
                'category_id': value,
                'bbox': [left, top, right - left, bottom - top],
                'area': (right - left) * (bottom - top) if mask is None else int(mask.sum()),
                'iscrowd': 0,
            }
            if mask is not None:
                row['segmentation'] = {'size': list(mask.shape), 'counts': run_lengths(mask)}
            rows.append(row)
        with self._lock:
            self._rows[chip.stem] = picture, rows
        return ()

    def finish(self) -> None:
        """Write the file."""
        ordered = [self._rows[stem] for stem in sorted(self._rows)]
        objects = [row for _, rows in ordered for row in rows]
        content = {
            'info': {'description': 'written by geolearn'},
            'categories': [{'id': info.value, 'name': info.name} for info in self.classes],
            'images': [picture for picture, _ in ordered],
            'annotations': [{'id': position, **row} for position, row in enumerate(objects, 1)],
        }
        self.write_text('labels.json', json.dumps(content))


class CocoObbWriter(CocoWriter):
    """``labels.json`` with the corners of each oriented box as its ``segmentation``."""

    task = Task.ORIENTED

    def write(self, chip: writing.ChipFile, label: Label) -> tuple[str, ...]:
        """Keep the objects for `finish`."""
        number = int(chip.stem)
        picture = {'id': number, 'file_name': chip.file, 'width': chip.shape[1], 'height': chip.shape[0]}
        rows = []
        for value, box in writing.oriented_of(label, chip):
            left, top, right, bottom = hulls(box[None])[0].tolist()
            rows.append(
                {
                    'image_id': number,
                    'category_id': value,
                    'segmentation': [corners(box[None])[0].ravel().tolist()],
                    'bbox': [left, top, right - left, bottom - top],
                    'area': float(box[2] * box[3]),
                    'iscrowd': 0,
                }
            )
        with self._lock:
            self._rows[chip.stem] = picture, rows
        return ()


def run_lengths(mask: np.ndarray) -> list[int]:
    """Return how many pixels lie outside, inside, outside, ... down the columns of a mask (height, width)."""
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    edges = np.concatenate([[0], ends, [mask.size]])
    counts = np.diff(edges).tolist()
    return counts[:-1] if len(counts) % 2 and counts[-1] == 0 else counts

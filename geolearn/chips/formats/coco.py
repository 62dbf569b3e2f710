"""COCO_rectangles: one JSON file of categories, images and annotations for a whole folder."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath

from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats._boxes import Box, box_label
from geolearn.chips.formats._coco_fields import (
    Annotation,
    Content,
    Picture,
    parse_annotations,
    parse_categories,
    parse_images,
)
from geolearn.chips.formats._files import IMAGE_SUFFIXES
from geolearn.chips.formats._labels import read_text
from geolearn.chips.formats._outlines import Outline, Polygons, need_drawing, outline_label
from geolearn.chips.label import Label, Task
from geolearn.chips.source import ChipSource, LabelReader, Listing
from geolearn.errors import ChipFolderError

MAX_JSON_BYTES = 2**30
"""COCO's own training labels are 470 MB."""

JSON_NAMES = ('labels.json', 'annotations.json', 'instances*.json', '*coco*.json')
JSON_FOLDERS = ('.', 'labels', 'annotations')


def list_coco(folder: Path, metadata: ExportMetadata) -> Listing:
    """List the images that a COCO file names, in images/, beside the file, or where their names lead.

    The file is ``labels.json``, ``annotations.json``, ``instances*.json`` or ``*coco*.json`` in the folder, in labels/
    or in annotations/. Category ids are the class values, 0 included; the classes of an .emd are not asked. An image
    without annotations holds no object. Where every annotation has an outline the task is INSTANCES, else OBJECTS.
    Crowds (``iscrowd``) are left out.

    Raises:
        ChipFolderError: If there is no such file or several, it is broken, or none of its images is there.
        MissingExtraError: If there are polygons and pycocotools is not installed.
    """
    return list_coco_file(find_coco(folder), folder)


def find_coco(folder: Path) -> Path:
    """Return the COCO file of a chip folder.

    Raises:
        ChipFolderError: If there is none, or several; the message names them.
    """
    found = sorted({path for place in JSON_FOLDERS for name in JSON_NAMES for path in (folder / place).glob(name)})
    if not found:
        raise ChipFolderError(f'{folder} has no COCO file; labels.json in it, in labels/ or annotations/ is needed')
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
        content = json.loads(read_text(path, limit=MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ChipFolderError):
            raise
        raise ChipFolderError(f'{path} is not valid JSON: {error}') from error
    if not isinstance(content, dict):
        raise ChipFolderError(f'{path} holds a {type(content).__name__}; a JSON object is needed')
    classes, pictures = parse_categories(path, content), parse_images(path, content)
    annotations, notes = parse_annotations(path, content, classes, pictures)
    return Content(classes, pictures, annotations, notes)


def list_coco_file(path: Path, folder: Path) -> Listing:
    """List the images below `folder` that a COCO file names; see `list_coco`."""
    content = read_coco(path)
    task, told = _task(content)
    notes = [*content.notes, *told]
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
        read = _reader(path, picture, content.annotations.get(key, ()), task)
        chips[name] = ChipSource(name, ((image,),), (path,), read)
    if missing:
        notes.append(f'{len(missing)} images of {path.name} are not there, the first is {missing[0][:120]!r}')
    if not chips:
        raise ChipFolderError(
            f'none of {len(content.pictures)} images in {path} is below {folder}; see their file_name'
        )
    if more := len(images) - len(chips):
        notes.append(f'{more} images are not in {path.name} and were left out')
    ordered = tuple(chips[name] for name in sorted(chips))
    return Listing(task, ordered, content.classes, notes=tuple(notes))


def _task(content: Content) -> tuple[Task, list[str]]:
    every = [item.outline for items in content.annotations.values() for item in items]
    bare = every.count(None)
    if not every or bare:
        mixed = [f'{bare} of {len(every)} annotations have no outline, so only boxes are used']
        return Task.OBJECTS, mixed if 0 < bare < len(every) else []
    if any(isinstance(outline, Polygons) for outline in every):
        need_drawing()
    return Task.INSTANCES, []


class _Images:
    """The images below a folder by their path in it; names out of a file never touch the disk."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._path, self._folder = path, folder
        try:
            paths = sorted(item for item in folder.rglob('*') if item.suffix.lower() in IMAGE_SUFFIXES)
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


def _reader(path: Path, picture: Picture, annotations: Sequence[Annotation], task: Task) -> LabelReader:
    if task is Task.INSTANCES:
        outlines = tuple((item.value, item.outline) for item in annotations if item.outline is not None)
        return partial(read_coco_outlines, path, picture, outlines)
    return partial(read_coco_boxes, path, picture, tuple((item.value, item.box) for item in annotations))


def read_coco_boxes(
    path: Path, picture: Picture, objects: tuple[tuple[int, Box], ...], shape: tuple[int, int]
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
    return box_label([value for value, _ in objects], [box for _, box in objects], shape)


def read_coco_outlines(
    path: Path, picture: Picture, objects: tuple[tuple[int, Outline], ...], shape: tuple[int, int]
) -> Label:
    """Return the label of a chip whose annotations are outlines; as `read_coco_boxes`."""
    _check_size(path, picture, shape)
    return outline_label(objects, shape)


def _check_size(path: Path, picture: Picture, shape: tuple[int, int]) -> None:
    if picture.shape is not None and picture.shape != shape:
        height, width = picture.shape
        raise ChipFolderError(
            f'{path} states {width}x{height} pixels for {picture.file_name[:120]!r}, but the image is '
            f'{shape[1]}x{shape[0]}; its boxes would not fit'
        )

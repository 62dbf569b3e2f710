"""Panoptic_Segmentation: a raster of class values, and for the countable classes rasters that number their objects."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from geolearn.chips.emd import EMD_NAME, ExportMetadata, read_json
from geolearn.chips.formats import rcnn, tiles, writing
from geolearn.chips.formats.content import FolderContent
from geolearn.chips.formats.files import (
    list_files,
    list_images,
    list_subfolders,
    match_class_folders,
    pair_notes,
    require_pairs,
)
from geolearn.chips.label import ChipSource, Label, Listing, Task
from geolearn.classes import ClassInfo, color_classes
from geolearn.errors import ChipFolderError

_INSTANCE_KEY = 'Panoptic_Segmentation_Instance_Classes'


def is_panoptic(content: FolderContent) -> bool:
    """Whether each image may have a label raster, and there is ``labels2/`` for objects."""
    return content.has_label_rasters and (content.root / 'labels2').is_dir()


def list_panoptic(folder: Path, metadata: ExportMetadata) -> Listing:
    """List ``images/`` with ``labels/`` (class values) and ``labels2/<class name>/`` (numbered objects).

    Raises:
        ChipFolderError: If a folder is missing, no image has a label, or a folder of labels2/ matches no class.
    """
    images, labels = list_images(folder / 'images'), list_files(folder / 'labels')
    names = sorted(images.keys() & labels.keys())
    require_pairs(folder, names, len(images), len(labels), 'labels/000000001.tif')
    folders = {path.name: list_files(path) for path in list_subfolders(folder / 'labels2')}
    things = _instance_classes(folder)
    values = match_class_folders(folders, things) | match_class_folders(folders, metadata.classes)
    if not things and not metadata.classes:
        values = {name: int(name) for name in folders if name.isascii() and name.isdigit() and len(name) < 6}
    if folders and not values:
        raise ChipFolderError(
            f'{folder / "labels2"}: none of its folders ({", ".join(list(folders)[:8])}) is named after a class or a '
            f'class value; {EMD_NAME} must list the classes'
        )
    masks = rcnn.mask_files({name: files for name, files in folders.items() if name in values}, values)
    chips = tuple(_chip(name, images[name], labels[name], masks.get(name, ())) for name in names)
    if nameless := [name for name, files in folders.items() if name not in values and files]:
        raise ChipFolderError(
            f'{folder / "labels2" / nameless[0]} holds objects of no class: {EMD_NAME} lists none called '
            f'{nameless[0]!r}; add it to Classes there, or remove the folder'
        )
    notes = [*pair_notes(images, labels.keys())]
    notes += _renamed_notes(metadata.classes, things)
    bare = sum(name not in masks for name in names)
    if bare:
        notes.append(f'{bare} of {len(names)} chips have no file in labels2/ and count as chips without objects')
    classes = _unite(metadata.classes, things) if metadata.classes else None
    return Listing(Task.PANOPTIC, chips, classes, notes=tuple(notes))


def _chip(name: str, image: Path, label: Path, files: tuple[rcnn.MaskFile, ...]) -> ChipSource:
    paths = (label, *(path for _, path in files))
    return ChipSource(name, ((image,),), paths, partial(read_panoptic, label, files))


def _instance_classes(folder: Path) -> tuple[ClassInfo, ...]:
    """Return the countable classes that the .emd lists; rows that make no sense are passed over, as Classes decide."""
    rows = read_json(folder / EMD_NAME).get(_INSTANCE_KEY) if (folder / EMD_NAME).is_file() else None
    found: dict[int, tuple[int, str, None]] = {}
    for row in rows if isinstance(rows, list) else []:
        value, name = (row.get('Value'), row.get('Name')) if isinstance(row, Mapping) else (None, None)
        if isinstance(value, int) and isinstance(name, str) and 0 < value < 65536:
            found.setdefault(value, (value, name, None))
    return color_classes(found.values())


def _unite(classes: Iterable[ClassInfo], things: Iterable[ClassInfo]) -> tuple[ClassInfo, ...]:
    """Add the countable classes that are not among the classes by value or by name."""
    known = tuple(classes)
    values, names = {info.value for info in known}, {info.name for info in known}
    return known + tuple(info for info in things if info.value not in values and info.name not in names)


def _renamed_notes(classes: Iterable[ClassInfo], things: Iterable[ClassInfo]) -> list[str]:
    """Tell about countable classes that have another name among the classes: their objects count as the latter."""
    known = {info.value: info.name for info in classes}
    return [
        f'{EMD_NAME} calls class {info.value} {known[info.value]!r} in Classes but {info.name!r} in {_INSTANCE_KEY}'
        for info in things
        if known.get(info.value, info.name) != info.name
    ]


def read_panoptic(
    label: Path, files: tuple[rcnn.MaskFile, ...], shape: tuple[int, int], unlabelled: tuple[float, ...] = ()
) -> Label:
    """Read class values and objects of one chip.

    Raises:
        RasterError: If a file cannot be read.
        ChipFolderError: If a file does not fit the image.
    """
    classes = tiles.read_class_raster(label, shape, unlabelled)
    objects = rcnn.read_instances(files, shape)
    return replace(objects, raster=classes.raster, unlabelled=classes.unlabelled, place=classes.place)


class PanopticWriter(tiles.ClassifiedWriter):
    """``labels/<chip>.tif`` and ``labels2/<class name>/<chip>.tif``; the .emd lists the classes that have objects."""

    task = Task.PANOPTIC
    folders = ('images', 'labels', 'labels2')

    def __init__(self, root: Path, classes: Sequence[ClassInfo], compress: str) -> None:
        super().__init__(root, classes, compress)
        self._seen = set[int]()

    def check(self) -> None:
        """Refuse names that are no folder names."""
        writing.check_folders(self.classes, 'Panoptic_Segmentation')

    def write(self, chip: writing.ChipFile, label: Label) -> tuple[str, ...]:
        """Write class values and numbered objects."""
        self._seen.update(label.class_ids.tolist())
        return super().write(chip, label) + writing.write_masks(self, 'labels2', chip, label)

    def emd(self) -> Mapping[str, Any]:
        """Return the classes that have objects."""
        rows = [{'Value': info.value, 'Name': info.name} for info in self.classes if info.value in self._seen]
        return {'Panoptic_Segmentation_Instance_Classes': rows}

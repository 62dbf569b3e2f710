"""Labeled_Tiles and MultiLabeled_Tiles: an XML file for each image that names the classes of the whole chip."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats import text_labels, voc, writing
from geolearn.chips.label import ChipSource, Label, Listing, Task
from geolearn.errors import ChipFolderError


def list_labeled_tiles(folder: Path, metadata: ExportMetadata) -> Listing:
    """List images with one class each, in images/ and labels/.

    Classes come from the .emd; without one they are the names in all XML files, as in `list_voc`.

    Raises:
        ChipFolderError: If a folder is missing, no image has an XML file or no class is known.
    """
    return _list(folder, metadata, Task.LABEL, _first_name, read_labeled_tile)


def list_multilabeled_tiles(folder: Path, metadata: ExportMetadata) -> Listing:
    """List images with any number of classes each, in images/ and labels/.

    Raises:
        ChipFolderError: If a folder is missing, no image has an XML file or no class is known.
    """
    return _list(folder, metadata, Task.LABELS, _every_name, read_multilabeled_tile)


def read_labeled_tile(path: Path, values: Mapping[str, int], shape: tuple[int, int]) -> Label:
    """Read the class of a chip: that of the first object.

    Args:
        path: The XML file.
        values: Class value of each text that names a class.
        shape: Height and width of the chip; the class covers all of it.

    Raises:
        ChipFolderError: If the file is no sound XML, has no object, or its class is unknown.
    """
    name = next(iter(_first_name(path)), None)
    if name is None:
        raise ChipFolderError(f'{path} has no <object>; one whose <name> is the class of the chip is needed')
    if name not in values:
        raise ChipFolderError(f'{path} names the class {name[:60]!r}, which is no class of the .emd')
    return Label(class_ids=np.array([values[name]], np.int64))


def read_multilabeled_tile(path: Path, values: Mapping[str, int], shape: tuple[int, int]) -> Label:
    """Read the classes of a chip, named in a list with commas; none is an answer too.

    A class name may hold commas itself: of the known names the longest that fits is taken.

    Args:
        path: The XML file.
        values: Class value of each text that names a class.
        shape: Height and width of the chip; the classes hold for all of it.

    Raises:
        ChipFolderError: If the file is no sound XML.
    """
    known = {_tight(name): value for name, value in values.items()}
    found, unknown = set[int](), list[str]()
    for text in voc.voc_names(path):
        for name in _split_names(_tight(text), known):
            if name in known:
                found.add(known[name])
            else:
                unknown.append(f'class {name[:60]!r}, which is no class of the .emd')
    return Label(class_ids=np.array(sorted(found), np.int64), skipped=tuple(unknown))


def _list(
    folder: Path,
    metadata: ExportMetadata,
    task: Task,
    read_names: Callable[[Path], Iterable[str]],
    read_tile: Callable[..., Label],
) -> Listing:
    pairs, notes = text_labels.pair_files(folder, '.xml')
    known = text_labels.label_classes(folder, metadata, [pair.label for pair in pairs], read_names)
    chips = tuple(
        ChipSource(p.name, ((p.image,),), (p.label,), partial(read_tile, p.label, known.values)) for p in pairs
    )
    return Listing(task, chips, known.classes, notes=(*notes, *known.notes), numbered=known.numbered)


def _first_name(path: Path) -> list[str]:
    first = text_labels.read_xml(path, voc.ROOT).find('object')
    return [] if first is None else [text_labels.element_text(first, 'name')]


def _every_name(path: Path) -> Iterator[str]:
    for text in voc.voc_names(path):
        yield from _split_names(_tight(text), {})


def _tight(text: str) -> str:
    """Drop blanks around commas, so that 'a, b' and 'a,b' are the same."""
    return ','.join(part.strip() for part in text.split(','))


def _split_names(text: str, known: Mapping[str, int]) -> Iterator[str]:
    parts, start = text.split(','), 0
    longest = 1 + max((name.count(',') for name in known), default=0)
    while start < len(parts):
        ends = range(min(start + longest, len(parts)), start, -1)
        end = next((end for end in ends if ','.join(parts[start:end]) in known), start + 1)
        name = ','.join(parts[start:end])
        if name:
            yield name
        start = end


def only_value(label: Label, chip: writing.ChipFile) -> int:
    """Return the class value of a chip that has one."""
    if len(label.class_ids) != 1:
        raise ChipFolderError(f'label of chip {chip.stem} names {len(label.class_ids)} classes; exactly one is needed')
    return int(label.class_ids[0])


class LabeledWriter(writing.FormatWriter):
    """``labels/<chip>.xml`` with one object: its name is the class value, its box that of the feature or the chip."""

    task = Task.LABEL

    def write(self, chip: writing.ChipFile, label: Label) -> tuple[str, ...]:
        """Write the class."""
        box = (0, 0, chip.shape[1], chip.shape[0]) if label.boxes is None else label.boxes[0].tolist()
        return (
            self.write_text(f'labels/{chip.stem}.xml', voc.annotation(chip, [(str(only_value(label, chip)), box)])),
        )


class MultiLabeledWriter(writing.FormatWriter):
    """``labels/<chip>.xml`` with one object; its name lists class names with commas."""

    task = Task.LABELS

    def check(self) -> None:
        """Refuse names with commas, which separate names."""
        writing.check_texts(self.classes, 'MultiLabeled_Tiles', forbidden=',')

    def write(self, chip: writing.ChipFile, label: Label) -> tuple[str, ...]:
        """Write the classes; a chip without any has no object."""
        names = ','.join(self.names[value] for value in label.class_ids.tolist())
        objects = [(names, (0, 0, chip.shape[1], chip.shape[0]))] if names else []
        return (self.write_text(f'labels/{chip.stem}.xml', voc.annotation(chip, objects)),)

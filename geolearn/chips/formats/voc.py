"""PASCAL_VOC_rectangles: an XML file of boxes for each image."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats import shapes, text_labels, writing
from geolearn.chips.formats.content import FolderContent
from geolearn.chips.label import Label, Listing, Task
from geolearn.errors import ChipFolderError

ROOT = 'annotation'


def is_voc(content: FolderContent) -> bool:
    """Whether all labels are XML."""
    return content.label_kinds == {'xml'}


def list_voc(folder: Path, metadata: ExportMetadata) -> Listing:
    """List images with a VOC file each: images/ and labels/, JPEGImages/ and Annotations/, or side by side.

    Classes come from the .emd; without one they are the names in all XML files, sorted, with the values 1, 2, 3, ...,
    or with their own values where all names are whole numbers, as ArcGIS writes them.

    Raises:
        ChipFolderError: If a folder is missing, no image has an XML file or no class is known.
    """
    paired = text_labels.pair_files(folder, '.xml', stated=voc_image)
    return text_labels.list_named_boxes(folder, metadata, paired, voc_names, read_voc)


def voc_image(path: Path) -> str:
    """Return the name of the image that a file states, without its folder; empty where it states none.

    Raises:
        ChipFolderError: If the file is no sound XML.
    """
    return re.split(r'[\\/]', text_labels.element_text(text_labels.read_xml(path, ROOT), 'filename'))[-1]


def voc_names(path: Path) -> Iterator[str]:
    """Yield what stands in the <name> of each object.

    Raises:
        ChipFolderError: If the file is no sound XML.
    """
    for item in text_labels.read_xml(path, ROOT).iterfind('object'):
        yield text_labels.element_text(item, 'name')


def read_voc(path: Path, values: Mapping[str, int], shape: tuple[int, int]) -> Label:
    """Read the boxes of a chip, taken as pixels from its upper left corner.

    An object is left out, and `Label.skipped` tells, if its class is unknown or nothing of its box lies in the chip.

    Args:
        path: The XML file.
        values: Class value of each text that names a class.
        shape: Height and width of the chip.

    Raises:
        ChipFolderError: If the file is no sound XML, or states another size than the chip's.
    """
    root = text_labels.read_xml(path, ROOT)
    _check_size(root, path, shape)
    found, boxes, skipped = list[int](), list[shapes.Box](), list[str]()
    for item in root.iterfind('object'):
        name, corners = text_labels.element_text(item, 'name'), item.find('bndbox')
        if name not in values:
            skipped.append(text_labels.unknown_class(name))
        elif corners is None:
            skipped.append('object without a box')
        else:
            found.append(values[name])
            boxes.append(_box(corners))
    return shapes.box_label(found, boxes, shape, skipped)


def _box(corners: Element) -> shapes.Box:
    left, top, right, bottom = (
        text_labels.parse_number(text_labels.element_text(corners, tag)) for tag in ('xmin', 'ymin', 'xmax', 'ymax')
    )
    return left, top, right, bottom


def _check_size(root: Element, path: Path, shape: tuple[int, int]) -> None:
    """Refuse boxes that were drawn on an image of another size; some programs state 0 x 0, which says nothing."""
    stated = tuple(
        text_labels.parse_number(text_labels.element_text(root, f'size/{tag}')) for tag in ('height', 'width')
    )
    if min(stated) > 0 and stated != shape:
        height, width = stated
        raise ChipFolderError(
            f'{path} was made for an image of {width:g} x {height:g} pixels, but its image has '
            f'{shape[1]} x {shape[0]}; export image and label together'
        )


class VocWriter(writing.FormatWriter):
    """``labels/<chip>.xml``; a chip without objects gets a file without objects."""

    task = Task.OBJECTS

    def write(self, chip: writing.ChipFile, label: Label) -> tuple[str, ...]:
        """Write the boxes."""
        objects = [(str(value), box) for value, box in writing.boxes_of(label, chip)]
        return (self.write_text(f'labels/{chip.stem}.xml', annotation(chip, objects)),)


def annotation(chip: writing.ChipFile, objects: Iterable[tuple[str, Sequence[float]]]) -> str:
    """Return the XML of a chip with named boxes left, top, right, bottom."""
    root = Element('annotation')
    SubElement(root, 'filename').text = chip.file
    SubElement(SubElement(root, 'source'), 'annotation').text = 'geolearn'
    size = SubElement(root, 'size')
    for tag, number in (('width', chip.shape[1]), ('height', chip.shape[0]), ('depth', chip.bands)):
        SubElement(size, tag).text = str(number)
    for name, box in objects:
        item = SubElement(root, 'object')
        SubElement(item, 'name').text = name
        corners = SubElement(item, 'bndbox')
        for tag, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box):
            SubElement(corners, tag).text = writing.digits(value)
    ElementTree.indent(root)
    return '<?xml version="1.0"?>\n' + ElementTree.tostring(root, encoding='unicode') + '\n'

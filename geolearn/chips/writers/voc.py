"""PASCAL_VOC_rectangles: boxes in XML, with the class value as name, as ArcGIS writes it."""

from collections.abc import Iterable, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from geolearn.chips.label import Label, Task
from geolearn.chips.writers._format import ChipFile, FormatWriter, boxes_of, digits


class VocWriter(FormatWriter):
    """``labels/<chip>.xml``; a chip without objects gets a file without objects."""

    task = Task.OBJECTS

    def write(self, chip: ChipFile, label: Label) -> tuple[str, ...]:
        """Write the boxes."""
        objects = [(str(value), box) for value, box in boxes_of(label, chip)]
        return (self.write_text(f'labels/{chip.stem}.xml', annotation(chip, objects)),)


def annotation(chip: ChipFile, objects: Iterable[tuple[str, Sequence[float]]]) -> str:
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
            SubElement(corners, tag).text = digits(value)
    ElementTree.indent(root)
    return '<?xml version="1.0"?>\n' + ElementTree.tostring(root, encoding='unicode') + '\n'

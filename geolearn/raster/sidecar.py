"""The .aux.xml beside a GeoTIFF, the only place where GDAL and QGIS look for the names of pixel values."""

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

MAX_CATEGORY = 255
"""The list of names counts from 0 without gaps; beyond a byte it would be mostly empty lines."""


def replace_sidecars(path: Path, class_names: Mapping[int, str] | None) -> None:
    """Remove what lies beside `path` from an older file of that name, and write the names of its pixel values."""
    for suffix in ('.aux.xml', '.ovr', '.msk'):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    if class_names and max(class_names) <= MAX_CATEGORY:
        root = ElementTree.Element('PAMDataset')
        names = ElementTree.SubElement(ElementTree.SubElement(root, 'PAMRasterBand', band='1'), 'CategoryNames')
        for value in range(max(class_names) + 1):
            ElementTree.SubElement(names, 'Category').text = class_names.get(value, '')
        ElementTree.ElementTree(root).write(path.with_name(f'{path.name}.aux.xml'), encoding='utf-8')

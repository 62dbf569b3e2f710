"""Write styles for QGIS (.qml): the colors and names of classes, for a raster and for a layer of polygons."""

import glob
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from geolearn.classes import ClassInfo
from geolearn.raster.opening import printable

VERSION = '3.22'
"""Of QGIS, whose long-term release it was; later ones read its styles."""


STYLED = ('.tif', '.tiff', '.vrt', '.img', '.png', '.gpkg', '.geojson', '.shp', '.parquet', '.geoparquet')
"""Files that QGIS loads ``<name>.qml`` with."""


def style_name(target: Path) -> str:
    """Return the name of a file's style: ``<name>.qml``, or ``<name>.<suffix>.qml`` where others share its name."""
    others = target.parent.glob(f'{glob.escape(target.stem)}.*')
    shared = any(other.suffix.lower() in STYLED and other != target for other in others)
    return f'{target.name}.qml' if shared else f'{target.stem}.qml'


def write_raster_style(path: Path, classes: Iterable[ClassInfo]) -> None:
    """Write the palette of a raster of class values.

    Args:
        path: File to write, which QGIS loads with the raster of its name.
        classes: In the order of the legend.
    """
    root = ElementTree.Element('qgis', version=VERSION, styleCategories='Symbology')
    renderer = ElementTree.SubElement(
        ElementTree.SubElement(root, 'pipe'),
        'rasterrenderer',
        {'type': 'paletted', 'band': '1', 'opacity': '1', 'alphaBand': '-1', 'nodataColor': ''},
    )
    palette = ElementTree.SubElement(renderer, 'colorPalette')
    for info in classes:
        ElementTree.SubElement(
            palette,
            'paletteEntry',
            {'value': str(info.value), 'label': printable(info.name), 'color': hex_color(info), 'alpha': '255'},
        )
    ElementTree.SubElement(root, 'blendMode').text = '0'
    _write(root, path)


def write_polygon_style(path: Path, classes: Iterable[ClassInfo], *, field: str, filled: bool = True) -> None:
    """Write the categories of a layer of polygons.

    Args:
        path: File to write, which QGIS loads with the layer of its name.
        classes: In the order of the legend.
        field: That holds class values.
        filled: Whether areas are filled; else their outlines alone are drawn, thicker, and show what is below.
    """
    root = ElementTree.Element('qgis', version=VERSION, styleCategories='Symbology')
    renderer = ElementTree.SubElement(
        root, 'renderer-v2', {'type': 'categorizedSymbol', 'attr': field, 'forceraster': '0', 'symbollevels': '0'}
    )
    categories = ElementTree.SubElement(renderer, 'categories')
    symbols = ElementTree.SubElement(renderer, 'symbols')
    for number, info in enumerate(classes):
        ElementTree.SubElement(
            categories,
            'category',
            {'value': str(info.value), 'label': printable(info.name), 'symbol': str(number), 'render': 'true'},
        )
        symbol = ElementTree.SubElement(symbols, 'symbol', {'type': 'fill', 'name': str(number), 'alpha': '1'})
        layer = ElementTree.SubElement(symbol, 'layer', {'class': 'SimpleFill', 'enabled': '1', 'pass': '0'})
        options = ElementTree.SubElement(layer, 'Option', type='Map')
        color = ','.join(map(str, (*info.color, 255)))
        for name, value in (
            ('color', color),
            ('style', 'solid' if filled else 'no'),
            ('outline_color', color),
            ('outline_style', 'solid'),
            ('outline_width', '0.1' if filled else '0.5'),
            ('outline_width_unit', 'MM'),
        ):
            ElementTree.SubElement(options, 'Option', {'type': 'QString', 'name': name, 'value': value})
    _write(root, path)


def hex_color(info: ClassInfo) -> str:
    """Return the color of a class as ``'#rrggbb'``."""
    return '#{:02x}{:02x}{:02x}'.format(*info.color)


def _write(root: ElementTree.Element, path: Path) -> None:
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding='unicode')
    path.write_text(f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{text}\n", encoding='utf-8')

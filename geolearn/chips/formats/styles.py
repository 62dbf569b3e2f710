"""Names and colors of classes given beside labels: color tables, attribute tables, QGIS styles, .clr."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from geolearn import classes, errors
from geolearn.chips.formats.text_labels import parse_xml, read_text

Color = tuple[int, int, int]


class ClassStyle(NamedTuple):
    """How a class is shown: its name and color, None where nothing says it."""

    name: str | None = None
    color: Color | None = None


Style = dict[str, ClassStyle]
"""Styles by class value as text, or by the text that names a class in a vector layer."""


def styled_classes(values: Sequence[int], style: Mapping[str, ClassStyle]) -> tuple[classes.ClassInfo, ...]:
    """Make classes of values, with the names and colors that a style gives them, others by their names."""
    named = [(value, style.get(str(value), ClassStyle())) for value in values]
    return classes.color_classes([(value, found.name or str(value), found.color) for value, found in named])


def read_raster_style(src: Any, path: object) -> Style:
    """Read names and colors of the classes of a label raster.

    What is found later adds to what is found before, and goes before it: the color table, names as tags
    ``class_<value>`` of the file or of its band, as geolearn writes them, the attribute table in ``.aux.xml``,
    ``.clr``, and QGIS's ``.qml``.

    Args:
        src: Dataset of the labels.
        path: The file; styles beside it are read where it is one.
    """
    style: Style = {}
    tags = {**src.tags(), **src.tags(1)}
    with suppress(ValueError):  # rasterio's word for a band without colors
        table = {value: color[:3] for value, color in src.colormap(1).items()}
        if len(set(table.values())) > 1 and not _is_gray(table):
            style = {str(value): ClassStyle(None, (color[0], color[1], color[2])) for value, color in table.items()}
    for key, name in tags.items():
        if (found := re.fullmatch(r'class_(\d{1,5})', key, re.IGNORECASE)) and name.strip():
            _add(style, found[1], name.strip(), None)
    if isinstance(path, str | Path) and Path(path).is_file():
        for read, beside in ((_attribute_table, f'{path}.aux.xml'), (_clr, _with(path, '.clr')), (_qml, _qml_of(path))):
            if Path(beside).is_file():
                with suppress(errors.ChipFolderError):  # a style that cannot be read gives no colors
                    for value, (name, color) in read(Path(beside)).items():
                        _add(style, value, name, color)
    return style


def read_vector_style(path: object, field: str | None) -> Style:
    """Read names and colors from the ``.qml`` beside a vector file, where it has a category for each class of a field.

    Args:
        path: The file.
        field: Field of class values; None takes whatever the style is by.
    """
    if not isinstance(path, str | Path) or not Path(beside := _qml_of(path)).is_file():
        return {}
    with suppress(errors.ChipFolderError):
        return _categories(_read_style(Path(beside)), field)
    return {}


def _add(style: Style, value: str, name: str | None, color: Color | None) -> None:
    known = style.get(value, ClassStyle())
    style[value] = ClassStyle(name or known.name, color or known.color)


def _is_gray(table: Mapping[int, Sequence[int]]) -> bool:
    """Whether a color table only says that values are shades of gray."""
    return all(red == green == blue == value for value, (red, green, blue) in table.items())


def _with(path: str | Path, suffix: str) -> str:
    return str(Path(path).with_suffix(suffix))


def _qml_of(path: str | Path) -> str:
    """Return the style of a file: that of its whole name, or that of its name without suffix."""
    whole = f'{path}.qml'
    return whole if Path(whole).is_file() else _with(path, '.qml')


def _clr(path: Path) -> Style:
    """Read lines of value, red, green, blue, and maybe opacity and a name."""
    style: Style = {}
    for line in read_text(path).splitlines():
        words = re.split(r'[\s,;]+', line.strip())
        if len(words) >= 4 and all(re.fullmatch(r'\d{1,5}', word) for word in words[:4]):
            rest = words[5:] if len(words) > 4 and words[4].isdecimal() else words[4:]
            color = _color(words[1:4])
            style[str(int(words[0]))] = ClassStyle(' '.join(rest) or None, color)
    return style


def _attribute_table(path: Path) -> Style:
    """Read GDAL's raster attribute table and category names out of an .aux.xml."""
    style: Style = {}
    root = _read_style(path)
    for band in root.iter('PAMRasterBand'):
        for number, category in enumerate(band.findall('CategoryNames/Category')):
            if category.text and category.text.strip():
                _add(style, str(number), category.text.strip(), None)
        for table in band.iter('GDALRasterAttributeTable'):
            for value, found in _table_rows(table):
                _add(style, value, *found)
        break  # a label raster has one band
    return style


_USAGES = {'0': 'value', '5': 'value', '2': 'name', '6': 'red', '7': 'green', '8': 'blue'}
"""GDAL's numbers of what a column is for; 5 is MinMax."""

_COLUMNS = {'value': 'value', 'red': 'red', 'green': 'green', 'blue': 'blue'} | dict.fromkeys(
    ('classname', 'class_name', 'class', 'name', 'label', 'landcover', 'land_cover', 'category'), 'name'
)


def _table_rows(table: Element) -> list[tuple[str, ClassStyle]]:
    columns: dict[str, int] = {}
    for position, field in enumerate(table.iter('FieldDefn')):
        title = (field.findtext('Name') or '').strip().lower()
        usage = _COLUMNS.get(title) or (
            _USAGES.get((field.findtext('Usage') or '').strip()) if title != 'count' else None
        )
        if usage and (usage not in columns or title == usage):
            columns[usage] = position
    rows = []
    for number, row in enumerate(table.iter('Row')):
        cells = [(cell.text or '').strip() for cell in row.iter('F')]
        found = {usage: cells[at] for usage, at in columns.items() if at < len(cells)}
        value = _whole(found.get('value', str(number)))
        parts = [found.get(part, '') for part in ('red', 'green', 'blue')]
        if value is not None:
            rows.append((value, ClassStyle(found.get('name') or None, _color(parts))))
    return rows


def _qml(path: Path) -> Style:
    """Read the palette of a QGIS style of a raster."""
    root = _read_style(path)
    style: Style = {}
    for tag in ('paletteEntry', 'item'):
        for entry in root.iter(tag):
            value, color = _whole(entry.get('value', '')), _hex(entry.get('color', ''))
            if value is not None and color is not None:
                style[value] = ClassStyle((entry.get('label') or '').strip() or None, color)
    return style


def _categories(root: Element, field: str | None) -> Style:
    """Read the categories of a QGIS style of a vector layer."""
    renderer = next(root.iter('renderer-v2'), None)
    if renderer is None or renderer.get('type') != 'categorizedSymbol':
        return {}
    if field is not None and (renderer.get('attr') or '').strip('"').lower() != field.lower():
        return {}
    symbols = {symbol.get('name'): _symbol_color(symbol) for symbol in renderer.iter('symbol')}
    style: Style = {}
    for category in renderer.iter('category'):
        value = (category.get('value') or '').strip()
        if value:
            label = (category.get('label') or '').strip()
            style[_whole(value) or value] = ClassStyle(label or None, symbols.get(category.get('symbol')))
    return style


def _symbol_color(symbol: Element) -> Color | None:
    for layer in symbol.iter('layer'):
        for item in (*layer.iter('Option'), *layer.iter('prop')):
            if (item.get('name') or item.get('k')) in ('color', 'line_color'):
                return _color((item.get('value') or item.get('v') or '').split(',')[:3])
    return None


def _read_style(path: Path) -> Element:
    """Read XML whose document type, which QGIS writes and nothing needs, is dropped if it declares nothing."""
    text = re.sub(r'<!DOCTYPE\s+[^<>\[\]]*>', '', read_text(path), count=1)
    try:
        return parse_xml(text, path)
    except ElementTree.ParseError as error:
        raise errors.ChipFolderError(f'{path} is not valid XML: {error}') from error


def _whole(text: str) -> str | None:
    """Return a whole number as text without needless digits, such as '3' of '3.0'; None for whatever else."""
    try:
        number = float(text)
    except ValueError:
        return None
    return str(int(number)) if abs(number) < 2**31 and number == int(number) else None


def _hex(text: str) -> Color | None:
    found = re.fullmatch(r'#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})?', text.strip())
    return None if found is None else (int(found[1], 16), int(found[2], 16), int(found[3], 16))


def _color(parts: Sequence[str]) -> Color | None:
    """Return the color of three texts: 0..255, or fractions of 1 as some tables have."""
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return None
    if len(numbers) != 3 or not all(0 <= number <= 255 for number in numbers):
        return None
    if all(number <= 1 for number in numbers) and any('.' in part for part in parts):
        numbers = [255 * number for number in numbers]
    return round(numbers[0]), round(numbers[1]), round(numbers[2])

"""Esri's JSON for features and attribute tables."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from geolearn.classes import ClassInfo, is_unlabelled
from geolearn.extras import require

POLYGON = 4
"""ArcGIS's number of that type of geometry."""

Ring = list[list[float]]

_TYPES = {int: 'esriFieldTypeInteger', float: 'esriFieldTypeDouble', str: 'esriFieldTypeString'}


def list_fields(columns: Mapping[str, type], *, shape: bool = True) -> list[dict[str, str]]:
    """Return Esri's fields: the number of the row, the columns, and the geometry where there is one."""
    typed = {'OID': 'esriFieldTypeOID'} | {name: _TYPES[kind] for name, kind in columns.items()}
    if shape:
        typed['Shape'] = 'esriFieldTypeGeometry'
    return [{'name': name, 'type': kind, 'alias': name} for name, kind in typed.items()]


def fields_text(columns: Mapping[str, type]) -> str:
    """Return the fields of features with these columns as Esri's text."""
    return json.dumps({'fields': list_fields(columns)})


def feature_set(columns: Mapping[str, type], rows: Sequence[Mapping[str, Any]], shapes: Sequence[list[Ring]]) -> str:
    """Return features with their polygons, in pixels of a block, as Esri's text.

    Args:
        columns: Type of each attribute.
        rows: Attributes of each feature.
        shapes: Rings of each feature.
    """
    features = [
        {'attributes': {'OID': number, **row}, 'geometry': {'rings': rings}}
        for number, (row, rings) in enumerate(zip(rows, shapes), 1)
    ]
    return _text(list_fields(columns), features, geometryType='esriGeometryPolygon')


def attribute_table(classes: Sequence[ClassInfo]) -> str:
    """Return the attribute table of a raster of class values as Esri's text."""
    columns = {'Value': int, 'Class': str, 'Red': int, 'Green': int, 'Blue': int}
    named = [info for info in classes if not is_unlabelled(info)]
    rows = [dict(zip(columns, (info.value, info.name, *info.color))) for info in named]
    features = [{'attributes': {'OID': number, **row}} for number, row in enumerate(rows, 1)]
    return _text(list_fields(columns, shape=False), features)


def _text(fields: list[dict[str, str]], features: list[dict[str, Any]], **more: str) -> str:
    aliases = {field['name']: field['alias'] for field in fields}
    header = {'displayFieldName': '', 'fieldAliases': aliases, **more, 'fields': fields}
    return json.dumps({**header, 'features': features}, allow_nan=False)


def box_rings(left: float, top: float, right: float, bottom: float) -> list[Ring]:
    """Return the ring of a box, clockwise on the image, as Esri wants outer rings."""
    return [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]]


def outline_rings(outline: Any) -> list[Ring]:
    """Return the rings of a shapely polygon or several: outer ones clockwise on the image, holes the other way."""
    shapely = require('shapely', extra='vector', to='outline objects')
    rings: list[Ring] = []
    for part in shapely.get_parts(outline):
        # rows count downwards, so what shapely calls counter-clockwise is clockwise on the image
        turned = shapely.geometry.polygon.orient(part, sign=1.0)
        rings += [[list(point) for point in ring.coords] for ring in (turned.exterior, *turned.interiors)]
    return rings

"""Found objects as features of a layer: polygons in map coordinates, with class, confidence and area."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from geolearn.classes import ClassInfo
from geolearn.extras import require
from geolearn.inference.merging import Pieces
from geolearn.raster import GeoBox


def objects_to_features(objects: Pieces, box: GeoBox, classes: Sequence[ClassInfo], *, outlined: bool) -> Any:
    """Make a GeoDataFrame of objects, surest first.

    Args:
        objects: In pixels of the raster.
        box: Place of the raster; rotated ones give rotated boxes.
        classes: By index.
        outlined: Whether features are outlines, MultiPolygons, and not boxes.

    Returns:
        Columns Class (name), value (class value), Confidence (percent) and area, in square units of the CRS, or in
        square metres on the ellipsoid where these are degrees.
    """
    geopandas = require('geopandas', extra='vector', to='write objects')
    shapely = require('shapely', extra='vector', to='write objects')
    order = np.argsort(-objects.scores, kind='stable')
    objects = objects.select(order)
    t = box.transform

    def place(points: np.ndarray) -> np.ndarray:
        x, y = points.T
        return np.stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f], axis=1)

    if outlined:
        shapes = np.zeros(0, object) if objects.outlines is None else objects.outlines
        pixels = np.array([shapely.multipolygons(shapely.get_parts(shape)) for shape in shapes], object)
    else:
        pixels = shapely.box(*objects.boxes.T)
    geometry = shapely.transform(pixels, place) if len(objects) else np.zeros(0, object)
    # a transform that mirrors, as north-up ones do, turns rings round
    geometry = shapely.normalize(geometry)
    frame = geopandas.GeoDataFrame(
        {
            # the type of text is said, for a column without rows cannot show it
            'Class': pd.array([classes[label].name for label in objects.labels], 'string'),
            'value': np.array([classes[label].value for label in objects.labels], np.int32),
            'Confidence': np.round(100 * objects.scores, 2),
        },
        geometry=geopandas.GeoSeries(geometry, crs=box.crs),
    )
    frame.insert(3, 'area', _areas(frame))
    return frame


def _areas(frame: Any) -> np.ndarray:
    if frame.crs is None or not frame.crs.is_geographic:
        flat: np.ndarray = frame.geometry.area.to_numpy(np.float64)
        return flat
    ellipsoid = frame.crs.get_geod()
    return np.array([abs(ellipsoid.geometry_area_perimeter(shape)[0]) for shape in frame.geometry], np.float64)

"""Write layers of features by suffix: GeoPackage, GeoJSON, GeoParquet or Shapefile."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geolearn import errors, extras, files
from geolearn.classes import ClassInfo
from geolearn.inference.merging import TileDetections, polygonal
from geolearn.raster import GeoBox


def objects_to_features(objects: TileDetections, box: GeoBox, classes: Sequence[ClassInfo], *, outlined: bool) -> Any:
    """Make a GeoDataFrame of objects, by descending confidence.

    Args:
        objects: In pixels of the raster.
        box: Place of the raster; rotated ones give rotated boxes.
        classes: By index.
        outlined: Whether features are outlines, MultiPolygons, and not boxes.

    Returns:
        Columns Class (name), value (class value), Confidence (percent) and area, in square units of the CRS, or in
        square metres on the ellipsoid where these are degrees.
    """
    geopandas = extras.require('geopandas', extra='vector', to='write objects')
    shapely = extras.require('shapely', extra='vector', to='write objects')
    order = np.argsort(-objects.scores, kind='stable')
    objects = objects.select(order)
    t = box.transform

    def place(points: np.ndarray) -> np.ndarray:
        x, y = points.T
        return np.stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f], axis=1)

    if outlined:
        shapes = np.zeros(0, object) if objects.outlines is None else polygonal(objects.outlines)
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


DRIVERS = {'.gpkg': 'GPKG', '.geojson': 'GeoJSON', '.shp': 'ESRI Shapefile', '.parquet': None, '.geoparquet': None}
"""OGR's driver by suffix; GeoParquet is written by geopandas itself."""

SHAPEFILE_SIDECARS = ('.shx', '.dbf', '.prj', '.cpg', '.qix', '.sbn', '.sbx')

WGS84 = 'EPSG:4326'
"""What GeoJSON is in (RFC 7946), longitude before latitude."""


def check_vector_target(dst: str | Path) -> Path:
    """Refuse before hours of work what could not be written after them.

    Args:
        dst: File to write; its suffix is one of `DRIVERS`.

    Raises:
        FileWriteError: If the suffix is another one, `dst` is a folder, or its folder is missing.
        MissingExtraError: If the library that writes such files is not installed.
    """
    path = Path(dst).expanduser()
    if path.suffix.lower() not in DRIVERS:
        raise errors.FileWriteError(f'{path} has no suffix that says how to write it; pass one of {", ".join(DRIVERS)}')
    if path.is_dir():
        raise errors.FileWriteError(
            f'{path} is a folder; pass the file to write, such as {path.with_suffix(".gpkg").name}'
        )
    if not path.parent.is_dir():
        raise errors.FileWriteError(f'{path.parent} is no folder; make it first')
    extras.require('geopandas', extra='vector', to='write vector layers')
    if DRIVERS[path.suffix.lower()] is None:
        extras.require('pyarrow', extra='vector', to='write GeoParquet')
    return path


def write_layer(frame: Any, dst: str | Path, *, geometry_type: str | None = None) -> Path:
    """Write a layer; it appears under its name only when it is whole, and replaces one that is there.

    Args:
        frame: GeoDataFrame; without rows it becomes a layer with its columns and no feature (GeoJSON names columns
            with features only).
        dst: File to write, with one of the suffixes in `DRIVERS`. GeoJSON is brought to WGS84; the others keep the
            CRS. Shapefiles cut the names of columns to ten letters.
        geometry_type: What all geometries are, such as ``'Polygon'``, which a layer without rows cannot show. None
            takes it from the rows.

    Returns:
        The path written.

    Raises:
        FileWriteError: If it cannot be written; no part of it is left.
        MissingExtraError: If the library that writes such files is not installed.
    """
    path = check_vector_target(dst)
    pyogrio = extras.require('pyogrio', extra='vector', to='write vector layers')
    driver = DRIVERS[path.suffix.lower()]
    if driver == 'GeoJSON' and frame.crs is not None:
        frame = frame.to_crs(WGS84)
    # an index of older features would be believed
    sidecars = SHAPEFILE_SIDECARS if driver == 'ESRI Shapefile' else ()
    with files.atomic_write_all(path, replaces=[path.with_suffix(suffix).name for suffix in sidecars]) as part:
        try:
            if driver is None:
                frame.to_parquet(part)
            else:
                _write(frame, part, driver, geometry_type)
        except (ValueError, pyogrio.errors.DataSourceError, pyogrio.errors.FieldError) as error:
            raise errors.FileWriteError(f'cannot write {path}: {error}') from error
    return path


def _write(frame: Any, part: Path, driver: str, geometry_type: str | None) -> None:
    options: dict[str, str | None] = {'RFC7946': 'YES'} if driver == 'GeoJSON' else {}
    if geometry_type is not None:
        # polygons of shapefiles may have several parts, and have no name of their own then
        options['geometry_type'] = geometry_type.removeprefix('Multi') if driver == 'ESRI Shapefile' else geometry_type
    with warnings.catch_warnings():
        # names of columns in shapefiles, which the docstring tells of, and layers in no CRS, which are as given
        warnings.filterwarnings('ignore', message='(Normalized/laundered field name|.*crs. was not provided)')
        warnings.filterwarnings('ignore', message='Column names longer than 10 characters')
        frame.to_file(part, driver=driver, engine='pyogrio', **options)

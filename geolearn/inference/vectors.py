"""Write layers of features by suffix: GeoPackage, GeoJSON, GeoParquet or Shapefile."""

import io
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from geolearn import errors, extras, files
from geolearn.classes import ClassInfo
from geolearn.inference.merging import TileDetections
from geolearn.inference.outlines import polygonal
from geolearn.oriented import geometry
from geolearn.raster import GeoBox, qml


def objects_to_features(
    objects: TileDetections, box: GeoBox, classes: Sequence[ClassInfo], *, outlined: bool, oriented: bool = False
) -> Any:
    """Make a GeoDataFrame of objects, by descending confidence.

    Args:
        objects: In pixels of the raster.
        box: Place of the raster; rotated ones give rotated boxes.
        classes: By index.
        outlined: Whether features are outlines, MultiPolygons, and not boxes.
        oriented: Whether boxes are oriented.

    Returns:
        Columns Class (name), value (class value), Confidence (percent) and area, in square units of the CRS, or in
        square meters on the ellipsoid where these are degrees. Of oriented boxes also length and width, see
        `measure_boxes`, and angle: the azimuth of the long side, 0..180 degrees clockwise from the grid's north.
    """
    import pandas as pd  # late: with pyarrow it takes part of a second to import

    geopandas = extras.require('geopandas', extra='vector', to='write objects')
    shapely = extras.require('shapely', extra='vector', to='write objects')
    order = np.argsort(-objects.scores, kind='stable')
    objects = objects.select(order)
    if outlined:
        shapes = np.zeros(0, object) if objects.outlines is None else polygonal(objects.outlines)
        pixels = np.array([shapely.multipolygons(shapely.get_parts(shape)) for shape in shapes], object)
    elif objects.turned is not None:
        pixels = shapely.polygons(geometry.corners(objects.turned))
    else:
        pixels = shapely.box(*objects.boxes.T)
    placed = place_geometry(pixels, box) if len(objects) else np.zeros(0, object)
    frame = geopandas.GeoDataFrame(
        {
            # the type of text is said, for a column without rows cannot show it
            'Class': pd.array([classes[label].name for label in objects.labels], 'string'),
            'value': np.array([classes[label].value for label in objects.labels], np.int32),
            'Confidence': np.round(100 * objects.scores, 2),
        },
        geometry=geopandas.GeoSeries(placed, crs=box.crs),
    )
    frame.insert(3, 'area', areas(frame))
    if oriented:
        turned = np.zeros((0, 5)) if objects.turned is None else objects.turned
        columns = measure_boxes(turned, box, frame.crs)
        for place, (name, column) in enumerate(zip(('length', 'width', 'angle'), columns), 4):
            frame.insert(place, name, column)
    return frame


def measure_boxes(turned: np.ndarray, box: GeoBox, crs: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure oriented boxes on the ground.

    Args:
        turned: (n, 5) in pixels of the raster.
        box: Place of the raster.
        crs: Its CRS as pyproj's, or None.

    Returns:
        Length and width (n,), the distances between the middles of opposite sides, in meters, in units of the map where
        there is no CRS; and the azimuth (n,) in degrees, 0 <= azimuth < 180, of the line along the length, clockwise
        from the grid's north. Where the CRS is in degrees, all are geodesic.
    """
    return measure_sides(turned, box, lambda start, end: _line(start, end, crs))


def place_points(pixels: np.ndarray, box: GeoBox) -> np.ndarray:
    """Bring points (..., 2), x and y in pixels of a raster, to map coordinates."""
    t, x, y = box.transform, pixels[..., 0], pixels[..., 1]
    return np.stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f], -1)


MeasureLine = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Takes places (n, 2), (n, 2) to length (n,) in meters and azimuth (n,) in degrees of the lines between them."""


def measure_sides(
    turned: np.ndarray, box: GeoBox, measure_line: MeasureLine
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `measure_boxes` does, by a function that measures lines."""
    corners = geometry.corners(np.asarray(turned, np.float64).reshape(-1, 5))
    middles = (corners + np.roll(corners, -1, axis=1)) / 2  # of the sides: upper, right, lower, left of a level box
    placed = place_points(middles, box)
    first, second = (measure_line(placed[:, start], placed[:, end]) for start, end in ((3, 1), (0, 2)))
    # on the ground, the longer side in pixels need not be the longer one
    swapped = second[0] > first[0]
    length, width, azimuth = (
        np.where(swapped, one, other)
        for one, other in ((second[0], first[0]), (first[0], second[0]), (second[1], first[1]))
    )
    azimuth = np.round(azimuth, 2) % 180
    return np.round(length, 3), np.round(width, 3), azimuth


def _line(start: np.ndarray, end: np.ndarray, crs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return length (n,) and azimuth (n,) in degrees of lines between places (n, 2)."""
    if crs is not None and crs.is_geographic:
        azimuth, _, length = crs.get_geod().inv(*start.T, *end.T)
        return np.asarray(length, np.float64), np.asarray(azimuth, np.float64)
    offset = end - start
    meters = 1.0 if crs is None else crs.axis_info[0].unit_conversion_factor
    return meters * np.hypot(*offset.T), np.degrees(np.arctan2(offset[:, 0], offset[:, 1]))


def place_geometry(pixels: np.ndarray, box: GeoBox) -> np.ndarray:
    """Bring shapely geometries (n,) from pixels of a raster to map coordinates."""
    shapely = extras.require('shapely', extra='vector', to='write vector layers')
    t = box.transform

    def place(points: np.ndarray) -> np.ndarray:
        x, y = points.T
        return np.stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f], axis=1)

    # a transform that mirrors, as north-up ones do, turns rings round
    placed: np.ndarray = shapely.normalize(shapely.transform(pixels, place))
    return placed


def areas(frame: Any) -> np.ndarray:
    """Return the area of each row of a GeoDataFrame, in square units of its CRS; square meters where it has degrees."""
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


def check_vector_target(dst: str | Path, *, plain: bool = False) -> Path:
    """Refuse before hours of work what could not be written after them.

    Args:
        dst: File to write; its suffix is one of `DRIVERS`.
        plain: Whether GeoJSON is written without the libraries that other layers need.

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
    if plain and path.suffix.lower() == '.geojson':
        return path
    extras.require('geopandas', extra='vector', to='write vector layers')
    if DRIVERS[path.suffix.lower()] is None:
        extras.require('pyarrow', extra='vector', to='write GeoParquet')
    return path


def check_crs(dst: Path, box: GeoBox, src: Any) -> None:
    """Refuse GeoJSON, which is in WGS84, of rasters without a CRS.

    Raises:
        RasterError: If `dst` is one, and `src` names none.
    """
    if dst.suffix.lower() == '.geojson' and box.crs is None:
        raise errors.RasterError(
            f'GeoJSON is in WGS84, but {src} names no CRS; write a .gpkg, or give the raster its CRS'
        )


def write_layer(
    frame: Any, dst: str | Path, *, geometry_type: str | None = None, classes: Sequence[ClassInfo] = ()
) -> Path:
    """Write a layer; it appears under its name only when it is whole, and replaces one that is there.

    Args:
        frame: GeoDataFrame; without rows it becomes a layer with its columns and no feature (GeoJSON names columns
            with features only).
        dst: File to write, with one of the suffixes in `DRIVERS`. GeoJSON is brought to WGS84; the others keep the
            CRS. Shapefiles cut the names of columns to ten letters.
        geometry_type: What all geometries are, such as ``'Polygon'``, which a layer without rows cannot show. None
            takes it from the rows.
        classes: Of polygons whose column ``value`` holds class values: a style for QGIS, ``<name>.qml``, is written
            beside the layer, which draws their outlines.

    Returns:
        The path written.

    Raises:
        FileWriteError: If it cannot be written; no part of it is left.
        MissingExtraError: If the library that writes such files is not installed.
    """
    path = check_vector_target(dst)
    with (
        files.atomic_write_all(path, replaces=layer_sidecars(path)) as part,
        LayerWriter(part, geometry_type=geometry_type, shown=path) as writer,
    ):
        writer.add(frame)
        if classes:
            qml.write_polygon_style(part.with_name(qml.style_name(path)), classes, field='value', filled=False)
    return path


def check_layer(frame: Any, dst: Path) -> None:
    """Refuse before the work what could not be written after it: columns, or kinds of geometry, that `dst` cannot hold.

    Args:
        frame: GeoDataFrame with the columns of the layer to write.
        dst: From `check_vector_target`.

    Raises:
        FileWriteError: If such a layer cannot be written.
    """
    some = frame[~frame.geometry.geom_type.duplicated()]
    with tempfile.TemporaryDirectory() as folder:
        try:
            with LayerWriter(Path(folder, f'a{dst.suffix.lower()}'), shown=dst) as writer:
                writer.add(some)
        except errors.FileWriteError as error:
            raise errors.FileWriteError(
                f'{error}; write another kind of layer, such as .gpkg, or leave out the columns and geometries that it '
                'cannot hold'
            ) from error


def layer_sidecars(path: Path) -> list[str]:
    """Return the names of the files beside a layer that an older one may have, and that would be taken for its own."""
    suffixes = SHAPEFILE_SIDECARS if DRIVERS[path.suffix.lower()] == 'ESRI Shapefile' else ()
    return [path.with_suffix(suffix).name for suffix in suffixes]


class LayerWriter:
    """Write a layer piece by piece, in bounded memory: GeoJSON alone is collected first.

    Args:
        path: File to write, which does not exist.
        geometry_type: See `write_layer`.
        shown: What messages call the file.
    """

    def __init__(self, path: Path, *, geometry_type: str | None = None, shown: Path | None = None) -> None:
        self._path, self._geometry_type, self._shown = path, geometry_type, shown or path
        self._driver = DRIVERS[path.suffix.lower()]
        self._held: list[Any] = []
        self._parquet: Any = None
        self._begun = False

    def __enter__(self) -> Self:
        return self

    def add(self, frame: Any) -> None:
        """Write the rows of a GeoDataFrame; all have the columns of the first.

        Raises:
            FileWriteError: If they cannot be written.
        """
        if self._driver == 'GeoJSON' and frame.crs is not None:
            frame = frame.to_crs(WGS84)
        self._held.append(frame)
        # what comes in one piece is written as one
        if len(self._held) > 1 and self._driver != 'GeoJSON':
            with self._reported():
                self._write_held(more=True)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None:
                with self._reported():
                    self._write_held(more=False)
        finally:
            if self._parquet is not None:
                self._parquet.close()

    def _write_held(self, *, more: bool) -> None:
        import pandas as pd  # late: with pyarrow it takes part of a second to import

        frame = self._held[0] if len(self._held) == 1 else pd.concat(self._held, ignore_index=True)
        self._held = []
        if self._driver is not None:
            _write(frame, self._path, self._driver, self._geometry_type, append=self._begun)
        elif more or self._begun:
            self._write_parquet(frame)
        else:
            frame.to_parquet(self._path)
        self._begun = True
        if more:
            self._held = [frame.iloc[:0]]

    def _write_parquet(self, frame: Any) -> None:
        pyarrow = extras.require('pyarrow', extra='vector', to='write GeoParquet')
        parquet = extras.require('pyarrow.parquet', extra='vector', to='write GeoParquet')
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        table = parquet.read_table(pyarrow.BufferReader(buffer.getvalue()))
        if self._parquet is None:
            facts = json.loads(table.schema.metadata[b'geo'])
            for column in facts['columns'].values():  # those of all pieces are not known yet
                column.pop('bbox', None)
                column['geometry_types'] = [] if self._geometry_type is None else [self._geometry_type]
            self._schema = table.schema.with_metadata({b'geo': json.dumps(facts).encode()})
            self._parquet = parquet.ParquetWriter(self._path, self._schema)
        self._parquet.write_table(table.cast(self._schema))

    @contextmanager
    def _reported(self) -> Iterator[None]:
        pyogrio = extras.require('pyogrio', extra='vector', to='write vector layers')
        try:
            yield
        except (
            *(ValueError, TypeError, NotImplementedError),
            *(pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError),
        ) as error:
            raise errors.FileWriteError(f'cannot write {self._shown}: {error}') from error


def _write(frame: Any, part: Path, driver: str, geometry_type: str | None, *, append: bool = False) -> None:
    options: dict[str, Any] = {'RFC7946': 'YES'} if driver == 'GeoJSON' else {}
    if geometry_type is not None:
        # polygons of shapefiles may have several parts, and have no name of their own then
        options['geometry_type'] = geometry_type.removeprefix('Multi') if driver == 'ESRI Shapefile' else geometry_type
    with warnings.catch_warnings():
        # names of columns in shapefiles, which the docstring tells of, and layers in no CRS, which are as given
        warnings.filterwarnings('ignore', message='(Normalized/laundered field name|.*crs. was not provided)')
        warnings.filterwarnings('ignore', message='Column names longer than 10 characters')
        frame.to_file(part, driver=driver, engine='pyogrio', mode='a' if append else 'w', **options)

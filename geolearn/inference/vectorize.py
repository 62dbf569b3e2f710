"""Turn a map of classes into a layer of polygons, a strip of rows at a time."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from geolearn import errors, extras, files, progress
from geolearn.chips.formats.styles import read_raster_style, styled_classes
from geolearn.classes import ClassInfo
from geolearn.inference.outlines import TOLERANCE, Outline, plainer, polygonal
from geolearn.inference.polygonize import PixelPolygons, polygonize
from geolearn.inference.targets import check_target, claim_target
from geolearn.inference.vectors import LayerWriter, areas, check_vector_target, layer_sidecars, place_geometry
from geolearn.raster import GeoBox, open_raster, qml, read_window, require_place

STRIP_PIXELS = 2**21
"""Pixels that are outlined at once: some hundred megabytes."""

READ_BYTES = 2**26
"""Of the block rows that are read at once."""

BATCH = 20_000
"""Polygons that are written at once."""

CLASS_BAND = 'class'
"""What geolearn calls the band of classes of its maps."""


def vectorize_map(
    map: str | Path,
    dst: str | Path,
    *,
    band: int | None = None,
    min_area: float = 0.0,
    outline: Outline = 'exact',
    tolerance: float = TOLERANCE,
    classes: Sequence[ClassInfo] | None = None,
    style: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write the polygons of a map of classes: one for each group of pixels of one class that share edges.

    Pixels without data become no polygon. Memory holds a strip of rows and the outlines of the groups that reach into
    the next one, so it depends on the raster's width and on its largest polygons.

    Args:
        map: Raster of class values, such as `predict_raster` writes.
        dst: Layer to write: .gpkg, .parquet, .geojson or .shp; GeoJSON is held in memory and is in WGS84.
        band: 1-based band of the class values; None takes the only one, or the one called ``'class'``.
        min_area: Polygons of a smaller area are left out, and their ground stays empty; in the unit of the column
            ``area``.
        outline: ``'exact'`` follows the edges of pixels. ``'simplified'`` moves outlines by up to `tolerance`;
            neighbors keep their common border, and what is thinner than that may vanish. ``'orthogonal'`` gives sides
            at right angles where a polygon has such a shape, for buildings; neighbors may overlap then.
        tolerance: In pixels of the map.
        classes: Names and colors; None takes those of the map (tags, attribute table, color table, .qml, .clr).
        style: Whether to write a style for QGIS beside the layer, ``<name>.qml``; or ``<name>.<suffix>.qml`` where the
            former would be the style of another file.
        overwrite: Replace `dst` if it exists.

    Returns:
        The path written. Columns: ``Class`` (name), ``value``, ``color`` (``'#rrggbb'``) and ``area``, in square units
        of the CRS, or square meters on the ellipsoid where these are degrees.

    Raises:
        RasterError: If the map cannot be read, holds no class values, has no place that `dst` can state, or `dst`
            exists.
        FileWriteError: If `dst` cannot be written; no part of it is left.
        ValueError: If a number is out of its range.
    """
    if not 0 <= min_area < np.inf:
        raise ValueError(f'min_area must be a number from 0, got {min_area}')
    if not 0 < tolerance < np.inf:
        raise ValueError(f'tolerance must be a number of pixels above 0, got {tolerance}')
    if outline not in ('exact', 'simplified', 'orthogonal'):
        raise ValueError(f"outline must be 'exact', 'simplified' or 'orthogonal', got {outline!r}")
    target = check_target(map, check_vector_target(dst), overwrite=overwrite)
    with ExitStack() as stack:
        stack.enter_context(claim_target(target))
        src = stack.enter_context(open_raster(map))
        index = _class_band(src, band)
        require_place(src)
        box: GeoBox = src.geobox
        if target.suffix.lower() == '.geojson' and box.crs is None:
            raise errors.RasterError(f'GeoJSON is in WGS84, but {map} names no CRS; write a .gpkg instead')
        named = read_raster_style(src, map) if classes is None else {}
        known = {info.value: info for info in classes or ()}

        def describe(values: np.ndarray) -> dict[int, ClassInfo]:
            new = sorted({int(value) for value in values} - set(known))
            known.update({info.value: info for info in styled_classes(new, named)})
            return known

        if classes is None:  # colors do not depend on what comes first
            describe(np.array([int(value) for value in named if value.isdecimal()], np.int64))
        batches = _batches(src, index, box, min_area=min_area, outline=outline, tolerance=tolerance)
        present: set[int] = set()
        style_name = qml.style_name(target) if style else None
        part = stack.enter_context(files.atomic_write_all(target, replaces=layer_sidecars(target)))
        with LayerWriter(
            part, geometry_type='Polygon' if outline == 'exact' else 'MultiPolygon', shown=target
        ) as writer:
            for polygons in batches:
                frame = _features(polygons, box, describe(polygons.values), several_parts=outline != 'exact')
                frame = frame[frame['area'] >= min_area] if min_area else frame
                present.update(frame['value'].unique().tolist())
                writer.add(frame)
        if style_name is not None:
            listed = [known[value] for value in sorted(present)]
            qml.write_polygon_style(part.with_name(style_name), listed, field='value')
    return target


def _class_band(src: Any, band: int | None) -> int:
    """Return the 1-based band of class values.

    Raises:
        RasterError: If it is not clear which it is, or it holds no whole numbers.
    """
    names = list(src.descriptions)
    if band is not None and band not in src.indexes:
        raise errors.RasterError(f'{src.name} holds {src.count} bands, and band={band} is none of them')
    if band is None and src.count > 1 and names.count(CLASS_BAND) != 1:
        shown = ', '.join(f'{index} = {name or "no name"}' for index, name in zip(src.indexes, names))
        raise errors.RasterError(
            f'{src.name} holds {src.count} bands ({shown}); pass band= with the number of that which holds classes'
        )
    index = band if band is not None else 1 if src.count == 1 else names.index(CLASS_BAND) + 1
    dtype = np.dtype(src.dtypes[index - 1])
    if dtype.kind not in 'iu':
        raise errors.RasterError(
            f'{src.name} holds {dtype} numbers, and only classes (whole numbers) have outlines; divide a quantity into '
            'classes first'
        )
    return index


def _strips(src: Any, index: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield rows of a band with their masks, each block read once where memory allows."""
    row_bytes = src.width * np.dtype(src.dtypes[index - 1]).itemsize
    block = src.block_shapes[index - 1][0]
    at_once = block if block * row_bytes <= READ_BYTES else max(1, READ_BYTES // row_bytes)
    rows = max(1, STRIP_PIXELS // src.width)
    at_once *= max(1, rows // at_once)
    for top in range(0, src.height, at_once):
        window = Window(0, top, src.width, min(at_once, src.height - top))
        pixels, valid = read_window(src, window, [index])
        for start in range(0, pixels.shape[1], rows):
            part = slice(start, start + rows)
            yield pixels[0, part], None if valid is None else valid[part]


def _batches(
    src: Any, index: int, box: GeoBox, *, min_area: float, outline: Outline, tolerance: float
) -> Iterator[PixelPolygons]:
    """Yield polygons, many at a time, in pixels of the map."""
    flat = box.crs is None or not src.crs.is_geographic
    t = box.transform
    pixel = abs(t.a * t.e - t.b * t.d)
    with progress.ProgressBar(src.height, 'vectorizing', 'row') as bar:

        def counted() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
            for strip in _strips(src, index):
                yield strip
                bar.update(len(strip[0]))

        found = polygonize(
            counted(),
            src.width,
            # of the outlines as they are; degrees are measured later
            min_pixels=min_area / pixel if flat else 0,
            tolerance=tolerance if outline == 'simplified' else None,
        )
        for polygons in _gathered(found):
            if outline == 'orthogonal':
                shapes = np.array([plainer(shape, outline, tolerance) for shape in polygons.shapes], object)
                polygons = PixelPolygons(polygons.values, polygons.pixels, shapes)
            yield polygons


def _gathered(parts: Iterator[PixelPolygons]) -> Iterator[PixelPolygons]:
    held: list[PixelPolygons] = []
    for part in parts:
        held.append(part)
        if sum(len(each.values) for each in held) >= BATCH:
            yield _joined(held)
            held = []
    yield _joined(held) if held else NOTHING  # so that a layer without polygons has its columns


NOTHING = PixelPolygons(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, object))


def _joined(parts: Sequence[PixelPolygons]) -> PixelPolygons:
    return PixelPolygons(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ('values', 'pixels', 'shapes'))
    )


def _features(polygons: PixelPolygons, box: GeoBox, known: Mapping[int, ClassInfo], *, several_parts: bool) -> Any:
    """Make a GeoDataFrame of polygons in pixels; empty ones are left out."""
    import pandas as pd  # late: with pyarrow it takes part of a second to import

    geopandas = extras.require('geopandas', extra='vector', to='write polygons')
    shapely = extras.require('shapely', extra='vector', to='write polygons')
    shapes = polygonal(polygons.shapes) if several_parts else polygons.shapes
    whole = shapely.area(shapes) > 0
    shapes = shapes[whole]
    if several_parts:  # repaired ones have several, and a layer is of one type
        shapes = np.array([shapely.multipolygons(shapely.get_parts(shape)) for shape in shapes], object)
    placed = place_geometry(shapes, box)
    infos = [known[int(value)] for value in polygons.values[whole]]
    frame = geopandas.GeoDataFrame(
        {
            # the type of text is said, for a column without rows cannot show it
            'Class': pd.array([info.name for info in infos], 'string'),
            'value': np.array([info.value for info in infos], np.int64),
            'color': pd.array([qml.hex_color(info) for info in infos], 'string'),
        },
        geometry=geopandas.GeoSeries(placed, crs=box.crs),
    )
    frame.insert(3, 'area', areas(frame))
    return frame

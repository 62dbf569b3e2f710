"""The part of a raster that is mapped: an area of interest, or a bounding box."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.windows import Window

from geolearn import extras
from geolearn.errors import RasterError
from geolearn.raster import GeoBox, crs_name
from geolearn.raster.area import PixelArea

log = logging.getLogger('geolearn')

BBox = tuple[float, float, float, float]
"""Left, bottom, right, top."""

BBOX_PARTS = 32
"""Parts that each side of a bounding box is cut into before it is reprojected: straight sides become curves."""

SLIVER = 1e-6
"""Of a pixel: what computing with coordinates leaves."""


@dataclass(frozen=True, eq=False)
class AreaOfInterest:
    """What part of a raster is wanted; where both are given, what lies in both.

    Args:
        aoi: Polygons: a vector file, GeoDataFrame or GeoSeries, which are reprojected; or a geometry of shapely or
            GeoJSON in the raster's CRS.
        bbox: Left, bottom, right, top.
        bbox_crs: CRS of `bbox`; None for the raster's.

    Raises:
        ValueError: If `bbox` is no box, or its CRS is not known.
    """

    aoi: Any = None
    bbox: Sequence[float] | None = None
    bbox_crs: str | int | None = None

    def __post_init__(self) -> None:
        if self.bbox is None:
            if self.bbox_crs is not None:
                raise ValueError('bbox_crs is the CRS of bbox=, which is not given')
            return
        box = list(self.bbox)
        if len(box) != 4 or not all(isinstance(edge, int | float) and math.isfinite(edge) for edge in box):
            raise ValueError(f'bbox must be four numbers: left, bottom, right, top; got {self.bbox}')
        if box[0] >= box[2] or box[1] >= box[3]:
            raise ValueError(f'bbox must be left, bottom, right, top, with left < right and bottom < top; got {box}')
        if self.bbox_crs is not None:
            _read_crs(self.bbox_crs)

    @cached_property
    def _geometries(self) -> Any:
        """A GeoSeries of `aoi`, which is read once however many rasters it is found in; its CRS is None for theirs."""
        geopandas = extras.require('geopandas', extra='vector', to='read an area of interest')
        shapely = extras.require('shapely', extra='vector', to='read an area of interest')
        return _read_aoi(self.aoi, geopandas, shapely)

    def locate(self, box: GeoBox, *, shown: str) -> PixelArea | None:
        """Find the area in a raster.

        Args:
            box: Place of the raster.
            shown: Name of the raster in messages.

        Returns:
            None where the whole raster is wanted.

        Raises:
            RasterError: If the area cannot be read, brought to the raster's CRS, or does not overlap the raster.
            MissingExtraError: If the libraries of the extra ``vector`` are not installed.
        """
        if self.aoi is None and self.bbox is None:
            return None
        if box.transform.is_identity and box.crs is None and (self.bbox_crs is not None or _has_crs(self.aoi)):
            raise RasterError(f'{shown} has no place on the ground, so no area of interest can be found in it')
        if self.aoi is None and self.bbox_crs is None and not (box.transform.b or box.transform.d):
            return _rectangle(self.bbox or (), box, shown)
        return _polygons(self, box, shown)


def _has_crs(aoi: Any) -> bool:
    return isinstance(aoi, str | Path) or getattr(aoi, 'crs', None) is not None


def layers_of(area: AreaOfInterest | None) -> list[Any]:
    """Return what the polygons of an area are read from, which no result may replace."""
    return [] if area is None or area.aoi is None else [area.aoi]


def _read_crs(text: str | int) -> CRS:
    try:
        return CRS.from_user_input(text)
    except CRSError as error:
        raise ValueError(f'bbox_crs must be a CRS such as EPSG:4326, got {text!r}') from error


def _rectangle(bbox: Sequence[float], box: GeoBox, shown: str) -> PixelArea:
    """Return the pixels whose centers lie in a bounding box, without any library for vectors."""
    t = box.transform
    edges = []
    for low, high, origin, step, length in (
        (bbox[0], bbox[2], t.c, t.a, box.shape[1]),
        (bbox[1], bbox[3], t.f, t.e, box.shape[0]),
    ):
        first, last = sorted(((low - origin) / step, (high - origin) / step))
        edges.append((max(0, math.ceil(first - 0.5 - SLIVER)), min(length, math.floor(last + 0.5 + SLIVER))))
    (left, right), (top, bottom) = edges
    if left >= right or top >= bottom:
        raise RasterError(_no_overlap('bbox', tuple(bbox), box, shown))
    return PixelArea(Window(left, top, right - left, bottom - top))


def _no_overlap(name: str, bounds: Sequence[float], box: GeoBox, shown: str) -> str:
    crs = 'the raster names no CRS' if box.crs is None else f'both in {crs_name(box.crs)}'
    return (
        f'{name} covers {_numbers(bounds)} and {shown} covers {_numbers(box.bounds)} (left, bottom, right, top; {crs})'
        ': they share no pixel. Check the CRS and the order of x and y'
    )


def _numbers(bounds: Sequence[float]) -> str:
    return '(' + ', '.join(f'{edge:.10g}' for edge in bounds) + ')'


def _polygons(wanted: AreaOfInterest, box: GeoBox, shown: str) -> PixelArea:
    geopandas = extras.require('geopandas', extra='vector', to='read an area of interest')
    shapely = extras.require('shapely', extra='vector', to='read an area of interest')
    parts = []
    if wanted.aoi is not None:
        parts.append(_in_raster_crs(wanted._geometries, box, shown, 'aoi'))
    if wanted.bbox is not None:
        left, bottom, right, top = wanted.bbox
        outline = shapely.segmentize(shapely.box(*wanted.bbox), max(right - left, top - bottom) / BBOX_PARTS)
        crs = None if wanted.bbox_crs is None else _read_crs(wanted.bbox_crs).to_wkt()
        parts.append(_in_raster_crs(geopandas.GeoSeries([outline], crs=crs), box, shown, 'bbox'))
    name = 'aoi' if len(parts) == 1 and wanted.aoi is not None else 'bbox' if len(parts) == 1 else 'aoi with bbox'
    whole = parts[0] if len(parts) == 1 else shapely.intersection(*parts)
    if shapely.is_empty(whole):
        raise RasterError('aoi and bbox do not overlap each other; pass one of them, or check their CRSs')
    back = ~box.transform
    height, width = box.shape

    def to_pixels(points: np.ndarray) -> np.ndarray:
        x, y = points.T
        return np.stack([back.a * x + back.b * y + back.c, back.d * x + back.e * y + back.f], axis=1)

    placed = shapely.intersection(shapely.transform(whole, to_pixels), shapely.box(0, 0, width, height))
    found = [part for part in shapely.get_parts(placed) if shapely.area(part) > SLIVER]
    if not found:
        raise RasterError(_no_overlap(name, shapely.bounds(whole), box, shown))
    left, top, right, bottom = shapely.total_bounds(np.array(found, object))
    window = Window(
        math.floor(left + SLIVER),
        math.floor(top + SLIVER),
        math.ceil(right - SLIVER) - math.floor(left + SLIVER),
        math.ceil(bottom - SLIVER) - math.floor(top + SLIVER),
    )
    rings = [[shapely.get_coordinates(ring) for ring in (part.exterior, *part.interiors)] for part in found]
    area = PixelArea(window, rings)
    inside = None if window.width * window.height > 2**24 else area.mask(window)
    if inside is not None and not inside.any():
        raise RasterError(f'{name} is smaller than the pixels of {shown} and holds the center of none')
    return area


def _read_aoi(aoi: Any, geopandas: Any, shapely: Any) -> Any:
    """Return a GeoSeries; its CRS is None where the geometries are in that of the raster."""
    if isinstance(aoi, str | Path):
        return _read_file(aoi, geopandas)
    if isinstance(aoi, geopandas.GeoDataFrame | geopandas.GeoSeries):
        if aoi.crs is None:
            raise RasterError('aoi names no CRS; give it one first: aoi = aoi.set_crs("EPSG:4326")')
        return aoi.geometry
    if isinstance(aoi, Mapping):
        aoi = shapely.geometry.shape(aoi)
    if not isinstance(aoi, shapely.Geometry):
        raise RasterError(
            f'aoi of type {type(aoi).__name__} is no area; pass a vector file, a GeoDataFrame, or a geometry in the '
            'CRS of the raster'
        )
    return geopandas.GeoSeries([aoi])


def _read_file(path: str | Path, geopandas: Any) -> Any:
    pyogrio = extras.require('pyogrio', extra='vector', to='read an area of interest')
    try:
        if os.path.splitext(path)[1].lower() in ('.parquet', '.geoparquet'):
            frame = geopandas.read_parquet(path)
        else:
            layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
            if len(layers) != 1:
                raise RasterError(
                    f'aoi {path} holds {len(layers)} layers ({", ".join(layers) or "none"}), and one is needed; read '
                    'it with geopandas.read_file(path, layer=...) and pass the GeoDataFrame, or write a file of one'
                )
            frame = geopandas.read_file(path, layer=layers[0])
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError, ValueError) as error:
        if isinstance(error, RasterError):
            raise
        raise RasterError(f'cannot read aoi {path}: {error}') from error
    if frame.crs is None:
        raise RasterError(f'aoi {path} names no CRS; write one into it (ogr2ogr -a_srs EPSG:4326 out.gpkg {path})')
    return frame.geometry


def _in_raster_crs(series: Any, box: GeoBox, shown: str, name: str) -> Any:
    """Return one valid geometry of polygons in the CRS of the raster."""
    shapely = extras.require('shapely', extra='vector', to='read an area of interest')
    if series.crs is not None:
        if box.crs is None:
            raise RasterError(
                f'{shown} names no CRS, so {name} in {crs_name(series.crs.to_wkt())} cannot be brought to it; give '
                'the raster its CRS (gdal_edit.py -a_srs), or pass a geometry or bbox in its own units'
            )
        series = series.to_crs(box.crs)
    shapes = np.asarray(series.values, dtype=object)
    shapes = shapely.make_valid(shapely.force_2d(shapes[~(shapely.is_missing(shapes) | shapely.is_empty(shapes))]))
    # make_valid leaves lines and points beside polygons
    parts = shapely.get_parts(shapely.get_parts(shapes))
    polygons = parts[shapely.get_dimensions(parts) == 2]
    if not len(polygons):
        raise RasterError(f'{name} holds no polygon; an area is needed, such as points with a buffer around them')
    if left_out := int((shapely.get_dimensions(shapes) < 2).sum()):
        log.warning(
            '%s of %s features of %s are points or lines; they have no area and are left out',
            left_out,
            len(shapes),
            name,
        )
    if not np.isfinite(shapely.total_bounds(polygons)).all():
        raise RasterError(f'{name} cannot be brought to the CRS of {shown}; clip it to where that CRS is used')
    return shapely.union_all(polygons)

"""What clients may ask for: how bands are read, which part is mapped and what the result holds."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from geolearn import extras
from geolearn.inference.area import AreaOfInterest
from geolearn.serve.rasters import RefusedError

LISTS = ('bands', 'bbox', 'outputs')
"""Options of several values."""

MOST_NESTED = 16
"""Brackets in each other, in the text of an area."""


class Options(BaseModel):
    """How a raster is read and mapped, as in `predict_raster`."""

    model_config = ConfigDict(extra='forbid')

    bands: list[str] | None = Field(None, description='names of the bands in file order, where the file names none')
    sensor: str | None = Field(None, description='whose names the bands have', examples=['Sentinel-2'])
    scale: float | Literal['db'] | None = Field(None, description='multiplies pixel values; 1 says they are right')
    offset: float = Field(0.0, description='is added after that')
    nodata: float | None = Field(None, description='value of missing pixels that the file does not declare')
    resolution: float | Literal['training'] | None = Field(
        None, description='side of the pixels to resample to, in units of the CRS of the raster'
    )
    threshold: float | None = Field(None, ge=0, le=1, description='lowest score of an object, for detectors')
    aoi: str | None = Field(
        None,
        description='polygons to map, as the text of a GeoJSON geometry, feature or collection, in WGS84',
        examples=['{"type": "Polygon", "coordinates": [[[15, 48], [15.1, 48], [15.1, 48.1], [15, 48]]]}'],
    )
    bbox: list[float] | None = Field(
        None, min_length=4, max_length=4, description='left, bottom, right, top of the part to map'
    )
    bbox_crs: str | None = Field(
        None, pattern=r'^(EPSG|ESRI):[0-9]{1,9}$', description='CRS of bbox; that of the raster unless given'
    )
    outputs: list[Literal['classes', 'probabilities', 'confidence']] | None = Field(
        None, min_length=1, max_length=3, description='bands of the map of a classifier, classes among them'
    )
    blend: Literal['hann', 'crop'] | None = Field(None, description='how the tiles of a map meet')

    @field_validator('aoi', mode='before')
    @classmethod
    def _take_object(cls, value: Any) -> Any:
        """Take GeoJSON as an object too, where the request is JSON."""
        return json.dumps(value) if isinstance(value, Mapping) else value

    @field_validator('bbox', 'outputs', mode='before')
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Take values with commas between them, as forms and addresses have them."""
        given = [value] if isinstance(value, str) else value
        if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str):
            return [part.strip() for part in given[0].split(',')]
        return given

    @model_validator(mode='after')
    def _are_valid(self) -> Self:
        for name in ('scale', 'offset', 'resolution'):
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f'{name} must be finite')
        if self.scale == 0:
            raise ValueError('scale must not be 0, which makes all pixels equal')
        if isinstance(self.resolution, float) and self.resolution <= 0:
            raise ValueError('resolution must be above 0')
        if self.outputs is not None and ('classes' not in self.outputs or len(set(self.outputs)) < len(self.outputs)):
            raise ValueError("outputs must hold 'classes', and each once")
        if self.aoi is not None:
            _read_geojson(self.aoi)
        AreaOfInterest(bbox=self.bbox, bbox_crs=self.bbox_crs)
        return self

    def with_fields(self, fields: Mapping[str, Sequence[str]]) -> 'Options':
        """Return these options with those of a form, whose fields come by name.

        Raises:
            RefusedError: If there is no such option, or a value does not fit.
        """
        if not fields:
            return self
        for name, values in fields.items():
            if len(values) > 1 and name not in LISTS:
                raise RefusedError(f'{name[:100]!r} is given {len(values)} times, and once is needed')
        given = {name: list(values) if name in LISTS else values[0] for name, values in fields.items()}
        try:
            return Options.model_validate({**self.model_dump(exclude_unset=True), **given})
        except ValidationError as error:
            parts = [f'{".".join(map(str, each["loc"]))}: {each["msg"]}'.removeprefix(': ') for each in error.errors()]
            raise RefusedError('; '.join(parts[:5])) from None

    def keywords(self) -> dict[str, Any]:
        """Return what was given, by the names of the arguments of `predict_raster`.

        Raises:
            MissingExtraError: If an area is given, and the libraries to read it are not installed.
        """
        given: dict[str, Any] = {name: getattr(self, name) for name in Options.model_fields}
        given = {name: value for name, value in given.items() if value is not None}
        if self.aoi is not None:
            geopandas = extras.require('geopandas', extra='vector', to='map an area')
            shapely = extras.require('shapely', extra='vector', to='map an area')
            shapes = [shapely.geometry.shape(each) for each in _read_geojson(self.aoi)]
            given['aoi'] = geopandas.GeoSeries(shapes, crs='EPSG:4326')
        if self.outputs is not None and len(self.outputs) > 1:
            given['layout'] = 'bands'  # one request has one file
        return given

    def area(self) -> AreaOfInterest:
        """Return the part of the raster that is mapped."""
        given = self.keywords()
        return AreaOfInterest(given.get('aoi'), given.get('bbox'), given.get('bbox_crs'))


class NamedRasters(Options):
    """Rasters in the allowed folders, and how they are mapped."""

    paths: list[str] = Field(
        min_length=1, max_length=64, description='of one raster, or of one for each date', examples=[['scene.tif']]
    )


def _read_geojson(text: str) -> list[Mapping[str, Any]]:
    """Return the polygons of a text of GeoJSON.

    Raises:
        ValueError: If it is none, or holds anything else.
    """
    if _nesting(text) > MOST_NESTED:
        raise ValueError('aoi is nested too deep for GeoJSON')
    try:
        stated = json.loads(text)
    except ValueError:
        raise ValueError('aoi must be the text of GeoJSON, such as {"type": "Polygon", ...}') from None
    found = list(_polygons(stated))
    if not found:
        raise ValueError('aoi holds no polygon')
    return found


def _nesting(text: str) -> int:
    depth = deepest = 0
    for letter in text:
        depth += (letter in '[{') - (letter in ']}')
        deepest = max(deepest, depth)
    return deepest


def _polygons(stated: Any) -> list[Mapping[str, Any]]:
    kind = stated.get('type') if isinstance(stated, dict) else None
    for key, parts in (('FeatureCollection', 'features'), ('GeometryCollection', 'geometries')):
        if kind == key and isinstance(stated.get(parts), list):
            return [polygon for part in stated[parts] for polygon in _polygons(part)]
    if kind == 'Feature':
        return _polygons(stated.get('geometry'))
    rings = stated.get('coordinates') if kind in ('Polygon', 'MultiPolygon') else None
    if kind == 'Polygon':
        rings = [rings]
    if not isinstance(rings, list) or not rings or not all(map(_is_polygon, rings)):
        raise ValueError(
            'aoi must hold polygons, whose rings are lists of at least 4 pairs of longitude and latitude in degrees'
        )
    return [{'type': 'MultiPolygon', 'coordinates': rings}]


def _is_polygon(rings: Any) -> bool:
    return (
        isinstance(rings, list)
        and len(rings) > 0
        and all(isinstance(ring, list) and len(ring) >= 4 and all(map(_is_place, ring)) for ring in rings)
    )


def _is_place(place: Any) -> bool:
    return (
        isinstance(place, list)
        and len(place) in (2, 3)
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in place)
        and -180 <= place[0] <= 180
        and -90 <= place[1] <= 90
        and all(math.isfinite(value) for value in place)
    )

"""Write objects as GeoJSON with rasterio and NumPy alone, with the columns of the layers of `detect_objects`."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

from geolearn import files
from geolearn.classes import ClassInfo
from geolearn.inference.merging import TileDetections
from geolearn.inference.vectors import WGS84, measure_sides, place_points
from geolearn.oriented import geometry
from geolearn.raster import GeoBox

DECIMALS = 9
"""Of degrees: a tenth of a millimeter, for drones have pixels of a centimeter."""

EQUAL_AREA = 'EPSG:6933'
"""In which areas of rasters in degrees are measured."""

SEMI_MAJOR_M, ECCENTRICITY = 6_378_137.0, 0.0818191908426
"""Of the ellipsoid of WGS84; the latter is its first eccentricity."""


def write_geojson(
    objects: TileDetections, dst: Path, box: GeoBox, classes: Sequence[ClassInfo], *, oriented: bool
) -> Path:
    """Write objects as a collection of features in WGS84, by descending confidence.

    Args:
        objects: Boxes in pixels of the raster.
        dst: File to write.
        box: Place of the raster, which has a CRS.
        classes: By index.
        oriented: Whether boxes are oriented: features also have length, width and angle.

    Returns:
        The path written.

    Raises:
        FileWriteError: If it cannot be written; no part of it is left.
    """
    objects = objects.select(np.argsort(-objects.scores, kind='stable'))
    turned = geometry.from_hulls(objects.boxes) if objects.turned is None else objects.turned
    corners = place_points(geometry.corners(turned), box)
    crs = CRS.from_user_input(box.crs)
    degrees = _to_degrees(corners, crs)
    areas = _areas(degrees) if crs.is_geographic else _flat_areas(corners)
    columns: dict[str, Any] = {}
    if oriented:
        columns = dict(zip(('length', 'width', 'angle'), _measure(turned, box, crs)))
    features = []
    for number, (label, score, area) in enumerate(zip(objects.labels, objects.scores, areas)):
        properties = {
            'Class': classes[label].name,
            'value': classes[label].value,
            'Confidence': round(100 * float(score), 2),
            'area': float(area),
            **{name: float(column[number]) for name, column in columns.items()},
        }
        features.append({'type': 'Feature', 'properties': properties, 'geometry': _polygon(degrees[number])})
    content = {'type': 'FeatureCollection', 'name': dst.stem, 'features': features}
    with files.atomic_write(dst) as part:
        part.write_text(json.dumps(content, allow_nan=False, ensure_ascii=False), encoding='utf-8')
    return dst


def _to_degrees(points: np.ndarray, crs: CRS) -> np.ndarray:
    """Bring points (..., 2) to longitude and latitude."""
    return _transform(points, crs, CRS.from_user_input(WGS84))


def _transform(points: np.ndarray, source: CRS, target: CRS) -> np.ndarray:
    flat = points.reshape(-1, 2)
    if source == target or not len(flat):
        return points
    x, y = transform_points(source, target, flat[:, 0].tolist(), flat[:, 1].tolist())[:2]
    return np.stack([np.array(x), np.array(y)], -1).reshape(points.shape)


def _flat_areas(rings: np.ndarray) -> np.ndarray:
    """Return the areas (n,) of rings (n, k, 2)."""
    x, y = np.moveaxis(rings - rings[:, :1], -1, 0)
    areas: np.ndarray = abs((x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(1)) / 2
    return areas


def _areas(degrees: np.ndarray) -> np.ndarray:
    """Return the areas (n,) on the ellipsoid, in square meters, of rings (n, k, 2) of degrees."""
    # the projection is of equal area and counts meters along the equator: where they begin does not matter
    moved = np.stack([_apart(degrees[..., 0], degrees[:, :1, 0]), degrees[..., 1]], -1)
    return _flat_areas(_transform(moved, CRS.from_user_input(WGS84), CRS.from_user_input(EQUAL_AREA)))


def _apart(longitudes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return how far east longitudes are of others, -180..180 degrees."""
    apart: np.ndarray = (longitudes - others + 180) % 360 - 180
    return apart


def _measure(turned: np.ndarray, box: GeoBox, crs: CRS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return length and width in meters, and azimuth in degrees, of oriented boxes; see `measure_boxes`."""
    if not crs.is_geographic:
        meters = float(crs.linear_units_factor[1])
        return measure_sides(turned, box, lambda start, end: _flat_lines(start, end, meters))
    return measure_sides(turned, box, lambda start, end: _lines(_to_degrees(start, crs), _to_degrees(end, crs)))


def _flat_lines(start: np.ndarray, end: np.ndarray, meters: float) -> tuple[np.ndarray, np.ndarray]:
    offset = end - start
    return meters * np.hypot(*offset.T), np.degrees(np.arctan2(offset[:, 0], offset[:, 1]))


def _lines(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return length (n,) in meters and azimuth (n,) at the start, in degrees, of short lines between places (n, 2).

    These are on the ellipsoid, by its radii at the middle latitude: to a millionth for lines of 10 km.
    """
    middle = np.radians((start[:, 1] + end[:, 1]) / 2)
    across = np.radians(_apart(end[:, 0], start[:, 0]))
    root = np.sqrt(1 - (ECCENTRICITY * np.sin(middle)) ** 2)
    north = np.radians(end[:, 1] - start[:, 1]) * SEMI_MAJOR_M * (1 - ECCENTRICITY**2) / root**3
    east = across * SEMI_MAJOR_M * np.cos(middle) / root
    azimuth = np.arctan2(east, north) - across * np.sin(middle) / 2
    return np.hypot(east, north), np.degrees(azimuth)


def _polygon(ring: np.ndarray) -> dict[str, Any]:
    """Return a ring (k, 2) of degrees as GeoJSON, in two parts where the antimeridian cuts it (RFC 7946)."""
    if np.ptp(ring[:, 0]) <= 180:
        return {'type': 'Polygon', 'coordinates': [_closed(ring)]}
    east = np.stack([ring[:, 0] % 360, ring[:, 1]], -1)
    parts = [_half(east, -1.0), _half(east, 1.0) - np.array([360.0, 0.0])]
    return {'type': 'MultiPolygon', 'coordinates': [[_closed(part)] for part in parts if len(part) > 2]}


def _half(ring: np.ndarray, sign: float) -> np.ndarray:
    """Return what a convex ring (k, 2) has west (`sign` -1) or east (1) of longitude 180."""
    points: list[np.ndarray] = []
    for start, end in zip(ring, np.roll(ring, -1, axis=0)):
        before, after = sign * (start[0] - 180), sign * (end[0] - 180)
        if before >= 0:
            points.append(start)
        if before * after < 0:
            points.append(start + (end - start) * (before / (before - after)))
    return np.array(points).reshape(-1, 2)


def _closed(ring: np.ndarray) -> list[list[float]]:
    """Return the points of an outer ring, counter-clockwise, the first again at the end."""
    x, y = (ring - ring[0]).T
    if math.fsum(x * np.roll(y, -1) - np.roll(x, -1) * y) < 0:
        ring = ring[::-1]
    points = [[round(float(x), DECIMALS), round(float(y), DECIMALS)] for x, y in ring]
    return [*points, points[0]]

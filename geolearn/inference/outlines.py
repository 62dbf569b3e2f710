"""Outlines of masks in pixels, as plain as asked for."""

from typing import Any, Literal

import numpy as np

from geolearn import extras
from geolearn.raster.opening import group_pixels

Outline = Literal['exact', 'simplified', 'orthogonal']
"""Along the edges of pixels; with few corners; or with right angles, as buildings have."""

ObjectOutline = Literal['exact', 'simplified', 'orthogonal', 'rectangle']
"""The same of detected objects; or the rectangle of least area around them."""

POLYGONS = (3, 6)
"""GEOS's type ids of polygons and multipolygons."""

TOLERANCE = 1.0
"""How far, in pixels, a simplified outline may be from the exact one."""

WORST_OVERLAP = 0.75
"""An orthogonal outline that overlaps the exact one less is no likeness of it; the simplified one stays."""


def outline_mask(mask: np.ndarray, box: np.ndarray, *, kind: Outline = 'exact') -> Any:
    """Return the outline of a mask as one shapely geometry, in pixels of the image.

    Args:
        mask: (height, width) bool, with at least one pixel.
        box: (4,) of the object; only what is in it or a pixel around it is looked at.
        kind: How plain it is to be.
    """
    shapely = extras.require('shapely', extra='vector', to='outline objects')
    height, width = mask.shape
    left, top = (max(0, int(edge) - 1) for edge in box[:2])
    right, bottom = min(width, int(box[2]) + 2), min(height, int(box[3]) + 2)
    part = mask[top:bottom, left:right].astype(np.uint8)
    shapes = [shapely.geometry.shape(outline) for outline, _ in group_pixels(part)]
    whole = shapely.union_all(shapes)
    moved = shapely.transform(whole, lambda points: points + np.array([left, top]))
    return plainer(moved, kind)


def polygonal(outlines: np.ndarray) -> np.ndarray:
    """Return geometries (n,) as valid polygons or multipolygons; empty polygons where they cover no ground.

    Clipping and repairing leave points, lines and collections of these with polygons, which GEOS compares with nothing.
    """
    shapely = extras.require('shapely', extra='vector', to='outline objects')
    outlines = np.asarray(outlines, object)
    invalid = ~shapely.is_valid(outlines)
    if invalid.any():
        outlines = outlines.copy()
        outlines[invalid] = shapely.make_valid(outlines[invalid])
    mixed = np.flatnonzero(~np.isin(shapely.get_type_id(outlines), POLYGONS))
    if len(mixed):
        outlines = outlines.copy()
        for number in mixed:
            parts = shapely.get_parts(shapely.get_parts(outlines[number]))
            parts = parts[shapely.get_type_id(parts) == POLYGONS[0]]
            outlines[number] = shapely.union_all(parts) if len(parts) else shapely.Polygon()
    return outlines


def plainer(outline: Any, kind: Outline, tolerance: float = TOLERANCE) -> Any:
    """Return an outline in pixels, as plain as asked for; never an empty or broken one."""
    if kind == 'exact':
        return outline
    shapely = extras.require('shapely', extra='vector', to='simplify outlines')
    parts = [_plainer_part(shapely, part, kind, tolerance) for part in shapely.get_parts(outline)]
    return polygonal(np.array([shapely.union_all(parts)], object))[0]


def _plainer_part(shapely: Any, part: Any, kind: Outline, tolerance: float) -> Any:
    simple = shapely.simplify(part, tolerance, preserve_topology=True)
    if kind == 'simplified':
        return simple
    square = _with_right_angles(shapely, simple)
    if square is None or not shapely.is_valid(square):
        return simple
    shared = shapely.area(shapely.intersection(square, part))
    overlap = shared / (shapely.area(square) + shapely.area(part) - shared)
    return square if overlap >= WORST_OVERLAP else simple


def _with_right_angles(shapely: Any, polygon: Any) -> Any:
    """Bring the sides of a polygon to two directions at right angles; None where too few sides are left."""
    frame = shapely.get_coordinates(shapely.minimum_rotated_rectangle(polygon))
    if len(frame) < 4:
        return None
    along = frame[1] - frame[0]
    angle = np.arctan2(along[1], along[0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    ring = shapely.get_coordinates(shapely.get_exterior_ring(polygon))[:-1] @ turn
    corners = _snapped(ring)
    return None if corners is None else shapely.polygons(corners @ turn.T)


def _snapped(ring: np.ndarray) -> np.ndarray | None:
    """Make each side of a ring (n, 2) level or upright, whichever is nearer; neighbors of one kind become one."""
    sides = np.roll(ring, -1, axis=0) - ring
    middles, lengths = (np.roll(ring, -1, axis=0) + ring) / 2, np.hypot(*sides.T)
    level = np.abs(sides[:, 0]) >= np.abs(sides[:, 1])
    changes = np.flatnonzero(level != np.roll(level, 1))
    if len(changes) < 4:
        return None
    order = np.roll(np.arange(len(ring)), -changes[0])
    runs = np.split(order, np.flatnonzero(np.diff(level[order].astype(int))) + 1)
    # a level run has one height, an upright one lies at one place across
    places = [np.average(middles[run, 1 if level[run[0]] else 0], weights=lengths[run]) for run in runs]
    corners = []
    for run, place, following in zip(runs, places, np.roll(places, -1)):
        corners.append((following, place) if level[run[0]] else (place, following))
    return np.array(corners)

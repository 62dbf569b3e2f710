"""Merge the detections of tiles, so that each object of a raster comes once and whole."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from geolearn import extras, progress, tiling
from geolearn.inference.outlines import polygonal
from geolearn.inference.overlapping import (
    Measure,
    cluster_boxes,
    intersect,
    intersection_over_union,
    mean_boxes,
    mean_oriented,
    mean_scores,
    nms,
    oriented_measure,
    soft_nms,
    touching_pairs,
)
from geolearn.oriented import geometry
from geolearn.oriented.overlap import intersect_polygons, polygon_areas

Merge = Literal['nms', 'soft_nms', 'weighted']
"""Of objects that overlap the highest-scoring stays; or the scores of the others fall; or they become their mean."""

EDGE_MARGIN = 4.0
"""A box that ends within so many pixels of its tile's edge may be cut by it."""

SAME_OVERLAP = 0.5
"""Overlap, in the window that two tiles share, from which on two boxes are parts of one object."""


@dataclass(frozen=True, eq=False)
class TileDetections:
    """Detections of tiles in pixels of the raster; an object may come from several tiles, or in parts.

    Args:
        boxes: (n, 4) float64 left, top, right, bottom.
        labels: (n,) int64 class indices.
        scores: (n,) float64, 0..1.
        tiles: (n,) int64 number of the tile, counted row by row.
        outlines: (n,) shapely polygons, or None where objects are boxes.
        turned: (n, 5) float64 oriented boxes in the form le90, which may reach beyond the tile where `boxes` end at its
            edges; None where boxes are level.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    tiles: np.ndarray
    outlines: np.ndarray | None = None
    turned: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: np.ndarray) -> 'TileDetections':
        """Return some of them, by mask or number."""
        outlines = None if self.outlines is None else self.outlines[rows]
        turned = None if self.turned is None else self.turned[rows]
        return TileDetections(
            self.boxes[rows], self.labels[rows], self.scores[rows], self.tiles[rows], outlines, turned
        )

    @property
    def centers(self) -> np.ndarray:
        """Middles (n, 2) of the objects' boxes, x and y in pixels of the raster."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2 if self.turned is None else self.turned[:, :2]

    def with_rectangles(self) -> 'TileDetections':
        """Return the objects as oriented boxes in place of outlines: the rectangles of least area around them."""
        shapely = extras.require('shapely', extra='vector', to='outline objects')
        outlines = np.zeros(0, object) if self.outlines is None else self.outlines
        rectangles = [geometry.minimum_rectangle(shapely.get_coordinates(outline)) for outline in outlines]
        turned = np.array(rectangles, np.float64).reshape(-1, 5)
        return replace(self, boxes=geometry.hulls(turned), outlines=None, turned=turned)

    @classmethod
    def concatenate(cls, parts: Sequence['TileDetections']) -> 'TileDetections':
        """Return the detections of several batches of tiles together."""
        if not parts:
            nothing = np.zeros(0, np.int64)
            return cls(np.zeros((0, 4)), nothing, np.zeros(0), nothing)
        outlines = [part.outlines for part in parts if part.outlines is not None]
        turned = [part.turned for part in parts if part.turned is not None]
        return cls(
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.tiles for part in parts]),
            np.concatenate(outlines) if outlines else None,
            np.concatenate(turned) if turned else None,
        )


def tile_windows(grid: tiling.TileGrid) -> np.ndarray:
    """Return left, top, right, bottom (tiles, 4) of what each tile reads."""
    height, width = grid.tile_shape
    corners = [(col, row, col + width, row + height) for row, _, _ in grid.rows for col, _, _ in grid.cols]
    return np.array(corners, np.float64).reshape(-1, 4)


def shown_whole_elsewhere(boxes: np.ndarray, tiles: np.ndarray, grid: tiling.TileGrid) -> np.ndarray:
    """Find boxes that are cut by an edge of their tile, while the tile beyond that edge shows the whole object.

    Args:
        boxes: (n, 4) in pixels of the raster.
        tiles: (n,) number of the tile of each.
        grid: The tiles.

    Returns:
        (n,) bool. What is cut in both tiles is larger than their overlap; `merge_detections` joins it.
    """
    better = np.zeros(len(boxes), bool)
    rows, cols = np.divmod(tiles, max(len(grid.cols), 1))
    for axis, (spans, number) in enumerate(((grid.cols, cols), (grid.rows, rows))):
        starts = np.array([start for start, _, _ in spans], np.float64)
        ends = starts + grid.tile_shape[1 - axis]
        low, high = boxes[:, axis], boxes[:, axis + 2]
        before, after = np.r_[-np.inf, ends[:-1]][number], np.r_[starts[1:], np.inf][number]
        # a pixel or so decides between the tiles; where it is not clear, both keep theirs and the two are joined
        better |= (high >= ends[number] - EDGE_MARGIN) & (low > after + 2 * EDGE_MARGIN)
        better |= (low <= starts[number] + EDGE_MARGIN) & (high < before - 2 * EDGE_MARGIN)
    return better


def merge_detections(
    detections: TileDetections, grid: tiling.TileGrid, *, overlap: float, merge: Merge = 'nms', threshold: float = 0.0
) -> TileDetections:
    """Make each object come once and whole.

    What is cut by the edge of its tile is joined with its other parts: objects of one class in two tiles whose
    outlines, or else boxes, agree in the window that both tiles share. Then objects of one class that overlap are
    merged as `merge` says. n log n in the number of detections, unless very many of them overlap each other.

    Args:
        detections: Of all tiles, without those that `shown_whole_elsewhere` names.
        grid: The tiles.
        overlap: Intersection over union above which two objects of one class are merged.
        merge: ``'nms'``: the highest-scoring stays. ``'soft_nms'``: the scores of the others fall, and they are dropped
            below `threshold`; two tiles' detections of one object become the higher-scoring one first. ``'weighted'``:
            they become their mean box, weighted by scores, with their mean score; outlines have no mean, so that of the
            highest-scoring stays.
        threshold: Lowest score of an object, 0..1.
    """
    if detections.outlines is not None:
        detections = _with_valid_outlines(detections)
    if not len(detections):
        return detections
    if merge == 'soft_nms':
        joined = _whole(_join_parts(detections, grid, copies=min(overlap, SAME_OVERLAP)))
        measure = _shape_measure(joined)
        scores = soft_nms(joined.boxes, joined.labels, joined.scores, overlap=overlap, least=threshold, measure=measure)
        return replace(joined, scores=scores).select((scores >= threshold) & (scores > 0))
    joined = _whole(_join_parts(detections, grid))
    measure = _shape_measure(joined)
    if merge == 'nms' or measure is not None:
        kept, owners = nms(joined.boxes, joined.labels, joined.scores, overlap=overlap, measure=measure)
        if merge == 'nms':
            return joined.select(kept)
        if joined.turned is not None:
            turned = mean_oriented(joined.turned, joined.scores, owners)
            scores = mean_scores(joined.scores, owners)
            return replace(joined, boxes=geometry.hulls(turned), turned=turned, scores=scores).select(kept)
        boxes = joined.boxes
    else:
        kept, owners = cluster_boxes(joined.boxes, joined.labels, joined.scores, overlap=overlap)
        boxes = mean_boxes(joined.boxes, joined.scores, owners)
    return replace(joined, boxes=boxes, scores=mean_scores(joined.scores, owners)).select(kept)


def _whole(detections: TileDetections) -> TileDetections:
    """Let the boxes around oriented ones hold them whole, beyond the edges of tiles."""
    return detections if detections.turned is None else replace(detections, boxes=geometry.hulls(detections.turned))


def _join_parts(detections: TileDetections, grid: tiling.TileGrid, *, copies: float | None = None) -> TileDetections:
    """Join what several tiles each show a part of.

    Args:
        detections: Of all tiles.
        grid: The tiles.
        copies: Intersection over union above which objects that two tiles show whole, each the other's nearest in its
            tile, are one too. None leaves these to what follows.
    """
    windows = tile_windows(grid)
    first, second = touching_pairs(detections.boxes, detections.labels)
    apart = detections.tiles[first] != detections.tiles[second]
    first, second = first[apart], second[apart]
    cut = _is_cut(detections, grid, windows)
    parts = cut[first] | cut[second]
    shared_windows = intersect(windows[detections.tiles[first]], windows[detections.tiles[second]])
    same = np.zeros(len(first), bool)
    same[parts] = _agreement(detections, first[parts], second[parts], shared_windows[parts]) >= SAME_OVERLAP
    if copies is not None:
        # what one of the tiles does not show whole has no copy there, whatever lies next to it
        for rows in (first, second):
            within = np.sign(detections.boxes[rows] - shared_windows) * np.array([1, 1, -1, -1]) >= 0
            within |= np.abs(detections.boxes[rows] - shared_windows) <= EDGE_MARGIN
            parts |= ~within.all(axis=1)
        same[~parts] = _nearest(detections, first[~parts], second[~parts], overlap=copies)
    return _as_one(detections, first[same], second[same], cut) if same.any() else detections


def _nearest(detections: TileDetections, first: np.ndarray, second: np.ndarray, *, overlap: float) -> np.ndarray:
    """Find the pairs (n,) in which each overlaps its partner more than any other object of the partner's tile."""
    measure = _shape_measure(detections)
    if measure is None:
        shared = intersection_over_union(detections.boxes[first], detections.boxes[second])
    else:
        shared = measure(first, second)
    nearest = shared > overlap
    for one, other in ((first, second), (second, first)):
        places = one * (detections.tiles.max() + 1) + detections.tiles[other]
        _, place = np.unique(places, return_inverse=True)
        most = np.zeros(place.max(initial=-1) + 1)
        np.maximum.at(most, place, shared)
        nearest &= shared >= most[place]
    return nearest


def _as_one(detections: TileDetections, first: np.ndarray, second: np.ndarray, cut: np.ndarray) -> TileDetections:
    """Join detections that pairs link: what parts cover together, or the highest-scoring of copies."""
    groups, group_of = _group(len(detections), first, second)
    by_score = np.argsort(-detections.scores, kind='stable')
    highest = by_score[np.unique(group_of[by_score], return_index=True)[1]]
    covered = np.concatenate([np.full((groups, 2), np.inf), np.full((groups, 2), -np.inf)], axis=1)
    np.minimum.at(covered[:, :2], group_of, detections.boxes[:, :2])
    np.maximum.at(covered[:, 2:], group_of, detections.boxes[:, 2:])
    in_parts = np.bincount(group_of, cut, minlength=groups) > 0
    joined = detections.select(highest)
    outlines = None if joined.outlines is None else joined.outlines.copy()
    if outlines is not None and detections.outlines is not None:
        _cover(outlines, detections.outlines, group_of, in_parts)
    turned = joined.turned
    if turned is not None and detections.turned is not None:
        turned = _cover_oriented(turned, detections.turned, group_of, in_parts)
    return replace(joined, boxes=np.where(in_parts[:, None], covered, joined.boxes), outlines=outlines, turned=turned)


def _group(count: int, first: np.ndarray, second: np.ndarray) -> tuple[int, np.ndarray]:
    """Number the groups (count,) of what pairs link, directly or over others; and return how many there are."""
    owners = np.arange(count)
    while True:
        lowest = owners.copy()
        np.minimum.at(lowest, first, owners[second])
        np.minimum.at(lowest, second, owners[first])
        # what an owner gave itself to holds for all that it owns: long chains shrink by half each time
        np.minimum.at(lowest, owners, lowest.copy())
        lowest = lowest[lowest]
        if (lowest == owners).all():
            break
        owners = lowest
    roots, group_of = np.unique(owners, return_inverse=True)
    return len(roots), group_of


def _cover_oriented(joined: np.ndarray, turned: np.ndarray, group_of: np.ndarray, in_parts: np.ndarray) -> np.ndarray:
    """Return the oriented boxes (groups, 5) that hold the parts of each group, in the direction of the longest part."""
    joined = joined.copy()
    counts = np.bincount(group_of)
    members = np.split(np.argsort(group_of, kind='stable'), np.cumsum(counts)[:-1])
    for group in np.flatnonzero((counts > 1) & in_parts):
        parts = turned[members[group]]
        angle = parts[parts[:, 2].argmax(), 4]
        level = geometry.rotated(parts, -float(angle), (0.0, 0.0))
        points = geometry.corners(level).reshape(-1, 2)
        frame = geometry.from_hulls(np.concatenate([points.min(0), points.max(0)])[None])
        joined[group] = geometry.rotated(frame, float(angle), (0.0, 0.0))[0]
    return joined


def _cover(joined: np.ndarray, outlines: np.ndarray, group_of: np.ndarray, in_parts: np.ndarray) -> None:
    """Put what the outlines (n,) of a group cover together into `joined` (groups,), where the group has parts."""
    shapely = extras.require('shapely', extra='vector', to='join outlines')
    counts = np.bincount(group_of)
    members = np.split(np.argsort(group_of, kind='stable'), np.cumsum(counts)[:-1])
    for group in np.flatnonzero((counts > 1) & in_parts):
        joined[group] = _union(shapely, outlines[members[group]])


def _union(shapely: Any, outlines: np.ndarray) -> Any:
    """Return what valid outlines cover together; the largest of them in the rare case that GEOS fails."""
    try:
        return polygonal(np.array([shapely.union_all(outlines)], object))[0]
    except shapely.errors.GEOSException:
        return outlines[shapely.area(outlines).argmax()]


def _with_valid_outlines(detections: TileDetections) -> TileDetections:
    """Return the detections whose outlines cover ground, with valid ones."""
    shapely = extras.require('shapely', extra='vector', to='compare outlines')
    outlines = polygonal(np.asarray(detections.outlines, object))
    return replace(detections, outlines=outlines).select(shapely.area(outlines) > 0)


def _shape_measure(detections: TileDetections) -> Measure | None:
    """Return what compares outlines or oriented boxes; None where objects are level boxes."""
    if detections.turned is not None:
        return oriented_measure(detections.turned)
    if detections.outlines is None:
        return None
    outlines = detections.outlines
    return lambda first, second: _outline_overlap(detections.boxes, first, second, outlines[first], outlines[second])


PAIRS_AT_ONCE = 5000
"""Pairs of outlines that are compared in one go."""

FEW_PAIRS = 20_000
"""Fewer are compared without a progress bar; a minute or so on a scene of a million outlines."""


def _outline_overlap(
    boxes: np.ndarray, first: np.ndarray, second: np.ndarray, ones: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """Return the intersection over union (n,) of pairs of valid outlines."""
    found = np.zeros(len(first))
    with progress.ProgressBar(len(first), 'merging outlines', 'pair', at_least=FEW_PAIRS) as bar:
        for start in range(0, len(first), PAIRS_AT_ONCE):
            part = slice(start, start + PAIRS_AT_ONCE)
            found[part] = _overlap_of_pairs(boxes, first[part], second[part], ones[part], others[part])
            bar.update(len(first[part]))
    return found


def _overlap_of_pairs(
    boxes: np.ndarray, first: np.ndarray, second: np.ndarray, ones: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """Return the intersection over union (n,) of pairs of valid outlines.

    Should GEOS fail on a pair, its boxes are compared: one odd outline must not cost the tiles of a whole run.
    """
    shapely = extras.require('shapely', extra='vector', to='compare outlines')
    try:
        shared = shapely.area(shapely.intersection(ones, others))
    except shapely.errors.GEOSException:
        if len(ones) == 1:
            return intersection_over_union(boxes[first], boxes[second])
        pairs = [
            (boxes, first[i : i + 1], second[i : i + 1], ones[i : i + 1], others[i : i + 1]) for i in range(len(ones))
        ]
        return np.concatenate([_overlap_of_pairs(*pair) for pair in pairs])
    overlap: np.ndarray = shared / np.maximum(shapely.area(ones) + shapely.area(others) - shared, 1e-12)
    return overlap


def _agreement(detections: TileDetections, first: np.ndarray, second: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return the overlap (n,) of pairs in windows (n, 4): of outlines, which may bend, else of boxes."""
    if detections.turned is not None:
        return _oriented_agreement(detections.turned[first], detections.turned[second], windows)
    if detections.outlines is None:
        return intersection_over_union(*(intersect(detections.boxes[rows], windows) for rows in (first, second)))
    ones, others = (_clip(detections.outlines[rows], windows) for rows in (first, second))
    return _outline_overlap(detections.boxes, first, second, ones, others)


SAME_DIRECTION = np.radians(20)
"""Parts of an oriented object that two tiles show lie in one direction, up to this angle."""


def _oriented_agreement(first: np.ndarray, second: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return the overlap (n,) of pairs of oriented boxes (n, 5) in windows (n, 4); 0 where directions differ."""
    left, top, right, bottom = windows.T
    frames = np.stack([left, top, right, top, right, bottom, left, bottom], 1).reshape(-1, 4, 2)
    middle = (windows[:, :2] + windows[:, 2:])[:, None] / 2
    quadrilaterals = [part - middle for part in (*map(geometry.corners, (first, second)), frames)]
    one, other = (intersect_polygons(part, quadrilaterals[2]) for part in quadrilaterals[:2])
    shared = polygon_areas(intersect_polygons(one, quadrilaterals[1]))
    union = polygon_areas(one) + polygon_areas(other) - shared
    there = (right > left) & (bottom > top) & (union > 0)
    alike = geometry.angle_errors(first, second) <= SAME_DIRECTION
    alike |= first[:, 2] < geometry.NEAR_SQUARE * first[:, 3]
    found: np.ndarray = np.where(there & alike, shared / np.where(union > 0, union, 1), 0.0)
    return found


def _clip(outlines: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return the parts (n,) of valid outlines in windows (n, 4)."""
    shapely = extras.require('shapely', extra='vector', to='compare outlines')
    left, top, right, bottom = windows.T
    there = (right > left) & (bottom > top)
    clipped = np.full(len(outlines), shapely.Polygon(), object)
    frames = shapely.box(left[there], top[there], right[there], bottom[there])
    try:
        clipped[there] = polygonal(shapely.intersection(outlines[there], frames))
    except shapely.errors.GEOSException:
        # a clip by rectangle needs no topology
        corners = windows[there].tolist()
        pairs = zip(outlines[there], corners)
        clipped[there] = polygonal(np.array([shapely.clip_by_rect(shape, *corner) for shape, corner in pairs], object))
    return clipped


def _is_cut(detections: TileDetections, grid: tiling.TileGrid, windows: np.ndarray) -> np.ndarray:
    """Find the boxes (n,) that end at an edge of their tile beyond which there is another tile."""
    rows, cols = np.divmod(detections.tiles, len(grid.cols))
    near = np.abs(detections.boxes - windows[detections.tiles]) <= EDGE_MARGIN
    near |= np.sign(detections.boxes - windows[detections.tiles]) == np.array([-1, -1, 1, 1])
    inner = np.stack([cols > 0, rows > 0, cols < len(grid.cols) - 1, rows < len(grid.rows) - 1], axis=1)
    cut: np.ndarray = (near & inner).any(axis=1)
    return cut

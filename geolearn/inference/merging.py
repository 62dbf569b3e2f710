"""Merge the detections of tiles, so that each object of a raster comes once and whole."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from geolearn import extras, progress, tiling
from geolearn.oriented import geometry
from geolearn.oriented.overlap import array_overlaps, intersect_polygons, polygon_areas
from geolearn.oriented.suppression import suppress
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


DENSE_LIMIT = 400
"""Up to so many boxes are compared each with each; more through a spatial index."""

Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes the indices of pairs (n,), (n,) of objects to their intersection over union (n,)."""


def nms(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    *,
    overlap: float,
    measure: Measure | None = None,
    turned: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy non-maximum suppression: of boxes of one class that overlap, keep the highest-scoring.

    Args:
        boxes: (n, 4) left, top, right, bottom.
        labels: (n,).
        scores: (n,).
        overlap: Intersection over union above which the lower-scoring is suppressed.
        measure: How much objects overlap whose boxes touch, such as by their masks; None compares the boxes.
        turned: (n, 5) oriented boxes, compared exactly in the place of the boxes around them; or None.

    Returns:
        The indices of the boxes that are kept, by descending score, and for each box (n,) the index of the one that
        represents it: its own where it is kept.
    """
    measure = oriented_measure(turned) if turned is not None else measure
    first, second, _ = _overlapping(boxes, labels, overlap, measure)
    return suppress(scores, first, second)


def oriented_measure(turned: np.ndarray) -> Measure:
    """Return what compares oriented boxes (n, 5) exactly."""
    return lambda first, second: array_overlaps(turned[first], turned[second])


def soft_nms(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    *,
    overlap: float,
    least: float = 0.0,
    measure: Measure | None = None,
) -> np.ndarray:
    """Lower the scores of boxes that a higher-scoring one of their class overlaps (linear soft-NMS; Bodla et al. 2017).

    The highest-scoring box stays as it is. Each that overlaps it by more than `overlap` has its score multiplied by one
    minus their intersection over union. Then the highest-scoring of the rest is taken, and so on.

    Args:
        boxes: (n, 4).
        labels: (n,).
        scores: (n,), 0..1.
        overlap: Intersection over union above which the score of the lower-scoring is lowered.
        least: Boxes that fall below this lower no other; the caller drops them.
        measure: As for `nms`.

    Returns:
        (n,) float64. A box with a higher-scoring twin has 0.
    """
    first, second, shared = _overlapping(boxes, labels, overlap, measure)
    starts, rivals, pairs = _neighbours(len(boxes), first, second)
    left = 1 - shared[pairs]
    lowered = scores.astype(np.float64).tolist()
    settled = [False] * len(boxes)
    queue = [(-score, number) for number, score in enumerate(lowered)]
    heapq.heapify(queue)
    while queue and -queue[0][0] >= least:
        score, number = heapq.heappop(queue)
        if settled[number] or -score != lowered[number]:  # lowered since it was queued
            continue
        settled[number] = True
        near = slice(starts[number], starts[number + 1])
        for rival, share in zip(rivals[near].tolist(), left[near].tolist()):
            if not settled[rival]:
                lowered[rival] *= share
                heapq.heappush(queue, (-lowered[rival], rival))
    return np.array(lowered, np.float64)


def cluster_boxes(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, *, overlap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Group the boxes that are one object, as weighted boxes fusion does (Solovyev et al. 2021).

    By descending score, each box joins the cluster of its class whose mean box, weighted by scores, it overlaps most,
    if by more than `overlap`; else it begins one. Only clusters with a box that touches it are compared.

    Args:
        boxes: (n, 4).
        labels: (n,).
        scores: (n,).
        overlap: Intersection over union with the mean box.

    Returns:
        The indices of the boxes that began a cluster, each the highest-scoring of its own, by descending score; and for
        each box (n,) the index of the one that began its cluster. `mean_boxes` and `mean_scores` merge the clusters.
    """
    order = np.argsort(-scores, kind='stable')
    starts, near, _ = _neighbours(len(boxes), *touching_pairs(boxes, labels))
    owners = np.full(len(boxes), -1)
    means, weights = boxes.astype(np.float64), np.zeros(len(boxes))
    for number in order.tolist():
        owner = number
        known = owners[near[starts[number] : starts[number + 1]]]
        known = known[known >= 0]
        if len(known):
            shared = intersection_over_union(means[known], boxes[number])
            best = shared.argmax()
            owner = int(known[best]) if shared[best] > overlap else number
        owners[number] = owner
        weights[owner] += scores[number]
        if weights[owner] > 0:
            means[owner] += (boxes[number] - means[owner]) * (scores[number] / weights[owner])
    return order[owners[order] == order], owners


def mean_boxes(boxes: np.ndarray, scores: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Return for each box the mean of those that it represents, weighted by their scores (Solovyev et al. 2021)."""
    sums, weights = np.zeros_like(boxes), np.zeros(len(boxes))
    np.add.at(sums, owners, boxes * scores[:, None])
    np.add.at(weights, owners, scores)
    mean: np.ndarray = np.where(weights[:, None] > 0, sums / np.maximum(weights, 1e-12)[:, None], boxes)
    return mean


def mean_oriented(turned: np.ndarray, scores: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Return for each oriented box (n, 5) the mean of those that it represents, weighted by their scores.

    Sides are averaged by their logarithms, and angles with the period of half a turn.
    """
    boxes = geometry.canonical(turned)
    parts = np.stack(
        [*boxes[:, :2].T, *np.log(np.maximum(boxes[:, 2:4], 1e-9)).T, np.cos(2 * boxes[:, 4]), np.sin(2 * boxes[:, 4])],
        1,
    )
    mean = mean_boxes(parts, scores, owners)
    angle = np.arctan2(mean[:, 5], mean[:, 4]) / 2
    return geometry.canonical(np.concatenate([mean[:, :2], np.exp(mean[:, 2:4]), angle[:, None]], 1))


def mean_scores(scores: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Return for each box the mean score (n,) of those that it represents; 0 for boxes that another represents."""
    counts = np.bincount(owners, minlength=len(scores))
    mean: np.ndarray = np.bincount(owners, scores, minlength=len(scores)) / np.maximum(counts, 1)
    return mean


def intersection_over_union(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the overlap (n,) of boxes (n, 4) with boxes (n, 4), or with one box (4,), 0..1."""
    shared = _areas(intersect(first, second))
    found: np.ndarray = shared / np.maximum(_areas(first) + _areas(second) - shared, 1e-12)
    return found


def intersect(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return what boxes (..., 4) share with boxes (..., 4); right before left where that is nothing."""
    low = np.maximum(first[..., :2], second[..., :2])
    return np.concatenate([low, np.minimum(first[..., 2:], second[..., 2:])], axis=-1)


def touching_pairs(boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of all pairs of boxes of one class that touch each other, the smaller number first."""
    if len(boxes) <= DENSE_LIMIT:
        first, second = np.nonzero(_touch(boxes[:, None], boxes[None]))
    elif extras.is_installed('shapely'):
        shapely: Any = extras.require('shapely', extra='vector', to='compare thousands of boxes')
        shapes = shapely.box(*boxes.T)
        first, second = shapely.STRtree(shapes).query(shapes)
    else:
        first, second = _sweep(boxes)
    chosen = (first < second) & (labels[first] == labels[second])
    return first[chosen], second[chosen]


ROWS_AT_ONCE = 2_000_000
"""Pairs that a sweep looks at in one go."""


def _sweep(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of all pairs of boxes that touch, the smaller first, without a spatial index.

    Boxes are sorted along the axis on which they overlap least, and each is compared with those that begin before it
    ends.
    """
    spread = np.ptp(boxes[:, :2], axis=0) / np.maximum((boxes[:, 2:] - boxes[:, :2]).mean(0), 1e-9)
    axis = int(spread.argmax())
    order = np.argsort(boxes[:, axis], kind='stable')
    lows, highs = boxes[order, axis], boxes[order, axis + 2]
    counts = np.maximum(np.searchsorted(lows, highs, side='right') - np.arange(len(boxes)) - 1, 0)
    ends = np.cumsum(counts)
    parts, row = [], 0
    while row < len(boxes):
        stop = max(row + 1, int(np.searchsorted(ends, ends[row] - counts[row] + ROWS_AT_ONCE, side='right')))
        many = counts[row:stop]
        ones = np.repeat(np.arange(row, stop), many)
        others = ones + 1 + np.arange(len(ones)) - np.repeat(np.cumsum(many) - many, many)
        ones, others = order[ones], order[others]
        near = _touch(boxes[ones], boxes[others])
        ones, others = ones[near], others[near]
        parts.append(np.stack([np.minimum(ones, others), np.maximum(ones, others)]))
        row = stop
    first, second = np.concatenate(parts, axis=1)
    return first, second


def _overlapping(
    boxes: np.ndarray, labels: np.ndarray, overlap: float, measure: Measure | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the numbers of pairs of one class that overlap more, and by how much."""
    first, second = touching_pairs(boxes, labels)
    shared = intersection_over_union(boxes[first], boxes[second]) if measure is None else measure(first, second)
    close = shared > overlap
    return first[close], second[close], shared[close]


def _neighbours(count: int, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort pairs by box: where each box's partners begin (n + 1,), the partners, and the pair that each is of."""
    ones, others = np.concatenate([first, second]), np.concatenate([second, first])
    order = np.argsort(ones, kind='stable')
    return np.searchsorted(ones[order], np.arange(count + 1)), others[order], order % max(len(first), 1)


def _touch(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    inner = intersect(first, second)
    touching: np.ndarray = (inner[..., 2] >= inner[..., 0]) & (inner[..., 3] >= inner[..., 1])
    return touching


def _areas(boxes: np.ndarray) -> np.ndarray:
    sides = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None)
    areas: np.ndarray = sides[..., 0] * sides[..., 1]
    return areas


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

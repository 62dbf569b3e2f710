"""Make each object of a raster one, of what its tiles show of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from geolearn.extras import require
from geolearn.inference.overlaps import (
    cluster,
    intersect,
    intersection_over_union,
    mean_boxes,
    mean_scores,
    soften,
    suppress,
    touching_pairs,
)
from geolearn.tiling import TileGrid

Merge = Literal['nms', 'soft_nms', 'weighted']
"""Of objects that overlap the surest stays; or the others lose in score; or they become their mean."""

EDGE_MARGIN = 4.0
"""A box that ends within so many pixels of its tile's edge may be cut by it."""

SAME_OVERLAP = 0.5
"""Overlap, in what two tiles both see, from which on two boxes are parts of one object."""


@dataclass(frozen=True, eq=False)
class Pieces:
    """Objects in pixels of a raster, as its tiles show them.

    Args:
        boxes: (n, 4) float64 left, top, right, bottom.
        labels: (n,) int64 class indices.
        scores: (n,) float64, 0..1.
        tiles: (n,) int64 number of the tile, counted row by row.
        outlines: (n,) shapely polygons, or None where objects are boxes.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    tiles: np.ndarray
    outlines: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: np.ndarray) -> 'Pieces':
        """Return some of them, by mask or number."""
        outlines = None if self.outlines is None else self.outlines[rows]
        return Pieces(self.boxes[rows], self.labels[rows], self.scores[rows], self.tiles[rows], outlines)


def join_pieces(parts: Sequence[Pieces]) -> Pieces:
    """Put the objects of several tiles together."""
    if not parts:
        nothing = np.zeros(0, np.int64)
        return Pieces(np.zeros((0, 4)), nothing, np.zeros(0), nothing)
    outlines = [part.outlines for part in parts if part.outlines is not None]
    return Pieces(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.tiles for part in parts]),
        np.concatenate(outlines) if outlines else None,
    )


def tile_windows(grid: TileGrid) -> np.ndarray:
    """Return left, top, right, bottom (tiles, 4) of what each tile reads."""
    height, width = grid.tile_shape
    corners = [(col, row, col + width, row + height) for row, _, _ in grid.rows for col, _, _ in grid.cols]
    return np.array(corners, np.float64).reshape(-1, 4)


def seen_better_elsewhere(boxes: np.ndarray, tiles: np.ndarray, grid: TileGrid) -> np.ndarray:
    """Say which boxes are cut by an edge of their tile, while the tile beyond that edge shows all of the object.

    Args:
        boxes: (n, 4) in pixels of the raster.
        tiles: (n,) number of the tile of each.
        grid: The tiles.

    Returns:
        (n,) bool. What is cut in both tiles is larger than their overlap; `merge_pieces` joins it.
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


def merge_pieces(
    pieces: Pieces, grid: TileGrid, *, overlap: float, merge: Merge = 'nms', threshold: float = 0.0
) -> Pieces:
    """Make each object come once and whole.

    What is cut by the edge of its tile is joined with its other parts: objects of one class in two tiles whose
    outlines, or else boxes, agree in what both tiles see. Then `merge` says what becomes of objects of one class that
    overlap. n log n in the number of pieces, unless very many of them overlap each other.

    Args:
        pieces: Of all tiles, without those that `seen_better_elsewhere` names.
        grid: The tiles.
        overlap: Intersection over union above which two objects of one class are merged.
        merge: ``'nms'``: the surest stays. ``'soft_nms'``: the others lose in score, and go if that falls below
            `threshold`; two tiles' views of one object become the surer one first. ``'weighted'``: they become their
            mean box, weighted by scores, with their mean score; outlines have no mean, so the surest's stays.
        threshold: Lowest score of an object, 0..1.
    """
    if not len(pieces):
        return pieces
    if merge == 'soft_nms':
        joined = _join_parts(pieces, grid, copies=min(overlap, SAME_OVERLAP))
        scores = soften(joined.boxes, joined.labels, joined.scores, overlap=overlap, least=threshold)
        return replace(joined, scores=scores).select((scores >= threshold) & (scores > 0))
    joined = _join_parts(pieces, grid)
    if merge == 'nms':
        return joined.select(suppress(joined.boxes, joined.labels, joined.scores, overlap=overlap)[0])
    kept, owners = cluster(joined.boxes, joined.labels, joined.scores, overlap=overlap)
    boxes = joined.boxes if joined.outlines is not None else mean_boxes(joined.boxes, joined.scores, owners)
    return replace(joined, boxes=boxes, scores=mean_scores(joined.scores, owners)).select(kept)


def _join_parts(pieces: Pieces, grid: TileGrid, *, copies: float | None = None) -> Pieces:
    """Join what several tiles each show a part of.

    Args:
        pieces: Of all tiles.
        grid: The tiles.
        copies: Intersection over union above which objects that two tiles show whole, each the other's nearest in its
            tile, are one too. None leaves these to what follows.
    """
    windows = tile_windows(grid)
    first, second = touching_pairs(pieces.boxes, pieces.labels)
    apart = pieces.tiles[first] != pieces.tiles[second]
    first, second = first[apart], second[apart]
    cut = _is_cut(pieces, grid, windows)
    parts = cut[first] | cut[second]
    both_see = intersect(windows[pieces.tiles[first[parts]]], windows[pieces.tiles[second[parts]]])
    same = np.zeros(len(first), bool)
    same[parts] = _agreement(pieces, first[parts], second[parts], both_see) >= SAME_OVERLAP
    if copies is not None:
        same[~parts] = _nearest(pieces, first[~parts], second[~parts], overlap=copies)
    return _as_one(pieces, first[same], second[same], cut) if same.any() else pieces


def _nearest(pieces: Pieces, first: np.ndarray, second: np.ndarray, *, overlap: float) -> np.ndarray:
    """Say of which pairs (n,) each overlaps no other object of its partner's tile more than its partner."""
    shared = intersection_over_union(pieces.boxes[first], pieces.boxes[second])
    nearest = shared > overlap
    for one, other in ((first, second), (second, first)):
        places = one * (pieces.tiles.max() + 1) + pieces.tiles[other]
        _, place = np.unique(places, return_inverse=True)
        most = np.zeros(place.max(initial=-1) + 1)
        np.maximum.at(most, place, shared)
        nearest &= shared >= most[place]
    return nearest


def _as_one(pieces: Pieces, first: np.ndarray, second: np.ndarray, cut: np.ndarray) -> Pieces:
    """Make one of pieces that pairs link: what parts cover together, or the surest of copies."""
    from scipy.sparse import coo_matrix  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    links = coo_matrix((np.ones(len(first), bool), (first, second)), (len(pieces), len(pieces)))
    groups, group_of = connected_components(links, directed=False)
    by_score = np.argsort(-pieces.scores, kind='stable')
    surest = by_score[np.unique(group_of[by_score], return_index=True)[1]]
    covered = np.concatenate([np.full((groups, 2), np.inf), np.full((groups, 2), -np.inf)], axis=1)
    np.minimum.at(covered[:, :2], group_of, pieces.boxes[:, :2])
    np.maximum.at(covered[:, 2:], group_of, pieces.boxes[:, 2:])
    in_parts = np.bincount(group_of, cut, minlength=groups) > 0
    joined = pieces.select(surest)
    outlines = None if joined.outlines is None else joined.outlines.copy()
    if outlines is not None and pieces.outlines is not None:
        _cover(outlines, pieces.outlines, group_of, in_parts)
    return replace(joined, boxes=np.where(in_parts[:, None], covered, joined.boxes), outlines=outlines)


def _cover(joined: np.ndarray, outlines: np.ndarray, group_of: np.ndarray, in_parts: np.ndarray) -> None:
    """Put what the outlines (n,) of a group cover together into `joined` (groups,), where the group has parts."""
    shapely = require('shapely', extra='vector', to='join outlines')
    counts = np.bincount(group_of)
    members = np.split(np.argsort(group_of, kind='stable'), np.cumsum(counts)[:-1])
    for group in np.flatnonzero((counts > 1) & in_parts):
        joined[group] = shapely.union_all(outlines[members[group]])


def _agreement(pieces: Pieces, first: np.ndarray, second: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return the overlap (n,) of pairs in windows (n, 4): of outlines, which may bend, else of boxes."""
    if pieces.outlines is None:
        return intersection_over_union(*(intersect(pieces.boxes[rows], windows) for rows in (first, second)))
    shapely = require('shapely', extra='vector', to='compare outlines')
    frames = shapely.box(*windows.T)
    parts = [shapely.intersection(shapely.make_valid(pieces.outlines[rows]), frames) for rows in (first, second)]
    union = shapely.area(shapely.union(*parts))
    found: np.ndarray = shapely.area(shapely.intersection(*parts)) / np.maximum(union, 1e-12)
    return found


def _is_cut(pieces: Pieces, grid: TileGrid, windows: np.ndarray) -> np.ndarray:
    """Say which boxes (n,) end at an edge of their tile beyond which there is another tile."""
    rows, cols = np.divmod(pieces.tiles, len(grid.cols))
    near = np.abs(pieces.boxes - windows[pieces.tiles]) <= EDGE_MARGIN
    near |= np.sign(pieces.boxes - windows[pieces.tiles]) == np.array([-1, -1, 1, 1])
    inner = np.stack([cols > 0, rows > 0, cols < len(grid.cols) - 1, rows < len(grid.rows) - 1], axis=1)
    cut: np.ndarray = (near & inner).any(axis=1)
    return cut

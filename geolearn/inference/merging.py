"""Make one object of what overlaps: in several looks at an image, and across the edges of tiles."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from geolearn.extras import require
from geolearn.tiling import TileGrid

EDGE_MARGIN = 4.0
"""A box that ends within so many pixels of its tile's edge may be cut by it."""

SAME_OVERLAP = 0.5
"""Overlap, in what two tiles both see, from which on two boxes are parts of one object."""

FEW = 400
"""So many boxes are compared each with each; more through a tree."""


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


def merge_pieces(pieces: Pieces, grid: TileGrid, *, overlap: float, weighted: bool = False) -> Pieces:
    """Make each object come once and whole.

    What is cut by the edge of its tile is joined with its other parts: objects of one class in two tiles whose
    outlines, or else boxes, agree in what both tiles see. Then, of objects of one class that overlap, the surest stays.
    n log n in the number of pieces, unless very many of them overlap each other.

    Args:
        pieces: Of all tiles, without those that `seen_better_elsewhere` names.
        grid: The tiles.
        overlap: Of two objects of one class, intersection over union, from which on the less sure goes.
        weighted: Whether the surest takes the mean box of those that go for it, weighted by their scores.
    """
    if not len(pieces):
        return pieces
    joined = _join_parts(pieces, grid)
    kept, owners = suppress(joined.boxes, joined.labels, joined.scores, overlap=overlap)
    if weighted and joined.outlines is None:
        joined = Pieces(mean_boxes(joined.boxes, joined.scores, owners), joined.labels, joined.scores, joined.tiles)
    return joined.select(kept)


def suppress(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, *, overlap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the surest of boxes of one class that overlap (greedy non-maximum suppression).

    Args:
        boxes: (n, 4).
        labels: (n,).
        scores: (n,).
        overlap: Intersection over union above which the less sure goes.

    Returns:
        The numbers of those that stay, surest first, and for each box (n,) the number of the one that it goes for: its
        own where it stays.
    """
    order = np.argsort(-scores, kind='stable')
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    first, second = _pairs(boxes, labels)
    close = intersection_over_union(boxes[first], boxes[second]) > overlap
    first, second = first[close], second[close]
    swapped = rank[first] > rank[second]
    surer, other = np.where(swapped, second, first), np.where(swapped, first, second)
    by_rank = np.argsort(rank[surer], kind='stable')
    surer, other = surer[by_rank], other[by_rank]
    owners = np.arange(len(boxes))
    heads, starts = np.unique(rank[surer], return_index=True)
    for head, rivals in zip(order[heads], np.split(other, starts[1:])):
        if owners[head] == head:
            owners[rivals[owners[rivals] == rivals]] = head
    return order[owners[order] == order], owners


def mean_boxes(boxes: np.ndarray, scores: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Return for each box the mean of those that go for it, weighted by their scores (Solovyev et al. 2021)."""
    sums, weights = np.zeros_like(boxes), np.zeros(len(boxes))
    np.add.at(sums, owners, boxes * scores[:, None])
    np.add.at(weights, owners, scores)
    mean: np.ndarray = np.where(weights[:, None] > 0, sums / np.maximum(weights, 1e-12)[:, None], boxes)
    return mean


def intersection_over_union(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the overlap (n,) of boxes (n, 4) with boxes (n, 4), 0..1."""
    shared = _areas(_intersect(first, second))
    found: np.ndarray = shared / np.maximum(_areas(first) + _areas(second) - shared, 1e-12)
    return found


def _join_parts(pieces: Pieces, grid: TileGrid) -> Pieces:
    """Join what several tiles each show a part of."""
    windows = tile_windows(grid)
    first, second = _pairs(pieces.boxes, pieces.labels)
    cut = _is_cut(pieces, grid, windows)
    chosen = (pieces.tiles[first] != pieces.tiles[second]) & (cut[first] | cut[second])
    first, second = first[chosen], second[chosen]
    both_see = _intersect(windows[pieces.tiles[first]], windows[pieces.tiles[second]])
    same = _agreement(pieces, first, second, both_see) >= SAME_OVERLAP
    if not same.any():
        return pieces
    from scipy.sparse import coo_matrix  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    count = len(pieces)
    links = coo_matrix((np.ones(int(same.sum()), bool), (first[same], second[same])), (count, count))
    groups, group_of = connected_components(links, directed=False)
    boxes = np.concatenate([np.full((groups, 2), np.inf), np.full((groups, 2), -np.inf)], axis=1)
    np.minimum.at(boxes[:, :2], group_of, pieces.boxes[:, :2])
    np.maximum.at(boxes[:, 2:], group_of, pieces.boxes[:, 2:])
    scores = np.zeros(groups)
    np.maximum.at(scores, group_of, pieces.scores)
    _, one_of = np.unique(group_of, return_index=True)
    outlines = None if pieces.outlines is None else _join_outlines(pieces.outlines, group_of, one_of)
    return Pieces(boxes, pieces.labels[one_of], scores, pieces.tiles[one_of], outlines)


def _agreement(pieces: Pieces, first: np.ndarray, second: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return the overlap (n,) of pairs in windows (n, 4): of outlines, which may bend, else of boxes."""
    if pieces.outlines is None:
        return intersection_over_union(*(_intersect(pieces.boxes[rows], windows) for rows in (first, second)))
    shapely = require('shapely', extra='vector', to='compare outlines')
    frames = shapely.box(*windows.T)
    parts = [shapely.intersection(shapely.make_valid(pieces.outlines[rows]), frames) for rows in (first, second)]
    union = shapely.area(shapely.union(*parts))
    found: np.ndarray = shapely.area(shapely.intersection(*parts)) / np.maximum(union, 1e-12)
    return found


def _join_outlines(outlines: np.ndarray, group_of: np.ndarray, one_of: np.ndarray) -> np.ndarray:
    shapely = require('shapely', extra='vector', to='join outlines')
    joined = outlines[one_of]
    several = np.flatnonzero(np.bincount(group_of) > 1)
    members = np.split(np.argsort(group_of, kind='stable'), np.cumsum(np.bincount(group_of))[:-1])
    for group in several:
        joined[group] = shapely.union_all(outlines[members[group]])
    return joined


def _is_cut(pieces: Pieces, grid: TileGrid, windows: np.ndarray) -> np.ndarray:
    """Say which boxes (n,) end at an edge of their tile beyond which there is another tile."""
    rows, cols = np.divmod(pieces.tiles, len(grid.cols))
    near = np.abs(pieces.boxes - windows[pieces.tiles]) <= EDGE_MARGIN
    near |= np.sign(pieces.boxes - windows[pieces.tiles]) == np.array([-1, -1, 1, 1])
    inner = np.stack([cols > 0, rows > 0, cols < len(grid.cols) - 1, rows < len(grid.rows) - 1], axis=1)
    cut: np.ndarray = (near & inner).any(axis=1)
    return cut


def _pairs(boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of all pairs of boxes of one class that touch each other."""
    if len(boxes) <= FEW:
        first, second = np.nonzero(_touch(boxes[:, None], boxes[None]))
    else:
        shapely: Any = require('shapely', extra='vector', to='compare thousands of boxes')
        shapes = shapely.box(*boxes.T)
        first, second = shapely.STRtree(shapes).query(shapes)
    chosen = (first < second) & (labels[first] == labels[second])
    return first[chosen], second[chosen]


def _touch(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    inner = _intersect(first, second)
    touching: np.ndarray = (inner[..., 2] >= inner[..., 0]) & (inner[..., 3] >= inner[..., 1])
    return touching


def _intersect(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    low = np.maximum(first[..., :2], second[..., :2])
    return np.concatenate([low, np.minimum(first[..., 2:], second[..., 2:])], axis=-1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    sides = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None)
    areas: np.ndarray = sides[..., 0] * sides[..., 1]
    return areas

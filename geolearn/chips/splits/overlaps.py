"""Where chips lie: their footprints by CRS, and which of them share ground."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import transform, transform_bounds

from geolearn.raster import GeoBox
from geolearn.raster.geobox import in_pixel_space

FAR_OUT = 1e9
"""No map has coordinates beyond this, in meters, feet or degrees."""

GLOBE = 'EPSG:4326'

PAIRS_AT_ONCE = 1_000_000


@dataclass(frozen=True, eq=False)
class Footprints:
    """Places of chips.

    Args:
        bounds: (n, 4) float64 left, bottom, right, top in map units; the hull where a chip is rotated.
        groups: (n,) int, equal where chips are in one CRS and can be compared; -1 where a chip has no place.
        crs: CRS of each group as WKT or ``'EPSG:...'``, None where none is named.
    """

    bounds: np.ndarray
    groups: np.ndarray
    crs: tuple[str | None, ...]

    @property
    def centers(self) -> np.ndarray:
        """(n, 2) float64 x and y of the middle of each chip."""
        return (self.bounds[:, :2] + self.bounds[:, 2:]) / 2

    def members(self) -> Iterator[np.ndarray]:
        """Yield the positions of the chips of each CRS."""
        for group in range(len(self.crs)):
            yield np.flatnonzero(self.groups == group)


def find_footprints(geoboxes: Sequence[GeoBox]) -> Footprints:
    """Return the places of chips; those in pixel space (unit pixels from the origin) have none."""
    bounds = np.array([box.bounds for box in geoboxes], np.float64).reshape(-1, 4)
    crs, index = _merge_spellings([box.crs for box in geoboxes])
    groups = np.array([index[box.crs] for box in geoboxes], np.int64)
    real = (np.abs(bounds) < FAR_OUT).all(axis=1) & (bounds[:, 0] < bounds[:, 2]) & (bounds[:, 1] < bounds[:, 3])
    placed = real & ~np.array([in_pixel_space(box) for box in geoboxes], bool)
    return Footprints(bounds, np.where(placed, groups, -1), crs)


def find_overlaps(places: Footprints, chips: Sequence[int], others: Sequence[int]) -> np.ndarray:
    """Tell for each of `chips` whether it shares area with any of `others`, which may be in another CRS that is known.

    Returns:
        (len(chips),) bool. False where a chip has no place.
    """
    first, second = np.asarray(chips, np.int64), np.asarray(others, np.int64)
    hit = np.zeros(len(first), bool)
    for group in range(len(places.crs)):
        mine = np.flatnonzero(places.groups[first] == group)
        for other in range(len(places.crs)) if len(mine) else ():
            theirs = second[places.groups[second] == other]
            if not len(theirs):
                continue
            boxes, hulls, quads = places.bounds[first[mine]], places.bounds[theirs], None
            if other != group:
                quads = _move_near(boxes, places.crs[group], hulls, places.crs[other])
                hulls = np.concatenate([quads.min(axis=1), quads.max(axis=1)], axis=1)
            hit[mine] |= overlap_any(boxes, hulls, quads)
    return hit


def _move_near(boxes: np.ndarray, crs: str | None, others: np.ndarray, other_crs: str | None) -> np.ndarray:
    """Return the corners (m, 4, 2) in the CRS of `boxes` of those others that may share ground with any of them.

    Where the others lie on the globe tells which: PROJ moves nothing that is far from where a CRS is for. None are
    returned where this is not known.
    """
    known, other_known = _parse(crs), _parse(other_crs)
    if known is None or other_known is None:
        return np.empty((0, 4, 2))
    try:
        hull = transform_bounds(known, GLOBE, *boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0))
    except (CRSError, RasterioError, CPLE_BaseError):
        return np.empty((0, 4, 2))
    left, bottom, right, top = hull
    corners = _move(others, other_known, CRS.from_user_input(GLOBE))
    with np.errstate(invalid='ignore'):
        low, high = corners.min(axis=1), corners.max(axis=1)
        low, high = 2 * low - high, 2 * high - low  # edges are bent there; NaN is near nothing
    near = (low[:, 1] < top) & (high[:, 1] > bottom)
    if left <= right:  # else over the antimeridian; others that lie across it have a hull around the globe
        near &= (low[:, 0] < right) & (high[:, 0] > left)
    if not near.any():
        return np.empty((0, 4, 2))
    moved = _move(others[near], other_known, known)
    return moved[(np.abs(moved) < FAR_OUT).all(axis=(1, 2))]


def _move(boxes: np.ndarray, crs: CRS, target: CRS) -> np.ndarray:
    """Return the corners of boxes in another CRS, (n, 4, 2) around each; infinite where PROJ knows none."""
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    try:
        xs, ys = transform(crs, target, corners[..., 0].ravel(), corners[..., 1].ravel())
    except CPLE_BaseError:  # of one of them
        if len(boxes) == 1:
            return np.full((1, 4, 2), np.inf)
        half = len(boxes) // 2
        return np.concatenate([_move(boxes[:half], crs, target), _move(boxes[half:], crs, target)])
    return np.stack([np.reshape(xs, (-1, 4)), np.reshape(ys, (-1, 4))], axis=2)


def overlap_any(boxes: np.ndarray, others: np.ndarray, quads: np.ndarray | None = None) -> np.ndarray:
    """Tell for each box (n, 4: left, bottom, right, top) whether it shares area with any of the others.

    Boxes are binned by size and place, so that hundreds of thousands take a second.

    Args:
        boxes: Boxes.
        others: Others, or the hulls of `quads`.
        quads: Corners of the others around each, (m, 4, 2), where these are convex and no boxes.
    """
    hit = np.zeros(len(boxes), bool)
    level, other_level = _size_levels(boxes), _size_levels(others)
    for mine in np.unique(level):
        for theirs in np.unique(other_level):
            rows = np.flatnonzero((level == mine) & ~hit)
            side = 2.0 ** max(mine, theirs)
            chosen = other_level == theirs
            hit[rows] = _overlap_near(boxes[rows], others[chosen], side, None if quads is None else quads[chosen])
    return hit


def _overlap_near(boxes: np.ndarray, others: np.ndarray, side: float, quads: np.ndarray | None) -> np.ndarray:
    """Compare boxes whose centers lie in one cell of `side`, or in neighboring ones; no box is larger than that."""
    cells, other_cells = _cells(boxes, side), _cells(others, side)
    keys = _keys(other_cells[:, 0], other_cells[:, 1])
    order = np.argsort(keys, kind='stable')
    keys, others = keys[order], others[order]
    quads = None if quads is None else quads[order]
    hit = np.zeros(len(boxes), bool)
    for right in (-1, 0, 1):
        for down in (-1, 0, 1):
            wanted = _keys(cells[:, 0] + right, cells[:, 1] + down)
            start, stop = np.searchsorted(keys, wanted, 'left'), np.searchsorted(keys, wanted, 'right')
            for rows, columns in _pairs(start, stop):
                shared = _share_area(boxes[rows], others[columns])
                if quads is not None:
                    shared[shared] = _meet(boxes[rows[shared]], quads[columns[shared]])
                hit[rows[shared]] = True
    return hit


def _pairs(start: np.ndarray, stop: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield row and column of each pair of row i with the columns start[i]..stop[i], so many at once as fit memory."""
    counts = stop - start
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(PAIRS_AT_ONCE, ends[-1] if len(ends) else 0, PAIRS_AT_ONCE))
    for rows in np.split(np.arange(len(start)), cuts):
        repeats = counts[rows]
        total = int(repeats.sum())
        if total:
            offset = np.arange(total) - np.repeat(np.cumsum(repeats) - repeats, repeats)
            yield np.repeat(rows, repeats), np.repeat(start[rows], repeats) + offset


def _share_area(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    low, high = np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])
    # neighbors touch; rounding of coordinates must not make that an overlap
    slack = 1e-6 * np.minimum(boxes[:, 2:] - boxes[:, :2], others[:, 2:] - others[:, :2])
    return (high - low > slack).all(axis=1)


def _meet(boxes: np.ndarray, quads: np.ndarray) -> np.ndarray:
    """Tell for each box whether it shares area with its quadrilateral, whose hull meets it: no edge parts them."""
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    edges = np.roll(quads, -1, axis=1) - quads
    normals = np.stack([edges[..., 1], -edges[..., 0]], axis=2)
    normals /= np.maximum(np.linalg.norm(normals, axis=2, keepdims=True), np.finfo(float).tiny)
    mine, theirs = (np.einsum('nek,nck->nec', normals, points) for points in (corners, quads))
    inside = np.minimum(mine.max(axis=2), theirs.max(axis=2)) - np.maximum(mine.min(axis=2), theirs.min(axis=2))
    # straight edges are bent a little in another CRS
    slack = 1e-3 * (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
    return (inside > slack[:, None]).all(axis=1)


def _size_levels(boxes: np.ndarray) -> np.ndarray:
    """Return the power of two that the longer side of each box does not exceed."""
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    return np.ceil(np.log2(np.maximum(sides, np.finfo(float).tiny))).astype(np.int64)


def _cells(boxes: np.ndarray, side: float) -> np.ndarray:
    return np.floor((boxes[:, :2] + boxes[:, 2:]) / (2 * side)).astype(np.int64)


def _keys(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    # one number for each cell; where two cells meet in one number, more boxes are compared and nothing is wrong
    return columns * 1_000_003 + rows


def _merge_spellings(found: Sequence[str | None]) -> tuple[tuple[str | None, ...], dict[str | None, int]]:
    """Number the CRSs; texts that spell the same one get one number."""
    kept: list[tuple[str | None, CRS | None]] = []
    index: dict[str | None, int] = {}
    for text in dict.fromkeys(found):
        crs = _parse(text)
        same = [i for i, (other, known) in enumerate(kept) if crs is not None and crs == known]
        index[text] = same[0] if same else len(kept)
        if not same:
            kept.append((text, crs))
    return tuple(text for text, _ in kept), index


def _parse(text: str | None) -> CRS | None:
    try:
        return None if text is None else CRS.from_user_input(text)
    except CRSError:
        return None  # a CRS that PROJ does not know is still one and the same for all chips that name it

"""Outline the groups of equal pixels of a raster of any size, a strip of rows at a time.

Pixels that share an edge and a value are one group, and one polygon: across the borders of strips too. Corners are
whole numbers of pixels, so that areas are exact. What is held in memory are the pixels of a strip and the corners of
the groups that reach into the next one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from geolearn import extras


@dataclass(frozen=True, eq=False)
class PixelPolygons:
    """Some of the polygons of a raster.

    Args:
        values: (n,) of the pixels of each.
        pixels: (n,) int64 number of pixels.
        shapes: (n,) shapely polygons, in pixels: x = columns, y = rows.
    """

    values: np.ndarray
    pixels: np.ndarray
    shapes: np.ndarray


class Edges(NamedTuple):
    """Horizontal edges of groups, each directed so that its group lies to the right of it.

    Args:
        group: Number of the group.
        y: Row of pixels below the edge.
        start: Column where it begins.
        end: Column where it ends; less than `start` under a group, and equal at a point that is only passed.
        first: Whether its beginning goes before other corners at one point, see `_follow`.
        last: The same of its end.
        fixed_start: Whether three groups meet where it begins.
        fixed_end: The same of its end.
    """

    group: np.ndarray
    y: np.ndarray
    start: np.ndarray
    end: np.ndarray
    first: np.ndarray
    last: np.ndarray
    fixed_start: np.ndarray
    fixed_end: np.ndarray

    def select(self, rows: np.ndarray | slice) -> 'Edges':
        """Return some of the edges."""
        return Edges(*(field[rows] for field in self))

    @staticmethod
    def concatenate(parts: Iterable['Edges']) -> 'Edges':
        """Return the edges of all parts."""
        return Edges(*(np.concatenate(fields) for fields in zip(*parts)))


class _Open:
    """Groups that reach into the rows to come: their edges so far, pixels and values."""

    def __init__(self, row: np.ndarray, edges: list[list[Edges]], pixels: np.ndarray, values: np.ndarray) -> None:
        self.row, self.edges, self.pixels, self.values = row, edges, pixels, values


def polygonize(
    strips: Iterable[tuple[np.ndarray, np.ndarray | None]],
    width: int,
    *,
    min_pixels: float = 0,
    tolerance: float | None = None,
) -> Iterator[PixelPolygons]:
    """Yield the polygons of a raster, each when its last row has been seen.

    Args:
        strips: Values (rows, width) from top to bottom, and masks (rows, width) that are True where there is data, or
            None where it is everywhere.
        width: Of the raster.
        min_pixels: Groups of fewer pixels are left out.
        tolerance: By how many pixels outlines may move to be simpler; None keeps the edges of pixels. Neighbors keep
            their common borders: between two points where three polygons meet, a border is simplified once for both.
            Groups that are thinner than that may vanish.
    """
    held, top = None, 0
    for values, valid in strips:
        polygons, held = _add_rows(held, values, valid, top, min_pixels, tolerance)
        if polygons is not None:
            yield polygons
        top += len(values)
    if held is not None:
        nothing = np.zeros((1, width), held.values.dtype)
        polygons, _ = _add_rows(held, nothing, np.zeros((1, width), bool), top, min_pixels, tolerance)
        if polygons is not None:
            yield polygons


def _add_rows(
    held: _Open | None,
    values: np.ndarray,
    valid: np.ndarray | None,
    top: int,
    min_pixels: float,
    tolerance: float | None,
) -> tuple[PixelPolygons | None, _Open]:
    """Go on with rows from `top` on: return the polygons that end in them, and what reaches further."""
    width = values.shape[1]
    if held is None:
        held = _Open(np.full(width, -1), [], np.zeros(0, np.int64), np.zeros(0, values.dtype))
    groups, pixels, of_held, run_values = _label(held, values, valid)
    group_values = np.zeros(len(pixels), values.dtype)
    group_values[of_held] = held.values
    group_values[run_values[0]] = run_values[1]
    rows = np.concatenate([np.append(of_held, -1)[held.row][None], groups])
    edges = _find_edges(rows, top, split=tolerance is not None)

    goes_on = np.zeros(len(pixels), bool)
    goes_on[groups[-1][groups[-1] >= 0]] = True
    wanted = pixels >= min_pixels
    ended = ~goes_on & wanted
    parts = [edges.select(ended[edges.group])]
    for number, group in enumerate(of_held):
        if ended[group]:
            parts += [part._replace(group=np.full(len(part.y), group)) for part in held.edges[number]]
    polygons = None
    if ended.any():
        shapes = build_polygons(Edges.concatenate(parts), ended, width, tolerance)
        polygons = PixelPolygons(group_values[ended], pixels[ended], shapes)
    return polygons, _hold(held, of_held, edges, goes_on, groups[-1], pixels, group_values)


def _label(
    held: _Open, values: np.ndarray, valid: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Number the groups of some rows, and of those above that reach into them.

    Returns:
        Number of the group of each pixel, -1 without data; pixels of each group so far; the group of each held one; and
        the groups and values of the runs.
    """
    height, width = values.shape
    starts = np.ones((height, width), bool)
    starts[:, 1:] = values[:, 1:] != values[:, :-1]
    if valid is not None:
        starts[:, 1:] |= valid[:, 1:] != valid[:, :-1]
    runs = (np.cumsum(starts.ravel()) - 1).reshape(height, width)
    first = np.flatnonzero(starts.ravel())
    lengths = np.diff(np.append(first, height * width))
    of_run = values.ravel()[first]
    has_data = np.ones(len(first), bool) if valid is None else valid.ravel()[first]

    same = values[1:] == values[:-1]
    if valid is not None:
        same &= valid[1:] & valid[:-1]
    # one link for each pair of runs: where either of the two begins
    same[:, 1:] &= ~same[:, :-1] | starts[1:, 1:] | starts[:-1, 1:]
    upper, lower = runs[:-1][same], runs[1:][same]
    known = held.row >= 0
    known &= values[0] == np.append(held.values, 0)[held.row]
    if valid is not None:
        known &= valid[0]
    above = len(first) + held.row[known]
    count = len(first) + len(held.values)
    links = (np.concatenate([upper, above]), np.concatenate([lower, runs[0][known]]))
    graph = coo_matrix((np.ones(len(links[0]), bool), links), (count, count))
    _, labels = connected_components(graph, directed=False)
    # numbers without gaps for groups with data
    real = np.concatenate([has_data, np.ones(len(held.values), bool)])
    numbers = np.full(count, -1)
    used, numbers[real] = np.unique(labels[real], return_inverse=True)
    of_runs, of_held = numbers[: len(first)], numbers[len(first) :]
    pixels = np.zeros(len(used), np.int64)
    np.add.at(pixels, of_runs[has_data], lengths[has_data])
    np.add.at(pixels, of_held, held.pixels)
    return of_runs[runs], pixels, of_held, (of_runs[has_data], of_run[has_data])


def _hold(
    held: _Open,
    of_held: np.ndarray,
    edges: Edges,
    goes_on: np.ndarray,
    last_row: np.ndarray,
    pixels: np.ndarray,
    values: np.ndarray,
) -> _Open:
    """Keep the groups of the last row."""
    numbers = np.full(len(goes_on) + 1, -1)  # the last is that of pixels without data
    numbers[:-1][goes_on] = np.arange(goes_on.sum())
    pieces: list[list[Edges]] = [[] for _ in range(int(goes_on.sum()))]
    for position, group in enumerate(of_held):
        if goes_on[group]:
            pieces[numbers[group]] += held.edges[position]
    kept = edges.select(goes_on[edges.group])
    order = np.argsort(kept.group, kind='stable')
    kept = kept.select(order)
    starts = np.flatnonzero(np.diff(kept.group, prepend=-1))
    for begin, end in zip(starts, [*starts[1:], len(order)]):
        pieces[numbers[kept.group[begin]]].append(kept.select(slice(begin, end)))
    return _Open(numbers[last_row], pieces, pixels[goes_on], values[goes_on])


def _find_edges(groups: np.ndarray, top: int, *, split: bool) -> Edges:
    """Return the horizontal edges between rows of group numbers, of which the first is above row `top`.

    Args:
        groups: (rows + 1, width), -1 for pixels of no group.
        top: Number of the second row.
        split: Whether edges end where three groups meet, and such points on the vertical ones are edges of no length.
    """
    above, below = groups[:-1], groups[1:]
    meets = _meeting_points(groups) if split else np.zeros((len(above), groups.shape[1] + 1), bool)
    parts = []
    for own, under in ((above, True), (below, False)):
        there = (above != below) & (own >= 0)
        joined = np.zeros_like(there)
        joined[:, 1:] = there[:, 1:] & there[:, :-1] & (own[:, 1:] == own[:, :-1]) & ~meets[:, 1:-1]
        ends = there.copy()
        ends[:, :-1] &= ~joined[:, 1:]
        row, left = np.nonzero(there & ~joined)
        right = np.nonzero(ends)[1] + 1
        start, end = (right, left) if under else (left, right)
        early = np.full(len(row), not under)
        parts.append(Edges(own[row, left], row + top, start, end, early, early, meets[row, start], meets[row, end]))
    if split:
        parts += _passed_points(groups, meets, top)
    return Edges.concatenate(parts)


def _corners(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the groups around each corner of pixels: upper left, upper right, lower left, lower right."""
    wide = np.pad(groups, ((0, 0), (1, 1)), constant_values=-1)
    return wide[:-1, :-1], wide[:-1, 1:], wide[1:, :-1], wide[1:, 1:]


def _meeting_points(groups: np.ndarray) -> np.ndarray:
    """Return where more than two borders meet: (rows, width + 1) corners of pixels."""
    upper_left, upper_right, lower_left, lower_right = _corners(groups)
    borders = (upper_left != upper_right).astype(np.int8)
    for one, other in ((upper_left, lower_left), (upper_right, lower_right), (lower_left, lower_right)):
        borders += one != other
    found: np.ndarray = borders > 2
    return found


def _passed_points(groups: np.ndarray, meets: np.ndarray, top: int) -> list[Edges]:
    """Return edges of no length for points where other groups meet at the straight vertical side of one."""
    upper_left, upper_right, lower_left, lower_right = _corners(groups)
    parts = []
    # with its group to the right of it, a side goes down on the right of a group, and up on the left
    for upper, lower, across, down in (
        (upper_left, lower_left, (upper_right, lower_right), True),
        (upper_right, lower_right, (upper_left, lower_left), False),
    ):
        there = meets & (upper == lower) & (upper >= 0) & (across[0] != upper) & (across[1] != upper)
        row, col = np.nonzero(there)
        yes = np.ones(len(row), bool)
        first, last = (yes, ~yes) if down else (~yes, yes)
        parts.append(Edges(upper[row, col], row + top, col, col, first, last, yes, yes))
    return parts


def build_polygons(edges: Edges, wanted: np.ndarray, width: int, tolerance: float | None) -> np.ndarray:
    """Return the polygons of all groups that have edges.

    Args:
        edges: All edges of these groups.
        wanted: Whether each number is that of such a group.
        width: Of the raster.
        tolerance: See `polygonize`.

    Returns:
        (groups,) shapely polygons, in the order of their numbers.
    """
    shapely = extras.require('shapely', extra='vector', to='outline classes')
    dense = np.cumsum(wanted) - 1
    group = dense[edges.group]
    following = _follow(edges, group, width)
    ring, order = _order_rings(following)
    # the highest edge of a group belongs to its outer ring
    highest = np.lexsort((np.minimum(edges.start, edges.end), edges.y, group))
    leading = highest[np.flatnonzero(np.diff(group[highest], prepend=-1))]
    group_of_ring = np.zeros(ring.max() + 1, np.int64)
    group_of_ring[ring] = group
    inner = np.ones(len(group_of_ring), bool)
    inner[ring[leading]] = False
    place = np.empty(len(inner), np.int64)
    sequence = np.lexsort((inner, group_of_ring))
    place[sequence] = np.arange(len(inner))
    order = order[np.argsort(place[ring[order]], kind='stable')]

    points = np.empty((len(order), 2, 2))
    points[:, 0, 0], points[:, 1, 0] = edges.start[order], edges.end[order]
    points[:, :, 1] = edges.y[order, None]
    fixed = np.stack([edges.fixed_start[order], edges.fixed_end[order]], axis=1).ravel()
    ring_of_point = np.repeat(place[ring[order]], 2)
    flat = points.reshape(-1, 2)
    # an edge that begins where the one before it ends is a point that was named twice
    once = (flat != flat[_previous_in_ring(ring_of_point)]).any(axis=1)
    flat, fixed, counts = flat[once], fixed[once], np.bincount(ring_of_point[once], minlength=len(inner))
    rings = _closed(flat, counts) if tolerance is None else simplify_rings(flat, counts, fixed, tolerance)
    return _assemble(shapely, *rings, group_of_ring[sequence], int(wanted.sum()))


def _follow(edges: Edges, group: np.ndarray, width: int) -> np.ndarray:
    """Return for each edge the one that follows it, joined to it by a vertical edge.

    The ends of the edges of a group that lie on one vertical line belong together in pairs from above. Where a group
    touches itself at a corner, four of them meet; they are taken so that the ring goes on across the corner, which
    keeps rings from touching themselves: what they go around is a hole that touches the ring.
    """
    count = len(group)
    number = np.concatenate([np.arange(count), np.arange(count)])
    line = np.concatenate([group, group]) * (width + 1) + np.concatenate([edges.start, edges.end])
    late = ~np.concatenate([edges.first, edges.last])
    order = np.lexsort((2 * np.concatenate([edges.y, edges.y]) + late, line))
    is_end = order >= count
    upper, lower = order[0::2], order[1::2]
    following = np.empty(count, np.int64)
    ends = np.where(is_end[0::2], upper, lower)
    starts = np.where(is_end[0::2], lower, upper)
    following[number[ends]] = number[starts]
    return following


def _order_rings(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ring that each edge belongs to, and edges ring by ring, in the order in which they follow."""
    count = len(following)
    steps = coo_matrix((np.ones(count, bool), (np.arange(count), following)), (count, count))
    _, ring = connected_components(steps, directed=False)
    head = np.full(ring.max() + 1, count)
    np.minimum.at(head, ring, np.arange(count))
    # how many steps are left to the last edge: each round doubles the steps that are known
    target = np.where(following == head[ring], np.arange(count), following)
    left = (target != np.arange(count)).astype(np.int64)
    while True:
        further = target[target]
        if (further == target).all():
            break
        left += left[target]
        target = further
    return ring, np.lexsort((-left, ring))


def _previous_in_ring(ring: np.ndarray) -> np.ndarray:
    """Return for each point of rings that lie one behind the other the point before it in its ring."""
    starts = np.flatnonzero(np.diff(ring, prepend=-1))
    previous = np.arange(len(ring)) - 1
    previous[starts] = np.append(starts[1:], len(ring)) - 1
    return previous


def _closed(points: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Repeat the first point of each ring (points one ring behind the other) at its end."""
    ends = np.cumsum(counts)
    return np.insert(points, ends, points[ends - counts], axis=0), counts + 1


def simplify_rings(
    points: np.ndarray, counts: np.ndarray, fixed: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Simplify rings so that those on both sides of a border stay equal.

    Args:
        points: (n, 2), one ring behind the other, none repeated.
        counts: Points of each ring.
        fixed: (n,) points that stay, where borders meet.
        tolerance: Of Douglas and Peucker, in pixels.

    Returns:
        Points of closed rings, and how many each has; fewer than 4 where nothing of a ring is left.
    """
    shapely = extras.require('shapely', extra='vector', to='simplify outlines')
    lines, ring_of_line = [], []
    for number, end in enumerate(np.cumsum(counts)):
        ring = points[end - counts[number] : end]
        stays = np.flatnonzero(fixed[end - counts[number] : end])
        if not len(stays):
            # both sides of the border find the same two points: the first of all, and the one farthest from it
            start = int(np.lexsort((ring[:, 1], ring[:, 0]))[0])
            distance = ((ring - ring[start]) ** 2).sum(axis=1)
            farthest = np.flatnonzero(distance == distance.max())
            stays = np.sort(np.array([start, min(farthest.tolist(), key=lambda at: tuple(ring[at]))]))
        ring = np.roll(ring, -stays[0], axis=0)
        bounds = [*(stays - stays[0]).tolist(), len(ring)]
        ring = np.concatenate([ring, ring[:1]])
        for begin, stop in pairwise(bounds):
            lines.append(ring[begin : stop + 1])
            ring_of_line.append(number)
    return _simplify_lines(shapely, lines, np.array(ring_of_line), len(counts), tolerance)


def _simplify_lines(
    shapely: Any, lines: list[np.ndarray], ring_of_line: np.ndarray, rings: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Simplify lines, whichever way they run, and join those of a ring again."""
    # of the two ways that a line can run, one for both sides of the border
    turned = np.array([tuple(line[-1]) + tuple(line[-2]) < tuple(line[0]) + tuple(line[1]) for line in lines])
    straight = [line[::-1] if turn else line for line, turn in zip(lines, turned)]
    sizes = np.array([len(line) for line in lines])
    strings = shapely.linestrings(np.concatenate(straight), indices=np.repeat(np.arange(len(lines)), sizes))
    simple = shapely.simplify(strings, tolerance, preserve_topology=False)
    closed = shapely.is_closed(strings)
    # a line that ends where it begins, and is pulled together, stays a triangle
    for pulled in np.flatnonzero(closed & (shapely.get_num_points(simple) < 4)).tolist():
        line = straight[pulled]
        simple[pulled] = shapely.linestrings(line[np.unique([0, len(line) // 3, 2 * len(line) // 3, len(line) - 1])])
    parts, counts = [], np.ones(rings, np.int64)
    for number, line in enumerate(simple.tolist()):
        points = shapely.get_coordinates(line)
        points = points[::-1] if turned[number] else points
        is_last = number + 1 == len(lines) or ring_of_line[number + 1] != ring_of_line[number]
        parts.append(points if is_last else points[:-1])
        counts[ring_of_line[number]] += len(points) - 1
    return np.concatenate(parts), counts


def _assemble(
    shapely: Any, coordinates: np.ndarray, counts: np.ndarray, of_polygon: np.ndarray, polygons: int
) -> np.ndarray:
    """Make polygons of rings, which lie one behind the other, the outer one of each polygon first."""
    ring_ends = np.concatenate([[0], np.cumsum(counts)])
    polygon_ends = np.concatenate([[0], np.cumsum(np.bincount(of_polygon, minlength=polygons))])
    if (counts >= 4).all():
        made: np.ndarray = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON, coordinates, (ring_ends, polygon_ends)
        )
        return made
    made = np.empty(polygons, object)
    for number, (begin, end) in enumerate(pairwise(polygon_ends)):
        rings = [coordinates[ring_ends[ring] : ring_ends[ring + 1]] for ring in range(begin, end) if counts[ring] >= 4]
        whole = counts[begin] >= 4
        made[number] = shapely.Polygon(rings[0], rings[1:]) if whole else shapely.Polygon()
    return made

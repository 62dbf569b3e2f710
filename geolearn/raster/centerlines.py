"""Center lines of masks: thinning, and the graph of what is left of it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple

import numpy as np

NEIGHBORS = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
"""Rows and columns of the eight neighbors, clockwise from the one above."""


def thin(mask: np.ndarray, *, most_steps: int | None = None, margin: int = 0) -> np.ndarray:
    """Return the center lines of a mask, one pixel wide; what is connected stays so (Zhang and Suen 1984).

    Args:
        mask: (height, width) bool.
        most_steps: Each takes a pixel off both sides; None until nothing changes. What is thicker than twice as many
            pixels is no line and is left out. A pixel then depends on what lies within twice as many pixels alone.
        margin: Pixels by which the mask is taken to go on beyond its edges, so that lines that leave it reach the edge.
    """
    if margin:
        thinned = thin(np.pad(mask, margin, 'edge'), most_steps=most_steps)
        return thinned[margin:-margin, margin:-margin]
    kept = np.pad(mask, 1).astype(np.uint8)
    step = 0
    while most_steps is None or step < most_steps:
        before = int(np.count_nonzero(kept))
        for part in (0, 1):
            kept[1:-1, 1:-1][_removable(kept, part)] = 0
        step += 1
        if int(np.count_nonzero(kept)) == before:
            break
    else:
        kept &= ~_thick(kept)
    return kept[1:-1, 1:-1].astype(bool)


def _shifted(kept: np.ndarray) -> list[np.ndarray]:
    height, width = kept.shape
    return [kept[1 + row : height - 1 + row, 1 + col : width - 1 + col] for row, col in NEIGHBORS]


def _removable(kept: np.ndarray, part: int) -> np.ndarray:
    """Return the pixels that one of the two parts of a step takes off."""
    around = _shifted(kept)
    count = sum(around)
    crossings = sum((first == 0) & (second == 1) for first, second in zip(around, [*around[1:], around[0]]))
    above, right, below, left = around[0], around[2], around[4], around[6]
    sides = right & below & (above | left) if part == 0 else above & left & (right | below)
    removable: np.ndarray = (kept[1:-1, 1:-1] == 1) & (count >= 2) & (count <= 6) & (crossings == 1) & (sides == 0)
    return removable


def _thick(kept: np.ndarray) -> np.ndarray:
    """Return the pixels of what is more than two pixels thick still, and those around it."""
    core = np.zeros_like(kept)
    inner = core[1:-1, 1:-1]
    inner[:] = kept[1:-1, 1:-1]
    for around in _shifted(kept):
        inner &= around
    grown = core.copy()
    for around in _shifted(core):
        grown[1:-1, 1:-1] |= around
    return grown


@dataclass(frozen=True, eq=False)
class LineGraph:
    """Lines that meet in nodes.

    Args:
        nodes: (n, 2) float64 x and y.
        ends: (lines, 2) int64 numbers of the nodes in which each line begins and ends; of closed ones they are equal.
        lines: For each line its points (k, 2) float64, from the first node to the last.
    """

    nodes: np.ndarray
    ends: np.ndarray
    lines: tuple[np.ndarray, ...]

    @property
    def degrees(self) -> np.ndarray:
        """Number of line ends (n,) in each node."""
        return np.bincount(self.ends.ravel(), minlength=len(self.nodes))

    @property
    def lengths(self) -> np.ndarray:
        """Length (lines,) of each line."""
        return np.array([line_length(line) for line in self.lines], np.float64)


def line_length(line: np.ndarray) -> float:
    """Return the length of points (k, 2)."""
    return float(np.hypot(*np.diff(line, axis=0).T).sum())


def join_lines(lines: Iterable[np.ndarray], *, within: float = 1e-6) -> LineGraph:
    """Make a graph of lines; ends that lie nearer than `within` are one node.

    Args:
        lines: Points (k, 2) of each, at least two.
        within: In units of the points.
    """
    from scipy.sparse import coo_matrix  # late: its import takes part of a second
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    held = [np.asarray(line, np.float64) for line in lines]
    if not held:
        return LineGraph(np.zeros((0, 2)), np.zeros((0, 2), np.int64), ())
    points = np.stack([point for line in held for point in (line[0], line[-1])])
    pairs = cKDTree(points).query_pairs(within, output_type='ndarray')
    links = coo_matrix((np.ones(len(pairs), bool), pairs.T), (len(points),) * 2)
    count, labels = connected_components(links, directed=False)
    sizes = np.bincount(labels, minlength=count)
    nodes = np.stack([np.bincount(labels, points[:, axis], count) / sizes for axis in (0, 1)], axis=1)
    return LineGraph(nodes, labels.reshape(-1, 2).astype(np.int64), tuple(held))


class _Links(NamedTuple):
    """Which pixels of a center line touch: both directions, sorted by the first."""

    first: np.ndarray
    second: np.ndarray


def trace(rows: np.ndarray, cols: np.ndarray) -> LineGraph:
    """Return the graph of the pixels of center lines, in pixels: x = column + 0.5, y = row + 0.5.

    Pixels that have other than two neighbors are nodes; those of one crossing are one node, in their middle. Closed
    lines without a crossing begin and end in a pixel of theirs; single pixels are left out.

    Args:
        rows: (n,) of the pixels.
        cols: (n,) of the pixels.
    """
    from scipy.sparse import coo_matrix  # late: its import takes part of a second
    from scipy.sparse.csgraph import connected_components

    order = np.lexsort((cols, rows))
    rows, cols = rows[order].astype(np.int64), cols[order].astype(np.int64)
    points = np.stack([cols + 0.5, rows + 0.5], axis=1)
    count = len(points)
    if not count:
        return join_lines([])
    links = _link(rows, cols)
    degrees = np.bincount(links.first, minlength=count)
    crossing = degrees > 2
    both = crossing[links.first] & crossing[links.second]
    inner = coo_matrix((np.ones(both.sum(), bool), (links.first[both], links.second[both])), (count, count))
    labels = connected_components(inner, directed=False)[1]
    is_node = degrees != 2
    node_of = np.full(count, -1)
    _, node_of[is_node] = np.unique(labels[is_node], return_inverse=True)
    total = int(node_of.max(initial=-1)) + 1
    sizes = np.maximum(np.bincount(node_of[is_node], minlength=total), 1)
    nodes = [np.bincount(node_of[is_node], points[is_node, axis], total) / sizes for axis in (0, 1)]
    ends, lines, closed = _follow(links, node_of, points, np.stack(nodes, axis=1))
    every = np.concatenate([np.stack(nodes, axis=1), points[closed]])
    return LineGraph(every, np.array(ends, np.int64).reshape(-1, 2), tuple(lines))


def _link(rows: np.ndarray, cols: np.ndarray) -> _Links:
    """Return which pixels touch; corners count only where no pixel beside both makes the link already."""
    width = int(cols.max()) + 3
    keys = rows * width + cols
    found: list[tuple[np.ndarray, np.ndarray]] = []

    def number(row: int, col: int) -> np.ndarray:
        """Return the position of the pixel at an offset of each, -1 where there is none."""
        wanted = keys + row * width + col
        places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        # a column beyond the edge is not that of the next row: two columns are free
        return np.where(keys[places] == wanted, places, -1)

    beside = {(row, col): number(row, col) for row, col in ((-1, 0), (0, 1), (1, 0), (0, -1))}
    for other in beside.values():
        found.append((np.flatnonzero(other >= 0), other[other >= 0]))
    for row, col in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        other = number(row, col)
        alone = (other >= 0) & (beside[row, 0] < 0) & (beside[0, col] < 0)
        found.append((np.flatnonzero(alone), other[alone]))
    first, second = (np.concatenate(column) for column in zip(*found))
    order = np.lexsort((second, first))
    return _Links(first[order], second[order])


def _follow(
    links: _Links, node_of: np.ndarray, points: np.ndarray, nodes: np.ndarray
) -> tuple[list[tuple[int, int]], list[np.ndarray], list[int]]:
    """Walk from node to node; returns ends and points of the lines, and the pixels in which closed ones begin."""
    starts = np.searchsorted(links.first, np.arange(len(points) + 1)).tolist()
    second, owner = links.second.tolist(), node_of.tolist()
    seen = [False] * len(owner)
    ends: list[tuple[int, int]] = []
    lines: list[np.ndarray] = []

    def walk(before: int, here: int) -> list[int]:
        path = [before, here]
        while owner[here] < 0 and not seen[here]:
            seen[here] = True
            one, other = second[starts[here]], second[starts[here] + 1]
            before, here = here, other if one == before else one
            path.append(here)
        return path

    for pixel in np.flatnonzero(node_of >= 0).tolist():
        for other in second[starts[pixel] : starts[pixel + 1]]:
            if owner[other] >= 0:
                # two nodes side by side; within a crossing there is no line
                if owner[other] != owner[pixel] and pixel < other:
                    ends.append((owner[pixel], owner[other]))
                    lines.append(np.stack([nodes[owner[pixel]], nodes[owner[other]]]))
                continue
            if seen[other]:
                continue
            path = walk(pixel, other)
            first, last = owner[path[0]], owner[path[-1]]
            ends.append((first, last))
            lines.append(np.concatenate([nodes[[first]], points[path[1:-1]], nodes[[last]]]))
    closed: list[int] = []
    for pixel in np.flatnonzero(node_of < 0).tolist():
        if not seen[pixel]:
            seen[pixel] = True
            path = walk(pixel, second[starts[pixel]])
            ends.append((len(nodes) + len(closed),) * 2)
            lines.append(points[path])
            closed.append(pixel)
    return ends, lines, closed


def prune(graph: LineGraph, shorter: Sequence[float] | np.ndarray) -> LineGraph:
    """Remove spurs: lines with a free end at one side and a crossing at the other, that are short; then join lines.

    Args:
        graph: Of lines.
        shorter: For each node, the length below which a spur of it goes, such as the width of the line there.
    """
    limits = np.asarray(shorter, np.float64)
    ends, lengths, alive = graph.ends, graph.lengths, np.ones(len(graph.lines), bool)
    while True:
        degrees = np.bincount(ends[alive].ravel(), minlength=len(graph.nodes))
        of_ends = degrees[ends]
        spur = alive & (of_ends.min(axis=1, initial=9) == 1) & (of_ends.max(axis=1, initial=0) > 2)
        inner = np.where(of_ends[:, 0] == 1, ends[:, 1], ends[:, 0])
        spur &= lengths < limits[inner] if len(lengths) else False
        if not spur.any():
            break
        # the shortest of a node first: where two spurs make a fork, one of them may be the line's own end
        order = np.flatnonzero(spur)[np.argsort(lengths[spur], kind='stable')]
        _, first = np.unique(inner[order], return_index=True)
        alive[order[first]] = False
    return merge_nodes(LineGraph(graph.nodes, ends[alive], tuple(compress(graph.lines, alive))))


def merge_nodes(graph: LineGraph) -> LineGraph:
    """Join the two lines that meet in a node in which nothing else does."""
    ends: dict[int, tuple[int, int]] = {number: (int(a), int(b)) for number, (a, b) in enumerate(graph.ends)}
    lines = dict(enumerate(graph.lines))
    at: dict[int, list[int]] = {}
    for number, (a, b) in ends.items():
        at.setdefault(a, []).append(number)
        at.setdefault(b, []).append(number)
    for node, held in at.items():
        if len(held) != 2 or held[0] == held[1]:
            continue
        one, other = held
        before = lines[one] if ends[one][1] == node else lines[one][::-1]
        after = lines[other] if ends[other][0] == node else lines[other][::-1]
        start = ends[one][0] if ends[one][1] == node else ends[one][1]
        stop = ends[other][1] if ends[other][0] == node else ends[other][0]
        lines[one], ends[one] = np.concatenate([before, after[1:]]), (start, stop)
        del lines[other], ends[other]
        at[stop][at[stop].index(other)] = one
    order = sorted(lines)
    kept = np.array([ends[number] for number in order], np.int64).reshape(-1, 2)
    used, numbers = np.unique(kept, return_inverse=True)
    return LineGraph(graph.nodes[used], numbers.reshape(-1, 2), tuple(lines[number] for number in order))


def bridge(graph: LineGraph, gap: float, *, turn: float = math.radians(30), reach: float = 10.0) -> LineGraph:
    """Join free ends that point at each other.

    Args:
        graph: Of lines.
        gap: Longest distance between two ends, in units of the points.
        turn: Most that either end may point past the other, in radians.
        reach: Length of a line's end that says where it points, in units of the points.
    """
    from scipy.spatial import cKDTree

    degrees = graph.degrees
    free: list[tuple[int, int]] = [
        (number, side)
        for number, pair in enumerate(graph.ends)
        for side in (0, 1)
        if degrees[pair[side]] == 1 and len(graph.lines[number]) > 1
    ]
    if gap <= 0 or len(free) < 2:
        return graph
    places = np.stack([graph.nodes[graph.ends[number][side]] for number, side in free])
    out = np.stack([_direction(graph.lines[number], side, reach) for number, side in free])
    pairs = cKDTree(places).query_pairs(gap, output_type='ndarray')
    if not len(pairs):
        return graph
    between = places[pairs[:, 1]] - places[pairs[:, 0]]
    apart = np.hypot(*between.T)
    across = between / np.maximum(apart, 1e-9)[:, None]
    straight = math.cos(turn)
    fits = (out[pairs[:, 0]] * across).sum(1) >= straight
    fits &= (out[pairs[:, 1]] * -across).sum(1) >= straight
    pairs, apart = pairs[fits], apart[fits]
    used: set[int] = set()
    ends, lines = graph.ends.tolist(), list(graph.lines)
    for one, other in pairs[np.argsort(apart, kind='stable')].tolist():
        if one in used or other in used:
            continue
        used |= {one, other}
        nodes = [int(graph.ends[free[end][0]][free[end][1]]) for end in (one, other)]
        ends.append(nodes)
        lines.append(graph.nodes[nodes])
    return merge_nodes(LineGraph(graph.nodes, np.array(ends, np.int64).reshape(-1, 2), tuple(lines)))


def _direction(line: np.ndarray, side: int, reach: float) -> np.ndarray:
    """Return where an end of a line points, as a vector of length 1."""
    points = line if side == 0 else line[::-1]
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    inside = points[min(int(np.searchsorted(along, reach)), len(points) - 1)]
    vector = points[0] - inside
    unit: np.ndarray = vector / max(float(np.hypot(*vector)), 1e-9)
    return unit


def drop_short(graph: LineGraph, shorter: float) -> LineGraph:
    """Remove what is connected and shorter, all its lines together, than a length."""
    from scipy.sparse import coo_matrix  # late: its import takes part of a second
    from scipy.sparse.csgraph import connected_components

    if not len(graph.lines) or shorter <= 0:
        return graph
    count = len(graph.nodes)
    links = coo_matrix((np.ones(len(graph.ends), bool), graph.ends.T), (count, count))
    labels = connected_components(links, directed=False)[1][graph.ends[:, 0]]
    totals = np.bincount(labels, graph.lengths)
    kept = totals[labels] >= shorter
    used, numbers = np.unique(graph.ends[kept], return_inverse=True)
    lines = tuple(compress(graph.lines, kept))
    return LineGraph(graph.nodes[used], numbers.reshape(-1, 2).astype(np.int64), lines)

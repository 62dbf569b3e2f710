"""Metrics of lines such as roads: how much of them is found within a buffer, and whether paths along them agree."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geolearn.classes import IGNORE_INDEX
from geolearn.metrics.scores import Metric, main_output, predict_classes, sum_over_processes
from geolearn.raster.centerlines import join_lines, thin, trace

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

BUFFER, SNAP, SPACING = 3.0, 4.0, 50.0
"""Pixels: a center line within the first is found, a path begins within the second, and places lie the third apart."""

MOST_PLACES = 400
"""Between which paths are compared."""

MARGIN = 16
"""Pixels by which lines that leave a chip are taken to go on."""


class BufferCounts(NamedTuple):
    """Pixels of center lines: all, and those within the buffer of the other lines."""

    truth: int
    truth_matched: int
    predicted: int
    predicted_matched: int

    @property
    def completeness(self) -> float:
        """Share of the true lines that is found."""
        return self.truth_matched / self.truth if self.truth else math.nan

    @property
    def correctness(self) -> float:
        """Share of the predicted lines that is true."""
        return self.predicted_matched / self.predicted if self.predicted else math.nan

    @property
    def quality(self) -> float:
        """True positives over true positives, false positives and false negatives (Wiedemann et al. 1998)."""
        total = self.predicted + self.truth - self.truth_matched
        return self.predicted_matched / total if total else math.nan


def count_within_buffer(truth: np.ndarray, predicted: np.ndarray, *, buffer: float = BUFFER) -> BufferCounts:
    """Count the pixels of two center lines (height, width) bool, and those that lie within `buffer` of the other."""
    from scipy import ndimage  # late: its import takes part of a second

    counts = []
    for one, other in ((truth, predicted), (predicted, truth)):
        total = int(one.sum())
        near = int((ndimage.distance_transform_edt(~other)[one] <= buffer).sum()) if total and other.any() else 0
        counts += [total, near]
    return BufferCounts(*counts)


def average_path_length_similarity(
    truth: Sequence[np.ndarray], predicted: Sequence[np.ndarray], *, snap: float = SNAP, spacing: float = SPACING
) -> float:
    """Compare the lengths of the shortest paths between places along two networks (APLS; Van Etten et al. 2018).

    Of each network, places are taken where lines end or meet and every `spacing` between; the same place in the other
    network is its nearest point within `snap`. A path costs the relative difference of its lengths, at most 1, which it
    costs too where it is missing; the score is 1 less the mean cost, and the harmonic mean of both directions.

    Args:
        truth: Points (k, 2) of each line; lines are connected where they share end points.
        predicted: The same.
        snap: In units of the points, which lie nearer to each other along a line than that.
        spacing: In units of the points.

    Returns:
        0..1; NaN where neither network has a path.
    """
    nets = [_make_net(lines, spacing) for lines in (truth, predicted)]
    if any(len(net.places) < 2 for net in nets):
        return math.nan if all(len(net.places) < 2 for net in nets) else 0.0
    one, other = (_compare_paths(nets[a], nets[b], snap) for a, b in ((0, 1), (1, 0)))
    if math.isnan(one) or math.isnan(other):
        return 0.0
    return 2 * one * other / (one + other) if one + other else 0.0


class _Net(NamedTuple):
    """Vertices (n, 2) of lines, their neighbors with distances, and numbers of the places."""

    points: np.ndarray
    links: 'csr_matrix'
    places: np.ndarray


def _make_net(lines: Sequence[np.ndarray], spacing: float) -> _Net:
    from scipy.sparse import csr_matrix  # late: its import takes part of a second

    graph = join_lines(line for line in lines if len(line) > 1)
    points, rows, cols, lengths = [graph.nodes], list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    places, count = [np.arange(len(graph.nodes))], len(graph.nodes)
    for (start, end), line in zip(graph.ends, graph.lines):
        inner = np.arange(count, count + len(line) - 2)
        numbers = np.concatenate([[start], inner, [end]])
        steps = np.hypot(*np.diff(line, axis=0).T)
        along = np.cumsum(steps)
        pieces = max(1, round(along[-1] / spacing))
        wanted = np.searchsorted(along, along[-1] * np.arange(1, pieces) / pieces) + 1
        places.append(numbers[np.minimum(wanted, len(numbers) - 1)])
        points.append(line[1:-1])
        rows.append(numbers[:-1])
        cols.append(numbers[1:])
        lengths.append(np.maximum(steps, 1e-9))
        count += len(inner)
    empty = [np.zeros(0, np.int64)]
    entries = np.concatenate(lengths or [np.zeros(0)]), (np.concatenate(rows or empty), np.concatenate(cols or empty))
    chosen = np.unique(np.concatenate(places))
    chosen = chosen[:: -(-len(chosen) // MOST_PLACES)] if len(chosen) else chosen
    # of two lines between the same vertices the shorter counts: entries of one place would be added up
    order = np.argsort(-entries[0], kind='stable')
    table = dict(zip(zip(entries[1][0][order].tolist(), entries[1][1][order].tolist()), entries[0][order].tolist()))
    keys = np.array(list(table), np.int64).reshape(-1, 2)
    links = csr_matrix((np.array(list(table.values())), keys.T), (count, count))
    return _Net(np.concatenate(points), links, chosen.astype(np.int64))


def _compare_paths(net: _Net, other: _Net, snap: float) -> float:
    """Return 1 less the mean cost of the paths of one network in another one; NaN without paths."""
    from scipy.sparse.csgraph import dijkstra  # late: its import takes part of a second
    from scipy.spatial import cKDTree

    lengths = dijkstra(net.links, directed=False, indices=net.places)[:, net.places]
    apart, nearest = cKDTree(other.points).query(net.points[net.places], distance_upper_bound=snap)
    placed = np.isfinite(apart)
    theirs = np.full(lengths.shape, np.inf)
    if placed.any():
        found = dijkstra(other.links, directed=False, indices=nearest[placed])[:, nearest[placed]]
        theirs[np.ix_(placed, placed)] = found
    pairs = np.triu(np.isfinite(lengths) & (lengths > 0), 1)
    if not pairs.any():
        return math.nan
    with np.errstate(invalid='ignore'):
        costs = np.abs(lengths[pairs] - theirs[pairs]) / lengths[pairs]
    return 1 - float(np.minimum(costs, 1).mean())


class LineScores:
    """Completeness, correctness and quality of center lines within a buffer of 3 pixels, and APLS; see `Scores`.

    APLS is that of each chip in pixels, averaged by the length of its true lines; places lie 50 pixels apart.

    Args:
        lines: Indices of the classes that are lines.
        buffer: In pixels.
    """

    columns: ClassVar = (
        Metric('completeness', higher_is_better=True),
        Metric('correctness', higher_is_better=True),
        Metric('quality', higher_is_better=True),
        Metric('apls', 'APLS', True),
    )

    def __init__(self, lines: Sequence[int], *, buffer: float = BUFFER) -> None:
        self.lines, self.buffer = tuple(lines), buffer
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.counts = torch.zeros(6, dtype=torch.float64)

    def add(self, output: Tensor | tuple[Tensor, ...], target: Tensor) -> None:
        """Count logits (N, classes, H, W), or (main, auxiliary), against (N, H, W) indices or IGNORE_INDEX."""
        predicted, target, _ = predict_classes(main_output(output), target, ignored=IGNORE_INDEX)
        known = (target != IGNORE_INDEX).cpu().numpy()
        for guess, truth, seen in zip(predicted.cpu().numpy(), target.cpu().numpy(), known):
            for line in self.lines:
                self._add_chip((truth == line) & seen, (guess == line) & seen)

    def _add_chip(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        true, guessed = (thin(mask, margin=MARGIN) if mask.any() else mask for mask in (truth, predicted))
        counts = count_within_buffer(true, guessed, buffer=self.buffer)
        graphs = [trace(*np.nonzero(lines)).lines for lines in (true, guessed)]
        similarity = average_path_length_similarity(*graphs)
        weight = 0 if math.isnan(similarity) else max(counts.truth, 1)
        self.counts += torch.tensor([*counts, weight * (similarity if weight else 0), weight], dtype=torch.float64)

    def reduce(self) -> None:
        """Add up the counts of all processes."""
        self.counts = sum_over_processes(self.counts)

    def values(self) -> dict[str, float]:
        """Return the scores; NaN without lines."""
        *found, similarity, weight = self.counts.tolist()
        counts = BufferCounts(*map(int, found))
        return {
            'completeness': counts.completeness,
            'correctness': counts.correctness,
            'quality': counts.quality,
            'apls': similarity / weight if weight else math.nan,
        }

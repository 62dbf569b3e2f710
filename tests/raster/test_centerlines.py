"""Center lines of masks are connected as the masks are, and become graphs."""

import numpy as np
import pytest
from scipy import ndimage

from geolearn.raster.centerlines import LineGraph, bridge, drop_short, join_lines, merge_nodes, prune, thin, trace

EIGHT = np.ones((3, 3))


def cross(side=61, width=5):
    mask = np.zeros((side, side), bool)
    middle = slice(side // 2 - width // 2, side // 2 + width // 2 + 1)
    mask[middle] = mask[:, middle] = True
    return mask


def graph_of(mask, **options):
    return trace(*np.nonzero(thin(mask, **options)))


def test_thinning_keeps_parts_in_one_piece_and_one_pixel_wide():
    rng = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(rng.normal(size=(120, 140)), 4) > 0.03
    thinned = thin(mask)
    assert (thinned <= mask).all()
    assert ndimage.label(thinned, EIGHT)[1] == ndimage.label(mask, EIGHT)[1]
    assert not ndimage.binary_erosion(thinned, EIGHT).any()


def test_parts_thinned_with_a_margin_are_those_of_the_whole():
    rng = np.random.default_rng(1)
    mask = ndimage.gaussian_filter(rng.normal(size=(160, 90)), 3) > 0.05
    whole = thin(mask, most_steps=16)
    upper, lower = thin(mask[:112], most_steps=16), thin(mask[48:], most_steps=16)
    assert (np.concatenate([upper[:80], lower[32:]]) == whole).all()


def test_what_is_thicker_than_a_line_is_left_out():
    mask = np.zeros((120, 120), bool)
    mask[10:60, 10:60] = True
    mask[90:96] = True
    thinned = thin(mask, most_steps=8)
    assert not thinned[:80].any()
    assert thinned[90:96].any(axis=0).sum() > 110


def test_a_line_that_leaves_the_mask_reaches_its_edge():
    mask = np.zeros((40, 50), bool)
    mask[12:21] = True
    reached = np.flatnonzero(thin(mask, margin=16).any(axis=0))
    assert (reached == np.arange(50)).all()
    assert len(np.flatnonzero(thin(mask).any(axis=0))) < 50


def test_a_crossing_is_one_node_of_four_lines():
    graph = graph_of(cross(), margin=16)
    assert sorted(graph.degrees) == [1, 1, 1, 1, 4]
    assert np.allclose(graph.nodes[graph.degrees == 4], 30.5, atol=1)
    assert graph.lengths.sum() == pytest.approx(2 * 60, abs=4)


def test_a_ring_is_one_closed_line_and_a_single_pixel_none():
    rows, cols = np.indices((60, 60)) - 30
    ring = np.abs(np.hypot(rows, cols) - 20) < 2.5
    graph = graph_of(ring)
    assert len(graph.lines) == 1
    assert (graph.lines[0][0] == graph.lines[0][-1]).all()
    assert graph.lengths[0] == pytest.approx(2 * np.pi * 20, rel=0.1)
    assert len(trace(np.array([3]), np.array([4])).lines) == 0
    assert len(trace(np.zeros(0, int), np.zeros(0, int)).lines) == 0


def line(*points):
    return np.array(points, np.float64)


def test_spurs_go_and_the_line_behind_them_becomes_one():
    graph = join_lines([line((0, 0), (50, 0)), line((50, 0), (100, 0)), line((50, 0), (50, 4))])
    pruned = prune(graph, np.full(len(graph.nodes), 5.0))
    assert len(pruned.lines) == 1
    assert pruned.lengths[0] == 100
    # a longer one stays
    assert len(prune(graph, np.full(len(graph.nodes), 3.0)).lines) == 3
    # of a fork at the end of a line one tip stays, so the line does not become shorter
    fork = join_lines([line((0, 0), (50, 0)), line((50, 0), (53, 3)), line((50, 0), (53, -3))])
    assert prune(fork, np.full(len(fork.nodes), 5.0)).lengths.sum() == pytest.approx(50 + np.hypot(3, 3))


def test_ends_that_point_at_each_other_are_joined():
    apart = join_lines([line((0, 0), (40, 0)), line((48, 1), (90, 0))])
    joined = bridge(apart, 10)
    assert len(joined.lines) == 1
    assert joined.lengths[0] == pytest.approx(90, abs=0.5)
    assert len(bridge(apart, 5).lines) == 2
    # beside each other, or across: no
    assert len(bridge(join_lines([line((0, 0), (40, 0)), line((40, 6), (90, 6))]), 10).lines) == 2
    assert len(bridge(join_lines([line((0, 0), (40, 0)), line((46, 0), (46, 40))]), 10).lines) == 2


def test_short_parts_are_dropped_as_a_whole():
    graph = join_lines([line((0, 0), (4, 0)), line((4, 0), (50, 0)), line((0, 9), (8, 9))])
    kept = drop_short(graph, 10)
    assert sorted(kept.lengths) == [4, 46]
    assert isinstance(kept, LineGraph)
    assert len(merge_nodes(kept).lines) == 1

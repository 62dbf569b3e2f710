"""An object comes once and whole, wherever the edges of tiles fall and however duplicates are merged."""

import time
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import shapely
import shapely.affinity
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms, box_iou

from geolearn.batch import Detections
from geolearn.inference.detecting import make_predict_fn
from geolearn.inference.flipped import merge_passes
from geolearn.inference.merging import Merge, TileDetections, merge_detections, shown_whole_elsewhere
from geolearn.inference.overlapping import (
    DENSE_LIMIT,
    cluster_boxes,
    intersection_over_union,
    mean_boxes,
    mean_scores,
    nms,
    soft_nms,
)
from geolearn.inference.placing import ArrayDetections
from geolearn.tiling import make_grid

MERGES = get_args(Merge)


def random_boxes(seed, count, *, side=500, largest=60):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, side - largest, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(4, largest, (count, 2))], axis=1)


def cut_by_tiles(boxes, grid, *, jitter=0.0, rng=None):
    """What each tile shows of each box, as detections; boxes of which a tile shows nothing have none there."""
    parts, tiles = [], []
    for number, tile in enumerate(grid):
        low = np.array([tile.read.col_off, tile.read.row_off])
        high = low + np.array([tile.read.width, tile.read.height])
        part = np.concatenate([np.maximum(boxes[:, :2], low), np.minimum(boxes[:, 2:], high)], axis=1)
        if jitter:
            shaken = part + rng.uniform(-jitter, jitter, part.shape)
            part = np.concatenate([np.maximum(shaken[:, :2], low), np.minimum(shaken[:, 2:], high)], axis=1)
        part = part[((part[:, 2:] - part[:, :2]) > 0.5).all(axis=1)]
        parts.append(part)
        tiles.append(np.full(len(part), number))
    every, tiles = np.concatenate(parts), np.concatenate(tiles)
    count = len(every)
    return TileDetections(every, np.zeros(count, np.int64), np.full(count, 0.9), tiles)


def merged(detections, grid, **options):
    kept = detections.select(~shown_whole_elsewhere(detections.boxes, detections.tiles, grid))
    return merge_detections(kept, grid, **{'overlap': 0.3, 'threshold': 0.5} | options)


def same_boxes(found, boxes, tolerance=0.0):
    rows = [boxes[np.lexsort(boxes.round(0).T)] for boxes in (found, boxes)]
    return rows[0].shape == rows[1].shape and np.abs(rows[0] - rows[1]).max(initial=0) <= tolerance


@given(
    left=st.integers(0, 360),
    top=st.integers(0, 260),
    width=st.integers(3, 39),
    height=st.integers(3, 39),
    tile=st.sampled_from([96, 128]),
    merge=st.sampled_from(MERGES),
)
@settings(max_examples=60)
def test_an_object_no_larger_than_the_overlap_comes_once_and_whole(left, top, width, height, tile, merge):
    box = np.array([[left, top, left + width, top + height]], float)
    grid = make_grid((300, 400), tile_size=tile, halo=24)
    found = merged(cut_by_tiles(box, grid), grid, merge=merge)
    assert same_boxes(found.boxes, box, tolerance=1e-9)
    assert found.scores.tolist() == pytest.approx([0.9])


@given(
    left=st.integers(0, 100),
    top=st.integers(0, 60),
    width=st.integers(20, 299),
    height=st.integers(20, 239),
    merge=st.sampled_from(MERGES),
)
@settings(max_examples=60)
def test_an_object_larger_than_a_tile_is_put_together(left, top, width, height, merge):
    box = np.array([[left, top, left + width, top + height]], float)
    grid = make_grid((300, 400), tile_size=96, halo=16)
    assert same_boxes(merged(cut_by_tiles(box, grid), grid, merge=merge).boxes, box, tolerance=1e-9)


@given(seed=st.integers(0, 10_000), merge=st.sampled_from(MERGES), threshold=st.sampled_from([0.05, 0.5]))
@settings(max_examples=60)
def test_boxes_that_tiles_see_a_little_differently_still_come_once(seed, merge, threshold):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 340, 2)
    box = np.concatenate([corners, corners + rng.uniform(15, 50, 2)])[None]
    grid = make_grid((400, 400), tile_size=128, halo=24)
    detections = cut_by_tiles(box, grid, jitter=1.5, rng=rng)
    found = merged(detections, grid, merge=merge, threshold=threshold).boxes
    assert same_boxes(found, box, tolerance=3.5)


@pytest.mark.parametrize('merge', MERGES)
def test_neighbours_at_a_seam_stay_apart(merge):
    boxes = np.array([[100.0, 100, 140, 140], [141, 100, 181, 140], [100, 141, 140, 181]])
    grid = make_grid((300, 300), tile_size=128, halo=24)
    assert same_boxes(merged(cut_by_tiles(boxes, grid), grid, merge=merge).boxes, boxes, tolerance=1e-9)


@given(left=st.integers(0, 350), top=st.integers(0, 250))
@settings(max_examples=60)
def test_crowded_objects_at_a_seam_come_once_each_with_soft_nms(left, top):
    boxes = np.array([[left, top, left + 30, top + 30], [left + 14, top, left + 44, top + 30]], float)  # overlap 0.36
    grid = make_grid((300, 400), tile_size=128, halo=24)
    detections = cut_by_tiles(boxes, grid)
    assert same_boxes(merged(detections, grid, merge='soft_nms', threshold=0.05).boxes, boxes)
    assert len(merged(detections, grid)) == 1


@pytest.mark.parametrize('merge', MERGES)
def test_objects_of_two_classes_at_one_place_both_stay(merge):
    grid = make_grid((64, 64), tile_size=64, halo=0)
    box = np.array([[10.0, 10, 30, 30]] * 2)
    detections = TileDetections(box, np.array([0, 1]), np.array([0.9, 0.8]), np.zeros(2, np.int64))
    found = merge_detections(detections, grid, overlap=0.3, merge=merge)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])


@pytest.mark.parametrize('count', [300, 3 * DENSE_LIMIT])
@pytest.mark.parametrize('overlap', [0.2, 0.5])
def test_suppression_is_that_of_torchvision(count, overlap):
    boxes = random_boxes(1, count)
    rng = np.random.default_rng(2)
    labels, scores = rng.integers(0, 3, count), rng.permutation(count) / count
    kept, owners = nms(boxes, labels, scores, overlap=overlap)
    wanted = batched_nms(*(torch.from_numpy(a) for a in (boxes, scores, labels)), overlap)
    assert kept.tolist() == wanted.tolist()
    assert set(owners.tolist()) == set(kept.tolist())


@given(seed=st.integers(0, 10_000), overlap=st.sampled_from([0.0, 0.2, 0.5]))
@settings(max_examples=40)
def test_soft_suppression_is_that_of_the_paper(seed, overlap):
    boxes = random_boxes(seed, 40, side=150)
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, 2, 40), rng.random(40)
    wanted, rest = scores.copy(), list(range(40))
    while rest:  # as Bodla et al. (2017) write it, with the linear penalty
        surest = max(rest, key=lambda number: wanted[number])
        rest.remove(surest)
        for number in rest:
            shared = intersection_over_union(boxes[surest], boxes[number])
            if labels[number] == labels[surest] and shared > overlap:
                wanted[number] *= 1 - shared
    found = soft_nms(boxes, labels, scores, overlap=overlap)
    assert found == pytest.approx(wanted)
    least = soft_nms(boxes, labels, scores, overlap=overlap, least=0.4)
    assert (least >= 0.4).tolist() == (found >= 0.4).tolist()


@given(seed=st.integers(0, 10_000), overlap=st.sampled_from([0.2, 0.55]))
@settings(max_examples=40)
def test_clusters_are_those_of_the_paper(seed, overlap):
    boxes = random_boxes(seed, 40, side=150)
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, 2, 40), rng.random(40)
    clusters = []  # as Solovyev et al. (2021) write it
    for number in np.argsort(-scores):
        shared = [
            intersection_over_union(np.average(boxes[members], axis=0, weights=scores[members]), boxes[number])
            if labels[members[0]] == labels[number] else 0.0
            for members in clusters
        ]  # fmt: skip
        if max(shared, default=0) > overlap:
            clusters[int(np.argmax(shared))].append(number)
        else:
            clusters.append([number])
    kept, owners = cluster_boxes(boxes, labels, scores, overlap=overlap)
    assert kept.tolist() == [members[0] for members in clusters]
    assert all((owners[members] == members[0]).all() for members in clusters)
    assert mean_scores(scores, owners)[kept] == pytest.approx([scores[members].mean() for members in clusters])


@pytest.mark.parametrize('merge', MERGES)
@pytest.mark.parametrize('outlined', [False, True])
def test_tens_of_thousands_of_objects_take_seconds(merge, outlined):
    boxes = random_boxes(3, 40_000, side=12_000)
    grid = make_grid((12_000, 12_000), tile_size=512, halo=32)
    rng = np.random.default_rng(4)
    tiles = np.array([int(top // 448) * len(grid.cols) + int(left // 448) for left, top in boxes[:, :2]])
    detections = TileDetections(boxes, rng.integers(0, 2, 40_000), rng.uniform(0.5, 1, 40_000), tiles % len(list(grid)))
    if outlined:
        detections = replace(detections, outlines=shapely.box(*boxes.T))
    started = time.perf_counter()
    found = merge_detections(detections, grid, overlap=0.3, merge=merge)
    assert 20_000 < len(found) <= 40_000
    assert time.perf_counter() - started < 30


def test_overlaps_are_those_of_torchvision():
    first, second = random_boxes(5, 50, side=120), random_boxes(6, 50, side=120)
    wanted = box_iou(torch.from_numpy(first), torch.from_numpy(second)).diagonal()
    assert np.allclose(intersection_over_union(first, second), wanted.numpy())


def test_a_mean_box_is_weighted_by_scores():
    boxes = np.array([[0.0, 0, 10, 10], [4, 0, 14, 10], [50, 50, 60, 60]])
    found = mean_boxes(boxes, np.array([0.9, 0.3, 0.5]), np.array([0, 0, 2]))
    assert found[0].tolist() == pytest.approx([1, 0, 11, 10])
    assert found[2].tolist() == [50, 50, 60, 60]


@pytest.fixture
def seen_twice():
    """A box that two tiles see at places two pixels apart, the second of higher confidence, and the tiles."""
    boxes = np.array([[70.0, 10, 80, 20], [72, 10, 82, 20]])
    detections = TileDetections(boxes, np.zeros(2, np.int64), np.array([0.6, 0.9]), np.array([0, 1]))
    return detections, make_grid((64, 160), tile_size=96, halo=16)


@pytest.mark.parametrize(
    ('merge', 'left', 'score'), [('nms', 72, 0.9), ('soft_nms', 72, 0.9), ('weighted', 71.2, 0.75)]
)
def test_of_two_views_the_surer_stays_or_their_mean(seen_twice, merge, left, score):
    found = merge_detections(*seen_twice, overlap=0.3, merge=merge)
    assert found.boxes.ravel().tolist() == pytest.approx([left, 10, left + 10, 20])
    assert found.scores.tolist() == pytest.approx([score])


@pytest.mark.parametrize(('merge', 'score'), [('nms', 0.9), ('soft_nms', 0.9), ('weighted', 0.75)])
def test_outlines_have_no_mean_so_the_surest_stays_with_its_box(seen_twice, merge, score):
    detections, grid = seen_twice
    detections = replace(detections, outlines=shapely.box(*detections.boxes.T))
    found = merge_detections(detections, grid, overlap=0.3, merge=merge)
    assert found.outlines[0].bounds == tuple(found.boxes[0]) == (72, 10, 82, 20)
    assert found.scores.tolist() == pytest.approx([score])


def test_soft_nms_leaves_out_what_falls_below_the_threshold():
    boxes = np.array([[10.0, 10, 30, 30], [10, 20, 30, 40]])  # overlap 1/3
    detections = TileDetections(boxes, np.zeros(2, np.int64), np.array([0.9, 0.6]), np.zeros(2, np.int64))
    grid = make_grid((64, 64), tile_size=64, halo=0)
    lowered = merge_detections(detections, grid, overlap=0.3, merge='soft_nms', threshold=0.3)
    assert lowered.scores.tolist() == pytest.approx([0.9, 0.4])
    assert len(merge_detections(detections, grid, overlap=0.3, merge='soft_nms', threshold=0.5)) == 1
    untouched = merge_detections(detections, grid, overlap=0.4, merge='soft_nms', threshold=0.5)
    assert untouched.scores.tolist() == [0.9, 0.6]


def test_an_object_seen_in_half_of_the_looks_loses_half_of_its_score():
    one = ArrayDetections(np.array([[0.0, 0, 10, 10]], np.float32), np.array([0]), np.array([0.8], np.float32))
    none = one.select(np.zeros(1, bool))
    assert merge_passes([one, none, one, none], overlap=0.3).scores.tolist() == pytest.approx([0.4])
    assert merge_passes([one] * 4, overlap=0.3).scores.tolist() == pytest.approx([0.8])


@pytest.mark.parametrize('merge', MERGES)
def test_nothing_merges_to_nothing(merge):
    nothing = np.zeros(0, np.int64)
    detections = TileDetections(np.zeros((0, 4)), nothing, np.zeros(0), nothing)
    grid = make_grid((64, 64), tile_size=64, halo=0)
    assert not len(merge_detections(detections, grid, overlap=0.3, merge=merge))
    assert not shown_whole_elsewhere(detections.boxes, nothing, grid).any()


def test_many_outlines_are_merged_in_parts_with_progress(seen_twice, monkeypatch, capsys):
    detections = replace(seen_twice[0], outlines=shapely.box(*seen_twice[0].boxes.T))
    wanted = merge_detections(detections, seen_twice[1], overlap=0.5)
    assert 'merging' not in capsys.readouterr().err
    for name in ('TQDM_DISABLE', 'GEOLEARN_PROGRESS'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr('geolearn.inference.merging.FEW_PAIRS', 1)
    monkeypatch.setattr('geolearn.inference.merging.PAIRS_AT_ONCE', 1)
    found = merge_detections(detections, seen_twice[1], overlap=0.5)
    assert (found.boxes == wanted.boxes).all()
    assert capsys.readouterr().err.splitlines()[-1].startswith('merging outlines: 100 % (')


# -- outlines as they come


def outlined(shapes, *, tiles=None, scores=None):
    shapes = np.array(shapes, object)
    count = len(shapes)
    tiles = np.zeros(count, np.int64) if tiles is None else np.array(tiles)
    scores = np.full(count, 0.9) if scores is None else np.array(scores)
    return TileDetections(shapely.bounds(shapes), np.zeros(count, np.int64), scores, tiles, shapes)


def strips(count, *, across=6.0):
    """Slender slanted shapes side by side."""
    return [
        shapely.Polygon([(x, 0), (x + 3, 0), (x + 103, 100), (x + 100, 100)])
        for x in (2 + across * number for number in range(count))
    ]


@pytest.mark.parametrize('merge', MERGES)
def test_slender_slanted_neighbours_all_stay(merge):
    grid = make_grid((128, 256), tile_size=256, halo=0)
    found = merge_detections(outlined(strips(19)), grid, overlap=0.3, merge=merge, threshold=0.5)
    assert len(found) == 19


@pytest.mark.parametrize('merge', MERGES)
def test_copies_of_slanted_shapes_become_one(merge):
    grid = make_grid((128, 256), tile_size=256, halo=0)
    shapes = strips(5)
    copies = [shapely.affinity.translate(shape, 0.4) for shape in shapes]
    pieces = outlined([*shapes, *copies], scores=[0.9] * 5 + [0.8] * 5)
    found = merge_detections(pieces, grid, overlap=0.3, merge=merge, threshold=0.4)
    assert len(found) == 5


BOWTIE = shapely.Polygon([(0, 0), (40, 40), (40, 0), (0, 40)])
SPIKE = shapely.Polygon([(0, 0), (20, 0), (20, 20), (20, 60), (20, 20), (0, 20)])
MIXED = shapely.GeometryCollection([shapely.box(0, 0, 30, 30), shapely.LineString([(30, 30), (60, 60)])])
FLAT = shapely.Polygon([(0, 0), (30, 30), (0, 0)])


@pytest.mark.parametrize('merge', MERGES)
@pytest.mark.parametrize('shape', [BOWTIE, SPIKE, MIXED, FLAT, shapely.Polygon(), shapely.LineString([(0, 0), (9, 9)])])
def test_odd_outlines_cost_no_other_object(shape, merge):
    grid = make_grid((128, 220), tile_size=128, halo=16)
    whole = shapely.box(20, 70, 60, 100)
    crossing = [shapely.box(90, 10, 128, 40), shapely.box(92, 10, 140, 40)]
    odd = shapely.affinity.translate(shape, 88, 60)
    pieces = outlined([whole, *crossing, odd, odd], tiles=[0, 0, 1, 0, 1])
    boxes = np.where(np.isnan(pieces.boxes), 88.0, pieces.boxes)
    found = merge_detections(replace(pieces, boxes=boxes), grid, overlap=0.3, merge=merge, threshold=0.1)
    assert all(outline.is_valid and outline.area > 0 for outline in found.outlines)
    assert any(outline.equals(whole) for outline in found.outlines)
    assert any(outline.covers(crossing[0]) for outline in found.outlines)
    assert len(found) <= 3


def test_a_pair_that_geos_cannot_compare_is_compared_by_boxes(monkeypatch):
    real, grid = shapely.intersection, make_grid((128, 256), tile_size=256, halo=0)

    def fail(ones, others, **options):
        if any(shape.equals(odd) for shape in np.atleast_1d(ones)):
            raise shapely.errors.GEOSException('TopologyException')
        return real(ones, others, **options)

    odd = shapely.box(10, 10, 30, 30)
    monkeypatch.setattr(shapely, 'intersection', fail)
    pieces = outlined([odd, shapely.box(11, 10, 31, 30), *strips(19)], scores=[0.9, 0.8, *[0.7] * 19])
    found = merge_detections(pieces, grid, overlap=0.3, merge='nms')
    assert len(found) == 20


def test_masks_of_slanted_strips_in_one_tile_all_stay():
    rows, cols = np.mgrid[:128, :256]
    masks = np.stack([(cols - rows >= x) & (cols - rows < x + 3) & (rows < 100) for x in range(2, 116, 6)])
    boxes = np.array([[mask.any(0).argmax(), 0, 256 - mask.any(0)[::-1].argmax(), 100] for mask in masks], np.float32)
    count = len(masks)
    strips = Detections(
        torch.from_numpy(boxes),
        torch.zeros(count, dtype=torch.long),
        torch.full((count,), 0.9),
        torch.from_numpy(masks),
    )
    network = torch.nn.Linear(1, 1)
    network.forward = lambda images: ([strips.select(torch.arange(count).repeat(2))] * len(images), {})
    predict = make_predict_fn(network, threshold=0.5, nms_overlap=0.3, augment=False)
    (found,) = predict(torch.zeros(1, 1, 128, 256))
    assert len(found) == count == 19

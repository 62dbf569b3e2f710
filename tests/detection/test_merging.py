"""An object comes once and whole, wherever the edges of tiles fall."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms, box_iou

from geolearn.inference.found import Found
from geolearn.inference.merging import (
    FEW,
    Pieces,
    intersection_over_union,
    mean_boxes,
    merge_pieces,
    seen_better_elsewhere,
    suppress,
)
from geolearn.inference.objects import fuse_looks
from geolearn.tiling import make_grid


def random_boxes(seed, count, *, side=500, largest=60):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, side - largest, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(4, largest, (count, 2))], axis=1)


def cut_by_tiles(boxes, grid, *, jitter=0.0, rng=None):
    """What each tile shows of each box, as pieces; boxes of which a tile shows nothing have none there."""
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
    return Pieces(every, np.zeros(count, np.int64), np.full(count, 0.9), tiles)


def merged(pieces, grid, **options):
    kept = pieces.select(~seen_better_elsewhere(pieces.boxes, pieces.tiles, grid))
    return merge_pieces(kept, grid, overlap=0.3, **options)


def same_boxes(found, boxes, tolerance=0.0):
    rows = [boxes[np.lexsort(boxes.round(0).T)] for boxes in (found, boxes)]
    return rows[0].shape == rows[1].shape and np.abs(rows[0] - rows[1]).max(initial=0) <= tolerance


@given(
    left=st.integers(0, 360),
    top=st.integers(0, 260),
    width=st.integers(3, 39),
    height=st.integers(3, 39),
    tile=st.sampled_from([96, 128]),
)
@settings(max_examples=60)
def test_an_object_no_larger_than_the_overlap_comes_once_and_whole(left, top, width, height, tile):
    box = np.array([[left, top, left + width, top + height]], float)
    grid = make_grid((300, 400), tile_size=tile, halo=24)
    assert same_boxes(merged(cut_by_tiles(box, grid), grid).boxes, box)


@given(
    left=st.integers(0, 100), top=st.integers(0, 60), width=st.integers(20, 299), height=st.integers(20, 239)
)  # fmt: skip
@settings(max_examples=60)
def test_an_object_larger_than_a_tile_is_put_together(left, top, width, height):
    box = np.array([[left, top, left + width, top + height]], float)
    grid = make_grid((300, 400), tile_size=96, halo=16)
    assert same_boxes(merged(cut_by_tiles(box, grid), grid).boxes, box)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30)
def test_boxes_that_tiles_see_a_little_differently_still_come_once(seed):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 340, 2)
    box = np.concatenate([corners, corners + rng.uniform(15, 50, 2)])[None]
    grid = make_grid((400, 400), tile_size=128, halo=24)
    found = merged(cut_by_tiles(box, grid, jitter=1.5, rng=rng), grid).boxes
    assert same_boxes(found, box, tolerance=3.5)


def test_neighbours_at_a_seam_stay_apart():
    boxes = np.array([[100.0, 100, 140, 140], [141, 100, 181, 140], [100, 141, 140, 181]])
    grid = make_grid((300, 300), tile_size=128, halo=24)
    assert same_boxes(merged(cut_by_tiles(boxes, grid), grid).boxes, boxes)


def test_objects_of_two_classes_at_one_place_both_stay():
    grid = make_grid((64, 64), tile_size=64, halo=0)
    box = np.array([[10.0, 10, 30, 30]] * 2)
    pieces = Pieces(box, np.array([0, 1]), np.array([0.9, 0.8]), np.zeros(2, np.int64))
    assert len(merge_pieces(pieces, grid, overlap=0.3)) == 2


@pytest.mark.parametrize('count', [300, 3 * FEW])
@pytest.mark.parametrize('overlap', [0.2, 0.5])
def test_suppression_is_that_of_torchvision(count, overlap):
    boxes = random_boxes(1, count)
    rng = np.random.default_rng(2)
    labels, scores = rng.integers(0, 3, count), rng.permutation(count) / count
    kept, owners = suppress(boxes, labels, scores, overlap=overlap)
    wanted = batched_nms(*(torch.from_numpy(a) for a in (boxes, scores, labels)), overlap)
    assert kept.tolist() == wanted.tolist()
    assert set(owners.tolist()) == set(kept.tolist())


def test_tens_of_thousands_of_boxes_take_seconds():
    boxes = random_boxes(3, 40_000, side=12_000)
    scores = np.random.default_rng(4).random(40_000)
    kept, _ = suppress(boxes, np.zeros(40_000, np.int64), scores, overlap=0.3)
    assert 20_000 < len(kept) < 40_000


def test_overlaps_are_those_of_torchvision():
    first, second = random_boxes(5, 50, side=120), random_boxes(6, 50, side=120)
    wanted = box_iou(torch.from_numpy(first), torch.from_numpy(second)).diagonal()
    assert np.allclose(intersection_over_union(first, second), wanted.numpy())


def test_a_mean_box_is_weighted_by_scores():
    boxes = np.array([[0.0, 0, 10, 10], [4, 0, 14, 10], [50, 50, 60, 60]])
    found = mean_boxes(boxes, np.array([0.9, 0.3, 0.5]), np.array([0, 0, 2]))
    assert found[0].tolist() == pytest.approx([1, 0, 11, 10])
    assert found[2].tolist() == [50, 50, 60, 60]


def test_weighted_merging_averages_what_two_tiles_see():
    grid = make_grid((64, 160), tile_size=96, halo=16)
    boxes = np.array([[70.0, 10, 80, 20], [72, 10, 82, 20]])
    pieces = Pieces(boxes, np.zeros(2, np.int64), np.array([0.8, 0.8]), np.array([0, 1]))
    found = merge_pieces(pieces, grid, overlap=0.3, weighted=True)
    assert found.boxes.ravel().tolist() == pytest.approx([71, 10, 81, 20])


def test_an_object_seen_in_half_of_the_looks_loses_half_of_its_score():
    one = Found(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0]), torch.tensor([0.8]))
    none = one.select(torch.zeros(1, dtype=torch.bool))
    assert fuse_looks([one, none, one, none], overlap=0.3).scores.tolist() == pytest.approx([0.4])
    assert fuse_looks([one] * 4, overlap=0.3).scores.tolist() == pytest.approx([0.8])


def test_nothing_merges_to_nothing():
    nothing = np.zeros(0, np.int64)
    pieces = Pieces(np.zeros((0, 4)), nothing, np.zeros(0), nothing)
    grid = make_grid((64, 64), tile_size=64, halo=0)
    assert not len(merge_pieces(pieces, grid, overlap=0.3))
    assert not seen_better_elsewhere(pieces.boxes, nothing, grid).any()

"""Anchors follow the training boxes, and lie where the strides say, whatever the size of the image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from geolearn.networks.detection.architecture import LevelAnchors, choose_ratios, choose_sizes
from geolearn.networks.detection.detector import FeaturePyramid

STRIDES = (4, 8, 16, 32, 64)
SIZES = [(32.0,), (64.0,), (128.0,), (256.0,), (512.0,)]


def levels_of(shape, strides=STRIDES):
    return [torch.zeros(1, 8, -(-shape[0] // s), -(-shape[1] // s)) for s in strides]


def test_where_strides_divide_the_image_anchors_are_those_of_torchvision():
    images, maps = ImageList(torch.zeros(2, 3, 128, 192), [(128, 192)] * 2), levels_of((128, 192))
    ours = LevelAnchors(SIZES, (0.5, 1.0, 2.0), STRIDES)(images, maps)
    theirs = AnchorGenerator(tuple(SIZES), ((0.5, 1.0, 2.0),) * 5)(images, maps)
    assert len(ours) == 2
    assert torch.equal(ours[0], theirs[0])


def test_elsewhere_they_still_are_a_stride_apart():
    anchors = LevelAnchors(SIZES, (1.0,), STRIDES).by_level(levels_of((96, 96)))
    centers = (anchors[-1][:, 0] + anchors[-1][:, 2]) / 2
    assert sorted(set(centers.tolist())) == [0, 64]


def test_each_level_takes_the_boxes_of_its_size():
    rng = np.random.default_rng(0)
    small, large = rng.normal(20, 1, (200, 1)), rng.normal(140, 3, (200, 1))
    sizes = choose_sizes(np.repeat(np.concatenate([small, large]), 2, axis=1), levels=5, per_level=1)
    assert sizes[0][0] == pytest.approx(20, abs=1)
    assert sizes[2][0] == pytest.approx(140, abs=3)
    assert (sizes[1], sizes[3], sizes[4]) == ((64,), (256,), (512,))


def test_shapes_follow_the_boxes():
    rng = np.random.default_rng(0)
    lying, standing = rng.normal([60, 20], 0.5, (100, 2)), rng.normal([20, 60], 0.5, (100, 2))
    ratios = choose_ratios(np.concatenate([lying, standing]), count=2)
    assert ratios == pytest.approx((1 / 3, 3), rel=0.1)
    assert choose_ratios(np.full((50, 2), 30.0)) == (1.0,)
    assert choose_ratios(np.zeros((0, 2))) == (0.5, 1.0, 2.0)


@given(
    sides=st.lists(st.tuples(st.floats(0.5, 2000), st.floats(0.5, 2000)), max_size=30),
    per_level=st.sampled_from([1, 3]),
)
@settings(max_examples=25)
def test_every_level_gets_the_same_number_of_growing_anchors(sides, per_level):
    sizes = choose_sizes(np.array(sides).reshape(-1, 2), levels=5, per_level=per_level)
    assert [len(row) for row in sizes] == [per_level] * 5
    assert all(list(row) == sorted(row) and row[0] > 0 for row in sizes)


def test_maps_of_one_width_stay_as_they_are_and_others_go_through_a_pyramid():
    maps = [torch.rand(1, 256, side, side) for side in (16, 8, 4, 2)]
    simple = FeaturePyramid([256] * 4, (4, 8, 16, 32), pooled=1)
    found = simple(maps)
    assert all(torch.equal(one, other) for one, other in zip(found, maps))
    assert torch.equal(found[4], maps[3][..., ::2, ::2])
    assert simple.strides == (4, 8, 16, 32, 64)
    assert list(simple.parameters()) == []
    fpn = FeaturePyramid([8, 16, 32, 64], (4, 8, 16, 32), pooled=2)
    widths = [torch.rand(1, c, s, s) for c, s in zip((8, 16, 32, 64), (16, 8, 4, 2))]
    assert [tuple(level.shape[1:]) for level in fpn(widths)] == [
        (256, 16, 16),
        (256, 8, 8),
        (256, 4, 4),
        (256, 2, 2),
        (256, 1, 1),
        (256, 1, 1),
    ]

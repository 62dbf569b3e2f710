"""Padding images to whole steps, and cutting maps back to what the image covers."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from geolearn.backbones.vit import crop_maps, pad_to_multiple

sides = st.integers(1, 40)


@given(sides, sides, st.integers(1, 17))
def test_padding_is_zeros_right_and_below_and_as_little_as_can_be(height, width, step):
    padded = pad_to_multiple(torch.ones(2, 3, height, width), step)
    assert [side % step for side in padded.shape[2:]] == [0, 0]
    assert padded.shape[2] - height < step
    assert padded.shape[3] - width < step
    assert padded[..., :height, :width].min() == 1
    assert padded.sum() == 2 * 3 * height * width


def test_whole_multiples_and_frames_stay_as_they_are():
    assert pad_to_multiple(torch.ones(1, 2, 3, 32, 64), 16).shape == (1, 2, 3, 32, 64)


@given(sides, sides, st.sampled_from([(4, 8, 16, 32), (1, 2), (8,)]))
def test_maps_are_cut_to_what_the_image_covers(height, width, strides):
    x = torch.ones(1, 1, height, width)
    padded = pad_to_multiple(x, max(strides))
    maps = [torch.nn.functional.max_pool2d(padded, s, s) for s in strides]
    for stride, found in zip(strides, crop_maps(maps, x, strides)):
        assert found.shape[2:] == (-(-height // stride), -(-width // stride))
        assert found.min() == 1, 'no map pixel lies in the padding alone'

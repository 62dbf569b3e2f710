"""Boundary IoU against a reference that erodes masks, as the paper does."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion

from geolearn.classes import IGNORE_INDEX
from geolearn.metrics import BoundaryIoU

SQUARE = np.ones((3, 3), bool)


def as_logits(predicted, classes):
    return torch.nn.functional.one_hot(torch.as_tensor(predicted), classes).movedim(-1, 1).float()


def reference(predicted, target, classes, distance, *, edges):
    """Per class, from masks eroded one pixel at a time; what is unknown erodes nothing."""
    shared, either = np.zeros(classes), np.zeros(classes)
    for p, t in zip(predicted, target):
        known = t != IGNORE_INDEX
        for k in range(classes):
            bands = [
                mask & known & ~binary_erosion(mask | ~known, SQUARE, distance, border_value=not edges)
                for mask in (p == k, t == k)
            ]
            shared[k] += (bands[0] & bands[1]).sum()
            either[k] += (bands[0] | bands[1]).sum()
    with np.errstate(invalid='ignore'):
        return shared / either


@given(st.integers(0, 2**31), st.booleans(), st.sampled_from([0.01, 0.05, 0.15]), st.booleans())
@settings(max_examples=40)
def test_it_is_the_papers_on_random_fields(seed, edges, share, ignores):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3, (2, 2, 6, 5))
    predicted, target = np.kron(coarse, np.ones((4, 4), int))
    target = np.roll(target, 1, axis=-1)
    predicted = np.where(rng.random(target.shape) < 0.7, target, predicted)
    if ignores:
        target = np.where(rng.random(target.shape) < 0.05, IGNORE_INDEX, target)
    scores = BoundaryIoU(3, share=share, edges=edges)
    for p, t in zip(predicted, target):
        scores.add(as_logits(p[None], 3), torch.as_tensor(t)[None])
    distance = max(1, round(share * math.hypot(24, 20)))
    expected = reference(predicted, target, 3, distance, edges=edges)
    assert scores.iou.numpy() == pytest.approx(expected, nan_ok=True)
    assert scores.values()['boundary_iou'] == pytest.approx(np.nanmean(expected), nan_ok=True)


def square_in(field, start, size):
    target = torch.full((1, 64, 64), field)
    target[0, start : start + size, start : start + size] = 1 - field
    return target


def test_a_small_shift_costs_large_objects_more_than_iou_tells():
    target, shifted = square_in(0, 8, 48), square_in(0, 10, 48)
    scores = BoundaryIoU(2)
    scores.add(as_logits(shifted, 2), target)
    both = ((target == 1) & (shifted == 1)).sum() / ((target == 1) | (shifted == 1)).sum()
    assert scores.iou[1] < 0.3 < 0.8 < both


def test_a_right_map_is_1_and_a_map_of_one_class_has_no_outline():
    scores = BoundaryIoU(3)
    target = square_in(0, 20, 20)
    scores.add(as_logits(target, 3), target)
    assert scores.iou.tolist() == pytest.approx([1, 1, math.nan], nan_ok=True)
    assert scores.values() == {'boundary_iou': 1.0}
    alone = BoundaryIoU(3)
    alone.add(as_logits(torch.zeros_like(target), 3), torch.zeros_like(target))
    assert math.isnan(alone.values()['boundary_iou'])


def test_ignored_pixels_have_no_outline_and_take_no_part():
    target = square_in(0, 20, 20)
    hidden = target.where(target == 0, IGNORE_INDEX)
    scores = BoundaryIoU(2)
    scores.add(as_logits(target, 2), hidden)
    assert scores.counts.sum() == 0

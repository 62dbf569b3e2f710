import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.chips.batches.collate import (
    class_weights,
    oversample_order,
    rare_class_corner,
    rare_values,
    repeat_factors,
)


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=20).filter(any))
def test_present_classes_weigh_one_on_average_and_the_inverse_of_their_count(counts):
    weights, found = class_weights(counts), np.array(counts)
    present = found > 0
    assert weights[present].mean() == pytest.approx(1)
    assert (weights[~present] == 0).all()
    product = weights[present] * found[present]
    assert product == pytest.approx(np.full(len(product), product[0]))


@pytest.mark.parametrize('counts', [[0, 0], [], [5, -3], [float('nan'), 1]])
def test_counts_that_cannot_be_are_refused(counts):
    with pytest.raises(ValueError, match='counts must be at least 0, and one of them over 0'):
        class_weights(counts)


def test_chips_of_rare_classes_are_repeated_by_the_root_of_their_rarity():
    presence = np.zeros((400, 3), bool)
    presence[:, 0] = True
    presence[:4, 1] = True  # a hundredth
    factors = repeat_factors(presence, threshold=0.16)
    assert factors[:4] == pytest.approx([4] * 4)
    assert (factors[4:] == 1).all()


def test_chips_without_classes_count_once():
    assert repeat_factors(np.zeros((5, 3), bool)).tolist() == [1] * 5
    assert repeat_factors(np.zeros((5, 0), bool)).tolist() == [1] * 5
    with pytest.raises(ValueError, match='threshold must be over 0 and at most 1, got 2'):
        repeat_factors(np.ones((5, 1), bool), threshold=2)


def test_an_epoch_shows_chips_as_often_as_their_factor_says():
    factors = np.array([1, 2.25, 4])
    epochs = [np.bincount(oversample_order(factors, np.random.default_rng(i)), minlength=3) for i in range(2000)]
    assert np.mean(epochs, axis=0) == pytest.approx(factors, abs=0.05)
    assert {int(epoch[1]) for epoch in epochs} == {2, 3}


def test_an_epoch_repeats_with_its_generator_and_is_shuffled():
    first, again = (oversample_order(np.ones(50), np.random.default_rng(7)) for _ in range(2))
    assert first.tolist() == again.tolist() != list(range(50))


def test_rare_values_are_those_of_few_pixels_rarest_first():
    assert rare_values({1: 900, 2: 40, 3: 30, 4: 0, 5: 30}) == (3, 5, 2)
    assert rare_values({}) == ()


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50), st.integers(1, 50), st.integers(0, 10**6))
def test_a_crop_holds_a_rare_pixel_and_lies_within_the_chip(height, width, rows, cols, seed):
    rng = np.random.default_rng(seed)
    label = (rng.random((height, width)) < 0.02).astype(np.uint8) * 7
    corner = rare_class_corner(label, [7, 9], (rows, cols), rng)
    if not label.any():
        assert corner is None
        return
    top, left = corner
    assert (label[top : top + rows, left : left + cols] == 7).any()
    assert top == 0 if rows >= height else 0 <= top <= height - rows
    assert left == 0 if cols >= width else 0 <= left <= width - cols


def test_every_crop_that_holds_the_pixel_is_drawn_and_classes_are_drawn_evenly():
    label = np.zeros((20, 20), np.int32)
    label[10, 10] = 1
    rng = np.random.default_rng(0)
    assert {rare_class_corner(label, [1], (3, 3), rng) for _ in range(400)} == {
        (r, c) for r in (8, 9, 10) for c in (8, 9, 10)
    }
    label[0, :] = 2
    tops = [rare_class_corner(label, {1, 2}, (1, 1), rng)[0] for _ in range(1000)]
    assert np.mean(np.array(tops) == 10) == pytest.approx(0.5, abs=0.06)

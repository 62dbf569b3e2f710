import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from geolearn.chips.splits import split_blocks, split_random
from geolearn.errors import ChipFolderError
from geolearn.raster import GeoBox


def grid(rows, cols, *, side=64, stride=64, pixel=10.0):
    """Chips of `side` pixels, one every `stride` pixels."""
    return [
        GeoBox((side, side), Affine(pixel, 0, 5e5 + c * stride * pixel, 0, -pixel, 54e5 - r * stride * pixel), None)
        for r in range(rows)
        for c in range(cols)
    ]


def overlap(first, second):
    a, b = first.bounds, second.bounds
    slack = 1e-6 * (a[2] - a[0])
    return min(a[2], b[2]) - max(a[0], b[0]) > slack and min(a[3], b[3]) - max(a[1], b[1]) > slack


@given(st.integers(2, 500), st.floats(0.01, 0.99), st.integers(0, 99))
def test_a_random_split_puts_every_chip_into_one_part(count, fraction, seed):
    split = split_random(count, fraction=fraction, seed=seed)
    assert sorted(split.train + split.valid) == list(range(count))
    assert split.train
    assert split.valid
    assert split.dropped == ()
    assert len(split.valid) == np.clip(round(count * fraction), 1, count - 1)


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(16, 96),
    st.floats(0.05, 0.9),
    st.floats(1, 6),
    st.integers(0, 99),
)
def test_no_training_chip_overlaps_a_validation_block(rows, cols, stride, fraction, chips_per_block, seed):
    boxes = grid(rows, cols, stride=stride)
    try:
        split = split_blocks(boxes, fraction=fraction, block_size=chips_per_block * 640, seed=seed)
    except ChipFolderError as error:
        split = error
    if isinstance(split, ChipFolderError):
        assert any(words in str(split) for words in ('one place', 'one block', 'overlaps', 'at least 2'))
        return
    assert sorted(split.train + split.valid + split.dropped) == list(range(len(boxes)))
    assert split.train
    assert split.valid
    assert not any(overlap(boxes[t], boxes[v]) for t in split.train for v in split.valid)
    assert all(any(overlap(boxes[d], boxes[v]) for v in split.valid) for d in split.dropped)


def test_chips_that_only_touch_are_kept():
    assert split_blocks(grid(8, 8), fraction=0.25, block_size=None, seed=0).dropped == ()


@pytest.mark.parametrize('fraction', [0.1, 0.2, 0.5])
@pytest.mark.parametrize('seed', range(5))
def test_blocks_come_near_the_fraction_asked_for(fraction, seed):
    split = split_blocks(grid(24, 24), fraction=fraction, block_size=None, seed=seed)
    assert len(split.valid) / 576 == pytest.approx(fraction, abs=0.03)


def test_chips_of_one_block_stay_together():
    boxes = grid(8, 8)
    split = split_blocks(boxes, fraction=0.25, block_size=4 * 640, seed=1)
    assert len(split.valid) == 16
    rows, cols = {v // 8 // 4 for v in split.valid}, {v % 8 // 4 for v in split.valid}
    assert len(rows) == len(cols) == 1


def test_a_seed_repeats_its_split_and_another_gives_another():
    boxes = grid(12, 12)
    for make in (
        lambda seed: split_random(144, fraction=0.2, seed=seed),
        lambda seed: split_blocks(boxes, fraction=0.2, block_size=None, seed=seed),
    ):
        assert make(3) == make(3)
        assert len({make(seed).valid for seed in range(6)}) > 1


def test_blocks_are_measured_in_map_units_also_in_degrees():
    split = split_blocks(grid(8, 8, pixel=1e-4), fraction=0.25, block_size=None, seed=0)
    assert (len(split.valid), len(split.dropped)) == (16, 0)


# --- what cannot be split


@pytest.mark.parametrize('fraction', [0, 1, -0.1, 20, float('nan')])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    words = f'val_split_pct must lie between 0 and 1, got {fraction}'
    with pytest.raises(ChipFolderError, match=words):
        split_random(10, fraction=fraction, seed=0)
    with pytest.raises(ChipFolderError, match=words):
        split_blocks(grid(2, 2), fraction=fraction, block_size=None, seed=0)


@pytest.mark.parametrize('count', [0, 1])
def test_one_chip_cannot_be_two_parts(count):
    with pytest.raises(ChipFolderError, match=f'found {count} chip; at least 2 are needed'):
        split_random(count, fraction=0.5, seed=0)
    with pytest.raises(ChipFolderError, match=f'found {count} chip; at least 2 are needed'):
        split_blocks(grid(1, count), fraction=0.5, block_size=None, seed=0)


def test_chips_in_one_block_need_a_smaller_one():
    with pytest.raises(ChipFolderError, match='all chips lie in one block of 2560 map units; pass a smaller'):
        split_blocks(grid(2, 2), fraction=0.5, block_size=None, seed=0)


def test_chips_without_places_are_refused():
    boxes = [GeoBox((64, 64), Affine.identity(), None)] * 5
    with pytest.raises(ChipFolderError, match='needs georeferenced chips, but all of these lie at one place'):
        split_blocks(boxes, fraction=0.5, block_size=None, seed=0)


def test_chips_that_overlap_more_than_a_block_are_refused():
    with pytest.raises(ChipFolderError, match='every training chip overlaps a validation block; pass a larger'):
        split_blocks(grid(1, 4, stride=16), fraction=0.5, block_size=160, seed=0)


@pytest.mark.parametrize('side', [0, -5])
def test_a_block_without_a_size_is_refused(side):
    with pytest.raises(ChipFolderError, match=f'block_size must be positive, got {side}'):
        split_blocks(grid(4, 4), fraction=0.5, block_size=side, seed=0)

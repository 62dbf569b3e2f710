import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geolearn.statistics import BandStatistics, RunningStatistics, find_percentiles

NAN, INF = float('nan'), float('inf')


def one_band(low, high, mean, std):
    return BandStatistics((low,), (high,), (mean,), (std,))


@given(
    st.sampled_from(['uint8', 'uint16', 'int16', 'float32', 'float64']),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 39), max_size=6),
    st.sampled_from([0, 5000, 60000]),
)
def test_any_partition_of_the_pixels_gives_the_statistics_of_the_whole(dtype, seed, cuts, level):
    rng = np.random.default_rng(seed)
    pixels = np.clip(rng.normal(level, 40, (3, 40, 2)), *((0, 250) if dtype == 'uint8' else (-3e4, 65535)))
    pixels = np.clip(pixels, 0, 32000).astype(dtype)
    mask = rng.random((40, 2)) < 0.8
    mask[0, 0] = True
    running = RunningStatistics()
    for part, seen in zip(np.split(pixels, sorted(cuts), axis=1), np.split(mask, sorted(cuts))):
        running.add(part, seen)
    found, flat = running.result(), pixels[:, mask].astype(np.float64)
    assert found.minimum == tuple(flat.min(axis=1))
    assert found.maximum == tuple(flat.max(axis=1))
    assert found.mean == pytest.approx(flat.mean(axis=1), rel=1e-9, abs=1e-9)
    assert found.std == pytest.approx(flat.std(axis=1), rel=1e-7, abs=1e-6)
    assert found.is_sound()


def test_statistics_gathered_apart_are_merged_exactly():
    left, right, whole = RunningStatistics(), RunningStatistics(), RunningStatistics()
    pixels = np.random.default_rng(0).integers(0, 65535, (2, 10, 10)).astype(np.uint16)
    left.add(pixels[:, :3])
    right.add(pixels[:, 3:])
    left.merge(right)
    whole.add(pixels)
    assert left.result().mean == pytest.approx(whole.result().mean)
    assert left.result().std == pytest.approx(whole.result().std)


def test_merging_leaves_what_was_merged_as_it_was():
    first, second = RunningStatistics(), RunningStatistics()
    second.add(np.ones((1, 2, 2)))
    first.merge(second)
    first.add(np.full((1, 2, 2), 5.0))
    assert second.result() == one_band(1, 1, 1, 0)


def test_a_block_without_a_valid_pixel_changes_nothing():
    running = RunningStatistics()
    running.add(np.full((1, 2, 2), 7.0))
    running.add(np.full((1, 2, 2), 1e9), np.zeros((2, 2), bool))
    assert running.result() == one_band(7, 7, 7, 0)


def test_the_spread_of_large_numbers_is_not_lost():
    running = RunningStatistics()
    for value in (1e9, 1e9 + 1, 1e9 + 2):
        running.add(np.full((1, 1, 1), value))
    assert running.result().std == pytest.approx([(2 / 3) ** 0.5])


@pytest.mark.parametrize(
    'numbers',
    [(0, 251, 100.97, 35.3), (1, 60419, 7669.72, 1512.75), (-0.2, 0.9, 0.3, 0.1), (7, 7, 7, 0), (0, 1, 0.5, 0.5)],
)
def test_statistics_of_real_pixels_are_sound(numbers):
    assert one_band(*numbers).is_sound()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_the_statistics_of_any_sample_are_sound(values):
    running = RunningStatistics()
    running.add(np.array(values).reshape(1, 1, -1))
    found = running.result()
    # a spread that squares to less than the smallest double is lost, and then refused
    assert found.is_sound() or 0 < found.maximum[0] - found.minimum[0] < 1e-150


@pytest.mark.parametrize(
    ('numbers', 'flaw'),
    [
        ((0, 255, NAN, 10), 'not a number'),
        ((0, INF, 5, 10), 'infinite'),
        ((255, 0, 100, 10), 'minimum over maximum'),
        ((0, 255, 300, 10), 'mean over the maximum'),
        ((0, 255, -1, 10), 'mean under the minimum'),
        ((0, 255, 100, -1), 'negative spread'),
        ((0, 255, 100, 128), 'spread wider than half the range'),
        ((0, 255, 100, 0), 'no spread in a range'),
        ((-2147483648, 2147483647, 0, 4e9), 'leftover of a 32-bit overflow'),
        ((3.4e38, -3.4e38, 0, 0), 'never filled in'),
    ],
)
def test_numbers_that_no_pixels_have_are_not_sound(numbers, flaw):
    assert not one_band(*numbers).is_sound(), flaw


def test_one_bad_band_spoils_the_rest():
    assert not BandStatistics((0, 0), (255, 255), (100, NAN), (10, 10)).is_sound()


def test_statistics_of_no_band_are_not_sound():
    assert not BandStatistics((), (), (), ()).is_sound()
    assert not RunningStatistics().result().is_sound()


def test_bands_are_selected_in_the_order_asked_for():
    both = BandStatistics((0, 1), (10, 20), (5, 6), (2, 3))
    assert both.select([1, 0]) == BandStatistics((1, 0), (20, 10), (6, 5), (3, 2))


def test_percentiles_are_where_the_pixels_lie():
    pixels = np.stack([np.arange(101), np.arange(101) * 10.0])
    found = find_percentiles(pixels)
    assert (found.low, found.median, found.high) == ((2, 20), (50, 500), (98, 980))
    assert found.select([1]).high == (980,)
    assert find_percentiles(np.zeros((2, 0))) is None

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from geolearn.chips.splits.split import split_blocks, split_latitude, split_random
from geolearn.errors import ChipFolderError
from geolearn.raster import GeoBox


def grid(rows, cols, *, side=64, stride=64, pixel=10.0, north=54e5, crs=None):
    """Chips of `side` pixels, one every `stride` pixels."""
    return [
        GeoBox((side, side), Affine(pixel, 0, 5e5 + c * stride * pixel, 0, -pixel, north - r * stride * pixel), crs)
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


def test_random_parts_have_their_shares_and_never_none():
    split = split_random(1000, fraction=0.2, test_fraction=0.1, seed=0)
    assert [len(part) for part in (split.train, split.valid, split.test)] == [700, 200, 100]
    assert sorted(split.train + split.valid + split.test) == list(range(1000))
    for fraction, test_fraction in ((0.01, 0.01), (0.98, 0.01), (0.01, 0.98), (0.49, 0.5)):
        split = split_random(3, fraction=fraction, test_fraction=test_fraction, seed=0)
        assert [len(part) for part in (split.train, split.valid, split.test)] == [1, 1, 1]


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
        assert any(words in str(split) for words in ('one place', 'one block', 'overlaps', 'at least 3'))
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


def no_two_parts_overlap(boxes, split):
    parts = [split.train, split.valid, split.test]
    pairs = [(a, b) for one, other in ((0, 1), (0, 2), (1, 2)) for a in parts[one] for b in parts[other]]
    return not any(overlap(boxes[a], boxes[b]) for a, b in pairs if boxes[a].crs == boxes[b].crs)


@settings(max_examples=40)
@given(st.integers(3, 9), st.integers(3, 9), st.integers(24, 80), st.floats(1, 4), st.integers(0, 99))
def test_training_validation_and_test_blocks_share_no_ground(rows, cols, stride, chips_per_block, seed):
    boxes = grid(rows, cols, stride=stride, crs='EPSG:32633') + grid(3, cols, stride=stride, crs='EPSG:32634')
    options = {'fraction': 0.2, 'test_fraction': 0.2, 'block_size': chips_per_block * 640, 'seed': seed}
    try:
        split = split_blocks(boxes, **options)
    except ChipFolderError as error:
        assert 'overlaps a' in str(error) or 'blocks' in str(error)  # noqa: PT017
        return
    assert sorted(split.train + split.valid + split.test + split.dropped) == list(range(len(boxes)))
    assert min(len(split.train), len(split.valid), len(split.test)) >= 1
    assert no_two_parts_overlap(boxes, split)


def test_blocks_reach_the_shares_of_three_parts():
    split = split_blocks(grid(24, 24), fraction=0.2, test_fraction=0.2, block_size=None, seed=3)
    assert len(split.valid) / 576 == pytest.approx(0.2, abs=0.03)
    assert len(split.test) / 576 == pytest.approx(0.2, abs=0.03)
    assert split.dropped == ()


def test_blocks_of_two_crs_are_apart_though_their_coordinates_are_equal():
    boxes = grid(4, 4, crs='EPSG:32633') + grid(4, 4, crs='EPSG:32634')
    split = split_blocks(boxes, fraction=0.5, block_size=None, seed=0)
    assert {v // 16 for v in split.valid} in ({0}, {1})
    assert (len(split.valid), split.dropped) == (16, ())


def test_two_spellings_of_one_crs_are_one():
    boxes = grid(1, 8, stride=32, crs='EPSG:32633') + grid(1, 8, stride=32, crs=CRS.from_epsg(32633).to_wkt())
    split = split_blocks(boxes, fraction=0.3, block_size=3 * 640, seed=0)
    assert split.dropped
    assert not any(overlap(boxes[t], boxes[v]) for t in split.train for v in split.valid)


# --- stripes of latitude


def test_one_stripe_is_three_bands_from_north_to_south():
    split = split_latitude(grid(10, 6))
    rows = [{position // 6 for position in part} for part in (split.train, split.valid, split.test)]
    assert rows == [set(range(6)), {6, 7}, {8, 9}]
    assert split.dropped == ()


def test_two_stripes_repeat_the_bands():
    split = split_latitude(grid(20, 3), stripes=2)
    assert {p // 3 for p in split.test} == {8, 9, 18, 19}
    assert {p // 3 for p in split.train} == {*range(6), *range(10, 16)}


def test_without_a_test_there_are_two_bands():
    split = split_latitude(grid(10, 2), fraction=0.3, test_fraction=0)
    assert ({p // 2 for p in split.valid}, split.test) == ({7, 8, 9}, ())


@settings(max_examples=40)
@given(st.integers(3, 30), st.integers(1, 4), st.integers(24, 80), st.integers(1, 4))
def test_bands_of_latitude_share_no_ground(rows, cols, stride, stripes):
    boxes = grid(rows, cols, stride=stride, crs='EPSG:32633')
    try:
        split = split_latitude(boxes, stripes=stripes)
    except ChipFolderError as error:
        assert 'too few for' in str(error) or 'overlaps a' in str(error)  # noqa: PT017
        return
    assert sorted(split.train + split.valid + split.test + split.dropped) == list(range(len(boxes)))
    assert no_two_parts_overlap(boxes, split)
    assert split == split_latitude(boxes, stripes=stripes)


def test_latitude_orders_chips_of_several_crs():
    # northing 4,000 km in zone 33 north is 36 degrees; 9,000 km in zone 33 south is 9 degrees south of the equator
    north, south = grid(6, 1, north=40e5, crs='EPSG:32633'), grid(4, 1, north=90e5, crs='EPSG:32733')
    split = split_latitude([*south, *north])
    assert split.train == tuple(range(4, 10))
    assert set(split.valid + split.test) == {0, 1, 2, 3}


def test_stripes_need_places_and_room():
    with pytest.raises(ChipFolderError, match="split='latitude' needs georeferenced chips, but all of these lie at"):
        split_latitude([GeoBox((64, 64), Affine.identity(), None)] * 5)
    with pytest.raises(ChipFolderError, match='1 latitudes are too few for 1 stripes of 3 bands; pass split='):
        split_latitude(grid(1, 9))
    with pytest.raises(ChipFolderError, match='stripes must be at least 1, got 0'):
        split_latitude(grid(5, 5), stripes=0)
    with pytest.raises(ChipFolderError, match='some chips name no CRS, so their latitude is unknown'):
        split_latitude(grid(5, 5) + grid(5, 5, crs='EPSG:32633'))
    with pytest.raises(ChipFolderError, match="latitudes cannot be had from no such CRS: .*; pass split='blocks'"):
        split_latitude(grid(5, 5, crs='no such CRS'))
    with pytest.raises(ChipFolderError, match='latitudes cannot be had from'):
        split_latitude(grid(5, 5, crs='LOCAL_CS["site",UNIT["metre",1]]'))
    with pytest.raises(ChipFolderError, match='some chips lie outside the area of their CRS; correct it, or pass'):
        split_latitude(grid(5, 5, crs='EPSG:4326'))


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
    with pytest.raises(ChipFolderError, match=f'found {count} chip; at least 3 are needed'):
        split_random(count, fraction=0.5, seed=0)
    with pytest.raises(ChipFolderError, match=f'found {count} chip; at least 3 are needed'):
        split_blocks(grid(1, count), fraction=0.5, block_size=None, seed=0)


def test_chips_in_one_block_need_a_smaller_one():
    with pytest.raises(ChipFolderError, match='all chips lie in one block of 2560 map units; pass a smaller'):
        split_blocks(grid(2, 2), fraction=0.5, block_size=None, seed=0)


def test_chips_without_places_are_refused():
    boxes = [GeoBox((64, 64), Affine.identity(), None)] * 5
    with pytest.raises(ChipFolderError, match='needs georeferenced chips, but all of these lie at one place'):
        split_blocks(boxes, fraction=0.5, block_size=None, seed=0)


def test_a_few_chips_without_a_place_are_refused_with_their_number():
    boxes = [*grid(4, 4), *[GeoBox((64, 64), Affine.identity(), None)] * 3]
    with pytest.raises(ChipFolderError, match="split='blocks' needs georeferenced chips, but 3 of 19 have no place"):
        split_blocks(boxes, fraction=0.5, block_size=None, seed=0)


def test_three_parts_need_three_blocks():
    with pytest.raises(ChipFolderError, match='all chips lie in 2 blocks, but 3 are needed; pass a smaller block_size'):
        split_blocks(grid(2, 4), fraction=0.2, test_fraction=0.2, block_size=2 * 640, seed=0)


def test_chips_that_overlap_more_than_a_block_are_refused():
    with pytest.raises(ChipFolderError, match='every training chip overlaps a validation block; pass a larger'):
        split_blocks(grid(1, 4, stride=16), fraction=0.5, block_size=160, seed=0)


@pytest.mark.parametrize('side', [0, -5])
def test_a_block_without_a_size_is_refused(side):
    with pytest.raises(ChipFolderError, match=f'block_size must be positive, got {side}'):
        split_blocks(grid(4, 4), fraction=0.5, block_size=side, seed=0)


def test_too_few_chips_say_what_to_do():
    with pytest.raises(
        ChipFolderError, match='at least 3 are needed, two to train on and one to validate: export more chips'
    ):
        split_random(1, fraction=0.5, seed=0)
    with pytest.raises(ChipFolderError, match='found 2 chips; .* export more chips .* valid_path= and test_path='):
        split_random(2, fraction=0.3, test_fraction=0.3, seed=0)

"""The table of chips: its numbers are those of all pixels together."""

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.chips.label import Label
from geolearn.chips.packing.read_chip import Chip, TableBuilder, measure_chip
from geolearn.chips.packing.table import ChipTable, join_tables
from geolearn.raster import GeoBox
from geolearn.statistics import count_values


def make_table(chips, *, sampled=5, prefix='c'):
    builder = TableBuilder()
    for index, chip in enumerate(chips):
        builder.add(f'{prefix}{index}', measure_chip(chip, sampled=sampled))
    return builder.result(['bad.tif: broken'])


def make_chip(pixels, *, mask=None, label=None, dates=1, crs='EPSG:32633', left=0.0):
    place = GeoBox(pixels.shape[1:], Affine(10, 0, left, 0, -10, 0), crs)
    return Chip(pixels, mask, label or Label(), place, dates)


@st.composite
def tables_of_chips(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dates, bands = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    offset = draw(st.sampled_from([0, 1e4, -1e6]))
    chips = []
    for _ in range(draw(st.integers(2, 6))):
        shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
        pixels = rng.normal(offset, 100, (dates * bands, *shape))
        share = draw(st.sampled_from([0.0, 0.5, 1.0]))
        mask = draw(st.sampled_from([None, 1, dates * bands]))
        valid = None if mask is None else rng.random((mask, *shape)) < share
        label = Label(rng.integers(0, 5, shape).astype(np.uint8))
        chips.append(make_chip(pixels, mask=valid, label=label, dates=dates))
    return chips


def valid_pixels(chips, bands):
    parts = []
    for chip in chips:
        valid = np.ones(chip.pixels.shape[1:], bool) if chip.mask is None else chip.mask.all(axis=0)
        parts += list(chip.pixels[:, valid].reshape(chip.dates, bands, -1))
    return np.concatenate(parts, axis=1)


@settings(max_examples=50)
@given(chips=tables_of_chips(), cut=st.integers(1, 5))
def test_pooled_statistics_are_those_of_all_pixels(chips, cut):
    cut = min(cut, len(chips) - 1)
    joined = join_tables([make_table(chips[:cut]), make_table(chips[cut:])], ['a', 'b'])
    for table in (make_table(chips), joined):
        pixels = valid_pixels(chips, table.band_count)
        if not pixels.size:
            assert table.statistics().mean == ()
            continue
        found = table.statistics()
        np.testing.assert_allclose(found.mean, pixels.mean(axis=1), rtol=1e-9)
        np.testing.assert_allclose(found.std, pixels.std(axis=1), rtol=1e-6, atol=1e-9)
        assert found.minimum == tuple(pixels.min(axis=1))
        assert found.maximum == tuple(pixels.max(axis=1))


@settings(max_examples=30)
@given(chips=tables_of_chips())
def test_label_values_are_counted_over_valid_pixels(chips):
    table = make_table(chips)
    held = [
        chip.label.raster[np.ones_like(chip.label.raster, bool) if chip.mask is None else chip.mask.all(axis=0)]
        for chip in chips
    ]
    everything = np.concatenate(held)
    counts = table.value_counts()
    assert dict(counts) == {value: int((everything == value).sum()) for value in set(everything.tolist())}
    amounts = table.amounts([3, 0, 99])
    assert amounts.tolist() == [[int((part == value).sum()) for value in (3, 0, 99)] for part in held]
    some = [0, len(chips) - 1]
    assert table.value_counts(some)[3] == sum(int((held[p] == 3).sum()) for p in set(some))


@settings(max_examples=30)
@given(chips=tables_of_chips())
def test_a_table_survives_as_arrays(chips):
    table = make_table(chips)
    arrays = table.to_arrays()
    again = ChipTable.from_arrays(arrays)
    assert (again.names, again.crs, again.unreadable) == (table.names, table.crs, table.unreadable)
    for name, column in again.to_arrays().items():
        np.testing.assert_array_equal(column, arrays[name], err_msg=name)


def test_objects_stay_with_their_chips_when_tables_join():
    def table(counts, crs):
        chips = []
        for count in counts:
            boxes = np.tile(np.array([[0, 0, 1, count]], np.float32), (count, 1))
            label = Label(None, np.arange(count), boxes, skipped=('box outside the chip',))
            chips.append(make_chip(np.ones((1, 4, 4)), label=label, crs=crs))
        return make_table(chips)

    joined = join_tables([table([2, 0], None), table([0], 'EPSG:32633'), table([1, 3], 'EPSG:32633')], ['a', 'b', 'c'])
    assert joined.names == ('a/c0', 'a/c1', 'b/c0', 'c/c0', 'c/c1')
    assert [joined.objects(position)[0].tolist() for position in range(5)] == [[0, 1], [], [], [0], [0, 1, 2]]
    assert joined.objects(4)[1][:, 3].tolist() == [3, 3, 3]
    assert [joined.geobox(position).crs for position in range(5)] == [None, None, *['EPSG:32633'] * 3]
    assert joined.skipped == {'box outside the chip': 5}
    assert len(joined.unreadable) == 3
    assert dict(joined.value_counts()) == {0: 3, 1: 2, 2: 1}


def test_the_sample_holds_valid_pixels_only():
    pixels = np.stack([np.arange(16.0).reshape(4, 4), -np.arange(16.0).reshape(4, 4)])
    mask = np.zeros((2, 4, 4), bool)
    mask[:, 1] = True
    mask[1, 1, 0] = False
    table = make_table([make_chip(pixels, mask=mask), make_chip(pixels, mask=np.zeros((1, 4, 4), bool))], sampled=100)
    assert table.sample.tolist() == [[5, -5], [6, -6], [7, -7]]


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_rasters_are_counted_up_to_the_largest_value(dtype):
    top = np.iinfo(dtype).max
    assert count_values(np.array([[0, top], [top, 1]], dtype)) == {0: 1, 1: 1, int(top): 2}
    assert count_values(np.zeros(0, dtype)) == {}

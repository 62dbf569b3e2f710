"""Gathering: images, masks, boxes and outlines are cut alike, and what is not there says so."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.chips.batches.collate import LEAST_VISIBLE, CollateConfig, VisibleShares, collate
from geolearn.chips.label import Label, Task, mask_boxes
from geolearn.chips.packing.read_chip import Chip
from geolearn.classes import IGNORE_INDEX
from geolearn.errors import ChipFolderError
from geolearn.oriented.geometry import from_hulls, hulls
from geolearn.raster import GeoBox


class Chips:
    """Chips in memory."""

    def __init__(self, *chips):
        self.chips = chips

    def chip(self, position):
        return self.chips[position]


def make_chip(pixels, *, mask=None, label=None, dates=1):
    return Chip(pixels, mask, label or Label(), GeoBox(pixels.shape[1:], Affine(1, 0, 0, 0, -1, 0), None), dates)


def places(height, width, channels=2):
    """Pixels that know where they are: 100 * row + column, and 10,000 more in each channel."""
    rows, cols = np.mgrid[:height, :width]
    return np.stack([channel * 10_000 + rows * 100 + cols for channel in range(channels)]).astype(np.float32)


def make_config(task, **changes):
    table = np.full(65536, -1, np.int64)
    table[:6] = [IGNORE_INDEX, 0, 1, 2, 3, 4]
    config = CollateConfig(task, (0, 1), 1, 5, table, 8, seed=3)
    return replace(config, **changes)


@pytest.mark.parametrize('random_crop', [True, False])
def test_mask_and_image_are_cut_alike(random_crop):
    pixels = places(20, 30)
    raster = (pixels[0].astype(int) % 5 + 1).astype(np.uint8)
    store = Chips(make_chip(pixels, label=Label(raster)))
    for draw in range(10):
        batch = collate(store, [0, 0], make_config(Task.PIXELS, random_crop=random_crop), epoch=draw)
        assert batch.images.shape == (2, 2, 8, 8)
        assert torch.equal(batch.masks, batch.images[:, 0].long() % 5)


def test_crops_repeat_and_differ_from_draw_to_draw():
    store = Chips(make_chip(places(50, 50), label=Label(np.ones((50, 50), np.uint8))))
    config = make_config(Task.PIXELS, random_crop=True)
    one, again, other = (collate(store, [0], config, epoch=draw).images for draw in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_crop_reaches_every_corner_and_never_beyond():
    store = Chips(make_chip(places(10, 11), label=Label(np.ones((10, 11), np.uint8))))
    config = make_config(Task.PIXELS, random_crop=True)
    corners = {int(collate(store, [0], config, epoch=draw).images[0, 0, 0, 0]) for draw in range(200)}
    assert corners == {100 * row + col for row in range(3) for col in range(4)}


@pytest.mark.parametrize('shape', [(5, 8), (8, 3), (5, 20), (20, 5), (1, 1)])
def test_small_chips_are_padded_with_nothing(shape):
    height, width = min(shape[0], 8), min(shape[1], 8)
    label = Label(np.ones(shape, np.uint8))
    batch = collate(Chips(make_chip(places(*shape), label=label)), [0], make_config(Task.PIXELS))
    assert batch.images[0, :, :height, :width].isfinite().all()
    assert batch.images[0].isfinite().sum() == 2 * height * width
    assert (batch.masks[0, :height, :width] == 0).all()
    assert (batch.masks[0] == IGNORE_INDEX).sum() == 64 - height * width


def test_chips_of_several_sizes_share_a_batch():
    store = Chips(*(make_chip(places(size, size), label=Label(np.ones((size, size), np.uint8))) for size in (4, 8, 12)))
    batch = collate(store, [2, 0, 1], make_config(Task.PIXELS))
    assert batch.images.isfinite().sum(dim=(1, 2, 3)).tolist() == [128, 32, 128]


def test_pixels_that_are_invalid_in_a_used_band_take_no_part():
    mask = np.ones((3, 8, 8), bool)
    mask[0, 1, 1] = mask[2, 5, 5] = False
    store = Chips(make_chip(places(8, 8, 3), mask=mask, label=Label(np.ones((8, 8), np.uint8))))
    batch = collate(store, [0], make_config(Task.PIXELS, channels=(0, 1)))
    assert batch.images.isnan().sum() == 2
    assert batch.images[0, :, 1, 1].isnan().all()
    assert (batch.masks == IGNORE_INDEX).sum() == 1


def test_chosen_bands_come_in_their_order():
    store = Chips(make_chip(places(8, 8, 3)))
    batch = collate(store, [0], make_config(Task.UNLABELLED, channels=(2, 0)))
    assert batch.images[0, :, 0, 0].tolist() == [20_000, 0]
    assert batch.targets == ()


def test_dates_have_an_axis_of_their_own():
    mask = np.ones((1, 10, 10), bool)
    mask[0, 2, 3] = False
    chip = make_chip(places(10, 10, 6), mask=mask, label=Label(np.ones((10, 10), np.uint8)), dates=3)
    batch = collate(Chips(chip), [0, 0], make_config(Task.CHANGE, channels=(1, 0, 3, 2, 5, 4), dates=3))
    assert batch.images.shape == (2, 3, 2, 8, 8)
    assert batch.images[0, :, :, 0, 0].tolist() == [[10_101, 101], [30_101, 20_101], [50_101, 40_101]]
    assert batch.images[0, :, :, 1, 2].isnan().all()
    assert batch.images.isnan().sum() == 2 * 6
    assert batch.masks[0, 1, 2] == IGNORE_INDEX


def test_labels_of_sixteen_bits_find_their_class():
    raster = np.full((8, 8), 60_000, np.uint16)
    table = np.full(65536, -1, np.int64)
    table[60_000] = 4
    batch = collate(Chips(make_chip(places(8, 8), label=Label(raster))), [0], make_config(Task.PIXELS, table=table))
    assert (batch.masks == 4).all()


@pytest.mark.parametrize('with_nodata', [False, True])
def test_rare_class_crops_hold_rare_pixels(with_nodata):
    raster = np.ones((64, 64), np.uint8)
    raster[3, 60] = raster[50, 50] = 5
    mask = np.ones((1, 64, 64), bool)
    mask[0, 50, 50] = not with_nodata
    config = make_config(Task.PIXELS, random_crop=True, rare_values=(5,))
    batch = collate(Chips(make_chip(places(64, 64), mask=mask, label=Label(raster))), [0] * 200, config)
    share = (batch.masks == 4).any(dim=(1, 2)).float().mean()
    assert 0.4 < share < 0.65


def test_one_chips_label_does_not_move_the_next_chips_crop():
    plain = make_chip(places(64, 64), label=Label(np.ones((64, 64), np.uint8)))
    rare = plain._replace(label=Label(np.full((64, 64), 5, np.uint8)))
    config = make_config(Task.PIXELS, random_crop=True, rare_values=(5,))
    one, two = (collate(Chips(first, plain), [0, 1], config) for first in (plain, rare))
    assert torch.equal(one.images[1], two.images[1])


@st.composite
def outlined_chips(draw):
    height, width = draw(st.integers(4, 20)), draw(st.integers(4, 20))
    masks = []
    for _ in range(draw(st.integers(0, 4))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        mask = np.zeros((height, width), bool)
        mask[top : top + draw(st.integers(1, 9)), left : left + draw(st.integers(1, 9))] = True
        mask[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = True
        masks.append(mask)
    values = np.array(draw(st.lists(st.integers(0, 5), min_size=len(masks), max_size=len(masks))), np.int64)
    return make_chip(places(height, width), label=Label(None, values, mask_boxes(masks), tuple(masks)))


@settings(max_examples=60)
@given(chip=outlined_chips(), draw=st.integers(0, 1000), task=st.sampled_from([Task.INSTANCES, Task.PANOPTIC]))
def test_outlines_and_boxes_agree_with_the_image(chip, draw, task):
    config = make_config(task, random_crop=True, ignored_index=IGNORE_INDEX)
    if task == Task.PANOPTIC:
        chip = chip._replace(label=replace(chip.label, raster=np.ones(chip.pixels.shape[1:], np.uint8)))
    batch = collate(Chips(chip), [0], config, epoch=draw)
    image, (objects,) = batch.images[0, 0], batch.objects
    expected = []
    for value, mask in zip(chip.label.class_ids, chip.label.masks):
        shown = torch.zeros(8, 8, dtype=torch.bool)
        spots = {100 * row + col for row, col in np.argwhere(mask)}
        for row, col in np.argwhere(np.isfinite(image.numpy())):
            shown[row, col] = int(image[row, col]) in spots
        if value and shown.sum() >= max(1, LEAST_VISIBLE * mask.sum()):
            expected.append((int(value) - 1, shown))
    assert objects.labels.tolist() == [label for label, _ in expected]
    assert objects.masks.shape == (len(expected), 8, 8)
    assert all(torch.equal(found, shown) for found, (_, shown) in zip(objects.masks, expected))
    np.testing.assert_array_equal(objects.boxes.numpy(), mask_boxes([shown.numpy() for _, shown in expected]))


def test_boxes_are_moved_clipped_and_dropped():
    boxes = np.array([[5, 5, 9, 9], [0, 0, 4, 4], [11.5, 6, 16, 12], [13, 13, 14.5, 16], [13, 5, 16, 9]], np.float32)
    chip = make_chip(places(16, 16), label=Label(None, np.arange(1, 6), boxes))
    batch = collate(Chips(chip), [0], make_config(Task.OBJECTS))  # the middle: 4..12
    (objects,) = batch.objects
    assert objects.masks is None
    assert objects.labels.tolist() == [0]
    assert objects.boxes.tolist() == [[1, 1, 5, 5]]
    wide = replace(chip.label, boxes=boxes + np.array([0, 0, 0, 0], np.float32))
    whole = collate(Chips(chip._replace(label=wide)), [0], make_config(Task.OBJECTS, chip_size=20))
    np.testing.assert_array_equal(whole.objects[0].boxes.numpy(), boxes)


def test_a_box_half_seen_is_kept_as_far_as_it_is_seen():
    boxes = np.array([[2, 5, 8, 7]], np.float32)
    chip = make_chip(places(16, 16), label=Label(None, np.array([1]), boxes))
    (objects,) = collate(Chips(chip), [0], make_config(Task.OBJECTS)).objects
    assert objects.boxes.tolist() == [[0, 1, 4, 3]]


@pytest.mark.parametrize('empty', [Label(), Label(boxes=np.zeros((0, 4), np.float32), masks=())])
def test_a_chip_without_objects_has_none_whoever_read_it(empty):
    chips = Chips(make_chip(places(16, 16), label=empty))
    for size in (8, 16, 20):
        (objects,) = collate(chips, [0], make_config(Task.INSTANCES, chip_size=size)).objects
        assert objects.boxes.shape == (0, 4)
        assert objects.labels.dtype == torch.int64
        assert objects.masks.shape == (0, size, size)


def test_values_that_are_left_out_are_no_objects():
    boxes = np.tile(np.array([[1, 1, 3, 3]], np.float32), (3, 1))
    table = np.full(65536, -1, np.int64)
    table[7] = 0
    chip = make_chip(places(8, 8), label=Label(None, np.array([7, 8, 7]), boxes))
    (objects,) = collate(Chips(chip), [0], make_config(Task.OBJECTS, table=table, ignored_index=-1)).objects
    assert objects.labels.tolist() == [0, 0]


def test_labels_of_whole_chips_survive_a_crop():
    chips = Chips(
        *(make_chip(places(20, 20), label=Label(class_ids=np.array(values, np.int64))) for values in ([2], [5]))
    )
    batch = collate(chips, [0, 1, 0], make_config(Task.LABEL, random_crop=True))
    assert batch.labels.tolist() == [1, 4, 1]


def test_several_labels_become_a_row_of_ones():
    chips = Chips(
        *(make_chip(places(8, 8), label=Label(class_ids=np.array(values, np.int64))) for values in ([1, 5, 0, 9], []))
    )
    batch = collate(chips, [0, 1], make_config(Task.LABELS, ignored_index=IGNORE_INDEX))
    assert batch.labels.tolist() == [[1, 0, 0, 0, 1], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize('dtype', ['uint8', 'int8', 'uint16', 'int16', 'uint32', 'int32', 'float32', 'float64'])
def test_every_stored_type_becomes_float32(dtype):
    pixels = np.full((2, 8, 8), 100, dtype)
    pixels.flags.writeable = False  # as in a pack
    batch = collate(Chips(make_chip(pixels)), [0], make_config(Task.UNLABELLED))
    assert batch.images.dtype == torch.float32
    assert (batch.images == 100).all()


CASTS = [(task, dtype) for task in Task for dtype in ('uint8', 'uint16', 'float32')]
CASTS += [(Task.PIXELS, dtype) for dtype in ('int8', 'int16', 'int32', 'uint32', 'float64')]


class Typed(Chips):
    """Chips that also tell how they are stored."""

    @property
    def table(self):
        return SimpleNamespace(dtype=str(self.chips[0].pixels.dtype), has_image_targets=False)


def varied_chips(task, dtype, *, dates, rng):
    """Chips smaller than, equal to and larger than an item, with every kind of label and with invalid pixels."""
    chips = []
    for height, width in ((8, 8), (5, 8), (11, 9), (20, 30)):
        pixels = rng.integers(0, 120, (3 * dates, height, width)).astype(dtype)
        mask = None if height == 8 else rng.random((1 if height == 5 else 3 * dates, height, width)) < 0.8
        if mask is not None and np.dtype(dtype).kind == 'f':
            pixels[np.broadcast_to(~mask, pixels.shape)] = np.nan
        outlines = tuple(rng.random((height, width)) < 0.5 for _ in range(2))
        raster = rng.integers(0, 6, (height, width)).astype(np.uint8)
        label = Label(raster, rng.integers(1, 6, 2), mask_boxes(outlines), outlines)
        if task == Task.ORIENTED:
            label = replace(label, masks=None, turned=from_hulls(label.boxes))
        if task in (Task.LABEL, Task.LABELS):
            label = Label(class_ids=label.class_ids)
        if task == Task.REGRESSION:
            label = Label(np.where(raster == 0, np.nan, raster / 3).astype(np.float32))
        chips.append(make_chip(pixels, mask=mask, label=label, dates=dates))
    return Typed(*chips)


def assert_same(one, two):
    assert one.nodata is None
    assert two.nodata is None
    assert one.images.dtype == two.images.dtype == torch.float32
    assert torch.equal(one.images.isnan(), two.images.isnan())
    assert torch.equal(one.images.nan_to_num(), two.images.nan_to_num())
    for a, b in ((one.masks, two.masks), (one.labels, two.labels), (one.regression_targets, two.regression_targets)):
        assert (a is None) == (b is None)
        assert a is None or (a.dtype == b.dtype and torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)))
    for a, b in zip(one.objects or (), two.objects or (), strict=True):
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.labels, b.labels)
        assert (a.masks is None) == (b.masks is None)
        assert a.masks is None or torch.equal(a.masks, b.masks)
        assert (a.turned is None) == (b.turned is None)
        assert a.turned is None or torch.equal(a.turned, b.turned)


@pytest.mark.parametrize(('task', 'dtype'), CASTS)
@pytest.mark.parametrize('dates', [1, 2])
def test_a_batch_cast_later_is_the_batch_cast_at_once(task, dtype, dates):
    store = varied_chips(task, dtype, dates=dates, rng=np.random.default_rng(5))
    for channels in ((0, 1, 2), (2, 0), (1,)):
        chosen = tuple(date * 3 + channel for date in range(dates) for channel in channels)
        config = make_config(task, channels=chosen, dates=dates, random_crop=True, rare_values=(5,))
        for draw in range(3):
            plain = collate(store, [0, 1, 2, 3, 0], config, epoch=draw)
            stored = collate(store, [0, 1, 2, 3, 0], replace(config, stored=True), epoch=draw)
            assert stored.images.element_size() == np.dtype(dtype).itemsize
            assert stored.masks is None or stored.masks.dtype == torch.uint8
            assert_same(plain.cast(), stored.cast())


def test_casting_twice_changes_nothing():
    store = varied_chips(Task.CHANGE, 'uint16', dates=2, rng=np.random.default_rng(6))
    batch = collate(store, [2, 3], make_config(Task.CHANGE, channels=(0, 3), dates=2, stored=True)).cast()
    assert_same(batch, batch.cast())


@given(st.data())
@settings(max_examples=60)
def test_subtracting_is_the_lookup_where_it_is_used(data):
    values = data.draw(st.lists(st.integers(0, 255), min_size=1, max_size=12, unique=True))
    ignored = data.draw(st.sets(st.sampled_from(values)))
    table = np.full(65536, -1, np.int64)
    trained = [value for value in values if value not in ignored]
    table[trained] = np.arange(len(trained))
    table[list(ignored)] = IGNORE_INDEX
    raster = np.array(data.draw(st.lists(st.sampled_from(values), min_size=64, max_size=64)), np.uint8).reshape(8, 8)
    config = make_config(Task.PIXELS, table=table, stored=data.draw(st.booleans()))
    found = collate(Typed(make_chip(places(8, 8), label=Label(raster))), [0], config).cast().masks[0].numpy()
    assert np.array_equal(found, table[raster])


@pytest.mark.parametrize(
    ('entries', 'shift'),
    [
        ({0: 0, 1: 1, 2: 2}, 0),
        ({1: 0, 2: 1, 3: 2}, 1),
        ({0: IGNORE_INDEX, 1: 0, 2: 1}, 1),
        ({1: 0, 3: 1}, None),
        ({0: 0, 1: 1, 2: IGNORE_INDEX}, None),
        ({299: 0, 300: 1}, None),
        ({}, None),
    ],
)
def test_subtracting_is_for_tables_of_one_shift(entries, shift):
    table = np.full(65536, -1, np.int64)
    for value, index in entries.items():
        table[value] = index
    assert make_config(Task.PIXELS, table=table).shift == shift


def test_oriented_objects_at_the_edge_of_a_crop_stay_whole_or_are_ignored_or_go():
    boxes = np.array([[20, 10, 8, 4, 0.5], [24, 14, 8, 3, 0], [13, 4, 8, 3, 0], [11.2, 8, 8, 3, 0]], np.float32)
    label = Label(class_ids=np.array([1, 2, 3, 4]), boxes=hulls(boxes), turned=boxes)
    # the crop shows columns 12 to 28 of 40, rows 2 to 18 of 20
    store = Chips(make_chip(places(20, 40), label=label))
    (found,) = collate(store, [0], make_config(Task.ORIENTED, chip_size=16)).objects
    np.testing.assert_allclose(found.turned[:3], boxes[:3] - np.array([12, 2, 0, 0, 0]), atol=1e-5)
    assert found.labels.tolist() == [0, 1, 2, 3]
    assert found.ignored.tolist() == [False, False, True, True]  # the third shows 5 of 8 columns, the last 3.2
    assert found.boxes.min() >= 0  # what is around them ends at the edge
    strict = make_config(Task.ORIENTED, chip_size=16, visible=VisibleShares(keep=0.6, ignore=0.5))
    (found,) = collate(store, [0], strict).objects
    assert found.labels.tolist() == [0, 1, 2]
    assert not found.ignored.any()
    with pytest.raises(ChipFolderError, match='ignore_visible=0.8'):
        VisibleShares(keep=0.7, ignore=0.8)

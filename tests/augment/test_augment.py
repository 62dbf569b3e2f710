import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.augment import (
    Augmentation,
    BandDropout,
    Chain,
    Clouds,
    CutMix,
    Dihedral,
    Mixup,
    Noise,
    OneOf,
    Radiometry,
    ScaleCrop,
    cloud_brightness,
)
from geolearn.bands import Band, get_bands
from geolearn.batch import Batch, Objects
from geolearn.classes import IGNORE_INDEX
from geolearn.errors import BandError
from geolearn.statistics import BandStatistics

INDEX = torch.arange(16.0).reshape(4, 4)
STILL = {'gain': 0.0, 'offset': 0.0}
EVERY = {
    'dihedral': Dihedral(),
    'mirror': Dihedral(all_eight=False),
    'radiometry': Radiometry([1.0, 2.0]),
    'scale crop': ScaleCrop(0.6, 1.7),
    'noise': Noise([1.0, 2.0], 0.3),
    'dropout': BandDropout([0.5, 0.5], 0.5),
    'clouds': Clouds([9.0, None], 0.7),
    'mixup': Mixup(0.5, 3),
    'cutmix': CutMix(1.0, 3),
    'augmentation': Augmentation([1.0, 2.0], noise=0.1, scale_crop=(0.8, 1.2), mixup_alpha=0.5, class_count=3),
}
NOTHING = {
    'radiometry': Radiometry([1.0, 2.0], gain=0, offset=0),
    'scale crop': ScaleCrop(1, 1),
    'noise': Noise([1.0, 2.0], 0),
    'dropout': BandDropout([0.5, 0.5], 0),
    'clouds': Clouds([9.0, None], 0),
    'no steps': Chain([]),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(count, plane=INDEX):
    """The same map of pixel numbers as image and as mask."""
    images = plane.expand(count, 1, *plane.shape).clone()
    return Batch(images, plane.long().expand(count, *plane.shape).clone())


def noisy(count=6, bands=2, height=16, width=16, *, dates=None, seed=0):
    shape = (count, bands, height, width) if dates is None else (count, dates, bands, height, width)
    images = torch.rand(shape, generator=seeded(seed)) + 0.1
    return Batch(images, labels=torch.arange(count) % 3)


def corner(images):
    """The images, without data in one corner."""
    images = images.clone()
    images[..., :3, :5] = math.nan
    return images


def same(a, b):
    return torch.equal(a.nan_to_num(-1e9), b.nan_to_num(-1e9))


def turns(plane):
    return {tuple(p.flatten().tolist()) for k in range(4) for p in (plane.rot90(k), plane.rot90(k).flip(-1))}


def tight(mask):
    rows, cols = mask.any(1).nonzero(), mask.any(0).nonzero()
    return [cols.min().item(), rows.min().item(), cols.max().item() + 1, rows.max().item() + 1]


def with_objects(height, width, corners):
    """One image with an object for each (left, top, right, bottom), in integers of the image."""
    masks = torch.zeros(len(corners), height, width, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, corners):
        mask[top:bottom, left:right] = True
        mask[top, left] = (right - left) * (bottom - top) == 1  # no rectangle, so that turns can be told apart
        if (right - left) > 1 < (bottom - top):
            mask[top, right - 1] = mask[bottom - 1, left] = True
    boxes = torch.tensor([tight(mask) for mask in masks], dtype=torch.float32)
    return Objects(boxes, torch.arange(len(corners)), masks)


# -- every change


@pytest.mark.parametrize('step', EVERY.values(), ids=EVERY)
def test_a_seed_repeats_its_changes_and_another_gives_others(step):
    first, again, other = (step(noisy(), seeded(seed)) for seed in (1, 1, 2))
    assert same(first.images, again.images)
    assert not same(first.images, other.images)
    assert torch.equal(first.labels, again.labels)


@pytest.mark.parametrize('step', EVERY.values(), ids=EVERY)
def test_the_batch_that_was_given_stays_as_it_was(step):
    batch = noisy()
    before = batch.images.clone(), batch.labels.clone()
    step(batch, seeded())
    assert torch.equal(batch.images, before[0])
    assert torch.equal(batch.labels, before[1])


@pytest.mark.parametrize('step', NOTHING.values(), ids=NOTHING)
def test_zero_changes_nothing(step):
    batch = replace(noisy(), masks=torch.randint(3, (6, 16, 16), generator=seeded()))
    batch = replace(batch, images=corner(batch.images))
    found = step(batch, seeded())
    assert torch.allclose(found.images, batch.images, equal_nan=True, atol=1e-5)
    assert torch.equal(found.masks, batch.masks)


@pytest.mark.parametrize('name', [name for name in EVERY if name not in {'scale crop', 'cutmix', 'augmentation'}])
def test_no_pixel_gains_or_loses_its_data(name):
    images = corner(noisy().images)
    found = EVERY[name](Batch(images, labels=torch.zeros(6, dtype=torch.int64)), seeded()).images
    assert (found.isnan().sum((1, 2, 3)) == images.isnan().sum((1, 2, 3))).all()


@pytest.mark.parametrize('step', EVERY.values(), ids=EVERY)
def test_images_of_several_dates_keep_their_shape(step):
    found = step(noisy(dates=3), seeded()).images
    assert found.shape == (6, 3, 2, 16, 16)
    assert found.dtype == torch.float32


@pytest.mark.parametrize('name', ['dihedral', 'radiometry', 'scale crop', 'dropout', 'mixup', 'cutmix'])
def test_all_dates_of_an_image_change_alike(name):
    batch = noisy()
    twice = replace(batch, images=batch.images[:, None].expand(-1, 2, -1, -1, -1))
    found = EVERY[name](twice, seeded()).images
    assert same(found[:, 0], found[:, 1])


def test_each_date_has_its_own_sky():
    found = Clouds([9.0, 9.0], 1.0)(Batch(torch.zeros(2, 2, 2, 32, 32)), seeded()).images
    assert not torch.equal(found[:, 0], found[:, 1])


# -- flips and turns


def test_image_and_mask_turn_together():
    found = Augmentation([1.0], **STILL)(numbered(64), seeded())
    assert (found.images[:, 0] == found.masks).all()
    assert found.masks.dtype == torch.int64


def test_all_eight_turns_occur_and_nothing_else():
    images = Augmentation([1.0], **STILL)(numbered(200), seeded()).images
    assert {tuple(image.flatten().tolist()) for image in images} == turns(INDEX)


def test_images_with_an_up_are_only_mirrored():
    batch = Augmentation([1.0], dihedral=False, **STILL)(numbered(50), seeded())
    assert (batch.images[:, 0] == batch.masks).all()
    found = {tuple(image.flatten().tolist()) for image in batch.images}
    assert found == {tuple(INDEX.flatten().tolist()), tuple(INDEX.flip(-1).flatten().tolist())}


def test_images_that_are_no_squares_keep_their_shape():
    batch = Augmentation([1.0], **STILL)(numbered(50, torch.arange(6.0).reshape(2, 3)), seeded())
    assert batch.images.shape == (50, 1, 2, 3)
    assert (batch.images[:, 0] == batch.masks).all()
    assert len({tuple(image.flatten().tolist()) for image in batch.images}) == 4


def test_what_has_no_data_has_none_afterwards_and_moves_with_its_mask():
    batch = numbered(32)
    batch.images[:, :, 0, 0] = math.nan
    batch.masks[:, 0, 0] = IGNORE_INDEX
    found = Augmentation([1.0])(batch, seeded())
    assert (found.images[:, 0].isnan() == (found.masks == IGNORE_INDEX)).all()


corners = st.tuples(st.integers(0, 8), st.integers(0, 5), st.integers(1, 4), st.integers(1, 4))


@given(st.lists(corners, min_size=1, max_size=4), st.integers(0, 10**6), st.sampled_from([(9, 12), (12, 12)]))
@settings(max_examples=60, deadline=None)
def test_the_box_of_a_turned_outline_is_the_turned_box(drawn, seed, shape):
    found = with_objects(*shape, [(left, top, left + w, top + h) for left, top, w, h in drawn])
    batch = Batch(torch.zeros(1, 1, *shape), objects=(found,))
    (turned,) = Dihedral()(batch, seeded(seed)).objects
    assert turned.boxes.tolist() == [tight(mask) for mask in turned.masks]
    assert turned.boxes.dtype == torch.float32
    assert turned.labels.tolist() == found.labels.tolist()


def test_outlines_turn_with_their_image():
    objects = tuple(with_objects(8, 8, [(1, 2, 4, 7)]) for _ in range(20))
    images = torch.stack([found.masks.float() for found in objects])
    batch = Dihedral()(Batch(images, objects=objects), seeded())
    assert all(torch.equal(image[0] > 0, found.masks[0]) for image, found in zip(batch.images, batch.objects))
    assert len({tuple(found.boxes[0].tolist()) for found in batch.objects}) > 4


def test_boxes_without_outlines_and_images_without_objects_turn_too():
    nothing = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, 4, dtype=torch.bool))
    one = Objects(torch.tensor([[0.5, 0.25, 1.5, 4.0]]), torch.tensor([3]))
    batch = Batch(torch.zeros(2, 1, 4, 4), objects=(nothing, one))
    for seed in range(8):
        empty, found = Dihedral()(batch, seeded(seed)).objects
        assert empty.boxes.shape == (0, 4)
        assert (found.masks, found.labels.tolist()) == (None, [3])
        width, height = (found.boxes[0, 2:] - found.boxes[0, :2]).tolist()
        assert sorted([width, height]) == [1, 3.75]


# -- zoom


def painted(count=12, size=32):
    """Images whose pixels are their class, in four quarters, so that image and mask can be compared."""
    plane = torch.zeros(size, size)
    plane[: size // 2, size // 2 :], plane[size // 2 :, : size // 2], plane[size // 2 :, size // 2 :] = 1, 2, 3
    return numbered(count, plane)


@pytest.mark.parametrize('limits', [(0.5, 0.9), (1.1, 2.5), (0.5, 2.0)])
@pytest.mark.parametrize('shape', [(32, 32), (20, 31)])
@pytest.mark.parametrize('axis', [0, 1])
def test_the_mask_is_zoomed_as_the_image_is(limits, shape, axis):
    rows, cols = torch.meshgrid(*(torch.arange(float(size)) for size in shape), indexing='ij')
    found = ScaleCrop(*limits)(numbered(12, (rows, cols)[axis]), seeded())
    image, mask = found.images[:, 0], found.masks
    assert (image.isnan() == (mask == IGNORE_INDEX)).all()
    inside = ~image.isnan()
    # the nearest row or column is at most half a pixel from where the image was sampled
    assert (image - mask)[inside].abs().max() <= 0.5 + 1e-4
    assert image.shape == (12, *shape)
    assert mask.dtype == torch.int64


def test_zooming_in_cuts_and_adds_no_missing_pixels():
    found = ScaleCrop(1.2, 2.0)(painted(), seeded())
    assert not found.images.isnan().any()
    assert (found.masks != IGNORE_INDEX).all()


def test_zooming_out_shows_the_whole_image_in_a_smaller_frame():
    found = ScaleCrop(0.5, 0.5)(painted(), seeded())
    assert ((found.masks != IGNORE_INDEX).sum((1, 2)) == 256).all()
    assert all(set(mask.unique().tolist()) == {0, 1, 2, 3, IGNORE_INDEX} for mask in found.masks)


def test_missing_pixels_do_not_spread_when_they_are_resampled():
    batch = painted()
    batch.images[:, :, 10, 10] = math.nan
    batch.masks[:, 10, 10] = IGNORE_INDEX
    found = ScaleCrop(1.5, 1.5)(batch, seeded())
    assert (found.images[:, 0].isnan() == (found.masks == IGNORE_INDEX)).all()
    assert found.images.isnan().sum((1, 2, 3)).max() <= 4
    inside = ~found.images.isnan()
    assert found.images[inside].min() == 0
    assert found.images[inside].max() == pytest.approx(3)


def test_zoomed_boxes_follow_their_outlines_and_vanish_when_most_of_them_is_cut_off():
    objects = tuple(with_objects(32, 32, [(2, 3, 12, 11), (20, 20, 31, 30), (14, 1, 17, 4)]) for _ in range(40))
    found = ScaleCrop(1.5, 2.0)(Batch(torch.zeros(40, 1, 32, 32), objects=objects), seeded()).objects
    assert {len(one.boxes) for one in found} > {1, 2}
    assert all(one.boxes.tolist() == [tight(mask) for mask in one.masks] for one in found)
    bare = tuple(replace(one, masks=None) for one in objects)
    boxes = ScaleCrop(1.5, 2.0)(Batch(torch.zeros(40, 1, 32, 32), objects=bare), seeded()).objects
    for with_mask, without in zip(found, boxes):
        assert with_mask.labels.tolist() == without.labels.tolist()
        assert torch.allclose(with_mask.boxes, without.boxes, atol=1.5, rtol=0)
        assert torch.equal(without.boxes, without.boxes.clamp(0, 32))


def test_an_object_stays_while_enough_of_it_is_seen():
    objects = (Objects(torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([0])),)
    batch = Batch(torch.zeros(1, 1, 16, 16), objects=objects)
    assert len(ScaleCrop(2, 2, min_visible=0.24)(batch, seeded()).objects[0].boxes) == 1
    assert len(ScaleCrop(2, 2, min_visible=0.26)(batch, seeded()).objects[0].boxes) == 0


# -- pixel values


def test_jitter_stays_within_gain_and_offset():
    found = Augmentation([10.0, 0.0], gain=0.2, offset=0.5)(Batch(torch.full((500, 2, 2, 2), 100.0)), seeded()).images
    assert 75 <= found[:, 0].min() < 80
    assert 120 < found[:, 0].max() <= 125
    assert 80 <= found[:, 1].min() < 82
    assert 118 < found[:, 1].max() <= 120


def test_jitter_is_one_gain_and_offset_for_each_band_of_each_image():
    found = Augmentation([1.0] * 3)(Batch(torch.ones(20, 3, 4, 4)), seeded()).images
    assert (found == found[:, :, :1, :1]).all()
    assert len(found[:, :, 0, 0].unique()) == 60


def test_noise_is_normal_and_has_no_more_than_its_strength():
    found = Noise([1.0, 50.0], 0.4)(Batch(torch.full((30, 2, 64, 64), 7.0)), seeded()).images - 7
    spread = found.std((2, 3))
    assert spread[:, 0].max() < 0.42
    assert spread[:, 0].max() > 0.3
    assert torch.allclose(spread[:, 1] / spread[:, 0], torch.tensor(50.0), rtol=0.1)
    assert found[:, 0].mean((1, 2)).abs().max() < 0.05
    standard = found[0, 0] / spread[0, 0]
    assert (standard.abs() < 1).float().mean() == pytest.approx(0.683, abs=0.02)


def test_noise_has_no_pattern_that_bands_or_neighbors_share():
    found = Noise([1.0, 1.0], 1.0)(Batch(torch.zeros(10, 2, 64, 64)), seeded()).images
    for image in found:
        assert abs(torch.corrcoef(image.flatten(1))[0, 1]) < 0.06
        assert abs(torch.corrcoef(torch.stack((image[0, :, 1:].flatten(), image[0, :, :-1].flatten())))[0, 1]) < 0.06


def test_a_dropped_band_is_its_mean_and_one_band_is_always_left():
    found = BandDropout([5.0, 6.0, 7.0], 0.8)(Batch(torch.zeros(200, 3, 2, 2)), seeded()).images
    dropped = (found != 0).flatten(2).all(2)
    assert (found[:, 2] == 7).flatten(1).all(1).equal(dropped[:, 2])
    assert dropped.sum(1).max() == 2
    assert dropped.float().mean() > 0.5


def test_clouds_brighten_what_sees_them_and_nothing_else():
    images = torch.full((40, 2, 48, 48), 1.0)
    found = Clouds([5.0, None], 0.5, opacity=(0.5, 0.5))(Batch(images), seeded()).images
    assert (found[:, 1] == 1).all()
    assert found[:, 0].min() == 1
    assert found[:, 0].max() == pytest.approx(3, abs=1e-5)
    clouded = (found[:, 0] > 1).flatten(1).any(1)
    assert 10 < clouded.sum() < 30


def test_clouds_cover_the_share_that_was_asked_for():
    found = Clouds([5.0], 1.0, cover=(0.3, 0.3))(Batch(torch.zeros(10, 1, 64, 64)), seeded()).images
    assert (found > 0).float().mean((1, 2, 3)).tolist() == pytest.approx([0.3] * 10, abs=0.01)


def test_clouds_are_as_bright_as_anything_seen_and_invisible_to_radar_and_thermal_bands():
    bands = (*get_bands('sentinel2-l2a', ['B04', 'B08']), Band('VV', is_radar=True), Band('thermal', 10.9), Band('dem'))
    statistics = BandStatistics((0.0,) * 5, (100.0, 9.0, 0.0, 300.0, 5.0), (10.0, 5.0, -9.0, 290.0, 1.0), (2.0,) * 5)
    assert cloud_brightness(bands, statistics) == (16, 9, None, None, None)
    with pytest.raises(BandError, match="wavelength in 0.3..3 micrometers; found 'dem'"):
        cloud_brightness(bands[4:], BandStatistics((0.0,), (1.0,), (0.5,), (0.1,)))


# -- mixing


@given(st.integers(0, 10**6), st.floats(0.05, 5))
@settings(max_examples=30, deadline=None)
def test_mixed_labels_sum_to_one_and_the_first_class_keeps_at_least_half(seed, alpha):
    for step in (Mixup(alpha, 3), CutMix(alpha, 3)):
        batch = noisy(bands=1, height=8, width=8)
        labels = step(batch, seeded(seed)).labels
        assert labels.shape == (6, 3)
        assert torch.allclose(labels.sum(1), torch.ones(6))
        assert (labels[range(6), batch.labels] >= 0.5 - 0.07).all()  # cutmix cuts at whole pixels


def test_mixed_images_have_the_shares_of_their_labels():
    plane = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 20, 20)
    batch = Batch(plane.clone(), labels=torch.arange(3))
    for step in (Mixup(1.0, 3), CutMix(1.0, 3)):
        for seed in range(10):
            found = step(batch, seeded(seed))
            value = found.labels @ torch.arange(3.0)
            assert torch.allclose(found.images.mean((1, 2, 3)), value, atol=1e-4)


def test_several_labels_are_mixed_as_fractions():
    labels = torch.tensor([[1.0, 1, 0], [0, 1, 1]])
    for seed in range(10):
        found = Mixup(1.0)(Batch(torch.zeros(2, 1, 4, 4), labels=labels), seeded(seed)).labels
        assert (found[:, 1] == 1).all()
        assert torch.allclose(found[:, 0] + found[:, 2], torch.ones(2))


def test_missing_pixels_of_the_other_image_are_not_blended_in():
    images = torch.stack((torch.full((1, 4, 4), math.nan), torch.ones(1, 4, 4)))
    for seed in range(10):
        found = Mixup(1.0, 2)(Batch(images, labels=torch.arange(2)), seeded(seed)).images
        assert found[0].isnan().all()
        assert (found[1] == 1).all()


def test_cutmix_pastes_the_mask_with_the_image():
    images = torch.stack([torch.full((1, 16, 16), float(i)) for i in range(6)])
    found = CutMix(1.0)(Batch(images, images[:, 0].long()), seeded())
    assert (found.images[:, 0] == found.masks).all()
    assert all((mask == i).float().mean() > 0.45 for i, mask in enumerate(found.masks))
    assert max(len(mask.unique()) for mask in found.masks) == 2


def test_mixing_is_refused_where_it_has_no_meaning():
    batch = noisy()
    masked = replace(batch, masks=torch.zeros(6, 16, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match='mixup is not defined for masks: a pixel of two blended images would belong'):
        Mixup(0.2, 3)(masked, seeded())
    nothing = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    for step, name in ((Mixup(0.2, 3), 'mixup'), (CutMix(0.2, 3), 'cutmix')):
        with pytest.raises(ValueError, match=f'{name} is not defined for objects'):
            step(replace(batch, objects=(nothing,) * 6), seeded())
        with pytest.raises(ValueError, match='only if class_count is given'):
            replace(step, class_count=None)(batch, seeded())


# -- composition


def test_a_chain_calls_its_steps_in_order_and_spares_what_it_was_given():
    batch = Batch(torch.ones(2, 1, 2, 2))
    double = Radiometry([1.0], gain=0, offset=0)

    def add(batch, generator):
        return replace(batch, images=batch.images + 1)

    def keep(batch, generator):
        return batch

    for steps in ((keep, double, add), (add, keep, double), (BandDropout([3.0], 0), add, double)):
        assert (Chain(steps)(batch, seeded()).images == 2).all()
        assert (batch.images == 1).all()


def test_a_chain_copes_with_images_that_do_not_lie_in_a_row():
    def turned(batch, generator):
        return replace(batch, images=batch.images.clone().transpose(-1, -2))

    found = Chain([turned, Noise([1.0, 1.0], 0.1), Clouds([1.0, 1.0], 1.0)])(noisy(height=8), seeded())
    assert found.images.shape == (6, 2, 16, 8)
    channels_last = replace(noisy(), images=noisy().images.contiguous(memory_format=torch.channels_last))
    assert same(EVERY['augmentation'](channels_last, seeded()).images, EVERY['augmentation'](noisy(), seeded()).images)


def test_one_of_several_changes_is_chosen_for_each_batch():
    either = OneOf([lambda batch, generator: 'a', lambda batch, generator: 'b'])
    assert {either(None, seeded(seed)) for seed in range(20)} == {'a', 'b'}


def test_augmentation_takes_every_option_together():
    change = Augmentation(
        [1.0, 2.0],
        scale_crop=(0.8, 1.25),
        noise=0.1,
        band_dropout=0.2,
        band_mean=[0.5, 0.5],
        clouds=0.5,
        cloud_brightness=[2.0, None],
        mixup_alpha=0.2,
        cutmix_alpha=1.0,
        class_count=3,
    )
    found = change(noisy(), seeded())
    assert found.images.shape == (6, 2, 16, 16)
    assert torch.allclose(found.labels.sum(1), torch.ones(6))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'gain': 2.0}, r'gain must be in 0..1, got 2.0'),
        ({'offset': -1.0}, r'offset must be at least 0, got -1.0'),
        ({'noise': -0.1}, r'strength must be at least 0, got -0.1'),
        ({'scale_crop': (0, 2)}, r'0 < low <= high, got 0 and 2'),
        ({'band_dropout': 0.1}, 'so it needs band_mean'),
        ({'band_dropout': 1.1, 'band_mean': [1.0]}, r'probability must be in 0..1, got 1.1'),
        ({'clouds': 0.1}, 'clouds need cloud_brightness'),
        ({'mixup_alpha': -1.0}, 'alpha must be at least 0.001'),
    ],
)
def test_numbers_without_meaning_are_refused_when_it_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation([1.0], **options)


@pytest.mark.parametrize('step', [EVERY['radiometry'], EVERY['noise'], EVERY['dropout'], EVERY['clouds']])
def test_numbers_for_other_bands_are_refused(step):
    with pytest.raises(BandError, match='found 2 values in .* for images of 3 bands; give one for each band'):
        step(noisy(bands=3), seeded())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('step', EVERY.values(), ids=EVERY)
def test_a_seed_gives_the_same_on_a_gpu(step):
    batch = noisy()
    found = step(replace(batch, images=batch.images.cuda(), labels=batch.labels.cuda()), seeded())
    assert torch.allclose(found.images.cpu(), step(batch, seeded()).images, atol=1e-4, equal_nan=True)

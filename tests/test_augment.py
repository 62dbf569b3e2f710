import pytest
import torch

from geolearn.augment import Augmentation

INDEX = torch.arange(16.0).reshape(4, 4)
STILL = {'gain': 0.0, 'offset': 0.0}


def batch(count, plane=INDEX):
    """The same map of pixel numbers as image and as mask."""
    return plane.expand(count, 1, *plane.shape).clone(), plane.long().expand(count, *plane.shape).clone()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def turns(plane):
    return {tuple(p.flatten().tolist()) for k in range(4) for p in (plane.rot90(k), plane.rot90(k).flip(-1))}


def test_image_and_mask_turn_together():
    images, masks = Augmentation([1.0], **STILL)(*batch(64), seeded())
    assert (images[:, 0] == masks).all()


def test_all_eight_turns_occur_and_nothing_else():
    images, _ = Augmentation([1.0], **STILL)(*batch(200), seeded())
    assert {tuple(image.flatten().tolist()) for image in images} == turns(INDEX)


def test_images_with_an_up_are_only_mirrored():
    images, masks = Augmentation([1.0], dihedral=False, **STILL)(*batch(50), seeded())
    assert (images[:, 0] == masks).all()
    found = {tuple(image.flatten().tolist()) for image in images}
    assert found == {tuple(INDEX.flatten().tolist()), tuple(INDEX.flip(-1).flatten().tolist())}


def test_images_that_are_no_squares_keep_their_shape():
    plane = torch.arange(6.0).reshape(2, 3)
    images, masks = Augmentation([1.0], **STILL)(*batch(50, plane), seeded())
    assert images.shape == (50, 1, 2, 3)
    assert (images[:, 0] == masks).all()
    assert len({tuple(image.flatten().tolist()) for image in images}) == 4


def test_what_has_no_data_has_none_afterwards_and_moves_with_its_mask():
    images, masks = batch(32)
    images[:, :, 0, 0] = float('nan')
    masks[:, 0, 0] = 255
    images, masks = Augmentation([1.0])(images, masks, seeded())
    assert (images[:, 0].isnan() == (masks == 255)).all()


def test_jitter_stays_within_gain_and_offset():
    images = torch.full((500, 2, 2, 2), 100.0)
    masks = torch.zeros(500, 2, 2, dtype=torch.int64)
    found, _ = Augmentation([10.0, 0.0], gain=0.2, offset=0.5)(images, masks, seeded())
    assert 75 <= found[:, 0].min() < 80
    assert 120 < found[:, 0].max() <= 125
    assert 80 <= found[:, 1].min() < 82
    assert 118 < found[:, 1].max() <= 120


def test_jitter_is_one_gain_and_offset_for_each_band_of_each_image():
    images = torch.ones(20, 3, 4, 4)
    found, _ = Augmentation([1.0] * 3)(images, torch.zeros(20, 4, 4, dtype=torch.int64), seeded())
    assert (found == found[:, :, :1, :1]).all()
    assert len(found[:, :, 0, 0].unique()) == 60


def test_the_masks_take_no_jitter_and_the_input_stays_as_it_was():
    images, masks = batch(8)
    before = images.clone(), masks.clone()
    _, found = Augmentation([1.0])(images, masks, seeded())
    assert found.dtype == torch.int64
    assert {tuple(mask.flatten().tolist()) for mask in found} <= {tuple(map(int, t)) for t in turns(INDEX)}
    assert (images == before[0]).all()
    assert (masks == before[1]).all()


@pytest.mark.parametrize('dihedral', [True, False])
def test_a_seed_repeats_its_changes_and_another_gives_others(dihedral):
    change = Augmentation([1.0], dihedral=dihedral)
    first, again, other = (change(*batch(16), seeded(seed))[0] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()

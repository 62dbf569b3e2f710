"""Oriented boxes turn, flip and zoom with the pixels of their objects, and keep their convention."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from geolearn.augment import Augmentation, Dihedral, ScaleCrop, Turn
from geolearn.batch import Batch, Objects
from geolearn.oriented import geometry
from geolearn.oriented.overlap import array_overlaps, visible_shares

SIDE = 64


def drawn(count=16):
    """Images with one bright rectangle each, off center and at any angle, and its box."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    images, objects = [], []
    for _ in range(count):
        box = np.array([*rng.uniform(24, 40, 2), rng.uniform(16, 22), rng.uniform(6, 9), rng.uniform(-1.5, 1.5)])
        u = (x - box[0]) * math.cos(box[4]) + (y - box[1]) * math.sin(box[4])
        v = (y - box[1]) * math.cos(box[4]) - (x - box[0]) * math.sin(box[4])
        images.append((abs(u) < box[2] / 2) & (abs(v) < box[3] / 2))
        turned = torch.tensor(box, dtype=torch.float32)[None]
        objects.append(Objects(geometry.hulls(turned), torch.zeros(1).long(), None, turned, torch.zeros(1).bool()))
    return Batch(torch.tensor(np.stack(images))[:, None].float(), objects=tuple(objects))


@pytest.mark.parametrize('change', [Dihedral(), Turn(), ScaleCrop(0.8, 1.3)], ids=['flips', 'turns', 'zoom'])
def test_boxes_stay_on_their_objects_and_in_their_form(change):
    batch = drawn()
    made = change(batch, torch.Generator().manual_seed(1))
    overlaps, changed = [], 0
    for image, objects, before in zip(made.images, made.objects, batch.objects):
        if not len(objects):
            continue
        box = objects.turned.double().numpy()
        assert (box[:, 2] >= box[:, 3]).all()
        assert (box[:, 4] >= -math.pi / 2 - 1e-6).all()
        assert (box[:, 4] < math.pi / 2 + 1e-6).all()
        assert objects.boxes.shape == (1, 4)
        seen = geometry.mask_rectangle(image[0].numpy() > 0.5)
        overlaps.append(array_overlaps(box, seen[None])[0])
        changed += not torch.equal(objects.turned, before.turned)
    assert len(overlaps) > 12
    assert changed > 8
    assert np.median(overlaps) > 0.7  # masks are up to a pixel larger on each side
    assert min(overlaps) > 0.55


def test_turned_images_have_no_data_beyond_their_edges_and_lose_objects_that_leave_them():
    corner = torch.tensor([[3.0, 3.0, 8.0, 4.0, 0.2]])
    objects = Objects(geometry.hulls(corner), torch.zeros(1).long(), None, corner, torch.zeros(1).bool())
    batch = Batch(torch.ones(8, 1, SIDE, SIDE), objects=(objects,) * 8)
    made = Turn(45)(batch, torch.Generator().manual_seed(3))
    assert made.images.isnan().any()
    assert (made.images[:, 0, SIDE // 2, SIDE // 2] == 1).all()
    assert 0 < sum(map(len, made.objects)) < 8
    same = Turn(0)(batch, torch.Generator())
    torch.testing.assert_close(same.images, batch.images)
    with pytest.raises(ValueError, match=r'max_degrees must be in 0\.\.180'):
        Augmentation([1.0], turn=200)


def objects_at(*boxes):
    turned = torch.tensor(boxes, dtype=torch.float32)
    return Objects(geometry.hulls(turned), torch.zeros(len(boxes)).long(), None, turned, torch.zeros(len(boxes)).bool())


def test_shares_of_what_is_seen_decide_after_a_change_as_after_a_crop():
    """Half of the first lies beyond the chip, where a smaller image shows nothing; the second is whole."""
    batch = Batch(torch.ones(4, 1, SIDE, SIDE), objects=(objects_at((0, 32, 20, 8, 0), (32, 32, 20, 8, 0.3)),) * 4)
    for change in (ScaleCrop(0.5, 0.5), Turn(180), Augmentation([1.0], scale_crop=(0.6, 0.6), turn=20)):
        made = change(batch, torch.Generator().manual_seed(1))
        assert all(objects.ignored.tolist() == [True, False] for objects in made.objects if len(objects) == 2)
        assert sum(len(objects) == 2 for objects in made.objects) >= 3
    more = ScaleCrop(0.5, 0.5, keep_visible=0.45)(batch, torch.Generator())
    assert [objects.ignored.tolist() for objects in more.objects] == [[False, False]] * 4
    none = ScaleCrop(0.5, 0.5, ignore_visible=0.55)(batch, torch.Generator())
    assert [len(objects) for objects in none.objects] == [1] * 4
    larger = ScaleCrop(2, 2)(batch, torch.Generator().manual_seed(0))
    for objects in larger.objects:
        shares = visible_shares(objects.turned.double().numpy(), (SIDE, SIDE))
        assert (shares >= 0.27).all()
        assert all(ignored for ignored, share in zip(objects.ignored.tolist(), shares) if share < 0.65)


def test_finer_targets_turn_with_their_images():
    images = torch.zeros(4, 1, SIDE, SIDE)
    images[..., 8:24, 30:40] = 1
    finer = images.repeat_interleave(2, -1).repeat_interleave(2, -2)
    made = Turn()(Batch(images, regression_targets=finer), torch.Generator().manual_seed(0))
    assert made.regression_targets.shape == finer.shape
    shown = functional.avg_pool2d(made.regression_targets, 2)
    known = ~(shown.isnan() | made.images.isnan())
    assert known.float().mean() > 0.7
    assert (shown - made.images)[known].abs().mean() < 0.02

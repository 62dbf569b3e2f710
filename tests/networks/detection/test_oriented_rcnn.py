"""Oriented R-CNN's parts: what makes boxes of anchors and proposals, and what is pooled from oriented boxes."""

import math

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from geolearn.networks.detection.architecture import LevelAnchors, RCNNOptions
from geolearn.networks.detection.oriented_rcnn import (
    OrientedRCNNHead,
    decode_boxes,
    decode_offsets,
    encode_boxes,
    encode_offsets,
    pool_oriented,
    sample,
)
from geolearn.oriented import geometry, overlap

pytestmark = pytest.mark.usefixtures('one_thread')


def draw_boxes(count, *, most=40.0, seed=0):
    random = torch.Generator().manual_seed(seed)
    x, y, w, h, t = torch.rand(5, count, generator=random, dtype=torch.float64)
    boxes = torch.stack((20 + 60 * x, 20 + 60 * y, 3 + most * w, 3 + most * h, 9 * t - 4.5), 1)
    boxes[: count // 8, 4] = 0.0  # level
    boxes[count // 8 : count // 4, 4] = math.pi / 2  # upright
    return geometry.canonical(boxes)


def test_proposals_and_boxes_come_back_from_their_numbers():
    true, other = draw_boxes(4000), draw_boxes(4000, seed=1)
    anchors = geometry.hulls(other)
    assert overlap.pair_overlaps(decode_offsets(encode_offsets(true, anchors), anchors), true).min() > 1 - 1e-3
    slanted = (true[:, 4].remainder(math.pi / 2) - math.pi / 4).abs() < math.pi / 4 - 0.02
    back = decode_offsets(encode_offsets(true[slanted], anchors[slanted]), anchors[slanted])
    assert overlap.pair_overlaps(back, true[slanted]).min() > 1 - 1e-9
    numbers = encode_boxes(true, other)
    assert overlap.pair_overlaps(decode_boxes(numbers, other), true).min() > 1 - 1e-9
    # no object is turned by more than an eighth of a turn, and all of its forms have the same numbers
    assert numbers[:, 4].abs().max() <= 10 * math.pi / 4 + 1e-9
    forms = torch.stack((true[:, 0], true[:, 1], true[:, 3], true[:, 2], true[:, 4] + math.pi / 2), 1)
    torch.testing.assert_close(encode_boxes(forms, other), numbers)


def test_a_proposal_on_its_object_has_nothing_to_correct_in_any_form():
    true = draw_boxes(2000)
    forms = [true, true + torch.tensor([0, 0, 0, 0, math.pi], dtype=torch.float64)]
    forms.append(torch.cat((true[:, :2], true[:, [3, 2]], true[:, 4:] + math.pi / 2), 1))
    for form in forms:
        for other in forms:
            assert encode_boxes(form, other).abs().max() < 1e-9
    # and where the network gives zeros, proposals are level boxes on the anchor, and objects are the proposals
    zeros = torch.zeros(len(true), 5, dtype=torch.float64)
    torch.testing.assert_close(decode_boxes(zeros, true), true)
    # a correction is turned into the frame of its proposal: the same object turned with it has the same numbers
    near = true + torch.randn(true.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.1
    numbers = encode_boxes(near, true)
    for angle in (0.3, 1.0, 2.5):
        moved = [geometry.rotated(boxes, angle, (64.0, 64.0)) for boxes in (near, true)]
        again = encode_boxes(*moved)
        torch.testing.assert_close(again[:, [0, 1, 4]].abs(), numbers[:, [0, 1, 4]].abs())
        torch.testing.assert_close(again[:, 4], numbers[:, 4])


def test_every_number_of_a_box_has_a_gradient_that_leads_to_the_object():
    true, other = draw_boxes(64), draw_boxes(64, seed=2)
    for encode, decode, places in (
        (encode_boxes, decode_boxes, other),
        (encode_offsets, decode_offsets, geometry.hulls(other)),
    ):
        aims = encode(true, places)
        numbers = (aims + 0.01).requires_grad_()
        made = decode(numbers, places)
        (1 - overlap.prob_iou(made, true)).sum().backward()
        assert numbers.grad.isfinite().all()
        assert (numbers.grad.abs().amax(0) > 1e-6).all()


@pytest.mark.parametrize('angle', [0.4, -1.1, 2.0])
def test_pooling_turns_with_the_image_by_any_angle(angle):
    """Of a smooth image, what lies in a box is what lies in the turned box of the turned image."""
    y, x = torch.meshgrid(*[torch.arange(64, dtype=torch.float64) + 0.5] * 2, indexing='ij')

    def wave(x, y):
        return torch.sin(0.11 * x + 0.05 * y) + torch.cos(0.07 * y - 0.02 * x)

    dx, dy = x - 32, y - 32
    cos, sin = math.cos(angle), math.sin(angle)
    plain, turned = wave(x, y), wave(32 + dx * cos + dy * sin, 32 - dx * sin + dy * cos)
    boxes = torch.tensor([[130.0, 120, 60, 24, 0.3], [120, 140, 30, 28, -1.0]], dtype=torch.float64)
    moved = geometry.rotated(boxes, angle, (128.0, 128.0))
    moved[:, 4] = boxes[:, 4] + angle
    one = pool_oriented([plain[None, None]], [4], [boxes], 7)
    other = pool_oriented([turned[None, None]], [4], [moved], 7)
    torch.testing.assert_close(one, other, atol=5e-3, rtol=0)
    moved[:, 4] = boxes[:, 4] - angle
    assert (pool_oriented([turned[None, None]], [4], [moved], 7) - one).abs().max() > 0.1


def test_proposals_stay_rectangles_whatever_the_network_gives():
    anchors = geometry.hulls(draw_boxes(500))
    made = decode_offsets(20 * torch.randn(500, 6, dtype=torch.float64), anchors)
    assert made.isfinite().all()
    assert (made[:, 2] >= made[:, 3]).all()
    assert (made[:, 3] >= 1).all()


def test_pooling_is_roi_align_for_level_boxes_and_turns_with_the_image():
    level = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        boxes = draw_boxes(30, most=25.0)
        boxes = boxes[(geometry.hulls(boxes) > 6).all(1) & (geometry.hulls(boxes) < 122).all(1)]
        straight = torch.cat((boxes[:, :4], torch.zeros(len(boxes), 1)), 1)
        pooled = pool_oriented([level], [4], [straight], 7)
        reference = roi_align(level, [geometry.hulls(straight)], 7, 1 / 4, sampling_ratio=2, aligned=True)
        torch.testing.assert_close(pooled, reference)
        assert not torch.allclose(pool_oriented([level], [4], [boxes], 7), reference)
        # a quarter turn, clockwise, of image and boxes
        turned = geometry.rotated(boxes, math.pi / 2, (64.0, 64.0))
        turned[:, 4] = boxes[:, 4] + math.pi / 2
        torch.testing.assert_close(
            pool_oriented([level.rot90(-1, (2, 3))], [4], [turned], 7), pool_oriented([level], [4], [boxes], 7)
        )
    finally:
        torch.set_default_dtype(torch.float32)


def test_boxes_are_pooled_from_the_level_of_their_size_and_their_own_image():
    levels = [torch.full((2, 1, 256 // stride, 256 // stride), float(stride)) for stride in (4, 8, 16, 32)]
    for level in levels:
        level[1] += 0.5
    boxes = torch.tensor([[128, 128, side, side, 0.3] for side in (150.0, 20, 80, 600)])
    boxes[3, 2:4] = torch.tensor([220.0, 1000])  # as large as a square of 469
    pooled = pool_oriented(levels, (4, 8, 16, 32), [boxes[:3], boxes[2:]], 7)
    assert pooled.shape == (5, 1, 7, 7)
    assert pooled[:4, 0, 3, 3].tolist() == [8.0, 4, 4, 4.5]
    assert pooled[4, 0, 3, 3] == 32.5
    nothing = pool_oriented(levels, (4, 8, 16, 32), [boxes[:0], boxes[:0]], 7)
    assert nothing.shape == (0, 1, 7, 7)


def test_samples_hold_few_objects_and_nothing_between():
    labels = torch.tensor([1] * 20 + [0] * 50 + [-1] * 30)
    positive, sampled = sample([labels, labels.clamp(max=0)], 32, 0.25)
    assert positive.sum(1).tolist() == [8, 0]
    assert sampled.sum(1).tolist() == [32, 32]
    assert not sampled[:, labels < 0].any()


@pytest.fixture(scope='module')
def head():
    torch.manual_seed(0)
    anchors = LevelAnchors([(8.0,), (16.0,), (32.0,), (64.0,), (128.0,)], (1.0,), (4, 8, 16, 32, 64))
    few = RCNNOptions(
        width=32,
        box_batch_size_per_image=16,
        rpn_post_nms_top_n_train=60,
        rpn_post_nms_top_n_test=60,
        box_detections_per_img=20,
    )
    return OrientedRCNNHead(anchors, 3, few)


def test_ignored_objects_are_neither_trained_on_nor_background(head):
    anchors = torch.cat(head.anchors.by_level([torch.zeros(1, 1, 64 // s, 64 // s) for s in (4, 8, 16, 32, 64)]))
    turned = torch.tensor([[20.0, 20, 16, 8, 0.5], [44.0, 44, 20, 10, 2.0]])
    around = geometry.hulls(turned)
    labels, of = head._match_anchors(anchors, around[:1], around[1:])
    assert (labels == 1).any()
    assert (of[labels == 1] == 0).all()
    near = (anchors[:, :2] + anchors[:, 2:]).sub(88).abs().amax(1) < 3
    assert (labels[near & (anchors[:, 2] - anchors[:, 0] == 16)] == -1).all()
    target = {'turned': turned, 'labels': torch.tensor([2, 3]), 'ignored': torch.tensor([False, True])}
    boxes = torch.cat((turned, torch.tensor([[10.0, 50, 10, 10, 0]])))
    assert head._match_proposals(boxes, target)[0].tolist() == [2, -1, 0]


@pytest.mark.parametrize('training', [True, False])
def test_images_without_objects_and_odd_outputs_have_finite_losses(head, training):
    levels = [torch.randn(2, 32, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32, 64)]
    turned = torch.tensor([[20.0, 20, 16, 8, 0.5], [70.0, 30, 30, 12, -0.2]])  # one of them leaves the image
    none = {'turned': turned[:0], 'labels': torch.zeros(0).long(), 'ignored': torch.zeros(0).bool()}
    some = {'turned': turned, 'labels': torch.tensor([1, 3]), 'ignored': torch.zeros(2).bool()}
    every = {**some, 'ignored': torch.ones(2).bool()}
    head.train(training)
    images = ImageList(torch.zeros(2, 3, 64, 64), [(64, 64)] * 2)
    for targets in ([none, none], [some, none], [every, some]):
        found, losses = head.compute(images, levels, targets)
        assert all(loss.isfinite() for loss in losses.values())
        assert len(found) == (0 if training else 2)
        assert (losses['loss_box_reg'] > 0) == any(target is some for target in targets)
    if not training:
        again = head.compute(images, levels, [some, none])[1]
        assert again == head.compute(images, levels, [some, none])[1]

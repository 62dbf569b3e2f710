"""Losses per pixel against torch's and against their formulas."""

import math

import pytest
import torch
from torch.nn import functional

from geolearn.classes import IGNORE_INDEX
from geolearn.losses import HardPixels, PixelCrossEntropy, PixelFocal

WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0, 0.1])


def pixel_costs(logits, target):
    """Cross-entropy and probability of the true class of each counted pixel, and its class."""
    counted = target != IGNORE_INDEX
    rows, labels = logits.movedim(1, -1)[counted], target[counted]
    true = rows.softmax(1)[torch.arange(len(labels)), labels]
    return -true.log(), true, labels


@pytest.mark.parametrize('weights', [None, WEIGHTS])
@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.5])
def test_smoothed_cross_entropy_is_torchs(batch, weights, smoothing):
    expected = functional.cross_entropy(*batch, weights, ignore_index=IGNORE_INDEX, label_smoothing=smoothing)
    torch.testing.assert_close(PixelCrossEntropy(weights, label_smoothing=smoothing)(*batch), expected)


@pytest.mark.parametrize('gamma', [0.5, 1.0, 2.0, 5.0])
def test_focal_loss_discounts_each_pixel_by_itself(batch, gamma):
    entropy, true, labels = pixel_costs(*batch)
    costs = (1 - true) ** gamma * entropy
    torch.testing.assert_close(PixelFocal(gamma)(*batch), costs.mean())
    expected = (WEIGHTS[labels] * costs).sum() / WEIGHTS[labels].sum()
    torch.testing.assert_close(PixelFocal(gamma, WEIGHTS)(*batch), expected)


@pytest.mark.parametrize('weights', [None, WEIGHTS])
def test_focal_loss_of_gamma_0_is_cross_entropy(batch, weights):
    torch.testing.assert_close(PixelFocal(0.0, weights)(*batch), PixelCrossEntropy(weights)(*batch))


@pytest.mark.parametrize('make', [PixelCrossEntropy, lambda weights: PixelFocal(2.0, weights)])
@pytest.mark.parametrize('weights', [None, WEIGHTS])
def test_all_pixels_kept_is_the_base_loss(batch, make, weights):
    torch.testing.assert_close(HardPixels(make(weights), 1.0)(*batch), make(weights)(*batch))


@pytest.mark.parametrize('fraction', [0.01, 0.25, 0.7])
def test_hard_pixels_are_the_costliest_share_of_those_that_count(batch, fraction):
    entropy, _, _ = pixel_costs(*batch)
    kept = entropy.sort(descending=True).values[: math.ceil(fraction * len(entropy))]
    torch.testing.assert_close(HardPixels(PixelCrossEntropy(), fraction)(*batch), kept.mean())


def test_at_least_some_pixels_are_kept_as_long_as_they_count(batch):
    logits, target = batch
    entropy, _, _ = pixel_costs(logits, target)
    found = HardPixels(PixelCrossEntropy(), 0.01, min_kept=20)(logits, target)
    torch.testing.assert_close(found, entropy.sort(descending=True).values[:20].mean())
    few = torch.full_like(target, IGNORE_INDEX)
    few[0, 0, :3] = 1
    torch.testing.assert_close(
        HardPixels(PixelCrossEntropy(), 0.01, min_kept=1000)(logits, few), PixelCrossEntropy()(logits, few)
    )


def test_easy_pixels_get_no_gradient_from_the_hard_ones(batch):
    logits, target = batch[0].requires_grad_(), batch[1]
    HardPixels(PixelCrossEntropy(), 0.25)(logits, target).backward()
    counted = int((target != IGNORE_INDEX).sum())
    assert int((logits.grad != 0).any(1).sum()) == math.ceil(0.25 * counted)


@pytest.mark.parametrize('weights', [None, WEIGHTS])
def test_memory_format_does_not_matter(batch, weights):
    logits, target = batch
    last = logits.to(memory_format=torch.channels_last)
    torch.testing.assert_close(PixelCrossEntropy(weights)(last, target), PixelCrossEntropy(weights)(logits, target))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('make', [PixelCrossEntropy, lambda weights: HardPixels(PixelFocal(2.0, weights), 0.5)])
def test_on_cuda_they_can_be_deterministic(batch, make):
    logits, target = batch
    expected = make(WEIGHTS)(logits, target)
    torch.use_deterministic_algorithms(True)
    try:
        found = make(WEIGHTS).cuda()(logits.cuda().requires_grad_(), target.cuda())
        found.backward()
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(found.cpu(), expected)

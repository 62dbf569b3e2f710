"""The loss over pixels: torch's own where every pixel counts, blind to those that do not."""

import pytest
import torch
from torch.nn import functional

from geolearn.classes import IGNORE_INDEX
from geolearn.losses import PixelCrossEntropy


@pytest.fixture
def batch():
    """Logits (2, 5, 8, 9) and targets of all five classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 8, 9, generator=generator), torch.randint(0, 5, (2, 8, 9), generator=generator)


WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0, 0.1])


def test_it_is_torchs_cross_entropy_where_every_pixel_counts(batch):
    torch.testing.assert_close(PixelCrossEntropy()(*batch), functional.cross_entropy(*batch))


def test_class_weights_average_as_torchs_do(batch):
    torch.testing.assert_close(PixelCrossEntropy(WEIGHTS)(*batch), functional.cross_entropy(*batch, WEIGHTS))


@pytest.mark.parametrize('weights', [None, WEIGHTS])
def test_ignored_pixels_are_left_out_of_sum_and_count(batch, weights):
    logits, target = batch
    target[0, :3] = IGNORE_INDEX
    expected = functional.cross_entropy(logits, target, weights, ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(PixelCrossEntropy(weights)(logits, target), expected)


@pytest.mark.parametrize('weights', [None, WEIGHTS])
def test_logits_of_ignored_pixels_change_nothing_and_get_no_gradient(batch, weights):
    logits, target = batch
    target[1, 2:5, 4:] = IGNORE_INDEX
    loss, ignored = PixelCrossEntropy(weights), target == IGNORE_INDEX
    changed = torch.where(ignored[:, None], 1e4 * torch.randn(logits.shape), logits).requires_grad_()
    found = loss(changed, target)
    assert torch.equal(found, loss(logits, target))
    found.backward()
    assert (changed.grad.movedim(1, -1)[ignored] == 0).all()
    assert (changed.grad.movedim(1, -1)[~ignored] != 0).any()


@pytest.mark.parametrize('weights', [None, WEIGHTS])
def test_a_batch_without_a_labelled_pixel_costs_nothing_and_teaches_nothing(batch, weights):
    logits = batch[0].requires_grad_()
    found = PixelCrossEntropy(weights)(logits, torch.full((2, 8, 9), IGNORE_INDEX))
    found.backward()
    assert found.item() == 0
    assert (logits.grad == 0).all()


def test_class_weights_move_with_the_module_but_are_not_saved_with_it():
    loss = PixelCrossEntropy(WEIGHTS).double()
    assert loss.class_weights.dtype == torch.float64
    assert loss.state_dict() == {}

"""Losses of continuous values and of whole chips, against torch's."""

import pytest
import torch
from torch.nn import functional

from geolearn.errors import UnknownNameError
from geolearn.losses import MultiLabelCrossEntropy, RegressionLoss, SoftCrossEntropy

WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0, 0.1])


@pytest.fixture
def values():
    """Predictions (2, 1, 6, 7) and heights (2, 6, 7), some of them unknown."""
    generator = torch.Generator().manual_seed(0)
    target = 10 * torch.randn(2, 6, 7, generator=generator)
    target[torch.rand(2, 6, 7, generator=generator) < 0.3] = torch.nan
    return 10 * torch.randn(2, 1, 6, 7, generator=generator), target


@pytest.fixture
def chips():
    """Logits (6, 5) and one class per chip."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 5, generator=generator), torch.tensor([0, 1, 2, 3, 4, 4])


@pytest.mark.parametrize(
    ('kind', 'torchs'),
    [
        ('mse', functional.mse_loss),
        ('l1', functional.l1_loss),
        ('huber', lambda p, t: functional.huber_loss(p, t, delta=3.0)),
    ],
)
def test_errors_of_values_are_torchs_where_there_is_a_truth(values, kind, torchs):
    predicted, target = values
    known = ~target.isnan()
    found = RegressionLoss(kind, delta=3.0)(predicted, target)
    torch.testing.assert_close(found, torchs(predicted[:, 0][known], target[known]))


@pytest.mark.parametrize('kind', ['mse', 'l1', 'huber'])
def test_pixels_without_truth_teach_nothing(values, kind):
    predicted, target = values
    predicted.requires_grad_()
    RegressionLoss(kind)(predicted, target).backward()
    assert torch.equal(predicted.grad[:, 0] != 0, ~target.isnan())


@pytest.mark.parametrize('kind', ['mse', 'l1', 'huber'])
@pytest.mark.parametrize('count', [0, 2])
def test_no_truth_at_all_costs_nothing(kind, count):
    predicted = torch.randn(count, 1, 4, 4, requires_grad=True)
    found = RegressionLoss(kind)(predicted, torch.full((count, 4, 4), torch.nan))
    found.backward()
    assert found.item() == 0
    assert (predicted.grad == 0).all()


def test_values_in_half_precision_are_compared_in_float32(values):
    predicted, target = values[0].bfloat16(), values[1]
    torch.testing.assert_close(RegressionLoss()(predicted, target), RegressionLoss()(predicted.float(), target))


def test_values_that_would_broadcast_are_refused(values):
    with pytest.raises(ValueError, match=r'must be \(N, 1, H, W\) .* got \(2, 6, 7\) for \(2, 6, 7\)'):
        RegressionLoss()(values[0][:, 0], values[1])


def test_losses_of_values_that_do_not_exist_are_refused():
    with pytest.raises(UnknownNameError, match="unknown regression loss 'l2'"):
        RegressionLoss('l2')
    for delta in (0, -1, float('nan'), float('inf')):
        with pytest.raises(ValueError, match='delta must be positive, in units of the target'):
            RegressionLoss('huber', delta=delta)


@pytest.mark.parametrize('weights', [None, WEIGHTS])
@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_indices_of_chips_cost_what_torch_says(chips, weights, smoothing):
    expected = functional.cross_entropy(*chips, weights, label_smoothing=smoothing)
    torch.testing.assert_close(SoftCrossEntropy(weights, label_smoothing=smoothing)(*chips), expected)


@pytest.mark.parametrize('weights', [None, WEIGHTS])
@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_certain_shares_cost_what_indices_cost(chips, weights, smoothing):
    logits, target = chips
    loss = SoftCrossEntropy(weights, label_smoothing=smoothing)
    shares = functional.one_hot(target, 5).float()
    torch.testing.assert_close(loss(logits, shares), loss(logits, target))


def test_mixed_shares_cost_the_mixed_cross_entropy(chips):
    logits, target = chips
    shares = torch.lerp(functional.one_hot(target, 5).float(), functional.one_hot(target.flip(0), 5).float(), 0.3)
    expected = -(shares * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(SoftCrossEntropy()(logits, shares), expected.mean())
    found = SoftCrossEntropy(WEIGHTS)(logits, shares)
    costs = -(WEIGHTS * shares * logits.log_softmax(1)).sum()
    torch.testing.assert_close(found, costs / (WEIGHTS * shares).sum())


def test_chips_may_be_of_class_255():
    logits = torch.randn(2, 300)
    torch.testing.assert_close(
        SoftCrossEntropy()(logits, torch.tensor([255, 3])), functional.cross_entropy(logits, torch.tensor([255, 3]))
    )


def test_several_labels_cost_binary_cross_entropy(chips):
    logits = chips[0]
    target = (torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    expected = functional.binary_cross_entropy_with_logits(logits, target)
    torch.testing.assert_close(MultiLabelCrossEntropy()(logits, target), expected)
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction='none').mean(0)
    torch.testing.assert_close(MultiLabelCrossEntropy(WEIGHTS)(logits, target), (WEIGHTS * each).sum() / WEIGHTS.sum())


@pytest.mark.parametrize('weights', [None, WEIGHTS])
def test_a_batch_without_chips_costs_nothing(weights):
    logits = torch.randn(0, 5, requires_grad=True)
    for found in (
        SoftCrossEntropy(weights)(logits, torch.zeros(0, dtype=torch.int64)),
        SoftCrossEntropy(weights)(logits, torch.zeros(0, 5)),
        MultiLabelCrossEntropy(weights)(logits, torch.zeros(0, 5)),
    ):
        found.backward()
        assert found.item() == 0


def test_chips_in_half_precision_are_computed_in_float32(chips):
    logits, target = chips[0].bfloat16(), functional.one_hot(chips[1], 5).float()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        for loss in (SoftCrossEntropy(WEIGHTS), MultiLabelCrossEntropy(WEIGHTS)):
            torch.testing.assert_close(loss(logits, target), loss(logits.float(), target))
            assert loss(logits, target).dtype == torch.float32

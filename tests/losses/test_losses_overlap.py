"""Losses of overlap against those of segmentation-models-pytorch, and against what they stand for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segmentation_models_pytorch.losses import DiceLoss, LovaszLoss, TverskyLoss
from sklearn.metrics import f1_score, jaccard_score

from geolearn.classes import IGNORE_INDEX
from geolearn.losses import Dice, Lovasz, Tversky

WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0, 0.1])
SEEDS = st.integers(0, 2**31)


def random_batch(seed):
    """Logits (2, 5, 12, 12), targets that hold all five classes and some ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 6, (2, 12, 12), generator=generator)
    target[0, 0, :5] = torch.arange(5)
    return 3 * torch.randn(2, 5, 12, 12, generator=generator), target.where(target < 5, IGNORE_INDEX)


@given(SEEDS)
@settings(max_examples=25)
def test_macro_dice_is_smps_where_all_classes_occur(seed):
    logits, target = random_batch(seed)
    expected = DiceLoss('multiclass', ignore_index=IGNORE_INDEX)(logits, target)
    torch.testing.assert_close(Dice('macro')(logits, target), expected)


@given(SEEDS, st.floats(0, 1), st.floats(0.1, 1))
@settings(max_examples=25)
def test_tversky_is_smps_where_all_classes_occur(seed, alpha, beta):
    logits, target = random_batch(seed)
    expected = TverskyLoss('multiclass', ignore_index=IGNORE_INDEX, alpha=alpha, beta=beta)(logits, target)
    torch.testing.assert_close(Tversky(alpha, beta)(logits, target), expected)


@given(SEEDS)
@settings(max_examples=25)
def test_lovasz_and_its_gradient_are_smps(seed):
    logits, target = random_batch(seed)
    logits.requires_grad_()
    found, expected = Lovasz()(logits, target), LovaszLoss('multiclass', ignore_index=IGNORE_INDEX)(logits, target)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_micro_dice_is_the_mean_probability_of_a_wrong_class(batch):
    logits, target = batch
    counted = target != IGNORE_INDEX
    true = logits.softmax(1).gather(1, target.where(counted, 0)[:, None])[:, 0][counted]
    torch.testing.assert_close(Dice('micro')(logits, target), 1 - true.mean())


def test_of_certain_predictions_they_are_1_minus_the_metric():
    _, target = random_batch(3)
    predicted = torch.randint(0, 5, target.shape, generator=torch.Generator().manual_seed(4))
    logits = 1e3 * torch.nn.functional.one_hot(predicted, 5).movedim(-1, 1).float()
    y, p = target[target != IGNORE_INDEX], predicted[target != IGNORE_INDEX]
    assert Dice('macro')(logits, target).item() == pytest.approx(1 - f1_score(y, p, average='macro'))
    assert Dice('micro')(logits, target).item() == pytest.approx(1 - f1_score(y, p, average='micro'))
    assert Lovasz()(logits, target).item() == pytest.approx(1 - jaccard_score(y, p, average='macro'))
    assert Tversky(1, 1)(logits, target).item() == pytest.approx(1 - jaccard_score(y, p, average='macro'))


@pytest.mark.parametrize('loss', [Dice('macro'), Tversky(), Lovasz()])
def test_a_class_absent_from_the_truth_is_left_out(loss, batch):
    logits, target = batch
    more = torch.cat([logits, torch.full_like(logits[:, :1], -1e4)], 1)
    torch.testing.assert_close(loss(more, target), loss(logits, target))


@pytest.mark.parametrize('make', [lambda w: Dice('macro', w), lambda w: Tversky(class_weights=w), Lovasz])
def test_class_weights_weigh_the_losses_of_classes(make, batch):
    each = torch.stack([make(torch.eye(5)[k])(*batch) for k in range(5)])
    torch.testing.assert_close(make(WEIGHTS)(*batch), (WEIGHTS * each).sum() / WEIGHTS.sum())
    torch.testing.assert_close(make(None)(*batch), each.mean())


def test_misses_weigh_more_with_beta():
    target = torch.tensor([[[1, 1, 1, 1, 0, 0]]])
    found = 100.0 * torch.tensor([[[[0, 0, 1, 1, 1, 1]], [[1, 1, 0, 0, 0, 0]]]])  # two of four found, no false alarm
    rare = torch.tensor([0.0, 1.0])
    costs = [Tversky(1 - beta, beta, class_weights=rare)(found, target).item() for beta in (0.2, 0.8)]
    assert costs == pytest.approx([1 - 2 / (2 + 0.2 * 2), 1 - 2 / (2 + 0.8 * 2)])


def test_the_slopes_of_lovasz_keep_their_digits_over_a_million_pixels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 1024, 1024, generator=generator)
    target = torch.randint(0, 2, (1, 1024, 1024), generator=generator)
    torch.testing.assert_close(Lovasz()(logits, target), Lovasz()(logits.double(), target).float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize('loss', [Dice('micro'), Dice('macro', WEIGHTS.double()), Tversky(), Lovasz(WEIGHTS.double())])
def test_gradients_are_those_of_finite_differences(loss):
    logits, target = random_batch(5)
    logits = logits[:1, :, :3, :3].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, target[:1, :3, :3]), logits)


def test_an_average_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="average must be 'micro' or 'macro', got 'weighted'"):
        Dice('weighted')

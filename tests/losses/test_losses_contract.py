"""What every loss over pixels promises, whatever it measures."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.classes import IGNORE_INDEX
from geolearn.losses import (
    CenterlineDice,
    Dice,
    HardPixels,
    Lovasz,
    Mixed,
    PixelCrossEntropy,
    PixelFocal,
    Tversky,
    WithAuxiliary,
)

MAKERS = {
    'cross_entropy': PixelCrossEntropy,
    'smoothed': lambda weights=None: PixelCrossEntropy(weights, label_smoothing=0.1),
    'focal': lambda weights=None: PixelFocal(2.0, weights),
    'focal of a low gamma': lambda weights=None: PixelFocal(0.5, weights),
    'dice micro': lambda weights=None: Dice('micro', weights),
    'dice macro': lambda weights=None: Dice('macro', weights),
    'tversky': lambda weights=None: Tversky(0.3, 0.7, class_weights=weights),
    'tversky without misses': lambda weights=None: Tversky(1.0, 0.0, class_weights=weights),
    'lovasz': Lovasz,
    'hard': lambda weights=None: HardPixels(PixelCrossEntropy(weights), 0.3),
    'hard focal': lambda weights=None: HardPixels(PixelFocal(2.0, weights), 0.3, min_kept=10),
    'mixed': lambda weights=None: Mixed(PixelCrossEntropy(weights), Dice('macro', weights), 0.4),
    'centerline': lambda weights=None: Mixed(PixelCrossEntropy(weights), CenterlineDice(range(5), 2), 0.4),
    'auxiliary': lambda weights=None: WithAuxiliary(PixelCrossEntropy(weights)),
}
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0, 0.1])


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


@pytest.mark.parametrize('weights', [None, WEIGHTS])
def test_logits_of_ignored_pixels_change_nothing_and_get_no_gradient(make, batch, weights):
    logits, target = batch
    loss, ignored = make(weights), target == IGNORE_INDEX
    changed = torch.where(ignored[:, None], 1e4 * torch.randn(logits.shape), logits).requires_grad_()
    found = loss(changed, target)
    torch.testing.assert_close(found, loss(logits, target))
    found.backward()
    gradient = changed.grad.movedim(1, -1)
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] != 0).any()


@pytest.mark.parametrize('weights', [None, WEIGHTS])
@pytest.mark.parametrize('shape', [(2, 8, 9), (0, 8, 9)])
def test_a_batch_without_a_labelled_pixel_costs_nothing_and_teaches_nothing(make, weights, shape):
    logits = torch.randn(shape[0], 5, *shape[1:], requires_grad=True)
    found = make(weights)(logits, torch.full(shape, IGNORE_INDEX))
    found.backward()
    assert found.item() == 0
    assert (logits.grad == 0).all()


def test_extreme_logits_have_finite_gradients(make, batch):
    target = batch[1]
    right = torch.nn.functional.one_hot(target.where(target != IGNORE_INDEX, 0), 5).movedim(-1, 1).float()
    for logits in (1e4 * right, -1e4 * right, torch.zeros_like(right)):
        logits.requires_grad_()
        found = make()(logits, target)
        found.backward()
        assert found.isfinite()
        assert logits.grad.isfinite().all()


def test_what_is_right_everywhere_costs_nothing_and_what_is_wrong_costs_more(make, batch):
    target = batch[1]
    right = torch.nn.functional.one_hot(target.where(target != IGNORE_INDEX, 0), 5).movedim(-1, 1).float()
    loss = make()
    if getattr(loss, 'label_smoothing', 0) == 0:
        assert loss(100 * right, target).item() == pytest.approx(0, abs=1e-5)
    assert loss(5 * right, target) < loss(0 * right, target) < loss(-5 * right, target)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(make, batch, dtype):
    logits, target = batch[0].to(dtype), batch[1]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = make(WEIGHTS)(logits, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, make(WEIGHTS)(logits.float(), target))


def test_sixty_four_bits_stay(make, batch):
    assert make()(batch[0].double(), batch[1]).dtype == torch.float64


@given(order=st.permutations(range(5)), seed=st.integers(0, 99))
@settings(max_examples=25)
@pytest.mark.parametrize('name', MAKERS)
def test_no_class_is_special(name, order, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, 4, 4, generator=generator)
    target = torch.randint(0, 6, (2, 4, 4), generator=generator)  # some classes may be absent; 5 stands for ignored
    order = torch.tensor(order)
    renamed = torch.full((256,), IGNORE_INDEX)
    renamed[order] = torch.arange(5)
    loss, shuffled = MAKERS[name](WEIGHTS), MAKERS[name](WEIGHTS[order])
    target = target.where(target < 5, IGNORE_INDEX)
    torch.testing.assert_close(shuffled(logits[:, order], renamed[target]), loss(logits, target))


@pytest.mark.parametrize('name', ['cross_entropy', 'smoothed', 'focal', 'hard', 'hard focal', 'auxiliary'])
def test_pixels_of_a_class_of_weight_0_do_not_count(name, batch):
    logits, target = batch
    loss = MAKERS[name](WEIGHTS.index_fill(0, torch.tensor([2]), 0))
    left_out = target.where(target != 2, IGNORE_INDEX)
    torch.testing.assert_close(loss(logits, target), loss(logits, left_out))


def test_class_weights_move_with_the_module_but_are_not_saved_with_it(make):
    loss = make(WEIGHTS).double()
    assert all(buffer.dtype == torch.float64 for buffer in loss.buffers())
    assert len(list(loss.buffers())) >= 1
    assert loss.state_dict() == {}

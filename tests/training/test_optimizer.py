"""AdamW is torch's, in whatever memory layout, and takes no step on gradients that are not finite."""

import pytest
import torch
from torch import nn

from geolearn.training.optimization import AdamW

pytestmark = pytest.mark.usefixtures('one_thread')


def parameters(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(4, 3, 2, 2, generator=generator)) for _ in range(count)]


def give_gradients(given, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in given:
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.empty_like(parameter).copy_(gradient)


def test_it_is_torchs_with_groups_and_without_decay_where_told():
    ours, theirs = parameters(), parameters()
    optimizer = AdamW([ours[:1], ours[1:]], lr=0.1, no_decay=ours[2:])
    optimizer.set_hypers(lr=[0.1, 0.01], wd=0.5)
    options = {'betas': (0.9, 0.99), 'eps': 1e-5}
    reference = torch.optim.AdamW(
        [
            {'params': theirs[:1], 'lr': 0.1, 'weight_decay': 0.5},
            {'params': theirs[1:2], 'lr': 0.01, 'weight_decay': 0.5},
            {'params': theirs[2:], 'lr': 0.01, 'weight_decay': 0},
        ],
        **options,
    )
    for seed in range(4):
        give_gradients(ours, seed)
        give_gradients(theirs, seed)
        optimizer.step()
        reference.step()
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_memory_layout_makes_no_difference():
    plain, other = parameters(1), parameters(1)
    optimizers = [AdamW([given], lr=0.1) for given in (plain, other)]
    for seed in range(4):
        if seed == 2:  # as `network.to(memory_format=...)` between two fits
            other[0].data = other[0].data.to(memory_format=torch.channels_last)
        for given, optimizer in zip((plain, other), optimizers):
            give_gradients(given, seed)
            optimizer.step()
    assert other[0].stride() != plain[0].stride()
    torch.testing.assert_close(plain[0], other[0], atol=1e-6, rtol=1e-5)


def test_a_nonfinite_step_changes_nothing_and_is_not_counted():
    given, untouched = parameters(1), parameters(1)
    optimizer, reference = (AdamW([group], lr=0.1) for group in (given, untouched))
    give_gradients(given, 0)
    given[0].grad[0] = torch.nan
    optimizer.step(nonfinite=torch.ones(()))
    assert torch.equal(given[0], untouched[0])
    for group, chosen in ((given, optimizer), (untouched, reference)):
        give_gradients(group, 1)
        chosen.step()
    assert torch.equal(given[0], untouched[0])


def test_without_a_gradient_a_weight_is_not_decayed():
    given = parameters(2)
    optimizer = AdamW([given], lr=0.1)
    give_gradients(given[:1], 0)
    before = given[1].detach().clone()
    optimizer.step()
    assert torch.equal(given[1], before)
    optimizer.zero_grad()
    assert given[0].grad is None

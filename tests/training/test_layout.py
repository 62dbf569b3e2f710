"""Kernels may lie channels last in memory: a network learns the same, and everything around it keeps working."""

from contextlib import suppress

import pytest
import torch
from training_tools import assert_equal, build, fit, make_network, state

from geolearn.training import fastai
from geolearn.training import learner as _making
from geolearn.training.learner import fast_layout, prefers_channels_last

pytestmark = pytest.mark.usefixtures('one_thread')


def is_channels_last(network):
    return network[0].weight.is_contiguous(memory_format=torch.channels_last)


class Notes(fastai.QuickCallback):
    """Writes down the layout in each epoch."""

    def __init__(self, seen):
        self.seen = seen

    def after_epoch(self):
        self.seen.append(is_channels_last(self.learn.model))


def test_weights_keep_their_identity_and_their_values(monkeypatch):
    network = make_network()
    weight, before = network[0].weight, state(make_network())
    monkeypatch.setattr(_making, 'prefers_channels_last', lambda device: True)
    with suppress(KeyboardInterrupt), fast_layout(network, torch.device('cpu')):
        assert network[0].weight is weight
        assert is_channels_last(network)
        assert_equal(state(network), before, atol=0, rtol=0)
        raise KeyboardInterrupt
    assert network[0].weight is weight
    assert not is_channels_last(network)
    assert_equal(state(network), before, atol=0, rtol=0)


@pytest.mark.parametrize(('capability', 'expected'), [('AVX512', True), ('AVX2', False), ('DEFAULT', False)])
def test_a_cpu_wants_them_with_its_widest_registers_only(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    assert prefers_channels_last(torch.device('cpu')) is expected
    assert prefers_channels_last(torch.device('cuda'))


def test_both_layouts_learn_the_same(monkeypatch):
    found = []
    for wanted in (True, False):
        monkeypatch.setattr(_making, 'prefers_channels_last', lambda device, wanted=wanted: wanted)
        learner, history = build(make_network(norm=False))  # a bias before a norm learns rounding errors alone
        seen = []
        found.append(fit(learner, history, epochs=3, ema=True, callbacks=(Notes(seen),)))
        assert seen == [wanted] * len(seen) != []
        assert not is_channels_last(learner.model)  # as a loaded bundle
    assert_equal(*found, atol=1e-5, rtol=1e-4)

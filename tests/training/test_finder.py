"""The search for a learning rate changes nothing."""

import copy
import random

import numpy as np
import pytest
import torch
from training_tools import Batches, PixelLoss, assert_equal, build, fit, make_network, state

from geolearn.errors import TrainingError
from geolearn.training import Callback, find_learning_rate

pytestmark = pytest.mark.usefixtures('one_thread')


def draw():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_it_puts_back_weights_buffers_optimiser_epoch_and_random_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learner, history = build(make_network(dropout=0.5))
    fit(learner, history)
    before, optimizer = state(learner.model), copy.deepcopy(learner.opt.state_dict())
    epoch = learner.dls.train.epoch
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    first = draw()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    rate, rates, losses = find_learning_rate(learner, iterations=30)
    assert draw() == first
    assert 1e-7 < rate < 10
    assert rates == sorted(rates)
    assert len(rates) == len(losses) > 10
    assert_equal(state(learner.model), before)
    assert learner.dls.train.epoch == epoch
    after = learner.opt.state_dict()
    assert after['param_groups'] == optimizer['param_groups']
    assert after['state'].keys() == optimizer['state'].keys() != set()
    for index, new in after['state'].items():
        old = optimizer['state'][index]
        assert all(torch.equal(torch.as_tensor(new[key]), torch.as_tensor(old[key])) for key in old)
    assert len(history.epochs) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_fit_after_it_is_as_without_it():
    ends = []
    for searches in (False, True):
        learner, history = build(make_network(dropout=0.5))
        torch.manual_seed(5)
        if searches:
            find_learning_rate(learner, iterations=20)
        ends.append(fit(learner, history))
    assert_equal(*ends)


class NoneAt(PixelLoss):
    """Zero in the first batches, and no number from some loss on."""

    def __init__(self, zeros=0, worst=1e9):
        super().__init__()
        self.zeros, self.worst, self.calls = zeros, worst, 0

    def forward(self, output, target):
        self.calls += 1
        loss = super().forward(output, target)
        if self.calls <= self.zeros:
            return loss * 0
        return loss * torch.nan if float(loss.detach()) > self.worst else loss


@pytest.mark.parametrize('loss', [NoneAt(zeros=1), NoneAt(zeros=3), NoneAt(worst=1.5)], ids=['one', 'three', 'nan'])
def test_losses_of_zero_or_of_no_number_are_borne(loss):
    learner, _ = build(loss=loss)
    before = state(learner.model)
    rate, _, losses = find_learning_rate(learner, iterations=60)
    assert 1e-6 < rate < 10
    assert len(losses) > 15
    assert np.isfinite(losses).all()
    assert_equal(state(learner.model), before)


def test_without_any_loss_there_is_no_rate():
    learner, _ = build(loss=NoneAt(worst=-1))
    with pytest.raises(TrainingError, match='the search for a learning rate ended with its first batch: the loss is'):
        find_learning_rate(learner, iterations=20)


def test_groups_keep_their_shares():
    learner, _ = build()
    seen = []

    class Watch(Callback):
        def before_step(self):
            seen.append([float(h['lr']) for h in self.learn.opt.hypers])

    learner.add_cb(Watch())
    find_learning_rate(learner, iterations=20, scales=[0.1, 1.0])
    assert all(low == pytest.approx(high / 10) for low, high in seen)
    assert seen[0] == pytest.approx([1e-8, 1e-7])


def test_an_interruption_leaves_the_weights():
    batches = Batches()
    learner, _ = build(train_dl=batches)
    before, calls = state(learner.model), []

    class Interrupts(PixelLoss):
        def forward(self, output, target):
            calls.append(0)
            if len(calls) > 12:
                raise KeyboardInterrupt
            return super().forward(output, target)

    learner.loss_func = Interrupts()
    with pytest.raises(KeyboardInterrupt):
        find_learning_rate(learner)
    assert_equal(state(learner.model), before)


def test_it_shows_where_it_is(capsys, monkeypatch):
    monkeypatch.delenv('TQDM_DISABLE', raising=False)
    learner, _ = build()
    find_learning_rate(learner, iterations=20)
    assert capsys.readouterr().err.splitlines()[-1].startswith('searching a learning rate: 100 % (20 of 20 batches)')

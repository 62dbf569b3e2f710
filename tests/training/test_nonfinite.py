"""Non-finite losses stop the training before the weights are changed, and name the batch."""

import dataclasses

import pytest
import torch
from torch import nn
from training_tools import Batches, Counts, PixelLoss, assert_equal, build, fit, make_network, state

from geolearn.errors import TrainingError
from geolearn.history import History
from geolearn.training import Callback, make_learner

pytestmark = pytest.mark.usefixtures('one_thread')


def untracked(tensors):
    """Leave out how many batches a norm has seen, which changes nothing."""
    return {name: tensor for name, tensor in tensors.items() if 'tracked' not in name}


class Remember(Callback):
    """Keep the state before each batch."""

    def __init__(self):
        self.states = []

    def before_batch(self):
        if self.learn.training:
            self.states.append(state(self.learn.model))


class BadFrom(PixelLoss):
    """Is not a number from the n-th training batch on."""

    def __init__(self, number, value=torch.nan):
        super().__init__()
        self.number, self.value, self.calls = number, value, 0

    def forward(self, output, target):
        self.calls += output.requires_grad
        spoils = self.calls >= self.number and output.requires_grad
        return super().forward(output, target) * (self.value if spoils else 1)


@pytest.mark.parametrize('delay', [0, 2])
@pytest.mark.parametrize('value', [torch.nan, torch.inf])
@pytest.mark.parametrize('options', [{}, {'ema': True}, {'accumulate': 2}], ids=str)
def test_the_batch_is_named_and_the_weights_are_those_before_it(delay, value, options):
    learner, history = build(train_dl=Batches(28), loss=BadFrom(4, value))
    learner.deferred.delay = delay  # as on a GPU, where numbers are read late
    remember = Remember()
    with pytest.raises(TrainingError, match=f'the loss is {value} at batch 4 of epoch 1; the weights are those before'):
        fit(learner, history, callbacks=(remember,), **options)
    assert_equal(untracked(state(learner.model)), untracked(remember.states[3]))
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    assert history.epochs == []


class BadGradient(nn.Module):
    """A finite loss whose gradient is not: the root of zero."""

    def forward(self, output, target):
        return output.sub(output.detach()).sqrt().sum() + output.mean()


@pytest.mark.parametrize('delay', [0, 2])
def test_a_gradient_that_is_no_number_stops_as_well(delay):
    learner, history = build(loss=BadGradient())
    learner.deferred.delay = delay
    before = state(learner.model)
    with pytest.raises(TrainingError, match=r'but its gradient is not finite at batch 1 of epoch 1') as caught:
        fit(learner, history)
    assert_equal(untracked(before), untracked(state(learner.model)))
    if delay == 0:
        assert 'gradient  non-finite in 6 of 6 parameters, the first 0.weight' in str(caught.value)


def test_a_training_that_failed_can_be_gone_on_with():
    loss = BadFrom(5)
    learner, history = build(loss=loss)
    with pytest.raises(TrainingError, match='batch 2 of epoch 2'):
        fit(learner, history)
    loss.number = 1000
    fit(learner, history)
    assert [row['epoch'] for row in history.epochs] == [1, 2, 3]


def test_the_chips_are_named(scene_data):
    loader = scene_data.train_dl

    def spoil(batch, generator):
        images = batch.images.nan_to_num()
        images[:, :, :16] = torch.nan
        images[0, 0, 20, 20] = torch.inf
        return dataclasses.replace(batch, images=images)

    loader.options = dataclasses.replace(loader.options, transform=spoil)
    network = nn.Conv2d(10, 6, 1)
    learner = make_learner(
        network, loader, scene_data.valid_dl, PixelLoss(), scores=Counts(), splitter=lambda n: [list(n.parameters())]
    )
    names = loader.dataset.store.table.names
    wanted = [names[loader.dataset.positions[index]] for index in loader._orders(0)[0]]
    with pytest.raises(TrainingError, match='the loss is nan at batch 1 of epoch 1') as caught:
        fit(learner, History())
    text = str(caught.value)
    assert f'chips     {", ".join(wanted)}\n' in text
    assert '50.0% of the pixels without data (NaN)' in text
    assert 'take a smaller learning rate, or look at these chips' in text


def test_a_good_training_is_not_stopped_for_pixels_without_data():
    batches = Batches()
    batches.images[:, :, :2] = torch.nan
    network = make_network()
    network.register_forward_pre_hook(lambda module, given: torch.nan_to_num(given[0]))
    learner, history = build(network, train_dl=batches)
    fit(learner, history)
    assert len(history.epochs) == 2

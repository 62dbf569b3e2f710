"""Where memory runs out a batch is halved, with the same steps."""

import gc

import pytest
import torch
from torch import nn
from training_tools import Batches, PixelLoss, assert_equal, build, fit, make_network

from geolearn.errors import TrainingError
from geolearn.training import estimate_batch_size
from geolearn.training.memory import free_memory

pytestmark = pytest.mark.usefixtures('one_thread', 'quick_collections')


@pytest.fixture(scope='module')
def quick_collections():
    """Each time that memory runs out garbage is collected: leave out what other tests have imported since."""
    gc.collect()
    gc.freeze()


class Small(nn.Module):
    """Memory for so many chips, forwards or backwards."""

    def __init__(self, room, *, backwards=False, error=torch.cuda.OutOfMemoryError):
        super().__init__()
        self.inner, self.room, self.backwards, self.error = make_network(norm=False), room, backwards, error
        self.sizes = []

    def forward(self, images):
        self.sizes.append(len(images))
        over = len(images) > self.room
        if over and not self.backwards:
            raise self.error('CUDA out of memory. Tried to allocate 20 GiB')
        output = self.inner(images)
        if over and output.requires_grad:
            # fails half way: the last layer has its gradient by then
            middle = output.detach().requires_grad_()
            output.register_hook(lambda gradient: self._fail(middle))
        return output

    def _fail(self, _):
        self.inner[4].weight.grad = torch.full_like(self.inner[4].weight, 1e6)
        raise self.error('CUDA out of memory. Tried to allocate 20 GiB')

    def parameters(self, recurse=True):
        return self.inner.parameters(recurse)


@pytest.mark.parametrize(
    ('backwards', 'error'),
    [
        (False, torch.cuda.OutOfMemoryError),
        (True, RuntimeError),
        pytest.param(True, torch.cuda.OutOfMemoryError, marks=pytest.mark.slow),
        pytest.param(False, RuntimeError, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize('room', [3, 1])
def test_smaller_portions_make_the_same_steps(backwards, error, room, capsys):
    def train_dl():
        batches = Batches(13, 6)
        batches.masks[:5, 3:] = 255
        return batches

    network = Small(room, backwards=backwards, error=error)
    learner, history = build(network, train_dl=train_dl(), splitter=lambda n: [list(n.inner.parameters())])
    found = fit(learner, history, epochs=2)
    plain, plain_history = build(
        make_network(norm=False), train_dl=train_dl(), splitter=lambda n: [list(n.parameters())]
    )
    wanted = fit(plain, plain_history, epochs=2)
    assert_equal({n.removeprefix('inner.'): t for n, t in found.items()}, wanted, atol=1e-5, rtol=1e-4)
    assert history.batch_losses == pytest.approx(plain_history.batch_losses, rel=1e-4)
    assert history.epochs[-1]['valid_loss'] == pytest.approx(plain_history.epochs[-1]['valid_loss'], rel=1e-4)
    told = capsys.readouterr().out
    assert 'out of memory with 6 chips at once: from here on 3 at a time, with the same steps' in told
    assert told.count('out of memory') == {3: 1, 1: 3}[room]
    assert max(network.sizes[-8:]) <= 3


def test_without_room_for_one_chip_it_says_what_to_do():
    network = Small(0)
    learner, history = build(network, splitter=lambda n: [list(n.inner.parameters())])
    with pytest.raises(TrainingError, match='memory ran out with one chip at a time; take a smaller chip_size or back'):
        fit(learner, history)


def test_other_errors_are_not_taken_for_it():
    class Broken(PixelLoss):
        def forward(self, output, target):
            raise RuntimeError('shapes do not fit')

    learner, history = build(loss=Broken())
    with pytest.raises(RuntimeError, match='shapes do not fit'):
        fit(learner, history)


def test_a_batch_size_is_what_fits():
    network = make_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    # kept per chip: the image, and six maps before the norm and after the activation
    found = estimate_batch_size(network, (3, 32, 32), free_bytes=10_000_000)
    per_chip = 9_000_000 / found.maximum
    assert 32 * 32 * 4 * (3 + 6 * 2) <= per_chip <= 2 * 32 * 32 * 4 * (3 + 6 * 2)
    assert found.recommended <= found.maximum < 2 * found.recommended
    assert found.recommended & (found.recommended - 1) == 0
    larger = estimate_batch_size(network, (3, 64, 64), free_bytes=10_000_000)
    assert found.maximum / larger.maximum == pytest.approx(4, rel=0.15)
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert_equal(network.state_dict(), before)
    assert estimate_batch_size(network.eval(), (3, 32, 32), mode='eval', free_bytes=10**7).maximum >= found.maximum
    assert not network.training


def test_what_does_not_fit_is_said():
    with pytest.raises(TrainingError, match=r'a chip of \(3, 512, 512\) needs .* bytes and 1e\+03 are free'):
        estimate_batch_size(make_network(), (3, 512, 512), free_bytes=1000)
    with pytest.raises(ValueError, match="mode must be 'train' or 'eval', got 'test'"):
        estimate_batch_size(make_network(), (3, 8, 8), mode='test')


def test_the_system_says_what_is_free():
    assert 0 < free_memory(torch.device('cpu')) < 2**50
    assert estimate_batch_size(make_network(), (3, 16, 16)).maximum > 10

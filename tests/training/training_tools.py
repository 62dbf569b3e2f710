"""A network, chips and a loss so small that an epoch takes milliseconds."""

import torch
from torch import nn
from torch.nn import functional

from geolearn.history import History
from geolearn.metrics import Metric
from geolearn.training import FitOptions, make_learner, train
from geolearn.training.distributed import add_up


class Batches:
    """Batches of random chips with the interface of a ChipLoader: a new order in each epoch, fixed by the seed."""

    device = torch.device('cpu')

    def __init__(self, count=12, batch_size=4, *, shuffle=True, seed=0, size=8):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.rand(count, 3, size, size, generator=generator)
        self.masks = (self.images.sum(1) > 1.5).long()
        self.batch_size, self.shuffle, self.epoch = batch_size, shuffle, 0

    def __len__(self):
        return -(-len(self.images) // self.batch_size)

    def __iter__(self):
        order = torch.arange(len(self.images))
        if self.shuffle:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(self.epoch))
            self.epoch += 1
        for part in order.split(self.batch_size):
            yield self.images[part], self.masks[part]


class Counts:
    """Accuracy per pixel, as a Scores."""

    columns = (Metric('accuracy', higher_is_better=True),)

    def __init__(self):
        self.reset()

    def reset(self):
        self.right, self.all = 0, 0

    def add(self, output, target):
        self.right += int((output.argmax(1) == target).sum())
        self.all += target.numel()

    def reduce(self):
        self.right, self.all = add_up(torch.tensor([self.right, self.all])).tolist()

    def values(self):
        return {'accuracy': self.right / self.all}


class PixelLoss(nn.Module):
    """Cross-entropy, the mean over pixels below 255."""

    def forward(self, output, target):
        return functional.cross_entropy(output, target, ignore_index=255)

    def counted(self, target):
        return (target != 255).sum()


def make_network(*, norm=True, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    middle = nn.BatchNorm2d(6) if norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), middle, nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(6, 2, 1))


def split_in_two(network):
    return [list(network[:3].parameters()), list(network[3:].parameters())]


def build(network=None, *, train_dl=None, valid_dl=None, loss=None, **options):
    """Return a learner and an empty history."""
    learner = make_learner(
        make_network() if network is None else network,
        Batches() if train_dl is None else train_dl,
        Batches(6, shuffle=False, seed=9) if valid_dl is None else valid_dl,
        PixelLoss() if loss is None else loss,
        scores=options.pop('scores', None) or Counts(),
        splitter=options.pop('splitter', split_in_two),
        **options,
    )
    return learner, History()


def fit(learner, history, *, folder=None, resume=False, **options):
    options = {'epochs': 2, 'learning_rate': 1e-2, 'verbose': False} | options
    train(learner, history, FitOptions(**options), folder=folder, resume=resume)
    return state(learner.model)


def state(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def assert_equal(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], **({'atol': 0, 'rtol': 0} | tolerance), msg=name)

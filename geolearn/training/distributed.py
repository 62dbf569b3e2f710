"""Several processes that train one network, as torchrun or ``accelerate launch`` starts them.

Each process computes its share of every batch. Gradients are added up once per step, weighed by what each share counts,
so that a step of W processes is that of one process with a batch W times as large. fastai's own context needs fastai's
own loaders and a GPU; this needs neither.
"""

import atexit
import gc
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, distributed, nn

from geolearn.augment import ChipGenerator
from geolearn.chips.batches.loader import ChipLoader
from geolearn.errors import TrainingError


def join_processes() -> None:
    """Meet the other processes, where this one was started as one of several; more calls do nothing."""
    if started_as()[1] < 2 or distributed.is_initialized():
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', '0')))
    distributed.init_process_group('nccl' if cuda else 'gloo')
    atexit.register(_leave)


def _leave() -> None:
    # learners hold each other, and with them threads of the group, which cannot end in order once Python has
    gc.collect()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def started_as() -> tuple[int, int]:
    """Return the place of this process, from 0, and how many torchrun or its like started; (0, 1) without."""
    return int(os.environ.get('RANK', '0')), max(1, int(os.environ.get('WORLD_SIZE', '1')))


@contextmanager
def training_alone() -> Iterator[None]:
    """Let each process train networks of its own, although torchrun started several.

    Raises:
        TrainingError: If the processes train together already.
    """
    if process_count() > 1:
        raise TrainingError('the processes that torchrun started train one network together; start others for a grid')
    started = os.environ.pop('WORLD_SIZE', None)
    try:
        yield
    finally:
        if started is not None:
            os.environ['WORLD_SIZE'] = started


def process_count() -> int:
    """Return how many processes train this network together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_index() -> int:
    """Return which of them this is, from 0; only the first prints and writes."""
    return distributed.get_rank() if process_count() > 1 else 0


def add_up(tensor: Tensor) -> Tensor:
    """Add a tensor of every process into that of each, and return it."""
    if process_count() > 1:
        distributed.all_reduce(tensor)
    return tensor


def add_up_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add the gradients of all processes; a process without one, because its chips had no use for it, adds nothing."""
    waiting = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        waiting.append(distributed.all_reduce(parameter.grad, async_op=True))
    for work in waiting:
        work.wait()


def take_from_first(network: nn.Module) -> None:
    """Make weights and buffers those of the first process."""
    if process_count() > 1:
        for tensor in network.state_dict().values():
            distributed.broadcast(tensor, src=0)


def average_buffers(network: nn.Module) -> None:
    """Make running statistics the mean over the processes, each of which saw other chips."""
    if process_count() > 1:
        for buffer in network.buffers():
            if buffer.is_floating_point():
                distributed.all_reduce(buffer)
                buffer /= process_count()


def from_first(text: str) -> str:
    """Return what the first process calls with."""
    texts = [text]
    if process_count() > 1:
        distributed.broadcast_object_list(texts, src=0)
    return texts[0]


def wait_for_all() -> None:
    """Return when every process has come this far."""
    if process_count() > 1:
        distributed.barrier()


class SharedLoader(ChipLoader):
    """One process's share of the batches of a loader.

    A batch of all processes together holds `count` of the loader's batches, and each process gets an equal part of it,
    give or take a chip.

    Args:
        loader: Makes batches for one process.
        index: Of this process.
        count: Of all processes.
    """

    def __init__(self, loader: ChipLoader, index: int, count: int) -> None:
        super().__init__(loader.dataset, loader.options)
        self.epoch = loader.epoch
        self._index, self._count = index, count

    def _orders(self, epoch: int) -> list[list[int]]:
        orders = super()._orders(epoch)
        groups = [orders[start : start + self._count] for start in range(0, len(orders), self._count)]
        shares = [self._share([index for order in group for index in order]) for group in groups]
        if not self.options.shuffle:
            return [share for share in shares if share]
        # in training every process must take as many steps, so what is too little for all is left out
        return [share for share, group in zip(shares, groups) if sum(map(len, group)) >= 2 * self._count] or shares[:1]

    def _share(self, chips: Sequence[int]) -> list[int]:
        return np.array_split(np.asarray(chips, dtype=int), self._count)[self._index].tolist()

    def _changes(self, epoch: int) -> ChipGenerator:
        generator = super()._changes(epoch)
        generator.manual_seed(generator.initial_seed() + 2**41 * self._index)
        return generator

"""Batches of chips on a device: ordered, collated ahead, augmented, repeatable from a seed."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from geolearn.augment import BatchTransform, ChipGenerator
from geolearn.batch import Batch, Objects
from geolearn.chips.batches.collate import CollateConfig, collate, oversample_order
from geolearn.chips.packing.read_chip import ChipStore

AHEAD = 2
"""Batches that are collated while the last one is used."""


@dataclass(frozen=True, eq=False)
class ChipDataset(Dataset[tuple[Any, ...]]):
    """Chips as items of one size, on the CPU and without augmentation.

    Args:
        store: All chips of the folder.
        positions: Those of this part.
        config: What to make of them.
    """

    store: ChipStore
    positions: tuple[int, ...]
    config: CollateConfig

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Return image and target of one chip: (bands, S, S) and, by task, mask or values (S, S), Objects, or label."""
        if not -len(self) <= index < len(self):
            raise IndexError(f'there are {len(self)} chips, got index {index}')
        batch = self.collate([index]).cast()
        return batch.images[0], *(target[0] for target in batch.targets)

    @property
    def names(self) -> list[str]:
        """The chips' names."""
        return [self.store.table.names[position] for position in self.positions]

    @property
    def chip_size(self) -> int:
        """Side of the items in pixels."""
        return self.config.chip_size

    def collate(self, items: Sequence[int], *, epoch: int = 0) -> Batch:
        """Return a batch of items.

        Args:
            items: Their indexes, plus the number of chips for each time that an item was in the epoch before.
            epoch: Random crops follow from it, from the chip and the seed.
        """
        repeats, indexes = self.split_items(items)
        return collate(self.store, [self.positions[i] for i in indexes], self.config, epoch=epoch, repeats=repeats)

    def split_items(self, items: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return how often each item was in the epoch before, and its index."""
        count = max(len(self), 1)
        return [max(item, 0) // count for item in items], [item % count if item >= 0 else item for item in items]

    def seeds(self, items: Sequence[int], *, seed: int, epoch: int) -> list[int]:
        """Return a seed for each item, whatever batch it is in."""
        keys = [(self.positions[index], repeat) for repeat, index in zip(*self.split_items(items))]
        states = [np.random.SeedSequence((seed, epoch, *key)).generate_state(1, np.uint64) for key in keys]
        return [int(state[0] >> np.uint64(1)) for state in states]


class _Batches(Dataset[Batch]):
    """Whole batches by number, for worker processes."""

    def __init__(self, dataset: ChipDataset, orders: Sequence[Sequence[int]], epoch: int) -> None:
        self._dataset, self._orders, self._epoch = dataset, orders, epoch

    def __len__(self) -> int:
        return len(self._orders)

    def __getitem__(self, number: int) -> Batch:
        return self._dataset.collate(self._orders[number], epoch=self._epoch)


def _join_objects(batch: Any) -> tuple[Batch, list[int]]:
    """Put the objects of all images into one; returns how many each image had.

    A tensor that goes from a worker to this process costs an open file, and a system allows a process few of them.
    """
    found = batch.objects or ()
    if not found:
        return batch, []
    return replace(batch, objects=(Objects.concatenate(found),)), [len(objects) for objects in found]


def _part_objects(batch: Batch, counts: list[int]) -> Batch:
    """Undo `_join_objects`."""
    if not counts or batch.objects is None:
        return batch
    (joined,) = batch.objects
    return replace(batch, objects=joined.split(counts))


@dataclass(frozen=True, eq=False)
class LoaderOptions:
    """How batches are made.

    Args:
        batch_size: Chips per batch.
        shuffle: New order in each epoch (training).
        transform: Augmentation of whole batches, or None.
        seed: Fixes order, crops and augmentation.
        num_workers: Processes that collate; 0 collates in threads of this one.
        device: Where batches are put before they are augmented.
        repeats: How often to show each chip in an epoch, on average; None for once.
    """

    batch_size: int
    shuffle: bool
    transform: BatchTransform | None
    seed: int
    num_workers: int
    device: torch.device
    repeats: np.ndarray | None = None


def _number_repeats(order: np.ndarray, count: int) -> np.ndarray:
    """Add `count` to each position for each time that it was in the order before."""
    seen = np.zeros(count, np.int64)
    numbered = order.copy()
    for place, position in enumerate(order):
        numbered[place] += count * seen[position]
        seen[position] += 1
    return numbered


class ChipLoader:
    """Batches of chips on a device.

    Iterating gives a tuple of images (N, bands, S, S) float32, NaN where there is no data, and the labels of the task:
    masks (N, S, S) int64, values (N, S, S) float32 with NaN where there is no truth, a tuple of `Objects`, labels (N,)
    int64 or (N, classes) float32, or nothing. Each pass over a training loader is a new epoch with its own order, crops
    and augmentation, all fixed by the seed.

    Args:
        dataset: The chips.
        options: How batches are made.
    """

    n_inp = 1  # fastai: the first item of a batch is the input, the rest is the target

    def __init__(self, dataset: ChipDataset, options: LoaderOptions) -> None:
        self.dataset, self.options = dataset, options
        self.epoch = 0

    @property
    def batch_size(self) -> int:
        """Chips per batch."""
        return self.options.batch_size

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.options.device

    def with_config(self, config: CollateConfig) -> 'ChipLoader':
        """Return a loader of the same chips that makes other items of them."""
        return ChipLoader(replace(self.dataset, config=config), self.options)

    @property
    def shows_parts(self) -> bool:
        """Whether some chips are larger than the images, which show a part of them."""
        return self._largest_side() > self.dataset.chip_size

    def _largest_side(self) -> int:
        shapes = self.dataset.store.table.shapes
        return int(shapes[list(self.dataset.positions)].max(initial=self.dataset.chip_size))

    def of_whole_chips(self, *, batch_size: int | None = None) -> 'ChipLoader':
        """Return a loader of the chips in full; this one where it shows them so.

        Args:
            batch_size: Chips per batch; None for as many pixels in a batch as here.
        """
        if not self.shows_parts:
            return self
        shown, side = self.dataset.chip_size, self._largest_side()
        items = replace(self.dataset, config=replace(self.dataset.config, chip_size=side))
        size = batch_size or max(1, self.options.batch_size * shown**2 // side**2)
        return ChipLoader(items, replace(self.options, batch_size=size))

    def __len__(self) -> int:
        return len(self._orders(self.epoch))

    def peek(self, count: int | None = None) -> Batch:
        """Return the first chips of the coming epoch (None: a batch), without making it the epoch that was."""
        first = [index for order in self._orders(self.epoch) for index in order][: count or self.batch_size]
        batch = self.dataset.collate(first, epoch=self.epoch)
        return self._finish(batch, self._changes(self.epoch), first, self.epoch)

    def batch_names(self, number: int) -> list[str]:
        """Return the chips' names in a batch, numbered from 0, of the epoch that was last begun."""
        order = self._orders(self.epoch - self.options.shuffle)[number]
        names = self.dataset.names
        return [names[index] for index in self.dataset.split_items(order)[1]]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for batch in self.batches():
            yield batch.images, *batch.targets

    def batches(self) -> Iterator[Batch]:
        """Go through an epoch, as batches with names."""
        epoch, changes = self.epoch, self._changes(self.epoch)
        for items, batch in zip(self._orders(epoch), self.collated()):
            yield self._finish(batch, changes, items, epoch)

    def collated(self) -> Iterator[Batch]:
        """Go through an epoch of batches as they were collated: on the CPU, not cast and not augmented."""
        epoch = self.epoch
        self.epoch += self.options.shuffle
        return self._collated(self._orders(epoch), epoch=epoch)

    def _changes(self, epoch: int) -> ChipGenerator:
        generator = ChipGenerator()
        generator.manual_seed(self._epoch_seed(epoch))
        return generator

    def _epoch_seed(self, epoch: int) -> int:
        return (self.options.seed * 1_000_003 + epoch + 2**40) % 2**63

    def _finish(self, collated: Batch, changes: ChipGenerator, items: Sequence[int], epoch: int) -> Batch:
        batch = collated.to(self.device).cast()
        if self.options.transform is None:
            return batch
        changes.begin_batch(self.dataset.seeds(items, seed=self.options.seed, epoch=epoch), self._epoch_seed(epoch))
        return self.options.transform(batch, changes)

    def _orders(self, epoch: int) -> list[list[int]]:
        """Return the items of each batch of an epoch, as `ChipDataset.collate` takes them."""
        count, size = len(self.dataset), self.batch_size
        order = np.arange(count)
        if self.options.shuffle:
            rng = np.random.default_rng((self.options.seed, epoch))
            repeats = self.options.repeats
            order = (
                rng.permutation(count) if repeats is None else _number_repeats(oversample_order(repeats, rng), count)
            )
        orders = [part.tolist() for part in np.split(order, range(size, len(order), size))]
        # a last batch of one chip would stop batch normalization
        if self.options.shuffle and size > 1 and len(orders) > 1 and len(orders[-1]) == 1:
            orders.pop()
        return orders

    def _collated(self, orders: Sequence[Sequence[int]], *, epoch: int) -> Iterator[Batch]:
        if self.options.num_workers:
            items = _Batches(self.dataset, orders, epoch)
            # with a generator of its own it does not draw from the one that fixes weights and dropout
            workers = DataLoader(
                items,
                batch_size=None,
                num_workers=self.options.num_workers,
                collate_fn=_join_objects,
                generator=torch.Generator(),
            )
            try:
                for batch, counts in workers:
                    yield _part_objects(batch, counts)
            except Exception as error:
                # the message holds the worker's traceback; ours would keep the workers alive for as long as itself
                error.__traceback__ = None
                raise
            return
        waiting: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(AHEAD, 'collate') as pool:
            try:
                for order in orders:
                    waiting.append(pool.submit(self.dataset.collate, order, epoch=epoch))
                    if len(waiting) > AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

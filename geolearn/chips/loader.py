"""Turn chips into batches: cropped, indexed by class, augmented on the device, repeatable from a seed."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from geolearn.augment import BatchTransform
from geolearn.chips.reader import ChipReader
from geolearn.classes import IGNORE_INDEX


class ChipDataset(Dataset[tuple[Tensor, Tensor]]):
    """Chips as tensors of one size.

    Items are an image (bands, chip_size, chip_size) float32, NaN where there is no data, and a mask (chip_size,
    chip_size) uint8 of class indices, IGNORE_INDEX where unlabelled by wish or without data.

    Args:
        reader: The chips.
        table: Class index of each label value, from `index_table`.
        chip_size: Side of the items in pixels; larger chips are cropped, smaller ones padded.
        random_crop: Crop at random places (training) instead of the centre.
        seed: Makes the crops repeatable together with `epoch`.
    """

    def __init__(self, reader: ChipReader, table: np.ndarray, chip_size: int, *, random_crop: bool, seed: int) -> None:
        self.reader, self.table, self.chip_size = reader, table, chip_size
        self.random_crop, self.seed, self.epoch = random_crop, seed, 0

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        chip = self.reader[position]
        top, left = self._corner(chip.label.shape, position)
        part = np.s_[top : top + self.chip_size, left : left + self.chip_size]
        image = chip.pixels[(slice(None), *part)].astype(np.float32)
        mask = self.table[chip.label[part]]
        if chip.mask is not None:
            invalid = ~chip.mask[part]
            image[:, invalid] = np.nan
            mask[invalid] = IGNORE_INDEX
        return self._padded(image, np.nan), self._padded(mask.astype(np.uint8), IGNORE_INDEX)

    def _corner(self, shape: tuple[int, ...], position: int) -> tuple[int, int]:
        spare = [max(side - self.chip_size, 0) for side in shape]
        if not self.random_crop:
            return spare[0] // 2, spare[1] // 2
        rng = np.random.default_rng((self.seed, self.epoch, position))
        return int(rng.integers(spare[0] + 1)), int(rng.integers(spare[1] + 1))

    def _padded(self, array: np.ndarray, fill: float) -> Tensor:
        lacking = [self.chip_size - side for side in array.shape[-2:]]
        if any(lacking):
            pad = [(0, 0)] * (array.ndim - 2) + [(0, side) for side in lacking]
            array = np.pad(array, pad, constant_values=fill)
        return torch.from_numpy(np.ascontiguousarray(array))


class ChipLoader:
    """Batches of chips on a device.

    Iterating gives images (N, bands, S, S) float32 and masks (N, S, S) int64. Each pass over a training loader is a
    new epoch with its own order, crops and augmentation, all fixed by the seed.

    Args:
        dataset: The chips.
        batch_size: Chips per batch.
        shuffle: New order in each epoch (training).
        transform: Augmentation of whole batches, or None.
        seed: Fixes order, crops and augmentation.
        num_workers: Processes that read; 0 reads in this one.
        device: Where batches are put before they are augmented.
    """

    n_inp = 1  # fastai: the first item of a batch is the input, the rest is the target

    def __init__(
        self,
        dataset: ChipDataset,
        *,
        batch_size: int,
        shuffle: bool,
        transform: BatchTransform | None,
        seed: int,
        num_workers: int,
        device: torch.device,
    ) -> None:
        self.dataset, self.batch_size, self.device = dataset, batch_size, device
        self.shuffle, self.transform, self.seed, self.num_workers = shuffle, transform, seed, num_workers
        self.epoch = 0
        # a last batch of one chip would stop batch normalisation
        self._drop_last = shuffle and len(dataset) > batch_size and len(dataset) % batch_size == 1

    def with_table(self, table: np.ndarray) -> 'ChipLoader':
        """Return a loader of the same chips whose label values get other class indices."""
        d = self.dataset
        dataset = ChipDataset(d.reader, table, d.chip_size, random_crop=d.random_crop, seed=d.seed)
        return ChipLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            transform=self.transform,
            seed=self.seed,
            num_workers=self.num_workers,
            device=self.device,
        )

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self._drop_last)

    def peek(self) -> tuple[Tensor, Tensor]:
        """Return the first batch of the coming epoch, without making it the epoch that was."""
        epoch = self.epoch
        try:
            return next(iter(self))
        finally:
            self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # one generator each: workers draw the order ahead of the changes
        order, changes = (
            torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch + part * 2**40) for part in range(2)
        )
        self.dataset.epoch = self.epoch
        if self.shuffle:
            self.epoch += 1
        loader = DataLoader(
            self.dataset,
            self.batch_size,
            shuffle=self.shuffle,
            generator=order,
            drop_last=self._drop_last,
            num_workers=self.num_workers,
            pin_memory=self.device.type == 'cuda',
        )
        for images, masks in loader:
            images, masks = images.to(self.device, non_blocking=True), masks.to(self.device, torch.int64)
            if self.transform is not None:
                images, masks = self.transform(images, masks, changes)
            yield images, masks

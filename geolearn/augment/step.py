"""What one change of a batch is, and how changes follow one another without copying each time."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geolearn.batch import Batch
from geolearn.errors import BandError

BatchTransform = Callable[[Batch, torch.Generator], Batch]
"""Takes a batch and a generator on the CPU; returns a changed batch and leaves the given one as it was."""


class PixelStep(ABC):
    """A change of pixel values alone: `change_` writes into the images, calling the step spares them.

    Every such step keeps NaN (NoData) where it was, and adds none.
    """

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with changed copies of its images."""
        batch = replace(batch, images=batch.images.clone(memory_format=torch.contiguous_format))
        self.change_(batch.images, generator)
        return batch

    @abstractmethod
    def change_(self, images: Tensor, generator: torch.Generator) -> None:
        """Change contiguous images (n, ..., bands, height, width) in place."""


@dataclass(frozen=True)
class Chain:
    """Changes that follow one another; the images are copied once, whatever the number of changes.

    Args:
        steps: Called in this order, each as a `BatchTransform`.
    """

    steps: Sequence[BatchTransform]

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return a changed copy of the batch."""
        given = batch.images.untyped_storage().data_ptr()
        for step in self.steps:
            images = batch.images
            ours = images.untyped_storage().data_ptr() != given and images.is_contiguous()
            if isinstance(step, PixelStep) and ours:
                step.change_(images, generator)
            else:
                batch = step(batch, generator)
        return batch


def per_band(values: Sequence[float], images: Tensor, what: str) -> Tensor:
    """Return a float32 CPU tensor (bands, 1, 1) of one value for each band.

    Raises:
        BandError: If the images hold another number of bands.
    """
    bands = images.shape[-3]
    if len(values) != bands:
        raise BandError(f'found {len(values)} values in {what} for images of {bands} bands; give one for each band')
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


def per_image(images: Tensor, *extra: int) -> tuple[int, ...]:
    """Return the shape of one number for each image (and each of `extra`), so that it spreads over its pixels."""
    dates = [1] * (images.ndim - 4)
    return (len(images), *dates, *(extra or (1,)), 1, 1)


def check_between(what: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise ValueError unless a parameter lies in low..high."""
    if not low <= value <= high:
        needed = f'at least {low:g}' if high == math.inf else f'in {low:g}..{high:g}'
        raise ValueError(f'{what} must be {needed}, got {value!r}')

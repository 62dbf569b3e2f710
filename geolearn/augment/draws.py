"""Random draws for the images of a batch: from one generator, or from one for each image."""

from collections.abc import Iterable

import torch
from torch import Tensor


class ChipGenerator(torch.Generator):
    """A generator for a batch that also has one for each image.

    Draws for an image come from its own generator, seeded by chip and epoch. So a chip is changed in the same way
    whatever batch, micro-batch or process it is in. As a plain `torch.Generator` it runs on through the epoch.
    """

    images: tuple[torch.Generator, ...] = ()
    """One for each image of the batch at hand."""

    common: torch.Generator
    """In the same state for each batch of an epoch, for what all images share."""

    def begin_batch(self, seeds: Iterable[int], common: int) -> None:
        """Seed the draws of a batch.

        Args:
            seeds: For each image.
            common: For what all images share.
        """
        self.images = tuple(torch.Generator().manual_seed(seed) for seed in seeds)
        self.common = torch.Generator().manual_seed(common)


def generator_of(generator: torch.Generator, image: int) -> torch.Generator:
    """Return the generator that an image's draws come from."""
    return generator.images[image] if isinstance(generator, ChipGenerator) else generator


def common_generator(generator: torch.Generator) -> torch.Generator:
    """Return the generator for what all images of a batch share."""
    return generator.common if isinstance(generator, ChipGenerator) else generator


def rand(generator: torch.Generator, count: int, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Draw (count, *shape) evenly from 0..1, for each of `count` images its part."""
    if not isinstance(generator, ChipGenerator):
        return torch.rand((count, *shape), generator=generator, dtype=dtype)
    return torch.stack([torch.rand(shape, generator=own, dtype=dtype) for own in generator.images])


def randint(generator: torch.Generator, high: int, count: int, *shape: int) -> Tensor:
    """Draw (count, *shape) whole numbers below `high`, for each of `count` images its part."""
    if not isinstance(generator, ChipGenerator):
        return torch.randint(high, (count, *shape), generator=generator)
    return torch.stack([torch.randint(high, shape, generator=own) for own in generator.images])


def permutation(generator: torch.Generator, count: int) -> Tensor:
    """Draw an order of the images; it depends on which are together in the batch."""
    if not isinstance(generator, ChipGenerator):
        return torch.randperm(count, generator=generator)
    return rand(generator, count, dtype=torch.float64).argsort()

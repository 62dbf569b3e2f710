"""Batch: images and what is known about them, on one device."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects in one image.

    Args:
        boxes: (n, 4) float32 left, top, right, bottom in pixels.
        labels: (n,) int64 class indices, 0..classes-1.
        masks: (n, height, width) bool, or None where objects have no outline.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def to(self, device: torch.device) -> 'Objects':
        """Return the same objects on a device."""
        return Objects(
            self.boxes.to(device), self.labels.to(device), None if self.masks is None else self.masks.to(device)
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Images and what is known about them; what a task does not need is None.

    Args:
        images: (n, bands, height, width) float32 in stored units, NaN where there is no data; (n, dates, bands, height,
            width) where a chip has several dates.
        masks: (n, height, width) int64 class indices, IGNORE_INDEX where a pixel takes no part.
        objects: Objects of each image.
        labels: Of whole images: (n,) int64 class indices, or (n, classes) float32 with 1 where a class is present and
            fractions after mixing.
    """

    images: Tensor
    masks: Tensor | None = None
    objects: tuple[Objects, ...] | None = None
    labels: Tensor | None = None

    def to(self, device: torch.device) -> 'Batch':
        """Return the same batch on a device."""
        return Batch(
            self.images.to(device),
            None if self.masks is None else self.masks.to(device),
            None if self.objects is None else tuple(objects.to(device) for objects in self.objects),
            None if self.labels is None else self.labels.to(device),
        )

    @property
    def targets(self) -> tuple[Tensor | tuple[Objects, ...], ...]:
        """What is known, in the order masks, objects, labels; empty for images alone."""
        return tuple(known for known in (self.masks, self.objects, self.labels) if known is not None)

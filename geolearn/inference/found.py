"""Objects that a network found in an image."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Found:
    """The objects that a network found in one image.

    Args:
        boxes: (n, 4) float32 left, top, right, bottom in pixels.
        labels: (n,) int64 class indices, 0..classes-1.
        scores: (n,) float32, 0..1.
        masks: (n, height, width) bool, or None where the network draws no outlines.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Tensor) -> 'Found':
        """Return some of the objects, by a boolean mask (n,) or by their numbers."""
        masks = None if self.masks is None else self.masks[rows]
        return Found(self.boxes[rows], self.labels[rows], self.scores[rows], masks)

    def cpu(self) -> 'Found':
        """Return the same objects on the CPU."""
        masks = None if self.masks is None else self.masks.cpu()
        return Found(self.boxes.cpu(), self.labels.cpu(), self.scores.cpu(), masks)


def join_found(parts: list[Found]) -> Found:
    """Put what was found in several looks at one image into one."""
    masks = [part.masks for part in parts if part.masks is not None]
    return Found(
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat(masks) if masks else None,
    )

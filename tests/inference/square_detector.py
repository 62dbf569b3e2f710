"""A network that detects bright squares exactly, and can be made to fail."""

import os
import signal
from types import SimpleNamespace

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from geolearn.batch import Detections


class SquareDetector(nn.Module):
    """Detects what is brighter than 0.5, pixel by pixel connected.

    Args:
        masks: Whether it draws outlines.
        ends_at: Number of the call in which it kills its process, or does what `end` does; -1 never.
        end: Is called then.
    """

    backbone = SimpleNamespace(has_position_grid=False, strides=(1,), trunk=None)
    context, finer = None, 1

    def __init__(self, *, masks=False, ends_at=-1, end=None) -> None:
        super().__init__()
        self.masks, self.ends_at, self.end = masks, ends_at, end
        self.calls = 0
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        if self.calls == self.ends_at:
            self.end() if self.end else os.kill(os.getpid(), signal.SIGKILL)
        self.calls += 1
        return [self._look(image.nan_to_num(0).numpy()[0] > 0.5) for image in images], {}

    def _look(self, bright):
        numbered, count = ndimage.label(bright, np.ones((3, 3)))
        boxes = [
            [cols.start, rows.start, cols.stop, rows.stop] for rows, cols in ndimage.find_objects(numbered) if count
        ]
        masks = torch.from_numpy(np.stack([numbered == n + 1 for n in range(count)])) if count else None
        if masks is None:
            masks = torch.zeros((0, *bright.shape), dtype=torch.bool)
        return Detections(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.zeros(count, dtype=torch.int64),
            torch.full((count,), 0.9),
            masks if self.masks else None,
        )

"""Centerline dice: whether lines such as roads are found in one piece, whatever their width."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from geolearn.classes import IGNORE_INDEX


class CenterlineDice(nn.Module):
    """1 - the harmonic mean of the shares of center lines within the other mask (Shit et al. 2021, arXiv:2003.07311).

    It is computed at half the size, at a quarter of the time: of each 2 x 2 pixels the highest counts.

    Args:
        lines: Indices of the classes that are lines.
        steps: Pixels from the edge of the widest line to its middle, at least.
    """

    def __init__(self, lines: Sequence[int], steps: int = 5) -> None:
        super().__init__()
        self.lines, self.steps = tuple(lines), -(-steps // 2)

    def counted(self, target: Tensor) -> Tensor:
        """Return the number of labelled pixels, by which batches weigh where they are added up."""
        return (target != IGNORE_INDEX).sum()

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, classes, H, W) against indices (N, H, W), 0..1; 0 if no pixel counts."""
        if not target.numel():
            return logits.float().sum() * 0
        counted = (target != IGNORE_INDEX)[:, None]
        predicted = logits.float().softmax(1)[:, self.lines].where(counted, 0)
        truth = torch.stack([target == line for line in self.lines], dim=1).float()
        predicted, truth = (functional.max_pool2d(maps, 2, ceil_mode=True) for maps in (predicted, truth))
        with torch.no_grad():
            middle_of_truth = soft_skeleton(truth, self.steps)
        middle = soft_skeleton(predicted, self.steps)
        precision = ((middle * truth).sum((0, 2, 3)) + 1) / (middle.sum((0, 2, 3)) + 1)
        recall = ((middle_of_truth * predicted).sum((0, 2, 3)) + 1) / (middle_of_truth.sum((0, 2, 3)) + 1)
        return (1 - 2 * precision * recall / (precision + recall)).mean()


def soft_skeleton(maps: Tensor, steps: int) -> Tensor:
    """Return the center lines of maps (N, C, H, W) of values 0..1, with gradients.

    Args:
        maps: Of lines.
        steps: Pixels from the edge of the widest line to its middle, at least.
    """
    skeleton = functional.relu(maps - _open(maps))
    for _ in range(steps):
        maps = _erode(maps)
        found = functional.relu(maps - _open(maps))
        skeleton = skeleton + functional.relu(found - skeleton * found)
    return skeleton


def _erode(maps: Tensor) -> Tensor:
    down = functional.max_pool2d(-maps, (3, 1), 1, (1, 0))
    across = functional.max_pool2d(-maps, (1, 3), 1, (0, 1))
    return -torch.maximum(down, across)


def _open(maps: Tensor) -> Tensor:
    return functional.max_pool2d(_erode(maps), 3, 1, 1)

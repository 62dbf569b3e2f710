"""The levels that detectors look at: a pyramid of maps of one width, and coarser ones by pooling."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

WIDTH = 256
"""Channels of every level."""


class Levels(nn.Module):
    """Bring a backbone's maps to one width, and add coarser levels.

    Convolutional networks' maps go through a feature pyramid network (Lin et al. 2017, arXiv:1612.03144); maps that
    already are of that width are a simple feature pyramid, and stay as they are.

    Args:
        channels: Of the maps, finest first.
        strides: Of the maps.
        pooled: How many levels to add, each every second pixel of the one before.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], *, pooled: int) -> None:
        super().__init__()
        self.strides = (*strides, *(strides[-1] * 2**step for step in range(1, pooled + 1)))
        self.fpn = None if set(channels) == {WIDTH} else FeaturePyramidNetwork(list(channels), WIDTH)
        self._pooled = pooled

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels (N, 256, ceil(H / stride), ceil(W / stride)), finest first."""
        if self.fpn is not None:
            maps = list(self.fpn(OrderedDict((str(i), found) for i, found in enumerate(maps))).values())
        levels = list(maps)
        for _ in range(self._pooled):
            levels.append(levels[-1][..., ::2, ::2])
        return levels

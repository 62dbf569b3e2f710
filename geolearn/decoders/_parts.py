"""Parts that decoders share: batch norm that takes one value, and maps in the order that smp's decoders expect."""

from collections.abc import Sequence
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

Module = TypeVar('Module', bound=nn.Module)


class PooledBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that, where a batch has one value per channel, trains with its running statistics.

    A map pooled to one pixel of a batch of one has no spread, and PyTorch refuses to train on it. The last batch of
    an epoch is often such a batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise maps (N, C, h, w); the shape is kept."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def take_single_values(module: Module) -> Module:
    """Put `PooledBatchNorm2d` in place of every batch norm of a module just built; names and values are kept."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            safe = PooledBatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum)
            safe.load_state_dict(child.state_dict())
            setattr(module, name, safe)
        else:
            take_single_values(child)
    return module


def fill_levels(maps: Sequence[Tensor], strides: Sequence[int], levels: Sequence[int]) -> list[Tensor]:
    """Return a map for each stride of `levels`; one of no channels stands for those that are not there.

    smp's decoders read the sizes of maps that they have no use for.

    Args:
        maps: Maps (N, C_i, H / strides[i], W / strides[i]).
        strides: Of the maps.
        levels: Strides wanted, in the order wanted.
    """
    by_stride, first = dict(zip(strides, maps)), maps[0]
    n, _, h, w = first.shape
    height, width = h * strides[0], w * strides[0]
    return [
        by_stride[level] if level in by_stride else first.new_empty(n, 0, height // level, width // level)
        for level in levels
    ]


def enlarge_to(coarse: Tensor, stride: int, wanted: int) -> Tensor:
    """Enlarge a map (N, C, h, w) of a stride to that of a finer one; the same where it is not coarser."""
    if stride <= wanted:
        return coarse
    return F.interpolate(coarse, scale_factor=stride / wanted, mode='bilinear', align_corners=False)

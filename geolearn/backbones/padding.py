"""Pad images to whole patches or strides, and cut maps back to what the image covers."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(x: Tensor, step: int) -> Tensor:
    """Pad images (..., H, W) right and bottom with zeros, until both sides are multiples of `step` pixels.

    Zero is the mean of normalised pixels.
    """
    return F.pad(x, (0, -x.shape[-1] % step, 0, -x.shape[-2] % step))


def crop_maps(maps: Sequence[Tensor], x: Tensor, strides: Sequence[int]) -> list[Tensor]:
    """Cut maps of the padded image to ceil(H / stride), ceil(W / stride) of the image `x` (..., H, W)."""
    return [m[..., : -(-x.shape[-2] // s), : -(-x.shape[-1] // s)] for m, s in zip(maps, strides)]

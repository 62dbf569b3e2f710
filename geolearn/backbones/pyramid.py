"""Maps at strides 4, 8, 16 and 32 from a plain transformer: ViTDet's simple pyramid, and one from four layers."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)
"""Strides of the pyramid, in pixels, finest first."""


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of every pixel of a map (B, C, h, w)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; the shape is kept."""
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


class SimpleFeaturePyramid(nn.Module):
    """Build maps at several strides by deconvolution, identity and pooling (Li et al. 2022, arXiv:2203.16527).

    Args:
        in_channels: Width of the transformer.
        out_channels: Channels of every map.
        patch: Stride of the input map, in pixels: 16, or 8, whose map is pooled once more.
        strides: Of the maps wanted, finest first; what nobody asks for is not computed.
        top: Whether every second pixel of the last map is added as one more map (P6 of detectors).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        patch: int = 16,
        *,
        strides: Sequence[int] = STRIDES,
        top: bool = False,
    ) -> None:
        super().__init__()
        _check_patch(patch)
        self.levels = nn.ModuleList(_level(in_channels, out_channels, patch / stride) for stride in strides)
        self.top = top
        self.strides = (*strides, 2 * strides[-1]) if top else tuple(strides)
        self.channels = (out_channels,) * len(self.strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Turn the last map (B, C, h, w) into maps, finest first; halves of odd sizes are rounded up."""
        maps = [level(x) for level in self.levels]
        return [*maps, maps[-1][..., ::2, ::2]] if self.top else maps


class LayerPyramid(nn.Module):
    """Bring four maps of one stride, from four layers, to the strides 4, 8, 16 and 32, keeping their width.

    The finest map comes from the earliest layer, by deconvolution; then identity and pooling. Decoders such as
    UperNet take these maps as they would those of a convolutional network.

    Args:
        channels: Width of the transformer, and of every map.
        patch: Stride of the maps that go in, in pixels: 16, or 8.
        strides: Of the maps wanted, finest first.
    """

    def __init__(self, channels: int, patch: int = 16, *, strides: Sequence[int] = STRIDES) -> None:
        super().__init__()
        _check_patch(patch)
        self.levels = nn.ModuleList(_scaling(channels, patch / stride) for stride in strides)
        self.strides = tuple(strides)
        self.channels = (channels,) * len(self.strides)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Scale one map (B, C, h, w) for each of the strides; halves of odd sizes are rounded up."""
        return [level(x) for level, x in zip(self.levels, maps)]


def _check_patch(patch: int) -> None:
    if patch not in (8, 16):
        raise ValueError(f'patch must be 8 or 16 for strides 4 to 32, got {patch}; resample the patch kernel to 16')


def _scaling(c: int, scale: float) -> nn.Module:
    """Make the layers that scale a map of `c` channels and keep their number."""
    if scale <= 1:
        step = round(1 / scale)
        return nn.Identity() if step == 1 else nn.MaxPool2d(step, step, ceil_mode=True)
    up = [nn.ConvTranspose2d(c, c, 2, stride=2) for _ in range(1 if scale == 2 else 2)]
    return up[0] if len(up) == 1 else nn.Sequential(up[0], LayerNorm2d(c), nn.GELU(), up[1])


def _level(in_channels: int, out_channels: int, scale: float) -> nn.Sequential:
    resample, channels = _resampling(in_channels, scale)
    return nn.Sequential(
        OrderedDict(
            **resample,
            lateral=nn.Conv2d(channels, out_channels, 1, bias=False),
            lateral_norm=LayerNorm2d(out_channels),
            output=nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            output_norm=LayerNorm2d(out_channels),
        )
    )


def _resampling(c: int, scale: float) -> tuple[dict[str, nn.Module], int]:
    """Make the layers that scale a map of `c` channels, and say how many channels come out."""
    if scale == 4:
        up1, up2 = nn.ConvTranspose2d(c, c // 2, 2, stride=2), nn.ConvTranspose2d(c // 2, c // 4, 2, stride=2)
        return {'up1': up1, 'up_norm': LayerNorm2d(c // 2), 'act': nn.GELU(), 'up2': up2}, c // 4
    if scale == 2:
        return {'up1': nn.ConvTranspose2d(c, c // 2, 2, stride=2)}, c // 2
    if scale == 1:
        return {}, c
    step = round(1 / scale)
    return {'pool': nn.MaxPool2d(step, step, ceil_mode=True)}, c

"""Attention maps of a frozen transformer as the input of the plain U-Net encoder."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import Backbone, TokenBackbone, create_backbone
from geolearn.bands import Band
from geolearn.errors import BackboneError

AttentionMode = Literal['extra', 'only']
"""Whether attention maps join the images' bands or stand in their place."""


class AttentionInput(nn.Module):
    """Turn images into the attention maps of a transformer pretrained on such images, one channel per head.

    A U-Net on radar images gained most from DINO's attention as extra input (FDL-Europe 2023), more than from
    training on DINO's features. The channels are the attention of the class token in the last block or, without a class
    token, that of all tokens on average. They are scaled so that 0 is a place that gets its equal share of
    attention, and 1 one that gets twice that, at any image size. The transformer is frozen and stays in evaluation.

    Args:
        backbone: A plain transformer in its native form, ``create_backbone(..., form='tokens')``.
        mode: ``'extra'`` appends the maps to the images' bands, ``'only'`` replaces them.

    Raises:
        BackboneError: If the backbone offers no attention maps.
    """

    def __init__(self, backbone: Backbone, mode: AttentionMode = 'extra') -> None:
        super().__init__()
        if mode not in get_args(AttentionMode):
            raise ValueError(f"mode must be 'extra' or 'only', got {mode!r}")
        if not isinstance(backbone, TokenBackbone) or not backbone.trunk.offers_attention:
            raise BackboneError(
                f'{backbone.name} offers no attention maps here; pass a plain transformer such as dofa_base, built '
                "with form='tokens'"
            )
        self.mode = mode
        self.backbone = backbone.requires_grad_(False).eval()
        last: Any = backbone.trunk.stages[-1]
        self.heads = int(last.attn.heads)

    def channels(self, bands: int) -> int:
        """Say how many channels come out for images of so many bands."""
        return self.heads + (bands if self.mode == 'extra' else 0)

    def train(self, mode: bool = True) -> 'AttentionInput':
        """Set the mode of training; the transformer stays in evaluation."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Turn normalized images (N, bands, H, W) of any size into inputs (N, channels(bands), H, W)."""
        maps = self.attention(x)
        return torch.cat([x, maps.to(x.dtype)], dim=1) if self.mode == 'extra' else maps.to(x.dtype)

    @torch.no_grad()
    def attention(self, x: Tensor) -> Tensor:
        """Compute attention maps (N, heads, H, W) of normalized images (N, bands, H, W), relative to equal shares."""
        height, width = x.shape[-2:]
        patch, prefix = self.backbone.strides[0], self.backbone.prefix
        rows, columns = -(-height // patch), -(-width // patch)
        attention = self.backbone.attention_maps(x)
        # a class token asks for the whole image; without one every place asks
        looks = attention[:, :, :1] if prefix else attention.mean(dim=2, keepdim=True)
        looks = looks[..., prefix:]
        if looks.shape[-1] != rows * columns:
            raise BackboneError(
                f'{self.backbone.name} has {looks.shape[-1]} tokens for {rows} x {columns} places; take one with a '
                'token per place, and images of one date'
            )
        share = looks / looks.mean(dim=-1, keepdim=True) - 1
        grid = share.reshape(x.shape[0], self.heads, rows, columns)
        maps = F.interpolate(grid, scale_factor=patch, mode='bilinear', align_corners=False)
        return maps[..., :height, :width]


ENCODER = 'plain_unet'


class AttentionEncoder(Backbone):
    """The plain U-Net encoder on images with a transformer's attention maps.

    Args:
        transformer: A transformer in its native form; it is frozen.
        mode: Whether the maps join the bands or replace them.
        bands: Of the images.

    Raises:
        BackboneError: If the transformer offers no attention maps.
        ValueError: If there is no such mode.
    """

    has_position_grid = True

    def __init__(self, transformer: Backbone, mode: AttentionMode, bands: Sequence[Band]) -> None:
        inputs = AttentionInput(transformer, mode)
        heads = tuple(Band(f'attention {head}') for head in range(inputs.heads))
        encoder = create_backbone(
            ENCODER, (*bands, *heads) if mode == 'extra' else heads, pretrained=False, strides=None
        )
        super().__init__(
            transformer.name,
            transformer.trunk,
            channels=encoder.channels,
            strides=encoder.strides,
            load_report=transformer.load_report,
        )
        del self._modules['trunk']  # it lies in `inputs`; a state dict is to hold it once
        self.inputs, self.encoder = inputs, encoder

    @property
    def coarsest_stride(self) -> int:
        """Pixels at whose multiples an image may be cut: of the encoder's maps and of the transformer's patches."""
        return math.lcm(*self.strides, self.inputs.backbone.coarsest_stride)

    @property
    def trunk(self) -> nn.Module:  # type: ignore[override]
        """The transformer, which stays frozen."""
        return self.inputs.backbone.trunk

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute maps at strides 1 to 8 from normalized images (N, bands, H, W)."""
        return self.encoder(self.inputs(x))

"""What every backbone promises, the two shapes that transformers come in, and the registry of builders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones.pyramid import STRIDES, SimpleFeaturePyramid
from geolearn.backbones.trunk import ViT
from geolearn.backbones.weights import LoadReport
from geolearn.bands import Band

Form = Literal['pyramid', 'tokens']
"""``'pyramid'``: feature maps, finest first. ``'tokens'``: the transformer's native tokens."""


class Backbone(nn.Module):
    """A network that maps normalised images (N, bands, H, W) of any size to feature maps, finest first.

    Called, it returns a list of maps (N, channels[i], ceil(H / strides[i]), ceil(W / strides[i])); in the form
    ``'tokens'`` it returns one tensor (N, 1 + n, D) instead, the class token first.

    Args:
        name: As given to `create_backbone`.
        trunk: The part that pretrained weights fill; everything else in the backbone is new.
        channels: Channels of each map.
        strides: Stride of each map, in pixels.
        load_report: What loading the weights did; None for random ones.
    """

    has_position_grid = False
    """Whether positions are embedded for one grid, so that other image sizes than in training cost accuracy."""

    def __init__(
        self,
        name: str,
        trunk: nn.Module,
        *,
        channels: Sequence[int],
        strides: Sequence[int],
        load_report: LoadReport | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.trunk = trunk
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.load_report = load_report


class PyramidBackbone(Backbone):
    """A plain transformer, windowed, with the simple feature pyramid on its last map.

    The class token and the final norm take no part, so they are frozen; nothing trainable stays without gradient.
    """

    trunk: ViT
    has_position_grid = True

    def __init__(
        self,
        name: str,
        trunk: ViT,
        *,
        strides: Sequence[int] = STRIDES,
        window: int | None = None,
        load_report: LoadReport | None = None,
    ) -> None:
        pyramid = SimpleFeaturePyramid(trunk.config.dim, patch=trunk.patch, strides=strides)
        super().__init__(name, trunk, channels=pyramid.channels, strides=pyramid.strides, load_report=load_report)
        self.window = window
        self.pyramid = pyramid
        for parameter in trunk.native_parameters():
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute maps (N, 256, ceil(H/s), ceil(W/s)) at the strides s from images (N, bands, H, W)."""
        return crop_maps(self.pyramid(self.trunk.last_map(x, self.window)), x, self.strides)


class TokenBackbone(Backbone):
    """A plain transformer in its native form: every block global, class token first."""

    trunk: ViT

    def __init__(self, name: str, trunk: ViT, *, load_report: LoadReport | None = None) -> None:
        super().__init__(name, trunk, channels=(trunk.config.dim,), strides=(trunk.patch,), load_report=load_report)

    def forward(self, x: Tensor) -> Tensor:
        """Compute tokens (N, 1 + h*w, D), final norm applied where the weights have one."""
        return self.trunk.tokens(x)


class ConvBackbone(Backbone):
    """A convolutional trunk that returns one map per stride."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute one map per stride from images (N, bands, H, W), padded with zeros to the coarsest stride."""
        step = max(self.strides)
        padded = F.pad(x, (0, -x.shape[-1] % step, 0, -x.shape[-2] % step))
        return crop_maps(self.trunk(padded), x, self.strides)


def crop_maps(maps: Sequence[Tensor], x: Tensor, strides: Sequence[int]) -> list[Tensor]:
    """Cut maps of the padded image to ceil(H / stride), ceil(W / stride) of the image `x` (N, bands, H, W)."""
    return [m[..., : -(-x.shape[-2] // s), : -(-x.shape[-1] // s)] for m, s in zip(maps, strides)]


@dataclass(frozen=True, slots=True)
class BackboneOptions:
    """How to build a backbone; the arguments of `create_backbone`, checked."""

    pretrained: bool = True
    weights: str | Path | None = None
    form: Form = 'pyramid'
    window: int | None = None
    drop_path: float = 0.0
    strides: tuple[int, ...] = STRIDES

    def __post_init__(self) -> None:
        if self.form not in ('pyramid', 'tokens'):
            raise ValueError(f"form must be 'pyramid' or 'tokens', got {self.form!r}")
        if self.window is not None and self.window < 0:
            raise ValueError(f'window must be None, 0 for global attention, or a side in tokens, got {self.window}')
        if not 0 <= self.drop_path < 1:
            raise ValueError(f'drop_path must lie in 0..1, got {self.drop_path}')
        if not self.strides or list(self.strides) != [s for s in STRIDES if s in self.strides]:
            raise ValueError(f'strides must be some of {STRIDES}, finest first, got {self.strides}')


Builder = Callable[[str, tuple[Band, ...], BackboneOptions], Backbone]
"""Builds the backbone of a name for images with these bands."""

BUILDERS: dict[str, Builder] = {}
"""Every registered backbone by name; fill it with `register_backbone`."""


def register_backbone(name: str) -> Callable[[Builder], Builder]:
    """Decorate the function that builds backbone `name`."""

    def add(build: Builder) -> Builder:
        if name in BUILDERS:
            raise ValueError(f'backbone {name!r} is already registered by {BUILDERS[name].__module__}')
        BUILDERS[name] = build
        return build

    return add

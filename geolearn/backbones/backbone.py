"""What every backbone promises, the shapes that transformers come in, and the registry of builders."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn import bands, errors
from geolearn.adaptation import is_whole
from geolearn.backbones import loading, vit
from geolearn.backbones.trunk import Trunk

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
        """Normalize; the shape is kept."""
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


class SimpleFeaturePyramid(nn.Module):
    """Build maps at several strides by deconvolution, identity and pooling (Li et al. 2022, arXiv:2203.16527).

    Args:
        in_channels: Width of the transformer.
        out_channels: Channels of every map.
        patch: Stride of the input map, in pixels: 16, or 8, 4, 2 or 1, whose map is pooled more.
        strides: Of the maps wanted, finest first; others are not computed.
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
        patch: Stride of the maps that go in, in pixels: 16, 8, 4, 2 or 1.
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
    if patch not in (1, 2, 4, 8, 16):
        raise ValueError(
            f'patch must be 1, 2, 4, 8 or 16 for strides 4 to 32, got {patch}; resample the patch kernel to 16'
        )


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


Form = Literal['pyramid', 'layers', 'tokens']
"""What a backbone returns: ``'pyramid'`` and ``'layers'`` feature maps, finest first; ``'tokens'`` native tokens."""


@dataclass(frozen=True, slots=True)
class BackboneOptions:
    """How to build a backbone; the arguments of `create_backbone`, checked as far as no network is needed for it."""

    pretrained: bool = True
    weights: str | Path | None = None
    form: Form = 'pyramid'
    window: int | None = None
    drop_path: float = 0.0
    strides: tuple[int, ...] | None = STRIDES
    layers: tuple[int, ...] | None = None
    relative_positions: bool = False
    checkpointing: bool = False
    patch: int | None = None

    def __post_init__(self) -> None:
        forms = get_args(Form)
        if self.form not in forms:
            raise ValueError(f'form must be {", ".join(map(repr, forms[:-1]))} or {forms[-1]!r}, got {self.form!r}')
        for name in ('pretrained', 'relative_positions', 'checkpointing'):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f'{name} must be True or False, got {getattr(self, name)!r}')
        if self.weights is not None and not isinstance(self.weights, str | PathLike):
            raise ValueError(f'weights must be a path to a file or folder, got {type(self.weights).__name__}')
        if self.window is not None and not (is_whole(self.window) and self.window >= 0):
            raise ValueError(f'window must be None, 0 for global attention, or a side in tokens, got {self.window!r}')
        if self.patch is not None and not (is_whole(self.patch) and self.patch > 0):
            raise ValueError(f'patch must be None or a side in pixels, got {self.patch!r}')
        if (
            isinstance(self.drop_path, bool)
            or not isinstance(self.drop_path, int | float)
            or not 0 <= self.drop_path < 1
        ):
            raise ValueError(f'drop_path must lie in 0..1, got {self.drop_path!r}')
        for name in ('strides', 'layers'):
            values = getattr(self, name)
            if values is not None and not (isinstance(values, tuple) and all(map(is_whole, values))):
                raise ValueError(f'{name} must be None or a list of whole numbers, got {values!r}')
        if self.layers is not None and self.form == 'pyramid':
            raise ValueError("layers goes with the forms 'layers' and 'tokens'; the pyramid stands on the last layer")
        if self.relative_positions and self.form == 'tokens':
            raise ValueError("relative_positions go with the forms 'pyramid' and 'layers'; native tokens have none")

    @property
    def wants_weights(self) -> bool:
        """Whether the trunk is to be filled with pretrained weights."""
        return self.pretrained or self.weights is not None


def choose_strides(name: str, asked: Sequence[int] | None, offered: Sequence[int] = STRIDES) -> tuple[int, ...]:
    """Return the strides that are asked for, finest first; all that a network offers where None are.

    Raises:
        BackboneError: If one is not offered, or they are out of order; the message names what is offered.
    """
    offered = tuple(offered)
    if asked is None:
        return offered
    strides = tuple(asked)
    if not strides or strides != tuple(stride for stride in offered if stride in strides):
        raise errors.BackboneError(
            f'{name} has no such maps: strides must be some of {offered}, finest first, got {strides}; '
            'strides=None takes all of them'
        )
    return strides


def end_at_coarsest(strides: Sequence[int], offered: Sequence[int]) -> tuple[int, ...]:
    """Put a network's own last map in place of the last stride, where that is 16 or more.

    A network of several resolutions was made to end in its coarsest map; what comes before sees too little.
    """
    return (*strides[:-1], max(offered)) if strides[-1] >= STRIDES[-2] else tuple(strides)


def refuse_transformer_options(name: str, options: BackboneOptions) -> None:
    """Raise BackboneError where options ask a network of several resolutions for what plain transformers have.

    Its own maps serve as ``'pyramid'`` and as ``'layers'``.
    """
    if options.form == 'tokens':
        raise errors.BackboneError(
            f"{name} is a network of several resolutions without tokens; form must be 'pyramid' or 'layers'"
        )
    if options.layers is not None or options.relative_positions or options.window:
        raise errors.BackboneError(
            f'{name} is no plain transformer; layers, window and relative_positions do not apply'
        )


class Backbone(nn.Module):
    """A network that maps normalized images (N, bands, H, W) of any size to feature maps, finest first.

    Called, it returns a list of maps (N, channels[i], ceil(H / strides[i]), ceil(W / strides[i])); in the form
    ``'tokens'`` it returns one tensor (N, prefix + n, D) instead, a class token first where the network has one.

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
        load_report: loading.LoadReport | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.trunk = trunk
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.load_report = load_report

    @property
    def takes_missing(self) -> bool:
        """Whether NaN may stand for missing values, which then take no part; others need them filled."""
        return isinstance(self.trunk, Trunk) and self.trunk.takes_missing

    @property
    def coarsest_stride(self) -> int:
        """Pixels at whose multiples an image may be cut so that every part is seen through the same patches."""
        return math.lcm(*self.strides, self.trunk.step if isinstance(self.trunk, Trunk) else 1)

    def enable_checkpointing(self) -> None:
        """Let training compute activations again instead of keeping them.

        Raises:
            BackboneError: If the network cannot do that.
        """
        if not isinstance(self.trunk, Trunk):
            raise errors.BackboneError(f'{self.name} cannot recompute activations; pass checkpointing=False')
        self.trunk.set_grad_checkpointing()


class MapBackbone(Backbone):
    """A plain transformer, windowed, with a pyramid on the maps of some of its layers."""

    trunk: Trunk
    layers: tuple[int, ...]
    window: int | None
    pyramid: Any
    has_position_grid = True

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute maps (N, C, ceil(H/s), ceil(W/s)) at the strides s from images (N, bands, H, W)."""
        return self.finish(self.trunk.maps(x, self.layers, self.window), x)

    def finish(self, maps: Sequence[Tensor], x: Tensor) -> list[Tensor]:
        """Turn the trunk's maps of images `x`, one for each of `layers`, into what `forward` returns."""
        return vit.crop_maps(self.pyramid(maps), x, self.strides)


class PyramidBackbone(MapBackbone):
    """A plain transformer, windowed, with the simple feature pyramid on its last map.

    The class token and the final norm take no part, so they are frozen; nothing trainable stays without gradient.
    """

    def __init__(
        self,
        name: str,
        trunk: Trunk,
        *,
        strides: Sequence[int] = STRIDES,
        window: int | None = None,
        load_report: loading.LoadReport | None = None,
    ) -> None:
        pyramid = SimpleFeaturePyramid(trunk.dim, patch=trunk.patch, strides=strides)
        super().__init__(name, trunk, channels=pyramid.channels, strides=pyramid.strides, load_report=load_report)
        self.layers = (trunk.depth - 1,)
        self.window = window
        self.pyramid = pyramid
        _freeze_native(trunk)

    def finish(self, maps: Sequence[Tensor], x: Tensor) -> list[Tensor]:
        """Turn the trunk's last map of images `x` into what `forward` returns."""
        return vit.crop_maps(self.pyramid(maps[0]), x, self.strides)


class LayerBackbone(MapBackbone):
    """A plain transformer, windowed, whose maps of four layers are brought to four strides; see `LayerPyramid`.

    Args:
        name: As given to `create_backbone`.
        trunk: The transformer.
        layers: Four blocks, counted from 0, the one for the finest map first; None spaces them evenly,
            and takes the last for one map alone.
        strides: Of the maps, some of 4, 8, 16, 32.
        window: Side of the attention windows, as for `PyramidBackbone`.
        load_report: What loading the weights did.
    """

    def __init__(
        self,
        name: str,
        trunk: Trunk,
        *,
        layers: Sequence[int] | None = None,
        strides: Sequence[int] = STRIDES,
        window: int | None = None,
        load_report: loading.LoadReport | None = None,
    ) -> None:
        pyramid = LayerPyramid(trunk.dim, trunk.patch, strides=strides)
        super().__init__(name, trunk, channels=pyramid.channels, strides=pyramid.strides, load_report=load_report)
        if layers is None:
            layers = _four_layers(trunk.depth) if len(pyramid.strides) > 1 else [trunk.depth - 1] * len(STRIDES)
        chosen = tuple(layers)
        _check_layers(name, chosen, trunk.depth)
        if len(chosen) != len(STRIDES):
            raise errors.BackboneError(f"the form 'layers' of {name} needs four layers, got {chosen}")
        self.layers = tuple(chosen[STRIDES.index(stride)] for stride in pyramid.strides)
        self.window = window
        self.pyramid = pyramid
        _freeze_native(trunk)
        _freeze_after(trunk, self.layers)


class TokenBackbone(Backbone):
    """A plain transformer in its native form: every block global, class token first where there is one.

    Args:
        name: As given to `create_backbone`.
        trunk: The transformer.
        layers: Blocks, counted from 0, whose outputs are returned as a list, before any final norm; None returns one
            tensor, the last block's output after the final norm.
        load_report: What loading the weights did.
    """

    trunk: Trunk

    def __init__(
        self,
        name: str,
        trunk: Trunk,
        *,
        layers: Sequence[int] | None = None,
        load_report: loading.LoadReport | None = None,
    ) -> None:
        count = 1 if layers is None else len(layers)
        super().__init__(
            name, trunk, channels=(trunk.dim,) * count, strides=(trunk.patch,) * count, load_report=load_report
        )
        if layers is not None:
            _check_layers(name, layers, trunk.depth)
            _freeze_after(trunk, layers)
            # of what maps do without, tokens in front, which have three dimensions, still take part
            _freeze_native(trunk, but_dim=3)
        self.layers = None if layers is None else tuple(layers)

    @property
    def prefix(self) -> int:
        """Tokens in front that belong to no place: 1 with a class token, else 0."""
        return self.trunk.prefix

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Compute tokens (N, prefix + n, D), final norm applied where the weights have one; or those of `layers`."""
        if self.layers is None:
            return self.trunk.tokens(x)
        states = self.trunk.hidden_states(x)
        return [states[layer] for layer in self.layers]

    def attention_maps(self, x: Tensor) -> Tensor:
        """Return the last block's attention (N, heads, prefix + n, prefix + n); rows sum to 1.

        Raises:
            BackboneError: If this family does not offer it.
        """
        if not self.trunk.offers_attention:
            raise errors.BackboneError(
                f'{self.name} does not offer attention maps; take a plain transformer such as dofa_base'
            )
        return self.trunk.attention_maps(x)


class ConvBackbone(Backbone):
    """A convolutional trunk that returns one map per stride."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute one map per stride from images (N, bands, H, W), padded with zeros to the coarsest stride."""
        return vit.crop_maps(self.trunk(vit.pad_to_multiple(x, max(self.strides))), x, self.strides)


def finish_backbone(
    name: str, trunk: Trunk, options: BackboneOptions, *, load_report: loading.LoadReport | None = None
) -> Backbone:
    """Put a trunk into the form that the options ask for.

    Raises:
        BackboneError: If a map is asked for at a stride that is not 4, 8, 16 or 32.
    """
    strides = choose_strides(name, options.strides)
    if options.form == 'pyramid':
        return PyramidBackbone(name, trunk, strides=strides, window=options.window, load_report=load_report)
    if options.form == 'layers':
        return LayerBackbone(
            name,
            trunk,
            layers=options.layers,
            strides=strides,
            window=options.window,
            load_report=load_report,
        )
    return TokenBackbone(name, trunk, layers=options.layers, load_report=load_report)


def _freeze_native(trunk: Trunk, *, but_dim: int | None = None) -> None:
    for parameter in trunk.native_parameters():
        if parameter.dim() != but_dim:
            parameter.requires_grad_(False)


def _freeze_after(trunk: Trunk, layers: Sequence[int]) -> None:
    for stage in trunk.stages[max(layers) + 1 :]:
        stage.requires_grad_(False)


def _four_layers(depth: int) -> tuple[int, ...]:
    if depth < len(STRIDES):
        raise errors.BackboneError(
            f"the form 'layers' needs four blocks or more, the network has {depth}; take 'pyramid'"
        )
    return vit.global_blocks(depth)


def _check_layers(name: str, layers: Sequence[int], depth: int) -> None:
    if not layers or any(not 0 <= layer < depth for layer in layers):
        raise errors.BackboneError(f'layers of {name} must lie in 0..{depth - 1}, got {tuple(layers)}')


Builder = Callable[[str, tuple[bands.Band, ...], BackboneOptions], Backbone]
"""Builds the backbone of a name for images with these bands."""


@dataclass(frozen=True, slots=True)
class Registration:
    """How the backbones of one family are built.

    Args:
        build: Builds one.
        offers_tokens: Whether the one of a name has the form ``'tokens'``.
    """

    build: Builder
    offers_tokens: Callable[[str], bool]


BUILDERS: dict[str, Registration] = {}
"""Every registered backbone by name; fill it with `register_backbone`."""


def register_backbone(name: str, *, tokens: bool | Callable[[str], bool] = True) -> Callable[[Builder], Builder]:
    """Decorate the function that builds backbone `name`.

    Args:
        name: For `create_backbone`.
        tokens: Whether it has the form ``'tokens'``, or a function that says so of its name.
    """
    offers = tokens if callable(tokens) else lambda _: tokens

    def add(build: Builder) -> Builder:
        if name in BUILDERS:
            raise ValueError(f'backbone {name!r} is already registered by {BUILDERS[name].build.__module__}')
        BUILDERS[name] = Registration(build, offers)
        return build

    return add

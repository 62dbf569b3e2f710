"""What every backbone promises, the shapes that transformers come in, and the registry of builders."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from geolearn.backbones.options import BackboneOptions, choose_strides
from geolearn.backbones.pyramid import STRIDES, LayerPyramid, SimpleFeaturePyramid
from geolearn.backbones.token_grid import crop_maps, pad_to_multiple
from geolearn.backbones.trunk import Trunk
from geolearn.backbones.vit import global_blocks
from geolearn.backbones.weights import LoadReport
from geolearn.bands import Band
from geolearn.errors import BackboneError


class Backbone(nn.Module):
    """A network that maps normalised images (N, bands, H, W) of any size to feature maps, finest first.

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
        load_report: LoadReport | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.trunk = trunk
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.load_report = load_report


class MapBackbone(Backbone):
    """A plain transformer, windowed, with a pyramid on the maps of some of its layers."""

    trunk: Any
    layers: tuple[int, ...]
    window: int | None
    pyramid: Any
    has_position_grid = True

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute maps (N, C, ceil(H/s), ceil(W/s)) at the strides s from images (N, bands, H, W)."""
        return self.finish(self.trunk.maps(x, self.layers, self.window), x)

    def finish(self, maps: Sequence[Tensor], x: Tensor) -> list[Tensor]:
        """Turn the trunk's maps of images `x`, one for each of `layers`, into what `forward` returns."""
        return crop_maps(self.pyramid(maps), x, self.strides)


class PyramidBackbone(MapBackbone):
    """A plain transformer, windowed, with the simple feature pyramid on its last map.

    The class token and the final norm take no part, so they are frozen; nothing trainable stays without gradient.
    """

    def __init__(
        self,
        name: str,
        trunk: Any,
        *,
        strides: Sequence[int] = STRIDES,
        window: int | None = None,
        load_report: LoadReport | None = None,
    ) -> None:
        pyramid = SimpleFeaturePyramid(trunk.dim, patch=trunk.patch, strides=strides)
        super().__init__(name, trunk, channels=pyramid.channels, strides=pyramid.strides, load_report=load_report)
        self.layers = (trunk.depth - 1,)
        self.window = window
        self.pyramid = pyramid
        _freeze_native(trunk)

    def finish(self, maps: Sequence[Tensor], x: Tensor) -> list[Tensor]:
        """Turn the trunk's last map of images `x` into what `forward` returns."""
        return crop_maps(self.pyramid(maps[0]), x, self.strides)


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
        trunk: Any,
        *,
        layers: Sequence[int] | None = None,
        strides: Sequence[int] = STRIDES,
        window: int | None = None,
        load_report: LoadReport | None = None,
    ) -> None:
        pyramid = LayerPyramid(trunk.dim, trunk.patch, strides=strides)
        super().__init__(name, trunk, channels=pyramid.channels, strides=pyramid.strides, load_report=load_report)
        if layers is None:
            layers = _four_layers(trunk.depth) if len(pyramid.strides) > 1 else [trunk.depth - 1] * len(STRIDES)
        chosen = tuple(layers)
        _check_layers(name, chosen, trunk.depth)
        if len(chosen) != len(STRIDES):
            raise BackboneError(f"the form 'layers' of {name} needs four layers, got {chosen}")
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

    trunk: Any

    def __init__(
        self, name: str, trunk: Any, *, layers: Sequence[int] | None = None, load_report: LoadReport | None = None
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
        if not hasattr(self.trunk, 'attention_maps'):
            raise BackboneError(
                f'{self.name} does not offer attention maps; take a plain transformer such as dofa_base'
            )
        return self.trunk.attention_maps(x)


class ConvBackbone(Backbone):
    """A convolutional trunk that returns one map per stride."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute one map per stride from images (N, bands, H, W), padded with zeros to the coarsest stride."""
        return crop_maps(self.trunk(pad_to_multiple(x, max(self.strides))), x, self.strides)


def finish_backbone(
    name: str, trunk: Trunk, options: BackboneOptions, *, load_report: LoadReport | None = None
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


def _freeze_native(trunk: Any, *, but_dim: int | None = None) -> None:
    for parameter in trunk.native_parameters():
        if parameter.dim() != but_dim:
            parameter.requires_grad_(False)


def _freeze_after(trunk: Any, layers: Sequence[int]) -> None:
    for stage in trunk.stages[max(layers) + 1 :]:
        stage.requires_grad_(False)


def _four_layers(depth: int) -> tuple[int, ...]:
    if depth < len(STRIDES):
        raise BackboneError(f"the form 'layers' needs four blocks or more, the network has {depth}; take 'pyramid'")
    return global_blocks(depth)


def _check_layers(name: str, layers: Sequence[int], depth: int) -> None:
    if not layers or any(not 0 <= layer < depth for layer in layers):
        raise BackboneError(f'layers of {name} must lie in 0..{depth - 1}, got {tuple(layers)}')


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

"""Encoder: a backbone with its normalization, bound to bands, that turns images into grids of vectors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from geolearn import errors
from geolearn.adaptation import is_whole
from geolearn.backbones import Backbone, TokenBackbone, create_backbone, offers_tokens
from geolearn.backbones.trunk import BlockTrunk, Trunk
from geolearn.bands import Band
from geolearn.device import choose_device
from geolearn.embed import scaling
from geolearn.embed.embeddings import KEY, EmbeddingSource
from geolearn.files import file_states
from geolearn.inference.encoding import VectorEncoding
from geolearn.inference.options import TilingOptions
from geolearn.inference.resume import weights_digest
from geolearn.networks.network import Network, Normalize
from geolearn.networks.spec import ModelSpec
from geolearn.normalize import Normalization

Pooling = Literal['mean', 'max', 'cls']
"""How the tokens of an image become one vector."""

DEFAULT_CONTEXT = 224
"""Side of the images, in pixels, that most transformers were pretrained on."""

CONVOLUTION_TILE = 512


class EmbeddingNetwork(Network):
    """Turns images (N, bands, H, W) in stored units, NaN where there is no data, into grids of vectors.

    Args:
        normalize: Takes the images first.
        backbone: In the form ``'tokens'``, or a network of several resolutions.
        layer: Whose output is taken: of a transformer's blocks, or of a convolutional network's maps; -1 is the last.

    Raises:
        BackboneError: If there is no such layer.
    """

    def __init__(self, normalize: Normalize, backbone: Backbone, layer: int = -1) -> None:
        super().__init__(normalize, backbone)
        self.has_tokens = isinstance(backbone, TokenBackbone)
        trunk = backbone.trunk
        count = trunk.depth if self.has_tokens and isinstance(trunk, Trunk) else len(backbone.strides)
        if not isinstance(layer, int) or isinstance(layer, bool) or not -count <= layer < count:
            kind = 'blocks' if self.has_tokens else 'maps'
            raise errors.BackboneError(
                f'layer must be a number from 0 to {count - 1}, counted over the {kind} of {backbone.name}, or -1 for '
                f'the last; got {layer!r}'
            )
        self.layer = layer
        number = 0 if self.has_tokens else layer
        self.stride, self.dimensions = backbone.strides[number], backbone.channels[number]

    @property
    def prefix(self) -> int:
        """Tokens in front that belong to no place: 1 with a class token, else 0."""
        return self.backbone.prefix if isinstance(self.backbone, TokenBackbone) else 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the vector of each token, (N, dimensions, ceil(H / stride), ceil(W / stride))."""
        return self.vectors(x)[0]

    def vectors(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the grid of tokens as `forward` does, and the class token (N, dimensions) where there is one."""
        images = self.normalize(x)
        trunk = self.backbone.trunk
        if not self.has_tokens:
            grid: Tensor = self.backbone(images)[self.layer]
            return grid, None
        assert isinstance(trunk, Trunk)  # of a backbone with tokens
        # the last layer is taken after the final norm, others as they leave their block
        tokens = self.backbone(images) if self.layer == -1 else trunk.hidden_states(images)[self.layer]
        rows, columns = -(-x.shape[-2] // self.stride), -(-x.shape[-1] // self.stride)
        places = tokens[:, self.prefix :]
        groups, rest = divmod(places.shape[1], rows * columns)
        if rest:
            raise errors.BackboneError(
                f'{self.backbone.name} gives {places.shape[1]} tokens for {rows} x {columns} places, which is no grid'
            )
        # networks with tokens for several groups of bands give them group by group
        places = places.unflatten(1, (groups, rows * columns)).mean(dim=1)
        grid = places.transpose(1, 2).unflatten(2, (rows, columns))
        return grid, tokens[:, 0] if self.prefix else None


Attention = Literal['heads', 'rollout']
"""Which attention of a transformer is taken: that of each head of a block, or of all blocks together."""


class AttentionNetwork(EmbeddingNetwork):
    """Turns images into what a transformer attends to, in its native form, in which every block sees the whole image.

    A token's value is the attention that the class token gives it or, without one, that all tokens give it on average,
    relative to an equal share: 0 is that share, 1 twice of it.

    Args:
        normalize: Takes the images first.
        backbone: A plain transformer in the form ``'tokens'``.
        layer: Block whose attention is taken, counted from 0; -1 is the last.
        kind: ``'heads'``, one map for each head of the block; or ``'rollout'``, one map of all blocks up to it: the
            product of their attention, averaged over heads, where each token keeps half of what it was (Abnar and
            Zuidema 2020, arXiv:2005.00928).

    Raises:
        BackboneError: If the backbone offers no attention, or has no such block.
        UnknownNameError: If there is no such kind.
    """

    def __init__(self, normalize: Normalize, backbone: Backbone, layer: int = -1, kind: Attention = 'heads') -> None:
        super().__init__(normalize, backbone, layer)
        if kind not in get_args(Attention):
            raise errors.UnknownNameError('kind of attention', str(kind), get_args(Attention))
        trunk = backbone.trunk
        if not (self.has_tokens and isinstance(trunk, Trunk) and trunk.offers_attention):
            raise errors.BackboneError(
                f'{backbone.name} offers no attention maps; take a plain transformer such as dofa_base'
            )
        self.kind = kind
        self.dimensions = trunk.heads if kind == 'heads' else 1

    def vectors(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a map for each head (N, heads, h, w), or one of the rollout, and no class token."""
        trunk: Any = self.backbone.trunk
        tokens = trunk.first_tokens(self.normalize(x))
        last = self.layer % trunk.depth
        rollout: Tensor | None = None
        for number, block in enumerate(trunk.stages):
            if self.kind == 'rollout' or number == last:
                weights = trunk.attention_in(block, tokens)
            if self.kind == 'rollout':
                mixed = (weights.mean(dim=1) + torch.eye(weights.shape[-1], device=weights.device)) / 2
                rollout = mixed if rollout is None else mixed @ rollout
            if number == last:
                break
            tokens = block(tokens)
        found = weights if rollout is None else rollout[:, None]
        # a class token asks for the whole image; without one every place asks
        looks = found[:, :, 0] if self.prefix else found.mean(dim=2)
        looks = looks[..., self.prefix :]
        rows, columns = -(-x.shape[-2] // self.stride), -(-x.shape[-1] // self.stride)
        if looks.shape[-1] != rows * columns:
            raise errors.BackboneError(
                f'{self.backbone.name} has {looks.shape[-1]} tokens for {rows} x {columns} places; take one with a '
                'token per place'
            )
        share = looks / looks.mean(dim=-1, keepdim=True) - 1
        return share.unflatten(2, (rows, columns)), None


@dataclass(frozen=True)
class EncoderOptions:
    """Which backbone embeds images, and how.

    Args:
        backbone: Its name; see `geolearn.list_backbones`.
        layer: Whose output is taken: a block of a transformer, counted from 0, before any norm, or a map of a
            convolutional network, finest first; -1 for the last, after the final norm.
        normalize: What pixels are normalized by; see `geolearn.embed.scaling.choose_normalization`.
        pretrained: Whether to fill the backbone with its published weights.
        weights: A file or folder with weights, or a .dlpk, instead of fetching them.
        wavelengths: Center of each band in micrometers, None for radar, instead of what the bands' names say.
        resolution_m: Of the images in meters per pixel, for backbones whose positions depend on it.
        tile: Side of the tiles that are computed together, in pixels; None takes what is fast.
        context: Side of the images that a transformer sees, in pixels; larger ones are cut. None takes that of its
            pretraining. Convolutional networks see whole tiles.
        device: Torch device; None means CUDA where there is one.
        check_values: Whether to refuse pixels that look normalized already.
        attention: Take attention maps in the place of vectors.

    Raises:
        ValueError: If `tile` or `context` is no size.
    """

    backbone: str = 'dofa_base'
    layer: int = -1
    normalize: scaling.Normalize = None
    pretrained: bool = True
    weights: str | Path | None = None
    wavelengths: Sequence[float | None] | None = None
    resolution_m: float | None = None
    tile: int | None = None
    context: int | None = None
    device: str | None = None
    check_values: bool = True
    attention: Attention | None = None

    @property
    def counts_images(self) -> bool:
        """Whether pixels are normalized by statistics of the images themselves."""
        if self.normalize is None:
            return not self.pretrained and self.weights is None
        return isinstance(self.normalize, str) and self.normalize in ('dataset', 'minmax', 'robust')

    def __post_init__(self) -> None:
        for name in ('tile', 'context'):
            check_positive(name, getattr(self, name), 'pixels')


def check_positive(name: str, value: Any, what: str) -> None:
    """Refuse what is no whole number above 0; None is none, and leaves the choice open.

    Raises:
        ValueError: With the name of the argument.
    """
    if value is not None and not (is_whole(value) and value > 0):
        raise ValueError(f'{name} must be a number of {what} above 0, got {value!r}')


@dataclass(frozen=True, eq=False)
class Encoder:
    """A backbone that is ready to embed images of certain bands.

    Args:
        network: On its device, in evaluation.
        spec: Bands, units and normalization, by which rasters are read and checked.
        source: What its embeddings say of themselves, before they are pooled.
        side: Of the images that it sees, in pixels.
        images: Of this size that are computed together in large rasters; None leaves it to the engine.
        device: That the network is on.
    """

    network: EmbeddingNetwork
    spec: ModelSpec
    source: EmbeddingSource
    side: int
    images: int | None
    device: torch.device

    def cutting(self, tiling: TilingOptions) -> 'Encoder':
        """Return the same encoder, whose embeddings say how large images are cut."""
        context = tiling.tile_size if self.network.has_tokens and tiling.tile_size else self.source.context
        return replace(self, source=replace(self.source, context=context, blend=tiling.blend or 'crop'))

    def encoding(self, dtype: str = 'float32') -> VectorEncoding:
        """Say how the network's outputs become bands of a raster, stored as ``'float32'`` or ``'float16'``."""
        names = tuple(f'embedding {number}' for number in range(self.network.dimensions))
        return VectorEncoding(names, dtype, {KEY.upper(): self.source.to_json()})

    @torch.inference_mode()
    def encode(self, images: np.ndarray | Tensor) -> tuple[Tensor, Tensor | None]:
        """Embed images (N, bands, H, W) in stored units; returns grids and class tokens as `EmbeddingNetwork` does."""
        batch = torch.as_tensor(images, dtype=torch.float32)
        return self.network.vectors(batch.to(self.device))


def check_pooling(pooling: str, network: EmbeddingNetwork) -> None:
    """Refuse a pooling that there is not.

    Raises:
        UnknownNameError: If there is none of that name.
        BackboneError: If the backbone has no class token.
    """
    if pooling not in get_args(Pooling):
        raise errors.UnknownNameError('pooling', str(pooling), get_args(Pooling))
    if pooling == 'cls' and not network.prefix:
        raise errors.BackboneError(f"{network.backbone.name} has no class token; pass pooling='mean' or 'max'")


def make_encoder(options: EncoderOptions, bands: Sequence[Band], sample: np.ndarray, *, dtype: str) -> Encoder:
    """Build the backbone for images of certain bands, and choose what they are normalized by.

    Args:
        options: Which backbone, and how.
        bands: Of the images, in order.
        sample: Pixels of the images that have data (bands, n), as they are stored.
        dtype: Stored dtype of the images.

    Raises:
        UnknownNameError: If there is no such backbone or normalization.
        BackboneError: If it has no such layer, or its weights state no mean and std for these bands and units.
        BandError: If bands lack a wavelength that it needs.
        WeightsError: If weights cannot be had or do not fit.
        RasterError: If no pixel has data, or pixels look normalized already.
    """
    bands = tuple(bands)
    has_weights = options.pretrained or options.weights is not None
    normalization, statistics = scaling.choose_normalization(
        options.normalize,
        sample,
        bands,
        options.backbone,
        dtype=dtype,
        pretrained=has_weights,
        weights=options.weights,
        check_values=options.check_values,
    )
    device = choose_device(options.device)
    backbone, digest = _build_backbone(
        options.backbone,
        bands,
        options.pretrained,
        None if options.weights is None else str(options.weights),
        options.resolution_m,
        device,
        (_state_of(options.backbone), _state_of(options.weights)),
    )
    network = _build_network(
        backbone, tuple(normalization.mean), tuple(normalization.std), options.layer, options.attention, device
    )
    side = choose_side(network, options)
    count = None if options.tile is None else max(1, options.tile // side) ** 2
    spec = ModelSpec(
        model='Embeddings',
        backbone=options.backbone,
        bands=bands,
        class_infos=(),
        ignored_values=(),
        chip_size=side,
        statistics=statistics,
        normalization=normalization,
        dtype=dtype,
        pretrained=has_weights,
        resolution_m=options.resolution_m,
        options={'layer': options.layer},
    )
    source = replace(describe_source(network, bands, normalization, digest), context=side if network.has_tokens else 0)
    return Encoder(network, spec, source, side, count, device)


@lru_cache(maxsize=1)
def _build_backbone(
    name: str,
    bands: tuple[Band, ...],
    pretrained: bool,
    weights: str | None,
    resolution_m: float | None,
    device: torch.device,
    state: object,
) -> tuple[Backbone, str]:
    """Build a frozen backbone, and hash its weights; the last one is kept, for one image after the other."""
    # random weights are the same in every run, so that what they embed can be compared
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = create_backbone(
            name,
            bands,
            pretrained=pretrained,
            weights=weights,
            form='tokens' if offers_tokens(name) else 'pyramid',
            strides=None,
            resolution_m=resolution_m,
        )
    return backbone.to(device).eval().requires_grad_(False), weights_digest(backbone)


@lru_cache(maxsize=1)
def _build_network(
    backbone: Backbone,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    layer: int,
    attention: Attention | None,
    device: torch.device,
) -> EmbeddingNetwork:
    """Put a normalization before a backbone; the last one is kept, so that its weights are hashed once."""
    first = Normalize(mean, std)
    network = (
        EmbeddingNetwork(first, backbone, layer)
        if attention is None
        else AttentionNetwork(first, backbone, layer, attention)
    )
    return network.to(device).eval()


def _state_of(weights: str | Path | None) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of a file of weights, or of all files in a folder; nothing where there is none."""
    if weights is None:
        return ()
    place = Path(weights)
    try:
        return tuple(file_states(sorted(place.rglob('*')) if place.is_dir() else [place]))
    except OSError:  # what opens it says so
        return ()


def choose_side(network: EmbeddingNetwork, options: EncoderOptions) -> int:
    """Return the side of the images that a network sees, in pixels.

    Of transformers it is that of their pretraining: positions were learned for it, all of an image is seen at once, and
    vectors must not depend on how much is computed together. Convolutional networks see tiles.

    Raises:
        ValueError: If a context is asked for and the network is convolutional.
    """
    if not network.has_tokens:
        if options.context is not None:
            raise ValueError(f'{network.backbone.name} is convolutional and sees whole tiles; pass tile=, not context=')
        return CONVOLUTION_TILE if options.tile is None else options.tile
    if options.context is not None:
        return options.context
    trunk: Any = network.backbone.trunk
    if isinstance(trunk, BlockTrunk):
        return trunk.config.grid * trunk.patch
    return -(-DEFAULT_CONTEXT // network.stride) * network.stride


def describe_source(
    network: EmbeddingNetwork, bands: Sequence[Band], normalization: Normalization, digest: str
) -> EmbeddingSource:
    """Return what embeddings say of themselves, before they are pooled; `digest` is that of the backbone's weights."""
    report = network.backbone.load_report
    return EmbeddingSource(
        backbone=network.backbone.name,
        weights='random' if report is None else report.source,
        weights_hash=digest,
        bands=tuple(band.name for band in bands),
        wavelengths_um=tuple(band.wavelength_um for band in bands),
        scaling=normalization.source,
        mean=normalization.mean,
        std=normalization.std,
        layer=network.layer,
        stride=network.stride,
    )

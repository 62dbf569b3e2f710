"""The network of every pixel model: normalize, backbone, decoder, outputs at the image's own size."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import functional

from geolearn.backbones import Backbone, TemporalBackbone, TokenBackbone, create_backbone
from geolearn.backbones.vit import pad_to_multiple, window_partition, window_unpartition
from geolearn.bands import Band
from geolearn.decoders import create_decoder, get_decoder
from geolearn.errors import BackboneError
from geolearn.losses import PixelLossOptions, RegressionLossOptions
from geolearn.networks.network import Network, Normalize, build_backbone, build_normalize
from geolearn.networks.spec import ModelSpec, decode


@dataclass(frozen=True)
class PixelOptions:
    """Decoder and loss of a pixel model.

    Args:
        decoder: Name of the decoder.
        decoder_options: Passed to it.
        loss: What classification minimizes.
        value_loss: What regression minimizes.
        auxiliary_head: Whether a small head on a coarse map learns beside the decoder.

    Raises:
        ValueError: If a loss is no options of one.
    """

    decoder: str
    decoder_options: Mapping[str, Any] = field(default_factory=dict)
    loss: PixelLossOptions = field(default_factory=PixelLossOptions)
    value_loss: RegressionLossOptions = field(default_factory=RegressionLossOptions)
    auxiliary_head: bool = False

    def __post_init__(self) -> None:
        for given, kind in ((self.loss, PixelLossOptions), (self.value_loss, RegressionLossOptions)):
            if not isinstance(given, kind):
                raise ValueError(f'loss must be {kind.__name__}, such as {kind()}, got {given!r}')

    def to_json(self) -> dict[str, Any]:
        """Return the options as plain JSON."""
        loss = asdict(self.loss) | {'cldice_values': list(self.loss.cldice_values)}
        return asdict(self) | {'decoder_options': dict(self.decoder_options), 'loss': loss}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], *, decoder: str) -> 'PixelOptions':
        """Read the options that a spec carries; bundles from before there was a choice carry none.

        Args:
            row: The spec's options.
            decoder: That of the class of model, where the options name none.

        Raises:
            BundleError: If they are not what `to_json` returns.
        """
        return decode(
            cls, {'decoder': decoder} | {f.name: row[f.name] for f in fields(cls) if f.name in row}, 'options'
        )


AUXILIARY_STRIDE = 16
"""The auxiliary head stands on the map of this stride, or else on the next finer one."""


class Segmenter(Network):
    """Images in stored units, NaN where there is no data, to outputs per pixel: class logits, or a value.

    Args:
        normalize: Takes the images first.
        backbone: Gives feature maps.
        decoder: Takes the maps, finest first, and gives outputs at one stride.
        auxiliary: Takes the map at the position `auxiliary_map` while the network trains, and gives outputs too.
        auxiliary_map: Which of the backbone's maps that is.
    """

    def __init__(
        self,
        normalize: Normalize,
        backbone: Backbone,
        decoder: nn.Module,
        *,
        auxiliary: nn.Module | None = None,
        auxiliary_map: int = -1,
    ) -> None:
        super().__init__(normalize, backbone)
        self.decoder, self.auxiliary, self._auxiliary_map = decoder, auxiliary, auxiliary_map

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute outputs (N, outputs, H, W) of images (N, bands, H, W) of any size.

        In training with an auxiliary head they come as a pair with those of the head.
        """
        size = x.shape[-2:]
        x = self.normalize(x)
        # decoders combine maps of several strides, which fit together only where the coarsest divides the image
        x = pad_to_multiple(x, 32)
        maps = self.backbone(x)
        outputs = enlarge(self.decoder(maps), x, size)
        if self.auxiliary is None or not self.training:
            return outputs
        return outputs, enlarge(self.auxiliary([maps[self._auxiliary_map]]), x, size)


def enlarge(outputs: Tensor, x: Tensor, size: Sequence[int]) -> Tensor:
    """Bring outputs to the size of the padded image `x`, and cut them to that of the image."""
    if outputs.shape[-2:] != x.shape[-2:]:
        outputs = functional.interpolate(outputs, size=x.shape[-2:], mode='bilinear', align_corners=False)
    return outputs[..., : size[0], : size[1]]


def build_segmenter(
    spec: ModelSpec, options: PixelOptions, output_count: int, *, pretrained: bool, weights: str | Path | None
) -> Segmenter:
    """Build the network that a spec describes.

    Args:
        spec: Of the model.
        options: Those in the spec, read.
        output_count: Outputs per pixel.
        pretrained: Whether to fill the backbone with its published weights.
        weights: The user's own, instead of fetching them.

    Raises:
        UnknownNameError: If there is no such decoder or backbone.
        BackboneError: If the backbone does not offer the maps that the decoder takes.
    """
    decoder = get_decoder(options.decoder)
    backbone = build_backbone(spec, pretrained=pretrained, weights=weights, form=decoder.form, strides=decoder.strides)
    return put_decoder(spec, options, backbone, output_count)


def put_decoder(spec: ModelSpec, options: PixelOptions, backbone: Backbone, output_count: int) -> Segmenter:
    """Put the decoder that the options name on a backbone, with the auxiliary head where they ask for one.

    Raises:
        UnknownNameError: If there is no such decoder.
        BackboneError: If the backbone does not offer the maps that the decoder takes.
    """
    head = create_decoder(
        options.decoder, backbone.channels, backbone.strides, output_count, options=options.decoder_options
    )
    auxiliary, position = None, -1
    if options.auxiliary_head:
        position = max((i for i, stride in enumerate(backbone.strides) if stride <= AUXILIARY_STRIDE), default=0)
        auxiliary = create_decoder(
            'auxiliary', [backbone.channels[position]], [backbone.strides[position]], output_count, options={}
        )
    return Segmenter(build_normalize(spec), backbone, head, auxiliary=auxiliary, auxiliary_map=position)


class Denormalize(nn.Module):
    """Bring a decoder's outputs, which start around 0 with a spread of 1, to the units of the target.

    Args:
        decoder: Of the pixels.
        mean: Of the target.
        std: Of the target.
    """

    def __init__(self, decoder: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.decoder = decoder
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32))
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute values (N, 1, H, W) in units of the target."""
        return self.decoder(maps).float() * self.std + self.mean


AttentionMode = Literal['extra', 'only']
"""Whether attention maps join the images' bands or stand in their place."""


class AttentionInput(nn.Module):
    """Turn images into the attention maps of a transformer pretrained on such images, one channel per head.

    A U-Net on radar images gained most from DINO's attention as extra input (FDL-Europe 2023), more than from
    training on DINO's features. The channels are the attention of the class token in the last block or, without a class
    token, that of all tokens on average. They are scaled so that 0 is a place that gets its equal share of
    attention, and 1 one that gets twice that, at any image size. The transformer is frozen and stays in evaluation,
    unless it is to be trained through its attention.

    Args:
        backbone: A plain transformer in its native form, ``create_backbone(..., form='tokens')``.
        mode: ``'extra'`` appends the maps to the images' bands, ``'only'`` replaces them.
        frozen: Whether the transformer stays as it is.

    Raises:
        BackboneError: If the backbone offers no attention maps.
    """

    def __init__(self, backbone: Backbone, mode: AttentionMode = 'extra', *, frozen: bool = True) -> None:
        super().__init__()
        if mode not in get_args(AttentionMode):
            raise ValueError(f"mode must be 'extra' or 'only', got {mode!r}")
        if not isinstance(backbone, TokenBackbone) or not backbone.trunk.offers_attention:
            raise BackboneError(
                f'{backbone.name} offers no attention maps here; pass a plain transformer such as dofa_base, built '
                "with form='tokens'"
            )
        self.mode, self.frozen = mode, frozen
        self.backbone = backbone.requires_grad_(False).eval() if frozen else backbone
        self.heads = backbone.trunk.heads

    def channels(self, bands: int) -> int:
        """Say how many channels come out for images of so many bands."""
        return self.heads + (bands if self.mode == 'extra' else 0)

    def train(self, mode: bool = True) -> 'AttentionInput':
        """Set the mode of training; a frozen transformer stays in evaluation."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Turn normalized images (N, bands, H, W) of any size into inputs (N, channels(bands), H, W)."""
        maps = self.attention(x)
        return torch.cat([x, maps.to(x.dtype)], dim=1) if self.mode == 'extra' else maps.to(x.dtype)

    def attention(self, x: Tensor) -> Tensor:
        """Compute attention maps (N, heads, H, W) of normalized images (N, bands, H, W), relative to equal shares."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self._attention(x)

    def _attention(self, x: Tensor) -> Tensor:
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
        transformer: A transformer in its native form.
        mode: Whether the maps join the bands or replace them.
        bands: Of the images.
        frozen: Whether the transformer stays as it is.

    Raises:
        BackboneError: If the transformer offers no attention maps.
        ValueError: If there is no such mode.
    """

    has_position_grid = True

    def __init__(
        self, transformer: Backbone, mode: AttentionMode, bands: Sequence[Band], *, frozen: bool = True
    ) -> None:
        inputs = AttentionInput(transformer, mode, frozen=frozen)
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
        """The transformer."""
        return self.inputs.backbone.trunk

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute maps at strides 1 to 8 from normalized images (N, bands, H, W)."""
        return self.encoder(self.inputs(x))


Fusion = Literal['difference', 'concat', 'attention']
"""How the maps of two dates become one."""

ATTENTION_STRIDE = 16
"""Finer maps are not attended over: their positions are many, and say little about what a place is."""

REGIONS = (4, 8, 16)
"""Sides of the regions that positions of both dates attend within, in positions of the map."""


class Difference(nn.Module):
    """The absolute difference of the dates (FC-Siam-diff; Daudt et al. 2018, arXiv:1810.08462)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Turn maps (N, 2, C, h, w) into (N, C, h, w)."""
        return (maps[:, 1] - maps[:, 0]).abs()


class Concatenation(nn.Module):
    """The channels of the dates side by side (FC-Siam-conc; Daudt et al. 2018, arXiv:1810.08462)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Turn maps (N, 2, C, h, w) into (N, 2 * C, h, w)."""
        return maps.flatten(1, 2)


class RegionAttention(nn.Module):
    """Every position attends to those of both dates in its square region.

    Args:
        channels: Of one date's map.
        side: Of the regions, in positions; a smaller map is one region.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.side = side
        width = max(channels // 8, 8)
        self.query, self.key = nn.Linear(channels, width), nn.Linear(channels, width)
        self.value = nn.Linear(channels, channels)

    def forward(self, grid: Tensor) -> Tensor:
        """Turn a grid (N, h, w, 2, C) into one of the same shape."""
        n, h, w, dates, channels = grid.shape
        window = (min(self.side, h), min(self.side, w))
        regions = window_partition(grid.flatten(3), window)
        # len() would write the number of images into an exported graph
        x = regions.reshape(regions.shape[0], -1, channels)
        found = F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        return window_unpartition(found.reshape(regions.shape), window, (h, w)).reshape(n, h, w, dates, channels)


class AttentionDifference(nn.Module):
    """The difference of the dates after each position has attended to both.

    The pyramid spatial-temporal attention of STANet (Chen & Shi 2020, "A Spatial-Temporal Attention-Based Method and a
    New Dataset for Remote Sensing Image Change Detection", Remote Sensing 12(10), 1662): attention within regions of
    several sizes, joined and added to the map. The regions are of fixed sizes in place of fractions of the image, so
    that memory grows with the image as the map does, and tiles of any size are seen as the training chips were.

    Args:
        channels: Of one date's map.
        sides: Of the regions, in positions.
    """

    def __init__(self, channels: int, sides: Sequence[int] = REGIONS) -> None:
        super().__init__()
        self.regions = nn.ModuleList(RegionAttention(channels, side) for side in sides)
        self.join = nn.Linear(len(sides) * channels, channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Turn maps (N, 2, C, h, w) into (N, C, h, w)."""
        grid = maps.permute(0, 3, 4, 1, 2)
        seen = grid + self.join(torch.cat([regions(grid) for regions in self.regions], dim=-1))
        return (seen[..., 1, :] - seen[..., 0, :]).abs().permute(0, 3, 1, 2)


class SiameseBackbone(TemporalBackbone):
    """A backbone for pairs of images (N, 2, bands, H, W) whose maps show what differs between the two.

    Both dates go through one encoder, one after the other, without seeing each other; weights have the same names as
    for one date.

    Args:
        single: The backbone for one date; it becomes part of this one.
        fusion: ``'difference'``, ``'concat'`` (maps of twice the channels), or ``'attention'``: `AttentionDifference`
            for maps of stride 16 and coarser, the plain difference for finer ones.

    Raises:
        ValueError: If there is no such fusion.
        BackboneError: If the backbone returns tokens.
    """

    def __init__(self, single: Backbone, fusion: Fusion = 'difference') -> None:
        check_fusion(fusion)
        super().__init__(single, 2)
        self.heads = nn.ModuleList(
            _make_head(fusion, channels, stride) for channels, stride in zip(single.channels, single.strides)
        )
        self.channels = tuple(2 * c for c in single.channels) if fusion == 'concat' else single.channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute maps (N, channels[i], ceil(H/s), ceil(W/s)) at the strides s from pairs (N, 2, bands, H, W).

        Raises:
            ValueError: If images are no pairs.
        """
        if x.dim() != 5 or x.shape[1] != 2:
            raise ValueError(f'{self.name} needs pairs of images (N, 2, bands, H, W), got {tuple(x.shape)}')
        maps = self._single(x.flatten(0, 1))
        return [head(found.unflatten(0, (-1, 2))) for head, found in zip(self.heads, maps)]


def check_fusion(fusion: object) -> None:
    """Raise ValueError unless `fusion` is one of `Fusion`."""
    if fusion not in get_args(Fusion):
        raise ValueError(f'fusion must be one of {", ".join(map(repr, get_args(Fusion)))}, got {fusion!r}')


def _make_head(fusion: Fusion, channels: int, stride: int) -> nn.Module:
    if fusion == 'concat':
        return Concatenation()
    return AttentionDifference(channels) if fusion == 'attention' and stride >= ATTENTION_STRIDE else Difference()


@dataclass(frozen=True)
class ChangeOptions:
    """Fusion, decoder and loss of a change detector.

    Args:
        fusion: How the maps of the two dates become one.
        pixels: What it shares with every model of pixels.

    Raises:
        ValueError: If there is no such fusion.
    """

    fusion: Fusion
    pixels: PixelOptions

    def __post_init__(self) -> None:
        check_fusion(self.fusion)

    def to_json(self) -> dict[str, Any]:
        """Return the options as plain JSON."""
        return self.pixels.to_json() | {'fusion': self.fusion}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], *, decoder: str) -> 'ChangeOptions':
        """Read the options that a spec carries.

        Args:
            row: The spec's options.
            decoder: Where the options name none.

        Raises:
            BundleError: If they are not what `to_json` returns.
        """
        fusion: Fusion = decode(Fusion, row.get('fusion', 'difference'), 'fusion')  # type: ignore[arg-type]
        return cls(fusion, PixelOptions.from_json(row, decoder=decoder))

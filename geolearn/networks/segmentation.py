"""The network of every pixel model: normalize, backbone, decoder, outputs at the image's own size."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from geolearn.backbones import Backbone
from geolearn.backbones.token_grid import pad_to_multiple
from geolearn.decoders import create_decoder, get_decoder
from geolearn.losses import PixelLossOptions, RegressionLossOptions
from geolearn.networks.decoding import decode
from geolearn.networks.network import Network, Normalize, build_backbone, build_normalize
from geolearn.networks.spec import ModelSpec


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
        return asdict(self) | {'decoder_options': dict(self.decoder_options)}

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
        outputs = _enlarged(self.decoder(maps), x, size)
        if self.auxiliary is None or not self.training:
            return outputs
        return outputs, _enlarged(self.auxiliary([maps[self._auxiliary_map]]), x, size)


def _enlarged(outputs: Tensor, x: Tensor, size: Sequence[int]) -> Tensor:
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

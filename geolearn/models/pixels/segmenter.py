"""The network of every pixel model: normalise, backbone, decoder, outputs at the image's own size."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from geolearn.backbones import Backbone
from geolearn.backbones.padding import pad_to_multiple
from geolearn.decoders import create_decoder, get_decoder
from geolearn.models.network import Network, Normalise, build_backbone, build_normalise
from geolearn.models.pixels.options import PixelOptions
from geolearn.models.spec import ModelSpec

AUXILIARY_STRIDE = 16
"""The auxiliary head stands on the map of this stride, or else on the next finer one."""


class Segmenter(Network):
    """Images in stored units, NaN where there is no data, to outputs per pixel: class logits, or a value.

    Args:
        normalise: Takes the images first.
        backbone: Gives feature maps.
        decoder: Takes the maps, finest first, and gives outputs at one stride.
        auxiliary: Takes the map at the position `auxiliary_map` while the network trains, and gives outputs too.
        auxiliary_map: Which of the backbone's maps that is.
    """

    def __init__(
        self,
        normalise: Normalise,
        backbone: Backbone,
        decoder: nn.Module,
        *,
        auxiliary: nn.Module | None = None,
        auxiliary_map: int = -1,
    ) -> None:
        super().__init__(normalise, backbone)
        self.decoder, self.auxiliary, self._auxiliary_map = decoder, auxiliary, auxiliary_map

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute outputs (N, outputs, H, W) of images (N, bands, H, W) of any size.

        In training with an auxiliary head they come as a pair with those of the head.
        """
        size = x.shape[-2:]
        x = self.normalise(x)
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
    return Segmenter(build_normalise(spec), backbone, head, auxiliary=auxiliary, auxiliary_map=position)

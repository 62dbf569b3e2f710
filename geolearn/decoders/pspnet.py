"""PSPNet: what surrounds a pixel, averaged over regions of several sizes."""

from collections.abc import Sequence

from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPModule
from torch import Tensor, nn

from geolearn.decoders.decoder import (
    Decoder,
    check_rate,
    check_whole,
    check_wholes,
    register_decoder,
    take_single_values,
)


@register_decoder('pspnet')
class PSPNetDecoder(Decoder):
    """Pyramid scene parsing (Zhao et al. 2017, arXiv:1612.01105) on the map of stride 8, with smp's modules.

    Args:
        channels: Channels of the map.
        strides: 8, or another of one map.
        output_count: Outputs per pixel.
        pyramid_sizes: Regions per side that the map is averaged over, for each level of the pyramid. A map may have
            fewer pixels than that: regions then share them.
        width: Channels before the classifier.
        dropout: Rate, of whole channels.
    """

    strides = (8,)

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        output_count: int,
        *,
        pyramid_sizes: Sequence[int] = (1, 2, 3, 6),
        width: int = 512,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(channels, strides, output_count)
        sizes = check_wholes('pyramid_sizes', pyramid_sizes, 1, 64, counts=range(1, 9))
        width = check_whole('width', width, 1, 4096)
        if channels[0] < len(sizes):
            raise ValueError(f'pyramid_sizes may have one level per channel of the map, {channels[0]}, got {sizes}')
        # smp's own decoder has its sizes built in
        pooled = channels[0] // len(sizes) * len(sizes)
        self.pyramid = take_single_values(PSPModule(channels[0], sizes))
        self.fuse = take_single_values(Conv2dReLU(channels[0] + pooled, width, kernel_size=1))
        self.dropout = nn.Dropout2d(check_rate('dropout', dropout))
        self.classifier = nn.Conv2d(width, output_count, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute outputs (N, output_count, H/8, W/8)."""
        features: Tensor = self.pyramid(maps[0])
        return self.classifier(self.dropout(self.fuse(features)))

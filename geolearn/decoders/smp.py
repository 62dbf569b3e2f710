"""U-Net, FPN, PSPNet, SegFormer and UPerNet, with the modules of segmentation_models_pytorch (smp).

smp is imported where a decoder is built: it brings timm and torchvision, whose import takes seconds.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from geolearn.decoders.decoder import (
    Decoder,
    check_rate,
    check_whole,
    check_wholes,
    fill_levels,
    register_decoder,
    take_single_values,
)


@register_decoder('unet')
class UNetDecoder(Decoder):
    """U-Net (Ronneberger et al. 2015, arXiv:1505.04597) on all maps that a backbone offers, as smp builds it.

    It goes on to stride 1 whatever the finest map is: outputs of every network then have the same detail, and
    with maps of strides 2 to 32 this is smp's `Unet`, layer by layer. A step without a map of its stride enlarges
    and convolves, as smp does for encoders that begin at stride 4.

    Args:
        channels: Channels of each map.
        strides: Of the maps: 2 to 32 for convolutional networks, 4 to 32 for transformers, 1 to 8 for the plain U-Net
            encoder; gaps are allowed.
        output_count: Outputs per pixel.
        widths: Channels after each step, the coarsest first; as many are used as there are steps to stride 1.
    """

    strides = None

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        output_count: int,
        *,
        widths: Sequence[int] = (256, 128, 64, 32, 16),
    ) -> None:
        super().__init__(channels, strides, output_count)
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        self._strides = tuple(strides)
        steps = strides[-1].bit_length() - 1
        widths = check_wholes('widths', widths, 1, 4096, counts=range(max(steps, 1), 9))[:steps]
        self._levels = tuple(2**step for step in range(steps + 1))
        by_stride = dict(zip(strides, channels))
        # smp leaves out the first, the image
        encoder_channels = (0, *(by_stride.get(level, 0) for level in self._levels))
        self.decoder = take_single_values(UnetDecoder(encoder_channels, widths, n_blocks=steps))
        self.classifier = nn.Conv2d((*channels[-1:], *widths)[-1], output_count, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute outputs (N, output_count, H, W)."""
        levels = fill_levels(maps, self._strides, self._levels)
        return self.classifier(self.decoder([levels[0], *levels]))


@register_decoder('fpn')
class FPNDecoder(Decoder):
    """Panoptic feature pyramid's semantic branch (Kirillov et al. 2019, arXiv:1901.02446), as smp builds it.

    Args:
        channels: Channels of the four maps.
        strides: 4, 8, 16, 32.
        output_count: Outputs per pixel.
        dropout: Rate, of whole channels, before the classifier.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], output_count: int, *, dropout: float = 0.2
    ) -> None:
        super().__init__(channels, strides, output_count)
        from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder as SmpFPNDecoder

        self.decoder = SmpFPNDecoder(list(channels), encoder_depth=4, dropout=check_rate('dropout', dropout))
        self.classifier = nn.Conv2d(self.decoder.out_channels, output_count, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute outputs (N, output_count, H/4, W/4)."""
        return self.classifier(self.decoder(list(maps)))


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
        from segmentation_models_pytorch.base.modules import Conv2dReLU
        from segmentation_models_pytorch.decoders.pspnet.decoder import PSPModule

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


@register_decoder('segformer')
class SegFormerDecoder(Decoder):
    """The all-MLP head of SegFormer (Xie et al. 2021, arXiv:2105.15203), as smp builds it.

    Args:
        channels: Channels of the four maps.
        strides: 4, 8, 16, 32.
        output_count: Outputs per pixel.
        width: Channels that every map is brought to; the paper has 256 for its small encoders, 768 for its large ones.
        dropout: Rate, of whole channels, before the classifier.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        output_count: int,
        *,
        width: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(channels, strides, output_count)
        from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder

        self._strides = tuple(strides)
        width = check_whole('width', width, 1, 4096)
        # the first stands for the image; that of stride 2 has no channels and is left out
        decoder = SegformerDecoder([0, 0, *channels], encoder_depth=5, segmentation_channels=width)
        self.decoder = take_single_values(decoder)
        self.dropout = nn.Dropout2d(check_rate('dropout', dropout))
        self.classifier = nn.Conv2d(width, output_count, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute outputs (N, output_count, H/4, W/4)."""
        fused: Tensor = self.decoder(fill_levels(maps, self._strides, (1, 2, *self._strides)))
        return self.classifier(self.dropout(fused))


@register_decoder('upernet')
class UPerNetDecoder(Decoder):
    """Unified perceptual parsing (Xiao et al. 2018, arXiv:1807.10221), as smp builds it.

    A transformer gives maps of four of its layers. Norms are plain batch norms, so it trains on a CPU too.

    Args:
        channels: Channels of the four maps.
        strides: 4, 8, 16, 32.
        output_count: Outputs per pixel.
        width: Channels of every map of the pyramid; 512 in the paper.
        dropout: Rate, of whole channels, before the classifier.
    """

    form = 'layers'

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        output_count: int,
        *,
        width: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(channels, strides, output_count)
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder as SmpUPerNetDecoder

        width = check_whole('width', width, 1, 4096)
        # smp looks past two finer maps
        decoder = SmpUPerNetDecoder((0, 0, *channels), encoder_depth=5, decoder_channels=width)
        self.decoder = take_single_values(decoder)
        self.dropout = nn.Dropout2d(check_rate('dropout', dropout))
        self.classifier = nn.Conv2d(width, output_count, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute outputs (N, output_count, H/4, W/4)."""
        fused: Tensor = self.decoder([maps[0], maps[0], *maps])
        return self.classifier(self.dropout(fused))

"""DeepLab: atrous spatial pyramid pooling, with a skip connection (v3+) or without (v3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geolearn.decoders.decoder import Decoder, check_wholes, enlarge_to, register_decoder, take_single_values

_WIDTH = 256
_STRIDE = 16
_THREE = range(3, 4)


@register_decoder('deeplab')
class DeepLabDecoder(Decoder):
    """DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611).

    Pooling works on the map of stride 16, the skip connection is the map of stride 4. A convolutional network that
    cannot keep its last stage at stride 16 gives it at stride 32, enlarged to 16.

    Args:
        channels: Channels of the two maps.
        strides: 4, and 16 or 32.
        output_count: Outputs per pixel.
        atrous_rates: Dilation of the three atrous convolutions, in pixels of the coarse map.
    """

    strides = (4, _STRIDE)

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        output_count: int,
        *,
        atrous_rates: Sequence[int] = (12, 24, 36),
    ) -> None:
        super().__init__(channels, strides, output_count)
        from segmentation_models_pytorch.decoders.deeplabv3 import decoder as smp

        self._coarsest = strides[-1]
        decoder = smp.DeepLabV3PlusDecoder(
            (0, 0, *channels),
            encoder_depth=4,
            out_channels=_WIDTH,
            atrous_rates=check_wholes('atrous_rates', atrous_rates, 1, 1024, counts=_THREE),
            output_stride=_STRIDE,
            aspp_separable=True,
            aspp_dropout=0.1,
        )
        self.decoder = take_single_values(decoder)
        self.classifier = nn.Conv2d(_WIDTH, output_count, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute outputs (N, output_count, H/4, W/4)."""
        fine, coarse = maps
        # smp's decoder takes position 2 for the skip and the last for pooling
        unused = torch.empty(0)
        return self.classifier(self.decoder([unused, unused, fine, enlarge_to(coarse, self._coarsest, _STRIDE)]))


@register_decoder('deeplab_v3')
class DeepLabV3Decoder(Decoder):
    """DeepLabV3 (Chen et al. 2017, arXiv:1706.05587): pooling on the last map alone, no skip connection.

    Args:
        channels: Channels of the map.
        strides: 16, or another; a coarser map is enlarged to 16.
        output_count: Outputs per pixel.
        atrous_rates: Dilation of the three atrous convolutions, in pixels of the map; the paper's for stride 16.
    """

    strides = (_STRIDE,)

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        output_count: int,
        *,
        atrous_rates: Sequence[int] = (6, 12, 18),
    ) -> None:
        super().__init__(channels, strides, output_count)
        from segmentation_models_pytorch.decoders.deeplabv3 import decoder as smp

        self._coarsest = strides[-1]
        rates = check_wholes('atrous_rates', atrous_rates, 1, 1024, counts=_THREE)
        decoder = smp.DeepLabV3Decoder(channels[0], _WIDTH, rates, aspp_separable=False, aspp_dropout=0.5)
        self.decoder = take_single_values(decoder)
        self.classifier = nn.Conv2d(_WIDTH, output_count, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute outputs (N, output_count, H/16, W/16)."""
        return self.classifier(self.decoder([enlarge_to(maps[0], self._coarsest, _STRIDE)]))

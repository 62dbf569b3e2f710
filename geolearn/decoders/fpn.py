"""FPN: a feature pyramid whose maps are enlarged to one size and summed."""

from collections.abc import Sequence

from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder as SmpFPNDecoder
from torch import Tensor, nn

from geolearn.decoders.decoder import Decoder, check_rate, register_decoder


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
        self.decoder = SmpFPNDecoder(list(channels), encoder_depth=4, dropout=check_rate('dropout', dropout))
        self.classifier = nn.Conv2d(self.decoder.out_channels, output_count, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute outputs (N, output_count, H/4, W/4)."""
        return self.classifier(self.decoder(list(maps)))

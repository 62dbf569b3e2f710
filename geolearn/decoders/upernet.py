"""UPerNet: pyramid pooling on the coarsest map, and a feature pyramid down to the finest."""

from collections.abc import Sequence

from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder as SmpUPerNetDecoder
from torch import Tensor, nn

from geolearn.decoders.decoder import Decoder, check_rate, check_whole, register_decoder, take_single_values


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

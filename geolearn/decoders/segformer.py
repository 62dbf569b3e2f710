"""SegFormer's decoder: one linear layer per map, and one to mix them."""

from collections.abc import Sequence

from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from torch import Tensor, nn

from geolearn.decoders.decoder import (
    Decoder,
    check_rate,
    check_whole,
    fill_levels,
    register_decoder,
    take_single_values,
)


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

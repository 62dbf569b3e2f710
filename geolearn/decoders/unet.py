"""U-Net: enlarge step by step, joining the map of each stride."""

from collections.abc import Sequence

from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from geolearn.decoders.decoder import Decoder, check_wholes, fill_levels, register_decoder, take_single_values


@register_decoder('unet')
class UNetDecoder(Decoder):
    """U-Net (Ronneberger et al. 2015, arXiv:1505.04597) on all maps that a backbone offers, as smp builds it.

    It goes on to stride 1 whatever the finest map is: every network is then judged on outputs of the same detail, and
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

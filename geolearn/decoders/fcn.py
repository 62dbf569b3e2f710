"""Small decoders on one map: a chain of convolutions, one linear layer, and the auxiliary head."""

from collections.abc import Sequence

from torch import Tensor, nn

from geolearn.decoders import decoder

_STRIDE = 16


@decoder.register_decoder('fcn')
class FCNDecoder(decoder.Decoder):
    """A chain of 3x3 convolutions, each with batch norm and GELU, on the map of stride 16, and a 1x1 classifier.

    The head of fully convolutional networks (Long et al. 2015, arXiv:1411.4038), as benchmarks of foundation models
    use it.

    Args:
        channels: Channels of the map.
        strides: 16, or another of one map.
        output_count: Outputs per pixel.
        width: Channels of the convolutions.
        depth: Number of convolutions.
        dropout: Rate, of whole channels, before the classifier.
    """

    strides = (_STRIDE,)

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        output_count: int,
        *,
        width: int = 256,
        depth: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(channels, strides, output_count)
        width, depth = decoder.check_whole('width', width, 1, 4096), decoder.check_whole('depth', depth, 1, 64)
        inputs = (channels[0], *[width] * (depth - 1))
        self.decoder = nn.Sequential(*(_convolve(count, width) for count in inputs))
        self.dropout = nn.Dropout2d(decoder.check_rate('dropout', dropout))
        self.classifier = nn.Conv2d(width, output_count, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute outputs (N, output_count, H/16, W/16), or at the stride of the map."""
        return self.classifier(self.dropout(self.decoder(maps[0])))


@decoder.register_decoder('linear')
class LinearDecoder(decoder.Decoder):
    """One linear layer per token: how well a frozen backbone's features separate the classes as they are.

    A transformer gives the tokens of its last block unchanged; other networks their map of stride 16, or 32.

    Args:
        channels: Channels of the map.
        strides: 16, or another of one map.
        output_count: Outputs per pixel.
    """

    form = 'layers'
    strides = (_STRIDE,)

    def __init__(self, channels: Sequence[int], strides: Sequence[int], output_count: int) -> None:
        super().__init__(channels, strides, output_count)
        self.classifier = nn.Conv2d(channels[0], output_count, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute outputs (N, output_count, H/16, W/16), or at the stride of the map."""
        return self.classifier(maps[0])


@decoder.register_decoder('auxiliary')
class AuxiliaryDecoder(decoder.Decoder):
    """The small head that helps to train another decoder, on one map (torchvision's `FCNHead`).

    Args:
        channels: Channels of the map; 4 or more.
        strides: 16, or another of one map.
        output_count: Outputs per pixel.
    """

    strides = (_STRIDE,)

    def __init__(self, channels: Sequence[int], strides: Sequence[int], output_count: int) -> None:
        super().__init__(channels, strides, output_count)
        from torchvision.models.segmentation.fcn import FCNHead

        self.classifier = decoder.take_single_values(FCNHead(channels[0], output_count))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute outputs (N, output_count, H/16, W/16), or at the stride of the map."""
        return self.classifier(maps[0])


def _convolve(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, decoder.PooledBatchNorm2d(outputs), nn.GELU())

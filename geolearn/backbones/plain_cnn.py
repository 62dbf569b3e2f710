"""The plain U-Net encoder: blocks of two convolutions, with maps at strides 1 to 8."""

from itertools import pairwise

from torch import Tensor, nn

from geolearn.backbones import backbone, building, catalog
from geolearn.bands import Band
from geolearn.errors import BackboneError

CHANNELS = (64, 128, 256, 512)

STRIDES = (1, 2, 4, 8)
"""Channels and strides of the blocks, in pixels, finest first."""


class PlainEncoder(nn.Module):
    """Blocks of two convolutions, each at half the resolution of the one before.

    Args:
        bands: Number of bands.
        strides: Of the maps wanted, some of `STRIDES`; blocks after the last of them are left out.
    """

    def __init__(self, bands: int, strides: tuple[int, ...] = STRIDES) -> None:
        super().__init__()
        self.taken = tuple(STRIDES.index(stride) for stride in strides)
        widths = (bands, *CHANNELS[: max(self.taken) + 1])
        self.stages = nn.ModuleList(double_conv(before, after) for before, after in pairwise(widths))
        self.pool = nn.MaxPool2d(2)
        self.channels = tuple(CHANNELS[i] for i in self.taken)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute maps (B, channels[i], H/s, W/s) from images (B, bands, H, W), sides multiples of the last stride."""
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(self.pool(x) if i else x)
            maps.append(x)
        return [maps[i] for i in self.taken]


def double_conv(before: int, after: int) -> nn.Sequential:
    """Make two convolutions of 3 x 3 pixels, each with batch norm and ReLU, from `before` to `after` channels."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        conv = nn.Conv2d(channels, after, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


@building.register_family('plain_cnn', tokens=False)
def build_plain_cnn(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build the plain encoder; weights can only be a file of one's own.

    Raises:
        BackboneError: If options ask for tokens, other strides, or anything else that it does not have.
        WeightsError: If pretrained weights are asked for: there are none.
    """
    record = catalog.get_record(name)
    backbone.refuse_transformer_options(name, options)
    if options.drop_path:
        raise BackboneError(f'{name} has no residuals to drop; pass drop_path=0')
    strides = backbone.choose_strides(name, options.strides, STRIDES)
    trunk = PlainEncoder(len(bands), strides)
    checkpoint = building.read_checkpoint(record, bands, options)
    report = None if checkpoint is None else building.load_checkpoint(trunk, checkpoint, options)
    return backbone.ConvBackbone(name, trunk, channels=trunk.channels, strides=strides, load_report=report)

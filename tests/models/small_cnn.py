"""A small network from random weights, which learns generated data in minutes of one core."""

from itertools import pairwise

from torch import nn

from geolearn.backbones.custom import ModuleBackbone


class SmallCNN(nn.Module):
    """Maps at strides 4, 8, 16 and 32, some 0.2 million parameters."""

    channels, strides = (32, 48, 64, 64), (4, 8, 16, 32)

    def __init__(self):
        super().__init__()
        widths = (3, 16, *self.channels)
        self.blocks = nn.ModuleList(self.block(before, after) for before, after in pairwise(widths))

    @staticmethod
    def block(before, after):
        layers = []
        for channels, stride in ((before, 2), (after, 1)):
            layers += [nn.Conv2d(channels, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x):
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps[1:]


def small_backbone():
    """The network as a backbone."""
    return ModuleBackbone(SmallCNN(), channels=SmallCNN.channels, strides=SmallCNN.strides)

"""What training minimises: losses per pixel, of overlap, of values and of whole chips.

Losses of pixels take logits (N, classes, H, W) and int64 indices (N, H, W), leave out pixels of IGNORE_INDEX, weight
classes on request, compute in float32 also under mixed precision, and are 0 where no pixel counts.
"""

from geolearn.losses.classification import MultiLabelCrossEntropy, SoftCrossEntropy
from geolearn.losses.options import (
    PIXEL_LOSSES,
    Mixed,
    PixelLossOptions,
    ValueLossOptions,
    WithAuxiliary,
    make_pixel_loss,
    make_value_loss,
)
from geolearn.losses.overlap import Dice, Lovasz, Tversky
from geolearn.losses.per_pixel import HardPixels, PixelCrossEntropy, PixelFocal, PixelLoss
from geolearn.losses.regression import VALUE_KINDS, ValueLoss

__all__ = [
    'PIXEL_LOSSES',
    'VALUE_KINDS',
    'Dice',
    'HardPixels',
    'Lovasz',
    'Mixed',
    'MultiLabelCrossEntropy',
    'PixelCrossEntropy',
    'PixelFocal',
    'PixelLoss',
    'PixelLossOptions',
    'SoftCrossEntropy',
    'Tversky',
    'ValueLoss',
    'ValueLossOptions',
    'WithAuxiliary',
    'make_pixel_loss',
    'make_value_loss',
]

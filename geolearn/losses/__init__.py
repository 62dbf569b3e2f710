"""Losses: per pixel, of overlap, of regression and of whole chips.

Losses of pixels take logits (N, classes, H, W) and int64 indices (N, H, W), leave out pixels of IGNORE_INDEX, weight
classes on request, compute in float32 also under mixed precision, and are 0 where no pixel is labelled.
`register_pixel_loss` and `REGRESSION_LOSSES` are the only lists of their names.
"""

from geolearn.losses.centerline import CenterlineDice
from geolearn.losses.options import (
    Mixed,
    PixelLossOptions,
    WithAuxiliary,
    find_lines,
    make_pixel_loss,
    pixel_loss_names,
    register_pixel_loss,
)
from geolearn.losses.per_class import (
    Dice,
    HardPixels,
    Lovasz,
    MultiLabelCrossEntropy,
    PixelCrossEntropy,
    PixelFocal,
    PixelLoss,
    SoftCrossEntropy,
    Tversky,
)
from geolearn.losses.regression import (
    REGRESSION_LOSSES,
    NormalizedLoss,
    RegressionLoss,
    RegressionLossOptions,
    make_regression_loss,
)

__all__ = [
    'REGRESSION_LOSSES',
    'CenterlineDice',
    'Dice',
    'HardPixels',
    'Lovasz',
    'Mixed',
    'MultiLabelCrossEntropy',
    'NormalizedLoss',
    'PixelCrossEntropy',
    'PixelFocal',
    'PixelLoss',
    'PixelLossOptions',
    'RegressionLoss',
    'RegressionLossOptions',
    'SoftCrossEntropy',
    'Tversky',
    'WithAuxiliary',
    'find_lines',
    'make_pixel_loss',
    'make_regression_loss',
    'pixel_loss_names',
    'register_pixel_loss',
]

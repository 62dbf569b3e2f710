"""Models: what the user holds, trains, saves and maps rasters with."""

from geolearn.models.attention_unet import AttentionUNet
from geolearn.models.base import Model, load_model
from geolearn.models.change_detector import ChangeDetector
from geolearn.models.detectors import FCOS, FasterRCNN, MaskRCNN, RetinaNet, RTDetr, SingleShotDetector
from geolearn.models.feature_classifier import FeatureClassifier
from geolearn.models.pixel_classifiers import (
    FCN,
    FPN,
    MUSTER,
    DeepLab,
    DeepLabV3,
    LinearProbe,
    PixelClassifier,
    PSPNet,
    PSPNetClassifier,
    SegFormer,
    UNet,
    UnetClassifier,
    UPerNet,
)
from geolearn.models.pixel_regressor import PixelRegressor

__all__ = [
    'FCN',
    'FCOS',
    'FPN',
    'MUSTER',
    'AttentionUNet',
    'ChangeDetector',
    'DeepLab',
    'DeepLabV3',
    'FasterRCNN',
    'FeatureClassifier',
    'LinearProbe',
    'MaskRCNN',
    'Model',
    'PSPNet',
    'PSPNetClassifier',
    'PixelClassifier',
    'PixelRegressor',
    'RTDetr',
    'RetinaNet',
    'SegFormer',
    'SingleShotDetector',
    'UNet',
    'UPerNet',
    'UnetClassifier',
    'load_model',
]

"""Models: what the user holds, trains, saves and maps rasters with."""

from geolearn.models._loading import load_model
from geolearn.models._model import Model
from geolearn.models.change.detector import ChangeDetector
from geolearn.models.classification.classifier import FeatureClassifier
from geolearn.models.detection.architectures import FCOS, FasterRCNN, MaskRCNN, RetinaNet, SingleShotDetector
from geolearn.models.detection.transformer import RTDetr
from geolearn.models.pixels.architectures import (
    FCN,
    FPN,
    MUSTER,
    DeepLab,
    DeepLabV3,
    LinearProbe,
    PSPNet,
    PSPNetClassifier,
    SegFormer,
    UNet,
    UnetClassifier,
    UPerNet,
)
from geolearn.models.pixels.attention import AttentionUNet
from geolearn.models.pixels.classifier import PixelClassifier
from geolearn.models.pixels.regressor import PixelRegressor

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

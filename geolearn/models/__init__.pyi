from geolearn.models.base import HOMES, MODELS, Model, load_all, load_model
from geolearn.models.change_detector import ChangeDetector
from geolearn.models.feature_classifier import FeatureClassifier
from geolearn.models.object_detector import (
    FCOS,
    FasterRCNN,
    MaskRCNN,
    ObjectDetector,
    RetinaNet,
    RTDetr,
    SingleShotDetector,
)
from geolearn.models.pixel_classifiers import (
    FCN,
    FPN,
    MUSTER,
    AttentionUNet,
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
from geolearn.models.pixel_head import PixelHead
from geolearn.models.pixel_regressor import PixelRegressor
from geolearn.networks.detection.architecture import RCNNOptions, SingleStageOptions, TransformerOptions

__all__ = [
    'FCN',
    'FCOS',
    'FPN',
    'HOMES',
    'MODELS',
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
    'ObjectDetector',
    'PSPNet',
    'PSPNetClassifier',
    'PixelClassifier',
    'PixelHead',
    'PixelRegressor',
    'RCNNOptions',
    'RTDetr',
    'RetinaNet',
    'SegFormer',
    'SingleShotDetector',
    'SingleStageOptions',
    'TransformerOptions',
    'UNet',
    'UPerNet',
    'UnetClassifier',
    'load_all',
    'load_model',
]

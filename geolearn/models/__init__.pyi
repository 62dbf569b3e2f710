from geolearn.models.base import Model, load_model
from geolearn.models.change_detector import ChangeDetector
from geolearn.models.feature_classifier import FeatureClassifier
from geolearn.models.object_detector import (
    FCOS,
    FasterRCNN,
    MaskRCNN,
    ObjectDetector,
    OrientedRCNN,
    RetinaNet,
    RotatedFCOS,
    RTDetr,
    SingleShotDetector,
)
from geolearn.models.panoptic import Mask2Former, PanopticFPN, PanopticModel
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
from geolearn.models.registry import HOMES, MODELS, load_all
from geolearn.networks.detection.architecture import RCNNOptions, RotatedOptions, SingleStageOptions, TransformerOptions
from geolearn.networks.detection.mask2former import Mask2FormerOptions

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
    'Mask2Former',
    'Mask2FormerOptions',
    'MaskRCNN',
    'Model',
    'ObjectDetector',
    'OrientedRCNN',
    'PSPNet',
    'PSPNetClassifier',
    'PanopticFPN',
    'PanopticModel',
    'PixelClassifier',
    'PixelHead',
    'PixelRegressor',
    'RCNNOptions',
    'RTDetr',
    'RetinaNet',
    'RotatedFCOS',
    'RotatedOptions',
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

"""Models: what the user holds, trains, saves and maps rasters with."""

from geolearn.models.base import MODELS, Model, load_model
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
from geolearn.models.pixel_regressor import PixelRegressor
from geolearn.networks.detection.architecture import RCNNOptions, SingleStageOptions, TransformerOptions

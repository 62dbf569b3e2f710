"""Models: what the user holds, trains, saves and maps rasters with."""

from geolearn.models.attention_unet import AttentionUNet
from geolearn.models.base import MODELS, Model, load_model
from geolearn.models.change_detector import ChangeDetector
from geolearn.models.detectors import FCOS, FasterRCNN, MaskRCNN, RetinaNet, RTDetr, SingleShotDetector
from geolearn.models.feature_classifier import FeatureClassifier
from geolearn.models.object_detector import ObjectDetector
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
from geolearn.networks.detection.architecture import RCNNOptions, SingleStageOptions, TransformerOptions

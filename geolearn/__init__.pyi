from geolearn.adaptation import Adaptation
from geolearn.backbones import backbone_table, create_backbone, describe_backbone, list_backbones
from geolearn.bands import Band, get_bands, list_sensors
from geolearn.chips.export import export_training_data
from geolearn.classes import ClassInfo
from geolearn.data import ChipData
from geolearn.embed import embed
from geolearn.embed.attention import attention_maps
from geolearn.embed.embeddings import Embeddings
from geolearn.embed.grids import embed_raster
from geolearn.embed.many import embed_many
from geolearn.embed.pixels import PixelTimeSeries, embed_pixels
from geolearn.errors import GeoLearnError
from geolearn.inference.vectorize import vectorize_map
from geolearn.models import (
    FCN,
    FCOS,
    FPN,
    MUSTER,
    AttentionUNet,
    ChangeDetector,
    DeepLab,
    DeepLabV3,
    FasterRCNN,
    FeatureClassifier,
    LinearProbe,
    Mask2Former,
    MaskRCNN,
    OrientedRCNN,
    PanopticFPN,
    PixelHead,
    PixelRegressor,
    PSPNet,
    PSPNetClassifier,
    RetinaNet,
    RotatedFCOS,
    RTDetr,
    SegFormer,
    SingleShotDetector,
    UNet,
    UnetClassifier,
    UPerNet,
    load_model,
)
from geolearn.models.compare import compare
from geolearn.plotting.maps import show_map
from geolearn.prepare import prepare_data
from geolearn.pretrain import pretrain
from geolearn.probe import probe
from geolearn.raster_windows import from_rasters
from geolearn.sources import from_arrays, from_dataset

__version__: str

HOMES: dict[str, str]

__all__ = [
    'FCN',
    'FCOS',
    'FPN',
    'MUSTER',
    'Adaptation',
    'AttentionUNet',
    'Band',
    'ChangeDetector',
    'ChipData',
    'ClassInfo',
    'DeepLab',
    'DeepLabV3',
    'Embeddings',
    'FasterRCNN',
    'FeatureClassifier',
    'GeoLearnError',
    'LinearProbe',
    'Mask2Former',
    'MaskRCNN',
    'OrientedRCNN',
    'PSPNet',
    'PSPNetClassifier',
    'PanopticFPN',
    'PixelHead',
    'PixelRegressor',
    'PixelTimeSeries',
    'RTDetr',
    'RetinaNet',
    'RotatedFCOS',
    'SegFormer',
    'SingleShotDetector',
    'UNet',
    'UPerNet',
    'UnetClassifier',
    '__version__',
    'attention_maps',
    'backbone_table',
    'compare',
    'create_backbone',
    'describe_backbone',
    'embed',
    'embed_many',
    'embed_pixels',
    'embed_raster',
    'export_training_data',
    'from_arrays',
    'from_dataset',
    'from_rasters',
    'get_bands',
    'list_backbones',
    'list_sensors',
    'load_model',
    'prepare_data',
    'pretrain',
    'probe',
    'show_map',
    'vectorize_map',
]

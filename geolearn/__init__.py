"""Deep learning on satellite and aerial imagery, with remote-sensing foundation models as backbones."""

import sys
from importlib import import_module
from types import ModuleType

from geolearn._version import __version__

HOMES = {
    'Adaptation': 'adaptation',
    'Band': 'bands',
    'ChipData': 'data',
    'ClassInfo': 'classes',
    'Embeddings': 'embed.embeddings',
    'GeoLearnError': 'errors',
    'PixelTimeSeries': 'embed.pixels',
    'attention_maps': 'embed.attention',
    'backbone_table': 'backbones',
    'compare': 'models.compare',
    'create_backbone': 'backbones',
    'describe_backbone': 'backbones',
    'embed': 'embed',
    'embed_many': 'embed.many',
    'embed_pixels': 'embed.pixels',
    'embed_raster': 'embed.grids',
    'export_training_data': 'chips.export',
    'from_arrays': 'sources',
    'from_dataset': 'sources',
    'from_rasters': 'raster_windows',
    'get_bands': 'bands',
    'list_backbones': 'backbones',
    'list_sensors': 'bands',
    'prepare_data': 'prepare',
    'pretrain': 'pretrain',
    'probe': 'probe',
    'show_map': 'plotting.maps',
    'vectorize_map': 'inference.vectorize',
}
"""Modules of the public names; all others in `__all__` are models. Type checkers read `__init__.pyi` instead."""

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


def __getattr__(name: str) -> object:
    """Load a public name on first use: importing geolearn itself takes milliseconds, torch seconds."""
    if name not in __all__:
        from geolearn.arguments import PUBLIC
        from geolearn.errors import ArcGISNameError

        if name in PUBLIC:
            raise ArcGISNameError(f'geolearn has no {name} as arcgis.learn has; instead: {PUBLIC[name]}')
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'geolearn.{HOMES.get(name, "models")}'), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """This module, in which a function stays what it is where its package has the same name, such as `probe`."""

    def __setattr__(self, name: str, value: object) -> None:
        # Python sets a package that is imported as an attribute of its parent
        if not (name in HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

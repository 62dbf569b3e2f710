"""Classes of models by name, and the modules in which they are defined."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeVar

from geolearn import errors

MODELS: dict[str, type[Any]] = {}
"""Filled by `register_model`."""

HOMES = {
    'ChangeDetector': 'change_detector',
    'FeatureClassifier': 'feature_classifier',
    'PixelHead': 'pixel_head',
    'PixelRegressor': 'pixel_regressor',
    'PanopticFPN': 'panoptic',
    'Mask2Former': 'panoptic',
    'Mask2FormerOptions': 'panoptic',
    **dict.fromkeys(
        'FCOS FasterRCNN MaskRCNN OrientedRCNN RetinaNet RotatedFCOS RTDetr SingleShotDetector'.split(),
        'object_detector',
    ),
    **dict.fromkeys(
        'AttentionUNet DeepLab DeepLabV3 FCN FPN LinearProbe MUSTER PSPNet SegFormer UNet UPerNet'.split(),
        'pixel_classifiers',
    ),
    # bases, options, and ArcGIS's names
    'ObjectDetector': 'object_detector',
    'PanopticModel': 'panoptic',
    **dict.fromkeys('RCNNOptions RotatedOptions SingleStageOptions TransformerOptions'.split(), 'object_detector'),
    **dict.fromkeys('PixelClassifier PSPNetClassifier UnetClassifier'.split(), 'pixel_classifiers'),
}
"""Modules of the public names of `geolearn.models`, which are imported when one is asked for."""

M = TypeVar('M', bound=type[Any])


def register_model(cls: M) -> M:
    """Make a model class known to `load_model` under its name."""
    if cls.__name__ in MODELS:
        raise ValueError(f'model {cls.__name__!r} is already registered by {MODELS[cls.__name__].__module__}')
    MODELS[cls.__name__] = cls
    return cls


def load_all() -> Mapping[str, type[Any]]:
    """Import all classes of models; return them by name."""
    for home in set(HOMES.values()):
        import_module(f'geolearn.models.{home}')
    return MODELS


def find_model(name: str) -> type[Any]:
    """Return a class of models by its name, or by ArcGIS's.

    Raises:
        UnknownNameError: If there is none.
    """
    load_all()
    public = {known: getattr(import_module(f'geolearn.models.{home}'), known) for known, home in HOMES.items()}
    classes = {known: cls for known, cls in {**public, **MODELS}.items() if cls in MODELS.values()}
    if name not in classes:
        raise errors.UnknownNameError('model', name, classes)
    return classes[name]

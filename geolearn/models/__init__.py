"""Models: what the user holds, trains, saves and maps rasters with."""

from importlib import import_module

from geolearn.models.base import Model, load_model
from geolearn.models.registry import HOMES, MODELS, load_all

__all__ = ['MODELS', 'Model', 'load_all', 'load_model']


def __getattr__(name: str) -> object:
    """Load a class of models on first use: detectors bring torchvision, whose import takes seconds."""
    if name not in HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'geolearn.models.{HOMES[name]}'), name)

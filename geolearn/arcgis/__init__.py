"""Models as ArcGIS Pro runs them: Python raster functions, which the file in a bundle derives its class from.

ArcGIS Pro takes the file that the .emd names under InferenceFunction, makes an object of the class of the file's name,
calls `initialize`, `getParameterInfo` and `getConfiguration`, and then `updatePixels` or `vectorize` block by block.
No one has tried that here for want of a license: these functions hold to what is known of the calls.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geolearn.arcgis.chips import ClassifyObjects
    from geolearn.arcgis.objects import DetectInstances, DetectObjects
    from geolearn.arcgis.raster_functions import ClassifyPixels

__all__ = ['ClassifyObjects', 'ClassifyPixels', 'DetectInstances', 'DetectObjects']


def __getattr__(name: str) -> object:
    """Load a function on first use."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    home = {'ClassifyPixels': 'raster_functions', 'ClassifyObjects': 'chips'}.get(name, 'objects')
    return getattr(import_module(f'geolearn.arcgis.{home}'), name)

"""Models as ArcGIS Pro runs them: Python raster functions, which the file in a bundle derives its class from.

ArcGIS Pro takes the file that the .emd names under InferenceFunction, makes an object of the class of the file's name,
calls `initialize`, `getParameterInfo` and `getConfiguration`, and then `updatePixels` or `vectorize` block by block.
No one has tried that here for want of a license: these functions hold to what is known of the calls.
"""

from geolearn.arcgis.raster_functions import ClassifyObjects, ClassifyPixels, DetectInstances, DetectObjects

__all__ = ['ClassifyObjects', 'ClassifyPixels', 'DetectInstances', 'DetectObjects']

"""The Python file in a bundle that ArcGIS Pro runs; geolearn itself never does."""

RASTER_FUNCTIONS = {
    'ImageClassification': 'ClassifyPixels',
    'ObjectDetection': 'DetectObjects',
    'InstanceDetection': 'DetectInstances',
    'ObjectClassification': 'ClassifyObjects',
}
"""The class of `geolearn.arcgis` that serves each ModelType. Esri has no word for others, such as regression."""

_SOURCE = '''\
"""What ArcGIS Pro runs to use this model. It needs geolearn in the Python environment of ArcGIS Pro."""

from geolearn.arcgis import {base}


class {name}({base}):
    """ArcGIS Pro looks for a class that is called as its file."""

    home = __file__
'''


def inference_file(model_type: str) -> tuple[str, bytes] | None:
    """Return name and content of the file for models of a type; None where ArcGIS has no such models."""
    base = RASTER_FUNCTIONS.get(model_type)
    if base is None:
        return None
    name = f'Geolearn{base}'
    return f'{name}.py', _SOURCE.format(base=base, name=name).encode()

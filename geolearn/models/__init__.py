"""Models: what the user holds, trains, saves and maps rasters with."""

from geolearn.models._model import PixelClassifier, load_model
from geolearn.models.deeplab import DeepLab

__all__ = ['DeepLab', 'PixelClassifier', 'load_model']

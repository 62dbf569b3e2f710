"""Models: what the user holds, trains, saves and maps rasters with."""

from geolearn.models._loading import load_model
from geolearn.models._model import PixelClassifier
from geolearn.models.deeplab import DeepLab

__all__ = ['DeepLab', 'PixelClassifier', 'load_model']

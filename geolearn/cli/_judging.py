"""Say how good a model is: a table and a line for the terminal."""

from geolearn.models import FeatureClassifier, Model, PixelRegressor
from geolearn.models.detection.object_detector import ObjectDetector
from geolearn.models.pixels.judged import JudgedClassifier


def print_scores(model: Model) -> None:
    """Print a row for each class, where there are classes, and what is usual to say of such a model."""
    if isinstance(model, JudgedClassifier | FeatureClassifier | ObjectDetector):
        print(model.per_class_metrics().to_string(float_format='{:.3f}'.format))
    print(', '.join(f'{name} {value:.4f}' for name, value in _scores(model).items()), 'on the validation chips')


def _scores(model: Model) -> dict[str, float]:
    if isinstance(model, JudgedClassifier):
        return {'accuracy': model.accuracy(), 'mIoU': model.confusion().miou}
    if isinstance(model, ObjectDetector):
        return model.scores().values()
    if isinstance(model, FeatureClassifier | PixelRegressor):
        return model.scores()
    return {}

"""Say how good a model is: a table and a line for the terminal, and the report."""

from pathlib import Path

from geolearn.errors import NotTrainedError
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


def require_report(cls: type[Model]) -> None:
    """Refuse classes of models that have no report.

    Raises:
        NotTrainedError: If `cls` is one.
    """
    if not issubclass(cls, JudgedClassifier):
        raise NotTrainedError(f'there is no report on a {cls.__name__} yet; leave it out')


def write_report(model: Model, path: str | Path) -> Path:
    """Write the report of a model.

    Raises:
        NotTrainedError: If there is none for its class.
    """
    if not isinstance(model, JudgedClassifier):
        raise NotTrainedError(f'there is no report on a {type(model).__name__} yet')
    return model.report(path)

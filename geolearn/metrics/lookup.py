"""Every metric of geolearn by its name, for rows of numbers that were saved with a model."""

from types import MappingProxyType

from geolearn.errors import UnknownNameError
from geolearn.metrics import calibration, classification, detection, images, lines, panoptic, pixels, regression
from geolearn.metrics.scores import LOSSES, Metric

_SCORES = (
    pixels.PixelScores,
    pixels.BoundaryIoU,
    lines.LineScores,
    calibration.Calibration,
    regression.RegressionScores,
    images.ImageScores,
    classification.ChipScores,
    classification.MultiLabelScores,
    panoptic.PanopticScores,
)

_OTHERS = tuple(metric for scores in _SCORES for metric in scores.columns)

_DETECTION = (*detection.DetectionScores.COLUMNS, detection.DetectionScores.ANGLE_ERROR)

METRICS = MappingProxyType(
    {
        metric.name: metric
        for metric in (*LOSSES, *_DETECTION, *(metric for scores in _SCORES for metric in scores.columns))
    }
)
"""The losses, and the columns of all scores."""


def find_metric(name: str) -> Metric:
    """Return the metric of a column of the epoch table; a column that `METRICS` does not hold has no better side."""
    return METRICS.get(name, Metric(name))


def find_monitor(name: str) -> Metric:
    """Return the metric of a column by which epochs are compared.

    Raises:
        UnknownNameError: If it is none of `METRICS`, or neither way is better.
    """
    comparable = {metric.name: metric for metric in METRICS.values() if metric.higher_is_better is not None}
    if name not in comparable:
        raise UnknownNameError('value to monitor', name, comparable)
    return comparable[name]


def name_metric(name: str) -> str:
    """Return what people call a column of the epoch table."""
    return find_metric(name).label

"""How good a network is, counted batch by batch: pixels, boundaries, regression, chips and objects.

Each class of scores says in `columns` what its metrics are called, what people call them, and which way they improve.
Classes that occur in neither truth nor prediction have no score (NaN) and are left out of means; pixels of IGNORE_INDEX
take no part. Counts stay on the device of the network until `values()` reads them.
"""

from geolearn.metrics.calibration import Calibration, PixelSample, ReliabilityBin, fit_temperature
from geolearn.metrics.classification import ChipScores, MultiLabelScores
from geolearn.metrics.detection import (
    FN,
    FP,
    TP,
    ApMetric,
    DetectionScores,
    IouType,
    PrecisionRecall,
    PredictedObjects,
    TrueObjects,
)
from geolearn.metrics.lookup import METRICS, find_metric, find_monitor, name_metric
from geolearn.metrics.pixels import (
    BoundaryIoU,
    ConfusionMatrix,
    PixelScores,
    choose_typical,
    cover_classes,
    rank_chips,
    reduce,
    score_chips,
    spread_chips,
)
from geolearn.metrics.regression import RegressionScores
from geolearn.metrics.scores import LOSSES, CustomMetric, Metric, Scores, best_epoch

__all__ = [
    'FN',
    'FP',
    'LOSSES',
    'METRICS',
    'TP',
    'ApMetric',
    'BoundaryIoU',
    'Calibration',
    'ChipScores',
    'ConfusionMatrix',
    'CustomMetric',
    'DetectionScores',
    'IouType',
    'Metric',
    'MultiLabelScores',
    'PixelSample',
    'PixelScores',
    'PrecisionRecall',
    'PredictedObjects',
    'RegressionScores',
    'ReliabilityBin',
    'Scores',
    'TrueObjects',
    'best_epoch',
    'choose_typical',
    'cover_classes',
    'find_metric',
    'find_monitor',
    'fit_temperature',
    'name_metric',
    'rank_chips',
    'reduce',
    'score_chips',
    'spread_chips',
]

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
from geolearn.metrics.images import ImageScores, structural_similarity
from geolearn.metrics.lines import LineScores, average_path_length_similarity, count_within_buffer
from geolearn.metrics.lookup import METRICS, find_metric, find_monitor, name_metric
from geolearn.metrics.panoptic import PanopticScores, count_segments, panoptic_quality
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
from geolearn.metrics.scores import LOSSES, CustomMetric, JoinedScores, Metric, Scores, best_epoch

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
    'ImageScores',
    'IouType',
    'JoinedScores',
    'LineScores',
    'Metric',
    'MultiLabelScores',
    'PanopticScores',
    'PixelSample',
    'PixelScores',
    'PrecisionRecall',
    'PredictedObjects',
    'RegressionScores',
    'ReliabilityBin',
    'Scores',
    'TrueObjects',
    'average_path_length_similarity',
    'best_epoch',
    'choose_typical',
    'count_segments',
    'count_within_buffer',
    'cover_classes',
    'find_metric',
    'find_monitor',
    'fit_temperature',
    'name_metric',
    'panoptic_quality',
    'rank_chips',
    'reduce',
    'score_chips',
    'spread_chips',
    'structural_similarity',
]

"""How good a network is, counted batch by batch: pixels, outlines, values, chips and objects.

Classes that occur in neither truth nor prediction have no score (NaN) and are left out of means; pixels of IGNORE_INDEX
take no part. Counts stay on the device of the network until `values()` reads them.
"""

from geolearn.metrics.boundary import BoundaryIoU
from geolearn.metrics.calibration import Calibration, PixelSample, ReliabilityBin, fit_temperature
from geolearn.metrics.classification import ChipScores, MultiLabelScores
from geolearn.metrics.detection import DetectionScores, FoundObjects, PrecisionRecall, TrueObjects
from geolearn.metrics.pixels import ConfusionMatrix, PixelScores, reduce
from geolearn.metrics.regression import RegressionScores
from geolearn.metrics.scores import HIGHER_IS_BETTER, Scores, higher_is_better

__all__ = [
    'HIGHER_IS_BETTER',
    'BoundaryIoU',
    'Calibration',
    'ChipScores',
    'ConfusionMatrix',
    'DetectionScores',
    'FoundObjects',
    'MultiLabelScores',
    'PixelSample',
    'PixelScores',
    'PrecisionRecall',
    'RegressionScores',
    'ReliabilityBin',
    'Scores',
    'TrueObjects',
    'fit_temperature',
    'higher_is_better',
    'reduce',
]

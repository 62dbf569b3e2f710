"""What is not defined is NaN: non-finite outputs, classes without pixels, boundaries that labels do not show."""

import math

import pytest
import torch

from geolearn.batch import Detections, Objects
from geolearn.classes import IGNORE_INDEX
from geolearn.errors import TrainingError
from geolearn.metrics import (
    BoundaryIoU,
    Calibration,
    ChipScores,
    ConfusionMatrix,
    DetectionScores,
    MultiLabelScores,
    PixelScores,
    RegressionScores,
    fit_temperature,
)

BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])


def outputs_of(kind, value, seed=0):
    """A batch of two chips for a kind of scores, in which one output is `value`."""
    generator = torch.Generator().manual_seed(seed)
    logits, target = torch.randn(2, 3, 8, 8, generator=generator), torch.randint(0, 3, (2, 8, 8), generator=generator)
    match kind:
        case 'pixels' | 'boundaries' | 'calibration':
            logits[1, 2, 4, 4] = value
            return logits, target
        case 'regression':
            logits[1, 0, 4, 4] = value
            return logits[:, :1], target.float()
        case 'chips':
            logits[1, 2, 4, 4] = value
            return logits[:, :, 4, 4], target[:, 4, 4]
        case 'labels':
            logits[1, 2, 4, 4] = value
            return logits[:, :, 4, 4], (target[:, :3, 4] > 0).float()
    scores = torch.tensor([0.9, value])
    return [Detections(BOXES, torch.tensor([0, 1]), scores)], [Objects(BOXES, torch.tensor([0, 1]))]


SCORES = {
    'pixels': lambda: PixelScores(3),
    'boundaries': lambda: BoundaryIoU(3),
    'calibration': Calibration,
    'regression': RegressionScores,
    'chips': lambda: ChipScores(3),
    'labels': lambda: MultiLabelScores(3),
    'objects': lambda: DetectionScores(2),
}


@pytest.mark.parametrize('kind', SCORES)
def test_nan_is_never_counted_as_a_class(kind):
    scores = SCORES[kind]()
    scores.add(*outputs_of(kind, 0.5, seed=1))
    scores.add(*outputs_of(kind, math.nan))
    assert all(math.isnan(value) for value in scores.values().values())
    scores.reset()
    scores.add(*outputs_of(kind, 0.5))
    assert any(math.isfinite(value) for value in scores.values().values())


@pytest.mark.parametrize('kind', ['pixels', 'boundaries', 'calibration'])
def test_nan_where_nothing_is_labelled_does_no_harm(kind):
    logits, target = outputs_of(kind, math.nan)
    scores = SCORES[kind]()
    scores.add(logits, target.masked_fill(logits.isnan().any(1), IGNORE_INDEX))
    assert all(math.isfinite(value) for value in scores.values().values())


def test_no_temperature_is_fitted_to_nan():
    with pytest.raises(TrainingError, match='the network returns NaN'):
        fit_temperature([outputs_of('pixels', math.nan)])


def test_classes_that_means_leave_out_are_named():
    matrix = ConfusionMatrix(4, torch.diag(torch.tensor([3, 2, 0, 0])))
    assert matrix.describe_mean(['a', 'b', 'rice', 'water']) == (
        "means are over 2 of 4 classes: 'rice', 'water' have no labelled validation pixels"
    )
    matrix.counts[0, 2] = 1
    assert matrix.describe_mean(['a', 'b', 'rice', 'water']).endswith("'rice', predicted all the same, count as IoU 0")
    assert ConfusionMatrix.empty(2).describe_mean(['a', 'b']) == (
        'no validation pixel is labelled: all metrics are undefined'
    )
    assert ConfusionMatrix(2, torch.eye(2, dtype=torch.int64)).describe_mean(['a', 'b']) == ''


def test_boundaries_that_sparse_polygons_do_not_show_are_undefined():
    truth = torch.full((1, 64, 64), IGNORE_INDEX)
    truth[0, 5:20, 5:20], truth[0, 40:60, 40:60] = 0, 1
    logits = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    scores = BoundaryIoU(2)
    scores.add(logits, truth)
    assert math.isnan(scores.values()['boundary_iou'])
    assert scores.describe_undefined(['a', 'b']).startswith(
        "boundary IoU is undefined for 'a', 'b': the labels show no"
    )
    truth[0, 5:20, 20:30] = 1  # the first polygon has a neighbor now
    scores.add(logits, truth)
    assert math.isfinite(scores.values()['boundary_iou'])

"""Average precision: known cases, torchmetrics, and ArcGIS's choice of overlap and score."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from geolearn.batch import Objects
from geolearn.metrics import METRICS, DetectionScores


@dataclass
class Found:
    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | None = None


NOBODY = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
NOTHING = Found(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))


def boxes_of(seed, count, size=128):
    generator = torch.Generator().manual_seed(seed)
    corner = (size - 30) * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + 5 + 25 * torch.rand(count, 2, generator=generator)], 1)


def image(seed, *, count=6, classes=3):
    """True objects, and found ones: shifted a little, some missed, some invented, some of a wrong class."""
    generator = torch.Generator().manual_seed(seed)
    boxes, labels = boxes_of(seed, count), torch.randint(0, classes, (count,), generator=generator)
    found = torch.cat([boxes[1:] + 3 * torch.randn(count - 1, 4, generator=generator), boxes_of(seed + 1, 2)])
    found[:, 2:] = torch.maximum(found[:, 2:], found[:, :2] + 1)
    named = torch.cat([labels[1:], torch.randint(0, classes, (2,), generator=generator)])
    named[0] = (named[0] + 1) % classes
    return Found(found, named, torch.rand(len(found), generator=generator)), Objects(boxes, labels)


def as_masks(boxes, size=64):
    """Fill boxes given in pixels."""
    rows, cols = torch.arange(size)[:, None], torch.arange(size)
    left, top, right, bottom = boxes.round().unbind(1)
    inside = [(rows >= t) & (rows < b) & (cols >= x) & (cols < r) for x, t, r, b in zip(left, top, right, bottom)]
    return torch.stack(inside)


@given(st.integers(0, 2**31))
@settings(max_examples=15)
def test_values_are_torchmetrics(seed):
    images = [image(seed + k) for k in range(3)]
    found, truth = zip(*images)
    scores = DetectionScores(3)
    scores.add(found[:1], truth[:1])
    scores.add(found[1:], truth[1:])
    metric = MeanAveragePrecision(
        class_metrics=True, backend='pycocotools', rec_thresholds=np.linspace(0, 1, 101).tolist()
    )
    metric.update(
        [{'boxes': f.boxes, 'labels': f.labels, 'scores': f.scores} for f in found],
        [{'boxes': t.boxes, 'labels': t.labels} for t in truth],
    )
    expected = metric.compute()
    names = {'map': 'map', 'ap50': 'map_50', 'ap75': 'map_75', 'recall': 'mar_100', 'ap_small': 'map_small'}
    values = scores.values()
    assert tuple(values) == tuple(metric.name for metric in scores.columns)
    for name, theirs in names.items():
        assert values[name] == pytest.approx(expected[theirs].item(), abs=1e-6)
    each = scores.per_class()
    for label, precision, recall in zip(expected['classes'], expected['map_per_class'], expected['mar_100_per_class']):
        if precision >= 0:
            assert each['map'][label] == pytest.approx(precision.item(), abs=1e-6)
            assert each['recall'][label] == pytest.approx(recall.item(), abs=1e-6)
        else:
            assert math.isnan(each['map'][label])


def test_what_is_found_exactly_is_1_and_sizes_without_objects_are_undefined():
    _, truth = image(0, count=3, classes=1)
    scores = DetectionScores(2)
    scores.add([Found(truth.boxes, truth.labels, torch.ones(3))], [truth])
    values = scores.values()
    assert [values[name] for name in ('map', 'ap50', 'ap_small', 'recall')] == pytest.approx([1] * 4)
    assert math.isnan(values['ap_large'])
    assert scores.per_class()['map'] == pytest.approx([1, math.nan], nan_ok=True)


def test_nothing_found_is_0_and_nothing_there_is_undefined():
    _, truth = image(0, classes=1)
    missed, alarmed, empty = DetectionScores(1), DetectionScores(1), DetectionScores(1)
    missed.add([NOTHING], [truth])
    alarmed.add([image(0, classes=1)[0]], [NOBODY])
    empty.add([NOTHING], [NOBODY])
    assert missed.values()['map'] == missed.values()['recall'] == 0
    for scores in (alarmed, empty, DetectionScores(1)):
        assert all(math.isnan(value) for value in scores.values().values())
        assert math.isnan(scores.average_precision()[0])
        assert math.isnan(scores.per_class()['ap50'][0])
    assert DetectionScores(1).precision_recall() == {}


def test_overlap_and_score_can_be_chosen_as_in_arcgis():
    truth = Objects(torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]]), torch.tensor([0, 0]))
    # the first lies over a quarter of its object, the second is right but unsure
    found = Found(torch.tensor([[0.0, 0, 10, 2.5], [20, 20, 30, 30]]), torch.tensor([0, 0]), torch.tensor([0.9, 0.3]))
    scores = DetectionScores(2)
    scores.add([found], [truth])
    assert scores.average_precision(iou=0.1) == pytest.approx([1, math.nan], nan_ok=True)
    # of the 101 recalls, 51 lie in 0..0.5
    assert scores.average_precision(iou=0.1, score=0.5)[0] == pytest.approx(51 / 101)
    assert scores.average_precision(iou=0.5)[0] == pytest.approx(51 / 101 * 0.5)
    assert scores.average_precision(iou=0.5, score=0.5)[0] == 0
    assert scores.values()['ap50'] == pytest.approx(51 / 101 * 0.5)
    with pytest.raises(ValueError, match='iou must be above 0 and at most 1, got 0'):
        scores.average_precision(iou=0)


def test_the_curve_falls_from_the_surest_to_the_last():
    truth = Objects(torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]]), torch.tensor([1, 1]))
    found = Found(
        torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [20, 20, 30, 30]]),
        torch.tensor([1, 1, 1]),
        torch.tensor([0.9, 0.6, 0.3]),
    )
    scores = DetectionScores(3)
    scores.add([found], [truth])
    (label, curve), *others = scores.precision_recall().items()
    assert (label, others) == (1, [])
    assert curve.recall.tolist() == pytest.approx([k / 100 for k in range(101)])
    assert curve.precision.tolist() == pytest.approx([1] * 51 + [2 / 3] * 50)
    assert curve.score.tolist() == pytest.approx([0.9] * 51 + [0.3] * 50)


def test_masks_are_compared_where_boxes_lie():
    boxes = torch.tensor([[4.0, 4, 20, 20], [30, 30, 50, 50]])
    labels = torch.tensor([0, 1])
    halves = as_masks(boxes) & (torch.arange(64) < 12 + 28 * (torch.arange(2)[:, None] > 0))[:, None]
    truth = Objects(boxes, labels, as_masks(boxes))
    scores = {kind: DetectionScores(2, iou_type=kind) for kind in ('bbox', 'segm')}
    for counted in scores.values():
        counted.add([Found(boxes, labels, torch.tensor([0.9, 0.8]), halves)], [truth])
    assert scores['bbox'].values()['map'] == pytest.approx(1)
    assert scores['segm'].values()['map'] == pytest.approx(0.1)  # half of each object: right at 0.5 alone
    assert scores['segm'].average_precision(iou=0.6) == [0, 0]
    assert scores['segm'].average_precision(iou=0.4, score=0.85) == pytest.approx([1, 0])


def test_masks_are_needed_where_they_are_compared():
    found, truth = image(0)
    with pytest.raises(ValueError, match="'segm' compares masks, and an image's objects have none"):
        DetectionScores(3, iou_type='segm').add([found], [truth])


@pytest.mark.parametrize('most', [1, 5, 200])
def test_as_many_objects_count_as_asked(most):
    boxes = torch.stack([torch.tensor([x, y, x + 5, y + 5]) for x in range(0, 96, 6) for y in range(0, 54, 6)]).float()
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    scores = DetectionScores(1, max_detections=most)
    scores.add([Found(boxes, labels, torch.linspace(1, 0.1, len(boxes)))], [Objects(boxes, labels)])
    assert scores.values()['recall'] == pytest.approx(min(most, len(boxes)) / len(boxes))
    assert (scores.values()['map'] > 0.99) == (most == 200)


def test_reset_forgets_and_looking_does_not():
    scores = DetectionScores(3)
    scores.add(*[[part] for part in image(1)])
    before = scores.values()
    scores.average_precision(iou=0.3, score=0.4)
    scores.reduce()
    assert scores.values() == pytest.approx(before, nan_ok=True)
    scores.reset()
    scores.add(*[[part] for part in image(1)])
    assert scores.values() == pytest.approx(before, nan_ok=True)
    assert {metric.name: metric for metric in scores.columns}.items() <= METRICS.items()

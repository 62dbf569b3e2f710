"""Average precision of oriented boxes, in COCO's and in VOC's style, and their angles."""

import math

import numpy as np
import pytest
import torch

from geolearn.batch import Detections, Objects
from geolearn.errors import UnknownNameError
from geolearn.metrics import DetectionScores
from geolearn.oriented import geometry


def truth(turned, labels=None, ignored=None):
    turned = torch.tensor(turned, dtype=torch.float32).view(-1, 5)
    labels = torch.zeros(len(turned), dtype=torch.int64) if labels is None else torch.tensor(labels)
    ignored = None if ignored is None else torch.tensor(ignored)
    return Objects(geometry.hulls(turned), labels, turned=turned, ignored=ignored)


def found(turned, scores, labels=None):
    objects = truth(turned, labels)
    return Detections(objects.boxes, objects.labels, torch.tensor(scores), turned=objects.turned)


def random_images(rng, *, level=False):
    images = []
    for _ in range(12):
        boxes = np.concatenate([rng.uniform(10, 90, (6, 2)), rng.uniform(8, 40, (6, 2)), rng.uniform(-1, 1, (6, 1))], 1)
        if level:
            boxes[:, 4] = 0
        labels = rng.integers(0, 2, 6)
        noisy = np.concatenate([boxes, boxes[:3]]) + rng.normal(0, 1, (9, 5)) * [2, 2, 2, 2, 0 if level else 0.1]
        noisy[:, 2:4] = np.maximum(noisy[:, 2:4], 1)
        labels_found = np.concatenate([labels, rng.integers(0, 2, 3)])
        images.append((found(noisy, rng.random(9).tolist(), labels_found.tolist()), truth(boxes, labels.tolist())))
    return images


def test_level_boxes_have_the_scores_of_plain_ones():
    images = random_images(np.random.default_rng(0), level=True)
    rotated, plain = DetectionScores(2, iou_type='rotated'), DetectionScores(2)
    for scores in (rotated, plain):
        for one, other in images:
            scores.add([one], [other])
    values = plain.values()
    assert {name: rotated.values()[name] for name in values} == pytest.approx(values, abs=1e-6, nan_ok=True)
    assert 0.1 < values['map'] < 0.9
    assert rotated.count_matches().tolist() == plain.count_matches().tolist()


def test_a_crossing_object_with_the_same_hull_is_none():
    ship = [50.0, 50, 40, 6, math.pi / 4]
    crossing = [50.0, 50, 40, 6, -math.pi / 4]
    scores = DetectionScores(1, iou_type='rotated')
    scores.add([found([crossing], [0.9])], [truth([ship])])
    assert scores.values()['ap50'] == 0
    plain = DetectionScores(1)
    plain.add([found([crossing], [0.9])], [truth([ship])])
    assert plain.values()['ap50'] == pytest.approx(1)


def test_ignored_objects_are_neither_right_nor_wrong_in_every_style():
    ship, other = [30.0, 30, 20, 6, 0.3], [70.0, 70, 20, 6, 0.3]
    scores = DetectionScores(1, iou_type='rotated')
    scores.add([found([other, ship], [0.9, 0.8])], [truth([ship, other], ignored=[False, True])])
    assert scores.values()['ap50'] == pytest.approx(1)
    assert scores.count_matches().tolist() == [[[1, 0, 0]]]
    assert scores.average_precision(metric='voc07') == scores.average_precision(metric='voc10') == pytest.approx([1])


def test_ignored_objects_are_not_missed_by_level_boxes_either():
    ship, other = [30.0, 30, 20, 6, 0.3], [70.0, 70, 20, 6, 0.3]
    scores = DetectionScores(1)
    scores.add([found([ship], [0.8])], [truth([ship, other], ignored=[False, True])])
    assert scores.count_matches().tolist() == [[[1, 0, 0]]]
    assert scores.values()['recall'] == pytest.approx(1)


def test_voc_reads_the_curve_at_eleven_recalls_or_below_it():
    """Three of four found, one false positive second: precision 1, 1/2, 2/3, 3/4 at recalls 1/4, 1/4, 1/2, 3/4."""
    ships = [[20.0 * i, 50, 12, 6, 0.2] for i in range(1, 5)]
    scores = DetectionScores(1, iou_type='rotated')
    scores.add([found([ships[0], [200, 200, 9, 9, 0], ships[1], ships[2]], [0.9, 0.8, 0.7, 0.6])], [truth(ships)])
    assert scores.average_precision(metric='voc07') == pytest.approx([(3 * 1 + 5 * 0.75) / 11])
    assert scores.average_precision(metric='voc10') == pytest.approx([0.25 + 2 * 0.25 * 0.75])
    taken = DetectionScores(1, iou_type='rotated')  # an overlap of iou itself is too little
    taken.add([found([ships[0], ships[0]], [0.9, 0.8])], [truth(ships[:1])])
    assert taken.average_precision(iou=1.0, metric='voc10') == [0.0]
    with pytest.raises(UnknownNameError, match='voc07'):
        scores.average_precision(metric='voc7')


def test_angles_are_compared_as_directions_and_those_of_squares_by_quarter_turns():
    ship, house = [30.0, 30, 20, 6, 0.0], [70.0, 70, 20, 19, 0.0]
    scores = DetectionScores(3, iou_type='rotated')
    near = [found([[30, 30, 20, 6, math.radians(178)], [70, 70, 20, 19, math.radians(94)]], [0.9, 0.9], [0, 1])]
    scores.add(near, [truth([ship, house], [0, 1])])
    per_class, every = scores.angle_errors()
    assert per_class[:2] == pytest.approx([2, 4], abs=1e-3)
    assert math.isnan(per_class[2])
    assert every == pytest.approx(3, abs=1e-3)
    assert scores.values()['angle_error'] == pytest.approx(every)
    with pytest.raises(ValueError, match='rotated'):
        DetectionScores(1).angle_errors()
    with pytest.raises(ValueError, match='oriented boxes'):
        scores.add([Detections(torch.zeros(1, 4), torch.zeros(1).long(), torch.ones(1))], [truth([ship])])

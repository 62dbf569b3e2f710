"""Objects found, found wrongly and missed, image by image."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.batch import Detections, Objects
from geolearn.metrics import DetectionScores


def outlines(boxes):
    masks = torch.zeros(len(boxes), 40, 40, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
        mask[top:bottom, left:right] = True
    return masks


def truth(boxes, labels):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Objects(boxes, torch.tensor(labels, dtype=torch.int64), outlines(boxes))


def found(boxes, labels, scores):
    known = truth(boxes, labels)
    return Detections(known.boxes, known.labels, torch.tensor(scores, dtype=torch.float32), known.masks)


A, B, C = [0, 0, 10, 10], [20, 20, 30, 30], [0, 1, 10, 10]


@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_the_surest_takes_the_object_and_classes_do_not_mix(iou_type):
    scores = DetectionScores(3, iou_type=iou_type)
    assert scores.count_matches().shape == (0, 3, 3)
    scores.add(
        [found([C, B, A], [0, 1, 0], [0.9, 0.8, 0.95]), found([], [], [])],
        [truth([A, B], [0, 0]), truth([A], [2])],
    )
    first, second = scores.count_matches()
    assert first.tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 0]]
    assert second.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert scores.count_matches(score=0.92)[0].tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert scores.count_matches(iou=0.95, score=0.9)[0, 0].tolist() == [1, 1, 1]


def test_an_overlap_of_nothing_is_refused():
    with pytest.raises(ValueError, match='iou must be above 0 and at most 1, got 0'):
        DetectionScores(1).count_matches(iou=0)


corner = st.integers(0, 12)
box = st.tuples(corner, corner, st.integers(4, 12), st.integers(4, 12)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(st.lists(st.tuples(st.lists(box, max_size=4), st.lists(box, max_size=5)), min_size=1, max_size=3))
@settings(max_examples=25)
def test_counts_add_up_and_reach_the_recall_of_coco(images):
    scores = DetectionScores(1)
    for known, seen in images:
        sure = [0.9 - 0.1 * i for i in range(len(seen))]
        scores.add([found(seen, [0] * len(seen), sure)], [truth(known, [0] * len(known))])
    cases = scores.count_matches(score=0.0)[:, 0]
    assert (cases[:, 0] + cases[:, 2]).tolist() == [len(known) for known, _ in images]
    assert (cases[:, 0] + cases[:, 1]).tolist() == [len(seen) for _, seen in images]
    hits, _, misses = cases.sum(0).tolist()
    if hits + misses:
        curve = scores.precision_recall()[0]
        reached = float(curve.recall[curve.precision > 0].max()) if (curve.precision > 0).any() else 0.0
        assert reached <= hits / (hits + misses) + 1e-9 < reached + 0.0101

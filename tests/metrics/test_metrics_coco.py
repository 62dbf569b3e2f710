"""Average precision is pycocotools' to the last digits: boxes and masks, crowds, sizes and limits of detections."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from geolearn.batch import Detections, Objects
from geolearn.metrics import DetectionScores

SIDE = 160


def draw_boxes(rng, count):
    """Boxes of all three of COCO's sizes, in whole pixels."""
    sides = np.exp(rng.uniform(np.log(6), np.log(120), (count, 2))).astype(int)
    corner = (rng.random((count, 2)) * (SIDE - sides)).astype(int)
    return np.concatenate([corner, corner + sides], 1).astype(np.float32)


def fill(boxes):
    """Ellipses within boxes."""
    rows, cols = np.mgrid[:SIDE, :SIDE] + 0.5
    masks = [
        ((cols - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((rows - (y0 + y1) / 2) / (y1 - y0)) ** 2 <= 0.25
        for x0, y0, x1, y1 in boxes
    ]
    return np.stack(masks) if len(masks) else np.zeros((0, SIDE, SIDE), bool)


def draw_image(rng, classes):
    """True objects, which of them are crowds, and detections: shifted, doubled, invented, some of equal scores."""
    true = draw_boxes(rng, rng.integers(0, 7))
    labels, crowd = rng.integers(0, classes, len(true)), rng.random(len(true)) < 0.2
    again = true[rng.integers(0, len(true), len(true) + 3)] if len(true) else true
    shifted = np.clip(again + rng.normal(0, 3, again.shape).round(), 0, SIDE - 1)
    shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2] + 1)
    boxes = np.concatenate([shifted, draw_boxes(rng, rng.integers(0, 4))]).astype(np.float32)
    named = rng.integers(0, classes, len(boxes))
    named[: len(again)] = np.where(rng.random(len(again)) < 0.8, named[: len(again)], 0)
    if len(true):
        named[: len(true)] = labels
    scores = (rng.integers(0, 21, len(boxes)) / 20).astype(np.float32)
    return (true, labels, crowd), (boxes, named, scores)


def coco_of(images, classes, kind, *, true):
    """The same objects as a COCO index, written by hand."""
    rows = []
    for number, (truth, found) in enumerate(images):
        boxes, labels, last = truth if true else found
        for box, mask, label, value in zip(boxes.astype(float), fill(boxes), labels, last):
            encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
            x0, y0, x1, y1 = box.tolist()
            row = {
                'id': len(rows) + 1,
                'image_id': number,
                'category_id': int(label),
                'bbox': [x0, y0, x1 - x0, y1 - y0],
            }
            row['area'] = float(rle.area(encoded)) if kind == 'segm' else (x1 - x0) * (y1 - y0)
            row['segmentation'] = encoded
            rows.append(row | ({'iscrowd': int(value)} if true else {'score': float(value)}))
    index = COCO()
    images = [{'id': number, 'height': SIDE, 'width': SIDE} for number in range(len(images))]
    index.dataset = {'images': images, 'categories': [{'id': k} for k in range(classes)], 'annotations': rows}
    index.createIndex()
    return index


def evaluate(images, classes, kind, max_detections, *, ious=None):
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(*(coco_of(images, classes, kind, true=true) for true in (True, False)), kind)
        run.params.maxDets = [1, min(10, max_detections), max_detections]
        if ious:
            run.params.iouThrs = np.array(ious)
        run.evaluate()
        run.accumulate()
    precision, recall = run.eval['precision'][..., -1], run.eval['recall'][..., -1]
    return np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall)


def mean(values):
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def count(images, classes, kind, max_detections):
    scores = DetectionScores(classes, iou_type=kind, max_detections=max_detections)
    for (true, labels, crowd), (boxes, named, values) in images:
        masks = [torch.from_numpy(fill(part)) if kind == 'segm' else None for part in (true, boxes)]
        found = Detections(torch.from_numpy(boxes), torch.from_numpy(named), torch.from_numpy(values), masks[1])
        truth = Objects(torch.from_numpy(true), torch.from_numpy(labels), masks[0])
        scores.add([found], [truth], crowds=[torch.from_numpy(crowd)])
    return scores


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
@pytest.mark.parametrize('seed', range(12))
def test_every_value_is_pycocotools(kind, seed):
    rng = np.random.default_rng(seed)
    classes, max_detections = int(rng.integers(1, 4)), int(rng.choice([1, 3, 100]))
    images = [draw_image(rng, classes) for _ in range(int(rng.integers(1, 9)))]
    scores = count(images, classes, kind, max_detections)
    precision, recall = evaluate(images, classes, kind, max_detections)
    expected = {
        'map': precision[..., 0],
        'ap50': precision[0, ..., 0],
        'ap75': precision[5, ..., 0],
        'ap_small': precision[..., 1],
        'ap_medium': precision[..., 2],
        'ap_large': precision[..., 3],
        'recall': recall[..., 0],
    }
    assert scores.values() == pytest.approx(
        {name: mean(part) for name, part in expected.items()}, abs=1e-8, nan_ok=True
    )
    each = [mean(precision[:, :, k, 0]) for k in range(classes)]
    assert scores.per_class()['map'] == pytest.approx(each, abs=1e-8, nan_ok=True)
    at, _ = evaluate(images, classes, kind, max_detections, ious=[0.3])
    each = [mean(at[0, :, k, 0]) for k in range(classes)]
    assert scores.average_precision(iou=0.3) == pytest.approx(each, abs=1e-8, nan_ok=True)


@pytest.mark.parametrize('hits', range(1, 20))
def test_a_recall_of_exactly_k_hundredths_is_read_at_its_own_threshold(hits):
    boxes = np.array([[8 * k, 0, 8 * k + 7, 9] for k in range(20)], np.float32)
    # the first `hits` of 20 objects are detected, then come as many false positives, then the rest
    wrong = boxes[:hits] + np.float32([0, 40, 0, 40])
    found, values = np.concatenate([boxes[:hits], wrong]), np.linspace(1, 0.5, 2 * hits).astype(np.float32)
    zeros = [np.zeros(len(part), int) for part in (boxes, found)]
    images = [((boxes, zeros[0], np.zeros(20, bool)), (found, zeros[1], values))]
    precision, _ = evaluate(images, 1, 'bbox', 100)
    assert count(images, 1, 'bbox', 100).values()['map'] == pytest.approx(mean(precision[..., 0]), abs=1e-8)


def test_crowds_are_neither_missed_nor_wrong():
    rng = np.random.default_rng(0)
    boxes = draw_boxes(rng, 2)
    truth = (boxes, np.zeros(2, int), np.array([False, True]))
    found = (np.concatenate([boxes, boxes[1:]]), np.zeros(3, int), np.float32([0.9, 0.8, 0.7]))
    scores = count([(truth, found)], 1, 'bbox', 100)
    assert scores.count_matches().tolist() == [[[1, 0, 0]]]
    assert scores.values()['map'] == pytest.approx(1)

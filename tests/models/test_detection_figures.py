"""Figures of found objects and of precision over recall."""

import matplotlib.figure
import torch

from geolearn.bands import resolve_bands
from geolearn.batch import Detections, Objects
from geolearn.classes import ClassInfo
from geolearn.metrics import DetectionScores
from geolearn.plotting import show_detections, show_precision_recall

CLASSES = (ClassInfo(1, 'oak', (0, 200, 0)), ClassInfo(2, '$pine$', (0, 0, 200)))
BANDS = resolve_bands(['Red', 'Green', 'Blue'])


def objects(count, *, masks=False):
    corners = torch.arange(count)[:, None] * 8.0
    boxes = torch.cat([corners, corners, corners + 6, corners + 6], 1)
    outlines = torch.zeros(count, 40, 40, dtype=torch.bool)
    outlines[:, 3:9, 3:9] = True
    return Objects(boxes, torch.arange(count) % 2, outlines if masks else None)


def found(count, *, masks=False):
    known = objects(count, masks=masks)
    return Detections(known.boxes, known.labels, torch.linspace(0.9, 0.5, count), known.masks)


def test_each_image_is_drawn_with_truth_and_what_was_found():
    figure = show_detections(torch.rand(2, 3, 40, 40), [objects(3), objects(0)], [found(2), found(0)], BANDS, CLASSES)
    assert isinstance(figure, matplotlib.figure.Figure)
    assert [ax.get_title() for ax in figure.axes[:2]] == ['truth', 'detections']
    boxes = [sum(type(patch).__name__ == 'Rectangle' for patch in ax.patches) for ax in figure.axes]
    assert boxes == [3, 2, 0, 0]


def test_outlines_are_laid_over_the_image():
    truth, seen = [objects(2, masks=True)], [found(1, masks=True)]
    figure = show_detections(torch.rand(1, 3, 40, 40), truth, seen, BANDS, CLASSES)
    assert [len(ax.images) for ax in figure.axes] == [2, 2]


def test_a_line_for_each_class_that_has_true_objects():
    scores = DetectionScores(2)
    scores.add([found(3)], [objects(3)])
    figure = show_precision_recall(scores.precision_recall(), CLASSES, iou=0.5)
    figure.canvas.draw()
    (ax,) = figure.axes
    assert [line.get_label() for line in ax.get_lines()] == ['oak (1.00)', r'\$pine\$ (1.00)']
    assert not show_precision_recall({}, CLASSES, iou=0.5).axes[0].get_lines()

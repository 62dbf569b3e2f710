"""Scores of detected objects, by boxes or by outlines."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, distributed

from geolearn.extras import require
from geolearn.metrics.scores import is_shared

HIT, ALARM, MISS = range(3)
"""What can become of an object: found, found where there is none, not found."""


class Image(NamedTuple):
    """Found and true objects of one image.

    Args:
        shapes: Found ones: (n, 4) left, top, width, height; or run-length encoded masks as pycocotools keeps them.
        labels: (n,) int64 class indices.
        scores: (n,) float.
        true_shapes: As `shapes`.
        true_labels: As `labels`.
    """

    shapes: Any
    labels: np.ndarray
    scores: np.ndarray
    true_shapes: Any
    true_labels: np.ndarray


def count_image(image: Image, count: int, *, iou: float, score: float) -> np.ndarray:
    """Return (classes, 3) int64: objects found, false alarms, and objects missed.

    As in COCO the surest object is matched first, to the true one of its class that it overlaps most and that no surer
    one has taken.

    Args:
        image: Its objects.
        count: Number of classes.
        iou: Overlap from which on an object is found.
        score: Objects with a lower score are left out.
    """
    cases = np.zeros((count, 3), np.int64)
    order = np.argsort(-image.scores, kind='stable')
    chosen = order[image.scores[order] >= score]
    labels = image.labels[chosen]
    overlaps = _overlaps([image.shapes[i] for i in chosen], list(image.true_shapes))
    overlaps[labels[:, None] != image.true_labels[None]] = 0
    for label, row in zip(labels, overlaps):
        best = int(row.argmax()) if len(row) else -1
        hit = best >= 0 and row[best] >= iou
        cases[label, HIT if hit else ALARM] += 1
        if hit:
            overlaps[:, best] = 0  # taken
    cases[:, MISS] = np.bincount(image.true_labels, minlength=count) - cases[:, HIT]
    return cases


def _overlaps(found: Sequence[Any], truth: Sequence[Any]) -> np.ndarray:
    """Return intersection over union (found, true) of boxes or of masks."""
    if not found or not truth:
        return np.zeros((len(found), len(truth)))
    masks = require('pycocotools.mask', extra='detection', to='score detected objects')
    both = [_as_coco(shapes) for shapes in (found, truth)]
    return np.array(masks.iou(*both, [0] * len(truth)))


def _as_coco(shapes: Sequence[Any]) -> Any:
    if isinstance(shapes[0], tuple):
        return [{'size': size, 'counts': counts} for size, counts in shapes]
    return np.array([np.asarray(shape) for shape in shapes], np.float64)


COCO_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""The overlaps 0.5, 0.55, ... 0.95 over which COCO averages."""


class TrueObjects(Protocol):
    """The objects in one image, such as `geolearn.batch.Objects`: boxes, labels, and masks or None."""

    @property
    def boxes(self) -> Tensor:
        """(n, 4) left, top, right, bottom in pixels."""

    @property
    def labels(self) -> Tensor:
        """(n,) int64 class indices."""

    @property
    def masks(self) -> Tensor | None:
        """(n, height, width) bool, or None."""


class FoundObjects(TrueObjects, Protocol):
    """The objects that a network found in one image."""

    @property
    def scores(self) -> Tensor:
        """(n,) float, 0..1."""


class PrecisionRecall(NamedTuple):
    """One class's precision at 101 recalls, 0 to 1; beyond the highest recall that was reached it is 0.

    Args:
        recall: (101,) float64.
        precision: (101,) float64, the best at this recall or a higher one; NaN for a class without any true object.
        score: (101,) float64, the lowest score among the objects that reach this recall.
    """

    recall: Tensor
    precision: Tensor
    score: Tensor


class _Curves(NamedTuple):
    """COCO's arrays, float64, NaN where undefined.

    Args:
        precision: (overlaps, 101 recalls, classes, sizes), of which size 0 is any.
        scores: The same shape.
        recall: (overlaps, classes, sizes).
    """

    precision: Tensor
    scores: Tensor
    recall: Tensor


class DetectionScores:
    """COCO's average precision, by torchmetrics and pycocotools (Lin et al. 2014, arXiv:1405.0312); see `Scores`.

    `map` is the mean over overlaps of `COCO_IOUS` and over the classes with true objects, `ap50` and `ap75` are those
    of one overlap; small is under 32 x 32 pixels, large above 96 x 96; `recall` is the highest, averaged like `map`.

    Args:
        count: Number of classes.
        iou_type: Whether the overlap is that of boxes, `'bbox'`, or of masks, `'segm'`.
        most: Objects per image that count, the surest; COCO takes 100.

    Raises:
        MissingExtraError: If torchmetrics or pycocotools are not installed.
    """

    names: ClassVar = ('map', 'ap50', 'ap75', 'ap_small', 'ap_medium', 'ap_large', 'recall')

    def __init__(self, count: int, *, iou_type: Literal['bbox', 'segm'] = 'bbox', most: int = 100) -> None:
        self.count, self.iou_type, self.most = count, iou_type, most
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._kept = self._empty()

    def add(self, output: Sequence[FoundObjects], target: Sequence[TrueObjects]) -> None:
        """Take in the objects of a batch of images; they are kept on the CPU, masks run-length encoded.

        Raises:
            ValueError: If masks are missing where they are compared.
        """
        found = [self._as_dict(objects) | {'scores': objects.scores.detach().cpu().float()} for objects in output]
        self._kept.update(found, [self._as_dict(objects) for objects in target])

    def reduce(self) -> None:
        """Take in the objects of all processes."""
        if is_shared():
            parts: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(parts, self._kept.metric_state)
            self._kept = self._holding({name: [item for part in parts for item in part[name]] for name in parts[0]})

    def values(self) -> dict[str, float]:
        """Return the scores; NaN where there is no true object (of the size)."""
        curves = _curves(self._kept)
        every = curves.precision[..., 0]
        half, three_quarters = COCO_IOUS.index(0.5), COCO_IOUS.index(0.75)
        means = [
            every,
            every[half],
            every[three_quarters],
            *curves.precision[..., 1:].unbind(-1),
            curves.recall[..., 0],
        ]
        return {name: float(values.nanmean()) for name, values in zip(self.names, means)}

    def per_class(self) -> dict[str, list[float]]:
        """Return `map`, `ap50` and `recall` of each class, in the order of their indices; NaN without true objects."""
        curves = _curves(self._kept)
        every, half = curves.precision[..., 0], COCO_IOUS.index(0.5)
        return {
            'map': self._spread(every.nanmean((0, 1))),
            'ap50': self._spread(every[half].nanmean(0)),
            'recall': self._spread(curves.recall[..., 0].nanmean(0)),
        }

    def average_precision(self, *, iou: float = 0.5, score: float = 0.0) -> list[float]:
        """Return the average precision of each class, as ArcGIS's `average_precision_score` asks for it.

        Args:
            iou: Overlap from which on an object is found, 0..1 without 0. ArcGIS takes 0.1, which few others do.
            score: Objects with a lower score are left out.

        Returns:
            One number per class, in the order of their indices; NaN without true objects.
        """
        return self._spread(self._at(iou, score).precision[0, :, :, 0].nanmean(0))

    def precision_recall(self, *, iou: float = 0.5) -> dict[int, PrecisionRecall]:
        """Return the curve of each class that occurs in truth or prediction, by its index.

        Args:
            iou: Overlap from which on an object is found, 0..1 without 0.
        """
        curves, recalls = self._at(iou, 0.0), torch.linspace(0, 1, 101, dtype=torch.float64)
        return {
            label: PrecisionRecall(recalls, curves.precision[0, :, k, 0], curves.scores[0, :, k, 0])
            for k, label in enumerate(self._labels)
        }

    def count_cases(self, *, iou: float = 0.5, score: float = 0.5) -> Tensor:
        """Count what was found, what was found wrongly and what was missed, image by image and class by class.

        Args:
            iou: Overlap from which on an object is found, 0..1 without 0.
            score: Objects with a lower score are left out.

        Returns:
            (images, classes, 3) int64: objects found, false alarms, objects missed; images in the order of `add`.
        """
        _check_iou(iou)
        state = self._kept.metric_state
        shape = 'mask' if self.iou_type == 'segm' else 'box'
        found = [state[f'detection_{name}'] for name in (shape, 'labels', 'scores')]
        truth = [state[f'groundtruth_{name}'] for name in (shape, 'labels')]
        images = [Image(*map(_as_array, parts)) for parts in zip(*found, *truth)]
        counted = [torch.from_numpy(count_image(image, self.count, iou=iou, score=score)) for image in images]
        return torch.stack(counted) if counted else torch.zeros(0, self.count, 3, dtype=torch.int64)

    @property
    def _labels(self) -> list[int]:
        """Classes that occur, in COCO's order."""
        state = self._kept.metric_state
        labels = [*state['detection_labels'], *state['groundtruth_labels']]
        return torch.cat(labels).unique().tolist() if labels else []

    def _spread(self, found: Tensor) -> list[float]:
        """Put the values of the classes that occur among all classes."""
        values = [math.nan] * self.count
        for label, value in zip(self._labels, found.tolist()):
            values[label] = value
        return values

    def _at(self, iou: float, score: float) -> _Curves:
        """Evaluate once more, at another overlap and without the objects of a lower score."""
        _check_iou(iou)
        state = dict(self._kept.metric_state)
        chosen = [(scores >= score).nonzero()[:, 0].tolist() for scores in state['detection_scores']]
        for name in ('detection_scores', 'detection_labels', 'detection_box'):
            state[name] = [items[rows] for items, rows in zip(state[name], chosen)]
        state['detection_mask'] = [
            tuple(masks[row] for row in rows) for masks, rows in zip(state['detection_mask'], chosen)
        ]
        return _curves(self._holding(state, (iou,)))

    def _holding(self, state: dict[str, list[Any]], ious: Sequence[float] = COCO_IOUS) -> Any:
        """Build a metric that holds what another one held."""
        metric = self._empty(ious)
        for name, items in state.items():
            setattr(metric, name, items)
        return metric

    def _empty(self, ious: Sequence[float] = COCO_IOUS) -> Any:
        purpose = 'score detected objects'
        require('pycocotools', extra='detection', to=purpose)
        metrics = require('torchmetrics.detection', extra='detection', to=purpose)
        metric = metrics.MeanAveragePrecision(
            iou_type=self.iou_type,
            iou_thresholds=list(ious),
            max_detection_thresholds=[1, min(10, self.most), self.most],
            extended_summary=True,
            backend='pycocotools',
            sync_on_compute=False,
        )
        metric.warn_on_many_detections = False
        metric.update([], [])  # torchmetrics warns of values without any update
        return metric

    def _as_dict(self, objects: TrueObjects) -> dict[str, Tensor]:
        held = {'boxes': objects.boxes.detach().cpu().float(), 'labels': objects.labels.detach().cpu().long()}
        if self.iou_type == 'bbox':
            return held
        if objects.masks is None:
            raise ValueError("iou_type 'segm' compares masks, and an image's objects have none; use 'bbox'")
        return held | {'masks': objects.masks.detach().cpu().bool()}


def _check_iou(iou: float) -> None:
    if not 0 < iou <= 1:
        raise ValueError(f'iou must be above 0 and at most 1, got {iou}')


def _as_array(items: Any) -> Any:
    """Return a tensor as an array; encoded masks are left as they are."""
    return items.numpy() if isinstance(items, Tensor) else items


def _curves(metric: Any) -> _Curves:
    """Evaluate a metric: its arrays for the largest number of objects per image."""
    found = metric.compute()
    if 'precision' not in found:  # there is no image
        nothing = torch.full((len(metric.iou_thresholds), 101, 0, 4), torch.nan)
        return _Curves(nothing, nothing, nothing[:, 0])
    parts = (found[name][..., -1].double() for name in ('precision', 'scores', 'recall'))
    return _Curves(*(part.masked_fill(part == -1, torch.nan) for part in parts))

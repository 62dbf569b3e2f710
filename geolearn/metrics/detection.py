"""Average precision of detected objects, by boxes or by masks, and their true and false positives."""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from torch import Tensor, distributed

from geolearn.batch import Objects
from geolearn.errors import UnknownNameError
from geolearn.extras import require
from geolearn.metrics.detection_voc import VocDetections, average_precision_voc
from geolearn.metrics.scores import Metric, is_shared, undefined
from geolearn.oriented.geometry import angle_errors
from geolearn.oriented.overlap import overlap_matrix

IouType = Literal['bbox', 'segm', 'rotated']
"""What overlaps are computed of: boxes, masks, or oriented boxes."""

ApMetric = Literal['coco', 'voc07', 'voc10']
"""How average precision is read off a curve."""

TP, FP, FN = range(3)
"""Columns of `DetectionScores.count_matches`: true positives, false positives, false negatives."""

COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""The overlaps 0.5, 0.55, ... 0.95 over which COCO averages, as pycocotools rounds them."""

COCO_RECALLS = tuple(np.linspace(0, 1, 101).tolist())
"""The recalls at which COCO reads precision; rounded to float32, some lie above a recall of exactly k / 100."""

_HALF, _THREE_QUARTERS = 0, 5
"""Positions of the overlaps 0.5 and 0.75."""


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

    @property
    def turned(self) -> Tensor | None:
        """(n, 5) oriented boxes, or None; only where these are compared."""


class PredictedObjects(TrueObjects, Protocol):
    """The detections of a network in one image."""

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


class DetectionScores:
    """COCO's average precision, computed by pycocotools (Lin et al. 2014, arXiv:1405.0312); see `Scores`.

    `map` is the mean over overlaps of `COCO_IOUS` and over the classes with true objects, `ap50` and `ap75` are those
    of one overlap; small is under 32 x 32 pixels, large above 96 x 96; `recall` is the highest, averaged like `map`.

    Args:
        count: Number of classes.
        iou_type: Whether the overlap is that of boxes, `'bbox'`, of masks, `'segm'`, or of oriented boxes,
            `'rotated'`, which is exact. The last have one metric more, `angle_error`: the median of how many degrees
            the long sides of detections are off those of the true objects that they overlap by over 0.5, of
            near-squares (length under 1.2 times the width) to the next quarter turn. Whatever is compared, objects
            that are `ignored` are crowds.
        max_detections: Detections per image and class that count, those of the highest scores; COCO takes 100.

    Raises:
        MissingExtraError: If pycocotools is not installed.
    """

    COLUMNS: ClassVar = (
        Metric('map', 'mAP', True),
        Metric('ap50', 'AP50', True),
        Metric('ap75', 'AP75', True),
        Metric('ap_small', 'AP small', True),
        Metric('ap_medium', 'AP medium', True),
        Metric('ap_large', 'AP large', True),
        Metric('recall', higher_is_better=True),
    )
    ANGLE_ERROR: ClassVar = Metric('angle_error', 'median angle error (degrees)', False)

    def __init__(self, count: int, *, iou_type: IouType = 'bbox', max_detections: int = 100) -> None:
        self._coco = require('pycocotools.mask', extra='detection', to='compute average precision')
        self.count, self.iou_type, self.max_detections = count, iou_type, max_detections
        self.reset()

    @property
    def columns(self) -> tuple[Metric, ...]:
        """The metrics, in the order in which they are shown."""
        return (*self.COLUMNS, self.ANGLE_ERROR) if self.iou_type == 'rotated' else self.COLUMNS

    def reset(self) -> None:
        """Forget all images."""
        self._images: list[_Image] = []
        self._invalid = 0

    def add(
        self,
        output: Sequence[PredictedObjects],
        target: Sequence[TrueObjects],
        *,
        crowds: Sequence[Tensor] | None = None,
    ) -> None:
        """Take in the objects of a batch of images; they are kept on the CPU, masks run-length encoded.

        Args:
            output: Detections of each image.
            target: True objects of each image.
            crowds: (n,) bool for each image: true objects that stand for many. Detections within them are neither
                right nor wrong, and crowds cannot be missed.

        Raises:
            ValueError: If masks are missing where they are compared.
        """
        for index, (predicted, true) in enumerate(zip(output, target, strict=True)):
            self._invalid += int(not (predicted.scores.isfinite().all() and predicted.boxes.isfinite().all()))
            crowd = np.zeros(len(true.labels), bool) if crowds is None else crowds[index].cpu().numpy().astype(bool)
            if crowds is None and isinstance(true, Objects) and true.ignored is not None:
                crowd = true.ignored.cpu().numpy().astype(bool)
            kept = predicted.scores.detach().cpu()
            scores = kept.numpy() if kept.dtype == torch.float64 else kept.float().numpy()
            self._images.append(
                _Image(self._shapes(predicted), _labels(predicted), scores, self._shapes(true), _labels(true), crowd)
            )

    def reduce(self) -> None:
        """Take in the objects of all processes."""
        if is_shared():
            parts: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(parts, (self._images, self._invalid))
            self._images = [image for images, _ in parts for image in images]
            self._invalid = sum(invalid for _, invalid in parts)

    def values(self) -> dict[str, float]:
        """Return the scores; NaN where there is no true object (of the size), and if some detection is not finite."""
        if self._invalid:
            return undefined(self)
        curves = self._curves()
        precision = curves.precision[..., 0]
        means = [
            precision,
            precision[_HALF],
            precision[_THREE_QUARTERS],
            *curves.precision[..., 1:].unbind(-1),
            curves.recall[..., 0],
        ]
        found = {metric.name: float(values.nanmean()) for metric, values in zip(self.COLUMNS, means)}
        return found | ({'angle_error': self.angle_errors()[1]} if self.iou_type == 'rotated' else {})

    def per_class(self) -> dict[str, list[float]]:
        """Return `map`, `ap50` and `recall` of each class, in the order of their indices; NaN without true objects."""
        curves = self._curves()
        precision = curves.precision[..., 0]
        found = {
            'map': self._spread(precision.nanmean((0, 1))),
            'ap50': self._spread(precision[_HALF].nanmean(0)),
            'recall': self._spread(curves.recall[..., 0].nanmean(0)),
        }
        if self.iou_type == 'rotated':
            found['ap75'] = self._spread(precision[_THREE_QUARTERS].nanmean(0))
            found['angle_error'] = self.angle_errors()[0]
        return found

    def angle_errors(self, *, iou: float = 0.5) -> tuple[list[float], float]:
        """Return the median angle error of matched oriented boxes in degrees, of each class and of all; see the class.

        Args:
            iou: Overlap above which a detection matches a true object, 0..1 without 0.

        Raises:
            ValueError: If boxes are not oriented.
        """
        if self.iou_type != 'rotated':
            raise ValueError(f"angles are compared with iou_type='rotated', got {self.iou_type!r}")
        errors = [np.zeros(0)] * self.count
        for image in self._images:
            predicted, true = (np.array(rows, np.float64).reshape(-1, 5) for rows in (image.shapes, image.true_shapes))
            for detection, truth in self._pairs(image, iou, -math.inf):
                off = angle_errors(predicted[[detection]], true[[truth]])
                label = int(image.labels[detection])
                errors[label] = np.append(errors[label], np.degrees(off))
        every = np.concatenate(errors)
        medians = [float(np.median(part)) if len(part) else math.nan for part in errors]
        return medians, float(np.median(every)) if len(every) else math.nan

    def average_precision(self, *, iou: float = 0.5, score: float = 0.0, metric: ApMetric = 'coco') -> list[float]:
        """Return the average precision of each class, as ArcGIS's `average_precision_score` asks for it.

        Args:
            iou: Lowest overlap of a true positive, 0..1 without 0. ArcGIS takes 0.1, which few others do.
            score: Objects with a lower score are ignored.
            metric: ``'coco'``: the mean of precision at 101 recalls. ``'voc07'``: at 11 recalls, as DOTA's tables have
                it. ``'voc10'``: the area below the curve. In the last two a true positive overlaps by more than `iou`
                the object that it overlaps most.

        Returns:
            One number per class, in the order of their indices; NaN without true objects.

        Raises:
            UnknownNameError: If there is no such metric.
        """
        if metric not in get_args(ApMetric):
            raise UnknownNameError('metric of average precision', str(metric), get_args(ApMetric))
        if metric != 'coco':
            _check_iou(iou)
            images = [image.without_scores_below(score) for image in self._images]
            rows = [
                VocDetections(i.labels, i.scores, i.true_labels, i.crowd, self._overlaps(i, np.arange(len(i.labels))))
                for i in images
            ]
            return average_precision_voc(rows, self.count, iou=iou, eleven=metric == 'voc07')
        return self._spread(self._curves(iou, score).precision[0, :, :, 0].nanmean(0))

    def precision_recall(self, *, iou: float = 0.5) -> dict[int, PrecisionRecall]:
        """Return the curve of each class that occurs in truth or prediction, by its index.

        Args:
            iou: Lowest overlap of a true positive, 0..1 without 0.
        """
        curves, recalls = self._curves(iou), torch.tensor(COCO_RECALLS, dtype=torch.float64)
        return {
            label: PrecisionRecall(recalls, curves.precision[0, :, k, 0], curves.scores[0, :, k, 0])
            for k, label in enumerate(self._labels)
        }

    def count_matches(self, *, iou: float = 0.5, score: float = 0.5) -> Tensor:
        """Count true positives, false positives and false negatives, image by image and class by class.

        As in COCO the detection of the highest score is matched first, to the true object of its class that it overlaps
        most and that is not matched yet.

        Args:
            iou: Lowest overlap of a true positive, 0..1 without 0.
            score: Detections of a lower score are ignored.

        Returns:
            (images, classes, 3) int64: `TP`, `FP` and `FN`; images in the order of `add`.
        """
        _check_iou(iou)
        matches = [torch.from_numpy(self._match(image, iou, score)) for image in self._images]
        return torch.stack(matches) if matches else torch.zeros(0, self.count, 3, dtype=torch.int64)

    def _match(self, image: '_Image', iou: float, score: float) -> np.ndarray:
        """Return (classes, 3) int64."""
        counts = np.zeros((self.count, 3), np.int64)
        order = np.argsort(-image.scores, kind='stable')
        chosen = order[image.scores[order] >= score]
        labels, crowd = image.labels[chosen], image.crowd
        overlaps = self._overlaps(image, chosen)
        overlaps[labels[:, None] != image.true_labels[None]] = 0
        for label, row in zip(labels, overlaps):
            single = np.where(crowd, 0, row)
            best = int(single.argmax()) if len(row) else -1
            if best >= 0 and single[best] >= iou:
                counts[label, TP] += 1
                overlaps[:, best] = 0  # matched
            elif not (row[crowd] >= iou).any():
                counts[label, FP] += 1
        counts[:, FN] = np.bincount(image.true_labels[~crowd], minlength=self.count) - counts[:, TP]
        return counts

    def _pairs(self, image: '_Image', iou: float, score: float) -> list[tuple[int, int]]:
        """Return which detection matches which true object, crowds aside."""
        order = np.argsort(-image.scores, kind='stable')
        chosen = order[image.scores[order] >= score]
        overlaps = self._overlaps(image, chosen)
        overlaps[(image.labels[chosen][:, None] != image.true_labels[None]) | image.crowd[None]] = 0
        pairs = []
        for detection, row in zip(chosen.tolist(), overlaps):
            if len(row) and row.max() > iou:
                pairs.append((detection, int(row.argmax())))
                overlaps[:, row.argmax()] = 0
        return pairs

    def _overlaps(self, image: '_Image', chosen: np.ndarray) -> np.ndarray:
        """Return the overlap (chosen, true) of some detections with all true objects; of crowds, as COCO has it."""
        if not len(chosen) or not len(image.crowd):
            return np.zeros((len(chosen), len(image.crowd)))
        if self.iou_type == 'rotated':
            return overlap_matrix(np.array(image.shapes)[chosen], np.array(image.true_shapes))
        shapes = _coco_shapes([image.shapes[i] for i in chosen]), _coco_shapes(image.true_shapes)
        return np.array(self._coco.iou(*shapes, image.crowd.tolist()))

    @property
    def _labels(self) -> list[int]:
        """Classes that occur, in order."""
        labels = [part for image in self._images for part in (image.labels, image.true_labels)]
        return np.unique(np.concatenate(labels)).tolist() if labels else []

    def _spread(self, found: Tensor) -> list[float]:
        """Put the values of the classes that occur among all classes."""
        values = [math.nan] * self.count
        for label, value in zip(self._labels, found.tolist()):
            values[label] = value
        return values

    def _shapes(self, objects: TrueObjects) -> list[Any]:
        """Return what overlaps are computed of: boxes as left, top, width, height, or encoded masks."""
        if self.iou_type == 'rotated':
            if objects.turned is None:
                raise ValueError(
                    "iou_type 'rotated' compares oriented boxes, and an image's objects have none; use 'bbox'"
                )
            return objects.turned.detach().cpu().double().tolist()
        if self.iou_type == 'bbox':
            corners = objects.boxes.detach().cpu().double()
            return torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()
        if objects.masks is None:
            raise ValueError("iou_type 'segm' compares masks, and an image's objects have none; use 'bbox'")
        masks = objects.masks.detach().cpu().numpy().astype(np.uint8)
        return self._coco.encode(np.asfortranarray(masks.transpose(1, 2, 0))) if len(masks) else []

    def _curves(self, iou: float | None = None, score: float = -math.inf) -> '_Curves':
        """Evaluate at one overlap or at all of COCO's, without the detections of a lower score."""
        if iou is not None:
            _check_iou(iou)
        ious = COCO_IOUS if iou is None else (iou,)
        labels = self._labels
        if not labels:
            nothing = torch.full((len(ious), len(COCO_RECALLS), 0, 4), torch.nan)
            return _Curves(nothing, nothing, nothing[:, 0])
        images = [image.without_scores_below(score) for image in self._images]
        evaluate = _evaluation(self.iou_type)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            true, predicted = (_coco_index(images, labels, self.iou_type, true=true) for true in (True, False))
            run = evaluate(true, predicted, 'segm' if self.iou_type == 'segm' else 'bbox')
            run.params.iouThrs, run.params.recThrs = np.array(ious), np.array(COCO_RECALLS)
            run.params.maxDets = [self.max_detections]
            run.evaluate()
            run.accumulate()
        parts = (torch.from_numpy(run.eval[name][..., -1]) for name in ('precision', 'scores', 'recall'))
        return _Curves(*(part.masked_fill(part == -1, torch.nan) for part in parts))


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


@dataclass(frozen=True, slots=True, eq=False)
class _Image:
    """Detections and true objects of one image.

    Args:
        shapes: Of detections: left, top, width, height each; or run-length encoded masks.
        labels: (n,) int64 class indices.
        scores: (n,) float.
        true_shapes: As `shapes`.
        true_labels: As `labels`.
        crowd: (true,) bool, objects that stand for many.
    """

    shapes: list[Any]
    labels: np.ndarray
    scores: np.ndarray
    true_shapes: list[Any]
    true_labels: np.ndarray
    crowd: np.ndarray

    def without_scores_below(self, score: float) -> '_Image':
        """Return the image without the detections of a lower score."""
        kept = np.flatnonzero(self.scores >= score)
        if len(kept) == len(self.scores):
            return self
        shapes = [self.shapes[index] for index in kept]
        return replace(self, shapes=shapes, labels=self.labels[kept], scores=self.scores[kept])


def _labels(objects: TrueObjects) -> np.ndarray:
    return objects.labels.detach().cpu().numpy().astype(np.int64)


def _check_iou(iou: float) -> None:
    if not 0 < iou <= 1:
        raise ValueError(f'iou must be above 0 and at most 1, got {iou}')


def _evaluation(iou_type: str) -> Any:
    """Return pycocotools' evaluation; for oriented boxes with exact overlaps of these in the place of its own."""
    usual: Any = require('pycocotools.cocoeval', extra='detection', to='compute average precision').COCOeval
    if iou_type != 'rotated':
        return usual

    class RotatedEvaluation(usual):
        def computeIoU(self, image: int, category: int) -> Any:
            true, found = self._gts[image, category], self._dts[image, category]
            if not true or not found:
                return []
            order = np.argsort([-row['score'] for row in found], kind='mergesort')[: self.params.maxDets[-1]]
            return overlap_matrix(np.array([found[i]['turned'] for i in order]), np.array([r['turned'] for r in true]))

    return RotatedEvaluation


def _coco_shapes(shapes: list[Any]) -> Any:
    return shapes if isinstance(shapes[0], dict) else np.array(shapes, np.float64)


def _coco_index(images: Sequence[_Image], labels: Sequence[int], iou_type: str, *, true: bool) -> Any:
    """Return the true objects or the detections of all images as pycocotools keeps them."""
    area = require('pycocotools.mask', extra='detection', to='compute average precision').area
    rows: list[dict[str, Any]] = []
    for number, image in enumerate(images):
        shapes, classes = (image.true_shapes, image.true_labels) if true else (image.shapes, image.labels)
        for k, (shape, label) in enumerate(zip(shapes, classes.tolist())):
            row = {'id': len(rows) + 1, 'image_id': number, 'category_id': label}  # an id of 0 would mean no match
            if iou_type == 'rotated':
                row |= {'turned': shape, 'bbox': [0, 0, 1, 1], 'area': shape[2] * shape[3]}
            elif iou_type == 'bbox':
                row |= {'bbox': shape, 'area': shape[2] * shape[3]}
            else:
                row |= {'segmentation': shape, 'area': float(area(shape))}
            rows.append(row | ({'iscrowd': int(image.crowd[k])} if true else {'score': float(image.scores[k])}))
    index = require('pycocotools.coco', extra='detection', to='compute average precision').COCO()
    # sizes are read and not used where masks are encoded
    sizes = [{'id': number, 'height': 0, 'width': 0} for number in range(len(images))]
    index.dataset = {'images': sizes, 'categories': [{'id': label} for label in labels], 'annotations': rows}
    index.createIndex()
    return index

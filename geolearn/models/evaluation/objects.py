"""Evaluation of detectors: detections on the validation chips against true objects, and figures of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geolearn.chips.batches.loader import ChipLoader
from geolearn.data import ChipData
from geolearn.history import Evaluation
from geolearn.metrics import DetectionScores
from geolearn.networks.spec import ModelSpec
from geolearn.plotting import describe_chip, show_detections
from geolearn.training.nonfinite import check_weights, checked_maps

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from geolearn.networks.detection.detector import Detector

CONFIDENCE = 0.5
"""Lowest score of objects that are drawn and counted: that from which on `predict` and `detect_objects` return them."""

OVERLAP = 0.5
"""Intersection over union from which on a detection is a true positive."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DetectionEvaluation(Evaluation):
    """Validation results of a detector; `per_chip` is the F1 of each chip at `CONFIDENCE` and `OVERLAP`.

    Args:
        detections: Matched with true objects.
        matches: (chips, classes, 3) true positives, false positives and false negatives at `CONFIDENCE` and `OVERLAP`.
    """

    detections: DetectionScores
    matches: Tensor


@torch.inference_mode()
def evaluate_objects(
    network: 'Detector', chips: ChipLoader, scores: DetectionScores, class_names: Sequence[str]
) -> DetectionEvaluation:
    """Evaluate a network on all chips of a loader, on its device.

    Args:
        network: To evaluate.
        chips: That are not shuffled.
        scores: Empty; by boxes or by masks.
        class_names: By index.
    """
    network.to(chips.device).eval()
    check_weights(network)
    for number, (images, objects) in enumerate(chips):
        with checked_maps(network.levels, partial(chips.batch_names, number)):
            scores.add(network(images)[0], objects)
    per_class = tabulate_scores(scores, class_names)
    matches = scores.count_matches(iou=OVERLAP, score=CONFIDENCE)
    average_precision = dict(zip(class_names, scores.average_precision(iou=0.5, score=0.0)))
    return DetectionEvaluation(
        metrics=scores.values(),
        per_class=per_class,
        per_chip=f1_score(matches.sum(1)).tolist(),
        esri={'average_precision_score': average_precision, 'per_class_metrics': per_class.T.to_json()},
        detections=scores,
        matches=matches,
    )


def f1_score(matches: Tensor) -> Tensor:
    """Return F1 (...) of (..., 3) true positives, false positives and false negatives; NaN where undefined."""
    tp, fp, fn = matches.double().unbind(-1)
    return 2 * tp / (2 * tp + fp + fn)


def tabulate_scores(scores: DetectionScores, class_names: Sequence[str]) -> 'pd.DataFrame':
    """Make a table of average precision and recall of each class; NaN where there is no true object."""
    import pandas as pd  # late: with pyarrow it takes part of a second to import

    return pd.DataFrame(scores.per_class(), index=pd.Index(list(class_names), name='class'))


@torch.inference_mode()
def draw_detected_chips(
    network: 'Detector',
    data: ChipData,
    spec: ModelSpec,
    indexes: Sequence[int],
    *,
    threshold: float,
    notes: Sequence[str] = (),
) -> 'Figure':
    """Draw validation chips by their positions with true objects and detections.

    Args:
        network: To predict with.
        data: Whose validation chips are drawn.
        spec: Of the model.
        indexes: Positions among the validation chips, at least one.
        threshold: Lowest score of what is drawn.
        notes: Texts beside the name of each.
    """
    device = data.valid_dl.device
    network.to(device).eval()
    pairs = [data.valid_ds[index] for index in indexes]
    detections = [network(image[None].to(device))[0][0].filter_by_score(threshold).cpu() for image, _ in pairs]
    images = torch.stack([image[-1] if image.dim() == 4 else image for image, _ in pairs])
    truth = [objects for _, objects in pairs]
    names = [data.table.names[data.valid_ds.positions[index]] for index in indexes]
    titles = [' · '.join(part) for part in zip(map(describe_chip, names), *([notes] if notes else []))]
    return show_detections(
        images, truth, detections, spec.bands, spec.class_infos, titles=titles, side=3.0, stretch=data.display_stretch
    )

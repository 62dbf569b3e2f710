"""TODO geolearn.metrics.per_chip."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from geolearn.metrics import ConfusionMatrix

if TYPE_CHECKING:
    pass


def score_chips(predictions: Tensor, masks: Tensor, class_count: int) -> list[float]:
    """Return the mean IoU of each chip over the classes in its truth or prediction; NaN where nothing is labelled.

    Args:
        predictions: (n, height, width) class indices.
        masks: (n, height, width) class indices or IGNORE_INDEX.
        class_count: Number of classes.
    """
    scores = []
    for prediction, mask in zip(predictions, masks):
        matrix = ConfusionMatrix.empty(class_count)
        matrix.add(prediction, mask)
        scores.append(matrix.miou)
    return scores


def rank_chips(scores: Sequence[float], *, highest_first: bool) -> list[int]:
    """Order chips by a score each; those of NaN, where nothing could be judged, come last.

    Args:
        scores: One for each chip, such as its IoU or its loss.
        highest_first: True for the worst first by loss, False for the worst first by IoU.
    """
    values = np.asarray(scores, np.float64)
    # stable, so that equal chips keep their order whatever their number
    return np.argsort(-values if highest_first else values, kind='stable').tolist()


def choose_typical(scores: Sequence[float], count: int) -> list[int]:
    """Return up to `count` chips around the middle of all that have a score, the worst first by IoU."""
    ranked = [index for index in rank_chips(scores, highest_first=False) if not np.isnan(scores[index])]
    start = max(0, (len(ranked) - count) // 2)
    return ranked[start : start + count]

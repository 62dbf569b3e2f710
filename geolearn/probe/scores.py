"""Scores of decisions: per class, and their micro and macro means.

Probes follow scikit-learn and the published probes that they stand beside: a macro mean is over the classes that some
tested item has, and a class that items have but that is never predicted has precision 0. `MultiLabelScores` of
`geolearn.metrics`, which watches a training, takes the mean over the classes that occur in truth or prediction, so that
one that is predicted without ever being there counts as 0. The two differ in no other way: they agree wherever every
predicted class has a tested item, and their micro means always do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from geolearn.metrics import Metric

METRICS = (
    Metric('f1_macro', 'F1 macro', True),
    Metric('f1_micro', 'F1 micro', True),
    Metric('f2_macro', 'F2 macro', True),
    Metric('f2_micro', 'F2 micro', True),
    Metric('precision_macro', 'precision macro', True),
    Metric('precision_micro', 'precision micro', True),
    Metric('recall_macro', 'recall macro', True),
    Metric('recall_micro', 'recall micro', True),
    Metric('accuracy', 'accuracy', True),
    Metric('hamming_loss', 'Hamming loss', False),
)
"""In the order of tables. Accuracy is the share of items whose classes are all right; the Hamming loss is the share of
wrong decisions, of which there is one for each item and class. Of items of one class each, all micro means equal the
accuracy."""

METRIC_LABELS = MappingProxyType({metric.name: metric.label for metric in METRICS})

CLASS_METRICS = ('f1', 'f2', 'precision', 'recall')


@dataclass(frozen=True, eq=False)
class Counts:
    """How decisions fared, for each class.

    Args:
        confusion: (classes, 2, 2) int64 of truth (rows) against prediction (columns), absent and present.
        matrix: (classes, classes) int64 of truth (rows) against prediction, where items have one class each.
        right: Items whose classes are all right.
        items: That were tested.
    """

    confusion: np.ndarray
    matrix: np.ndarray | None
    right: int
    items: int

    @classmethod
    def of(cls, truth: np.ndarray, decided: np.ndarray, *, multi_label: bool) -> 'Counts':
        """Count decisions (items, classes) bool against the truth of the same shape."""
        tp = (truth & decided).sum(axis=0)
        fp, fn = decided.sum(axis=0) - tp, truth.sum(axis=0) - tp
        tn = len(truth) - tp - fp - fn
        confusion = np.stack([np.stack([tn, fp], axis=1), np.stack([fn, tp], axis=1)], axis=1)
        matrix = None if multi_label else np.rint(truth.T.astype(float) @ decided.astype(float)).astype(np.int64)
        return cls(confusion, matrix, int((truth == decided).all(axis=1).sum()), len(truth))

    @property
    def _cells(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """True positives, false positives and false negatives of each class."""
        return self.confusion[:, 1, 1], self.confusion[:, 0, 1], self.confusion[:, 1, 0]

    @property
    def support(self) -> np.ndarray:
        """Tested items of each class (classes,)."""
        return self.confusion[:, 1].sum(axis=1)

    def per_class(self) -> dict[str, np.ndarray]:
        """Return `CLASS_METRICS` of each class (classes,) float64; NaN for classes that no tested item has.

        The precision of a class that is never predicted, though items have it, is 0.
        """
        known = self.support > 0
        return {name: np.where(known, values, np.nan) for name, values in _scores(*self._cells).items()}

    def values(self) -> dict[str, float]:
        """Return `METRICS`. Macro means are over the classes that tested items have; NaN where there are none."""
        classes = self.per_class()
        pooled = _scores(*(np.atleast_1d(cells.sum()) for cells in self._cells))
        known = self.support > 0
        found = {
            f'{name}_macro': float(values[known].mean()) if known.any() else np.nan for name, values in classes.items()
        }
        found |= {f'{name}_micro': float(values[0]) if known.any() else np.nan for name, values in pooled.items()}
        _, fp, fn = self._cells
        found['accuracy'] = self.right / self.items
        found['hamming_loss'] = float((fp + fn).sum()) / (self.items * len(fp))
        return {metric.name: found[metric.name] for metric in METRICS}


def _scores(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> Mapping[str, np.ndarray]:
    def share(below: np.ndarray, above: np.ndarray) -> np.ndarray:
        return above / np.maximum(below, 1e-12)

    return {
        'f1': share(2 * tp + fp + fn, 2 * tp),
        'f2': share(5 * tp + fp + 4 * fn, 5 * tp),
        'precision': share(tp + fp, tp),
        'recall': share(tp + fn, tp),
    }

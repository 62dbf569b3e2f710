"""What a classifier says of the validation chips, counted and tabulated."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from geolearn.chips.loader import ChipLoader
from geolearn.metrics import ConfusionMatrix, MultiLabelScores
from geolearn.models.classification.network import ChipNetwork

THRESHOLD = 0.5
"""Probability from which on a class is present, where a chip may hold any number of them."""

_SURE = 20.0
"""A logit that is beyond any threshold, for decisions that are made already."""


class ChipOutputs(NamedTuple):
    """Logits and truth of some chips, in their order, on the CPU.

    Args:
        logits: (n, classes) float32.
        truth: (n,) class indices, or (n, classes) with 1 where a class is present.
    """

    logits: Tensor
    truth: Tensor

    @property
    def multi_label(self) -> bool:
        """Whether chips hold any number of classes."""
        return self.truth.dim() == 2

    @property
    def probabilities(self) -> Tensor:
        """(n, classes) float32: which class a chip is of, or of each class whether it is there."""
        return class_probabilities(self.logits, multi_label=self.multi_label)

    @property
    def found(self) -> Tensor:
        """(n, classes) bool: what is predicted."""
        return decide(self.probabilities, multi_label=self.multi_label)

    @property
    def there(self) -> Tensor:
        """(n, classes) bool: what is true."""
        return self.truth >= 0.5 if self.multi_label else _one_hot(self.truth, self.logits.shape[1])

    @property
    def losses(self) -> Tensor:
        """(n,) float32 cross-entropy of each chip; the mean over the classes where it may hold several."""
        if self.multi_label:
            return functional.binary_cross_entropy_with_logits(self.logits, self.truth, reduction='none').mean(1)
        return functional.cross_entropy(self.logits, self.truth, reduction='none')


def class_probabilities(logits: Tensor, *, multi_label: bool) -> Tensor:
    """Turn logits (..., classes) into probabilities, which add up to 1 where a chip is of one class."""
    return logits.sigmoid() if multi_label else logits.softmax(-1)


def decide(probabilities: Tensor, *, multi_label: bool, threshold: float = THRESHOLD) -> Tensor:
    """Return which classes probabilities (n, classes) stand for, as bool: the likeliest, or all that are likely."""
    if multi_label:
        return probabilities >= threshold
    return _one_hot(probabilities.argmax(1), probabilities.shape[1])


@torch.inference_mode()
def collect_outputs(network: ChipNetwork, chips: ChipLoader) -> ChipOutputs:
    """Compute all chips of a loader in their order, on its device."""
    network.to(chips.device).eval()
    rows = [(network(images).float().cpu(), labels.cpu()) for images, labels in chips]
    logits, truth = zip(*rows)
    return ChipOutputs(torch.cat(logits), torch.cat(truth))


def count_confusion(outputs: ChipOutputs) -> ConfusionMatrix:
    """Count truth against prediction of chips that are of one class each."""
    matrix = ConfusionMatrix.empty(outputs.logits.shape[1])
    matrix.add(outputs.logits.argmax(1), outputs.truth, ignored=-1)
    return matrix


def count_cases(outputs: ChipOutputs) -> MultiLabelScores:
    """Count for each class where it was found, rightly or not, and where it was missed."""
    scores = MultiLabelScores(outputs.logits.shape[1])
    scores.add(torch.where(outputs.found, _SURE, -_SURE), outputs.there.float())
    return scores


def case_matrices(outputs: ChipOutputs) -> np.ndarray:
    """Return for each class the matrix (classes, 2, 2) of absent and present: truth (rows) against prediction."""
    hits, alarms, misses, absent = count_cases(outputs).counts
    return torch.stack([absent, alarms, misses, hits], dim=1).reshape(-1, 2, 2).numpy()


def score_chips(outputs: ChipOutputs) -> dict[str, float]:
    """Return the scores of all classes together by name; NaN where undefined."""
    right = (outputs.found == outputs.there).all(1).float().mean()
    return {'accuracy': float(right), **count_cases(outputs).values()}


def tabulate_classes(outputs: ChipOutputs, class_names: list[str]) -> pd.DataFrame:
    """Make a table of precision, recall, F1, F2 and the number of chips that hold each class; NaN where undefined."""
    cases = count_cases(outputs)
    columns = {
        'precision': cases.precision.tolist(),
        'recall': cases.recall.tolist(),
        'f1': cases.f_score(1).tolist(),
        'f2': cases.f_score(2).tolist(),
        'support': outputs.there.sum(0).tolist(),
    }
    return pd.DataFrame(columns, index=pd.Index(class_names, name='class'))


def check_threshold(threshold: float) -> None:
    """Raise ValueError unless a threshold is a probability that something can reach and something else miss."""
    if not (math.isfinite(threshold) and 0 < threshold < 1):
        raise ValueError(f'threshold must be a probability between 0 and 1, got {threshold}')


def _one_hot(indexes: Tensor, count: int) -> Tensor:
    return functional.one_hot(indexes, count).bool()

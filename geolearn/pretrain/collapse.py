"""Measure whether representations collapse: whether all images come to look alike."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from geolearn.classes import IGNORE_INDEX
from geolearn.metrics import Metric
from geolearn.metrics.scores import is_shared
from geolearn.pretrain.network import Representations

SPREAD = Metric('feature_spread', 'spread of the features', True)
RANK = Metric('effective_rank', 'effective rank of the features', True)
INFORMATION = Metric('information', "information of the teacher's output (nats)", True)
ACCURACY = Metric('knn_accuracy', 'kNN accuracy', True)

LEAST_SPREAD = 0.05
"""Of features that are not collapsed; 1 is that of directions that know no preference."""

LEAST_RANK = 1.5
"""Of features that are not collapsed: at 1 all of them lie on a line."""

LEAST_INFORMATION = 0.05
"""Share of the most that the teacher's output can say of these images."""

NEIGHBORS = 20

PATIENCE = 2
"""Epochs in a row that a measure must be too low."""

WARM_UP = 0.1
"""Share of the epochs in which nothing is said: a network that has not learned yet looks collapsed."""


def feature_spread(features: Tensor) -> float:
    """Return how far features (n, D) spread over directions: 0 where all are the same, about 1 where they are random.

    It is the standard deviation of each dimension of the normalized features, their mean, times the root of D.
    """
    directions = F.normalize(features.float(), dim=1)
    return float(directions.std(0, correction=0).mean() * features.shape[1] ** 0.5)


def effective_rank(features: Tensor) -> float:
    """Return in how many dimensions features (n, D) vary: the exponential of the entropy of their singular values.

    Roy & Vetterli 2007; Garrido et al. 2023, RankMe, arXiv:2210.02885. From 1 up to the smaller of n - 1 and D; 0 where
    nothing varies.
    """
    values = torch.linalg.svdvals((features - features.mean(0)).double())
    if float(values.sum()) < 1e-9 * max(float(features.abs().max()), 1e-30) * len(features):
        return 0.0
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def output_information(probabilities: Tensor) -> float:
    """Return how much outputs (n, K) that sum to 1 say of which image it is, in nats: 0 where all are the same.

    It is the entropy of their mean less their mean entropy, so that it is 0 for both ways to collapse: one prototype
    for all images, and all prototypes alike for every image. At most log(min(n, K)).
    """
    return float(torch.special.entr(probabilities.mean(0)).sum() - torch.special.entr(probabilities).sum(1).mean())


def knn_accuracy(features: Tensor, labels: Tensor, *, neighbors: int = NEIGHBORS) -> float:
    """Return the share of images whose class most of their nearest neighbors have, each image left out in turn.

    Args:
        features: (n, D), compared by cosine.
        labels: (n,) int64 class indices; negative ones take no part.
        neighbors: Up to so many vote; the nearest one decides between equals.

    Returns:
        NaN with fewer than three labelled images.
    """
    known = labels >= 0
    directions, labels = F.normalize(features[known].float(), dim=1), labels[known]
    if len(labels) < 3:
        return math.nan
    near = (directions @ directions.T).fill_diagonal_(-2).topk(min(neighbors, len(labels) - 1)).indices
    votes = F.one_hot(labels[near]).float()
    votes[:, 0] *= 1.01
    return float((votes.sum(1).argmax(1) == labels).float().mean())


class CollapseScores:
    """The measures of collapse as columns of the epoch table, from the validation images; see `Scores`.

    Args:
        has_output: Whether the method has a teacher whose output can be measured.
        has_labels: Whether images have one class each, or one for each pixel, whose most frequent one counts.
    """

    def __init__(self, *, has_output: bool, has_labels: bool) -> None:
        self.has_output, self.has_labels = has_output, has_labels
        self.columns = (SPREAD, RANK, *([INFORMATION] if has_output else []), *([ACCURACY] if has_labels else []))
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._rows: list[tuple[Tensor, Tensor | None, Tensor | None]] = []

    def add(self, output: Representations, target: Any) -> None:
        """Take in a batch: what the network made of the images, and their labels, if there are some."""
        labels = main_classes(target) if self.has_labels else None
        probabilities = None if output.probabilities is None else output.probabilities.cpu()
        self._rows.append((output.features.cpu(), probabilities, None if labels is None else labels.cpu()))

    def reduce(self) -> None:
        """Take in what other processes saw."""
        if is_shared():
            parts: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(parts, self._rows)
            self._rows = [row for part in parts for row in part]

    def values(self) -> dict[str, float]:
        """Return the value of each measure by name; NaN where it is undefined."""
        features, probabilities, labels = (
            torch.cat(list(column)) if self._rows and column[0] is not None else None
            for column in (zip(*self._rows) if self._rows else [(None,)] * 3)
        )
        if features is None or len(features) < 3:
            return dict.fromkeys((metric.name for metric in self.columns), math.nan)
        found = {SPREAD.name: feature_spread(features), RANK.name: effective_rank(features)}
        if self.has_output and probabilities is not None:
            found[INFORMATION.name] = output_information(probabilities)
        if self.has_labels and labels is not None:
            found[ACCURACY.name] = knn_accuracy(features, labels)
        return {metric.name: found.get(metric.name, math.nan) for metric in self.columns}


def main_classes(target: Tensor) -> Tensor:
    """Return the most frequent class index of each image (n,), of labels (n,) or (n, H, W); -1 where there is none."""
    rows = target.reshape(len(target), -1)
    known = (rows >= 0) & (rows != IGNORE_INDEX)
    size = int(rows[known].max()) + 1 if bool(known.any()) else 1
    counts = torch.zeros(len(rows), size, device=rows.device)
    counts.scatter_add_(1, rows.where(known, torch.zeros_like(rows)), known.float())
    return counts.argmax(1).where(known.any(1), torch.full_like(counts[:, 0], -1, dtype=torch.int64))


def find_collapse(
    epochs: Sequence[Mapping[str, float]], total: int, *, images: int, prototypes: int | None = None
) -> list[str]:
    """Say which measures show a collapse at the end of the rows of an epoch table.

    Args:
        epochs: The rows so far.
        total: Epochs that are to be trained; within the first tenth, and the first two, nothing is said.
        images: How many the measures are from.
        prototypes: Outputs of the teacher's head, if there is one.
    """
    last = epochs[-PATIENCE:]
    if len(last) < PATIENCE or len(epochs) < max(PATIENCE, WARM_UP * total):
        return []
    most = math.log(max(min(images, prototypes or images), 2))
    limits = {
        SPREAD.name: (LEAST_SPREAD, 'the features of all images point the same way'),
        RANK.name: (LEAST_RANK, 'the features of all images lie on a line'),
        INFORMATION.name: (LEAST_INFORMATION * most, "the teacher's output is the same for all images"),
    }
    found = []
    for name, (least, meaning) in limits.items():
        values = [row[name] for row in last if math.isfinite(row.get(name, math.nan))]
        if len(values) == PATIENCE and max(values) < least:
            found.append(f'{name} {values[-1]:.3g} (under {least:.3g}): {meaning}')
    return found

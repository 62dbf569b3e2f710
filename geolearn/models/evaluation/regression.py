"""Go through validation chips once and keep all that a report says of a pixel regressor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from geolearn.chips.batches.loader import ChipLoader
from geolearn.metrics import RegressionScores
from geolearn.models.evaluation.pixels import predict_each
from geolearn.networks.segmentation import Segmenter

MOST_PIXELS = 1_000_000
"""Pixels that a scatter plot is drawn from; of more, evenly chosen ones."""


@dataclass(frozen=True, eq=False)
class ValueJudgement:
    """What a pixel regressor does on some chips.

    Args:
        scores: Of all pixels that have a truth; see `RegressionScores`.
        errors: Root mean square error of each chip, NaN where there is no truth.
        truth: (n,) float32 true numbers of evenly chosen pixels, on the CPU.
        predicted: (n,) float32 predictions for them.
    """

    scores: dict[str, float]
    errors: list[float]
    truth: Tensor
    predicted: Tensor


class PredictedChips(NamedTuple):
    """Some chips with what the network makes of them, on the CPU.

    Args:
        images: (n, bands, height, width); of several dates the last.
        values: (n, height, width) true numbers, NaN where there is none.
        predictions: (n, height, width).
    """

    images: Tensor
    values: Tensor
    predictions: Tensor


@torch.inference_mode()
def judge_values(network: Segmenter, chips: ChipLoader) -> ValueJudgement:
    """Compare predictions with the truth over all chips, on the loader's device, in the order of its data set.

    Args:
        network: To judge.
        chips: That are not shuffled.
    """
    scores = RegressionScores()
    errors: list[float] = []
    kept: list[Tensor] = []
    per_chip = max(1, MOST_PIXELS // max(len(chips.dataset), 1))
    network.to(chips.device).eval()
    for images, values in chips:
        predicted = network(images)
        scores.add(predicted, values)
        squared = (predicted[:, 0] - values).square()
        errors.extend(squared.nanmean((1, 2)).sqrt().tolist())
        both = torch.stack([values, predicted[:, 0]]).flatten(2)
        kept.append(both[:, :, :: -(-both.shape[2] // per_chip)].flatten(1).float().cpu())
    truth, found = torch.cat(kept, 1) if kept else torch.zeros(2, 0)
    known = truth.isfinite()
    return ValueJudgement(scores.values(), errors, truth[known], found[known])


@torch.inference_mode()
def predict_chips(network: Segmenter, chips: ChipLoader, indexes: Sequence[int]) -> PredictedChips:
    """Predict some chips of a loader's data set, one after the other.

    Args:
        network: To look at.
        chips: Whose data set holds the chips.
        indexes: Their positions in it, at least one.
    """
    rows = []
    for image, values, predicted in predict_each(network, chips, indexes):
        rows.append((image[:, -1] if image.dim() == 5 else image, values, predicted[:, 0]))
    return PredictedChips(*(torch.cat(column) for column in zip(*rows)))

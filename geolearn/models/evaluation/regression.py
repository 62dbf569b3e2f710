"""Evaluation of pixel regressors: one pass over the validation chips for all that is reported."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from geolearn import plotting
from geolearn.chips.batches.loader import ChipLoader
from geolearn.data import ChipData
from geolearn.history import Evaluation
from geolearn.metrics import RegressionScores
from geolearn.models.evaluation.pixels import predict_each
from geolearn.networks.segmentation import Segmenter
from geolearn.networks.spec import ModelSpec
from geolearn.training.nonfinite import predict_batches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_PIXELS = 1_000_000
"""Pixels that a scatter plot is drawn from; of more, evenly chosen ones."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RegressionEvaluation(Evaluation):
    """Validation results of a pixel regressor; `per_chip` is the RMSE of each chip, NaN where there is no truth.

    Args:
        truth: (n,) float32 true values of evenly chosen pixels, on the CPU.
        predicted: (n,) float32 predictions for them.
    """

    truth: Tensor
    predicted: Tensor


class ValuePredictions(NamedTuple):
    """Some chips with their predictions, on the CPU.

    Args:
        images: (n, bands, height, width); of several dates the last.
        truth: (n, height, width) true values, NaN where there is none.
        predictions: (n, height, width).
    """

    images: Tensor
    truth: Tensor
    predictions: Tensor


@torch.inference_mode()
def evaluate_values(network: Segmenter, chips: ChipLoader) -> RegressionEvaluation:
    """Evaluate a network on all chips of a loader, on its device, in the order of its data set.

    Args:
        network: To evaluate.
        chips: That are not shuffled.
    """
    scores = RegressionScores()
    errors: list[float] = []
    kept: list[Tensor] = []
    per_chip = max(1, MAX_PIXELS // max(len(chips.dataset), 1))
    network.to(chips.device).eval()
    for _, truth, predicted in predict_batches(network, chips):
        scores.add(predicted, truth)
        squared = (predicted[:, 0] - truth).square()
        errors.extend(squared.nanmean((1, 2)).sqrt().tolist())
        both = torch.stack([truth, predicted[:, 0]]).flatten(2)
        kept.append(both[:, :, :: -(-both.shape[2] // per_chip)].flatten(1).float().cpu())
    every, guesses = torch.cat(kept, 1) if kept else torch.zeros(2, 0)
    known = every.isfinite()
    return RegressionEvaluation(metrics=scores.values(), per_chip=errors, truth=every[known], predicted=guesses[known])


@torch.inference_mode()
def predict_values(network: Segmenter, chips: ChipLoader, indexes: Sequence[int]) -> ValuePredictions:
    """Predict some chips of a loader's data set, one after the other.

    Args:
        network: To predict with.
        chips: Whose data set holds the chips.
        indexes: Their positions in it, at least one.
    """
    rows = []
    for image, truth, predicted in predict_each(network, chips, indexes):
        rows.append((image[:, -1] if image.dim() == 5 else image, truth, predicted[:, 0]))
    return ValuePredictions(*(torch.cat(column) for column in zip(*rows)))


def draw_chips(network: Segmenter, data: ChipData, spec: ModelSpec, indexes: Sequence[int]) -> 'Figure':
    """Draw validation chips with truth, prediction and difference; name and root mean square error stand above each.

    Args:
        network: To predict with.
        data: Whose validation chips are drawn.
        spec: Of the model.
        indexes: Positions among the validation chips, at least one.
    """
    chips = predict_values(network, data.valid_dl, indexes)
    errors = (chips.predictions - chips.truth).square().nanmean((1, 2)).sqrt().tolist()
    names = [data.table.names[data.valid_ds.positions[index]] for index in indexes]
    titles = [plotting.describe_chip(name, RMSE=error) for name, error in zip(names, errors)]
    return plotting.show_regression(*chips, spec.bands, titles=titles)

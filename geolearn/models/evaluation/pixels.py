"""Evaluation of pixel classifiers: one pass over the validation chips for all that is reported."""

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from geolearn import classes, history, plotting
from geolearn.chips.batches.loader import ChipLoader
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.metrics import (
    BoundaryIoU,
    Calibration,
    ConfusionMatrix,
    ImageScores,
    LineScores,
    RegressionScores,
    score_chips,
)
from geolearn.networks.segmentation import Segmenter
from geolearn.networks.spec import ModelSpec
from geolearn.plotting import show_changes
from geolearn.training.nonfinite import check_outputs, predict_batches

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


log = logging.getLogger('geolearn')


@dataclass(frozen=True, eq=False, kw_only=True)
class PixelEvaluation(history.Evaluation):
    """Validation results of a pixel classifier; `per_chip` is the mean IoU of each chip, NaN where all is unlabelled.

    Args:
        confusion: Of all labelled pixels.
        calibration: Of the same.
        boundaries: Of the same.
        losses: Mean cross-entropy of each chip, NaN where nothing is labelled.
    """

    confusion: ConfusionMatrix
    calibration: Calibration
    boundaries: BoundaryIoU
    losses: Sequence[float]


class ChipPredictions(NamedTuple):
    """Some chips with their predictions, on the CPU: what figures are drawn from.

    Args:
        images: (n, bands, height, width), or (n, dates, bands, height, width) of several dates.
        masks: (n, height, width) class indices or IGNORE_INDEX.
        predictions: (n, height, width) class indices.
        losses: (n, height, width) cross-entropy of each pixel, 0 where nothing is labelled.
    """

    images: Tensor
    masks: Tensor
    predictions: Tensor
    losses: Tensor


@torch.inference_mode()
def evaluate_pixels(
    network: nn.Module,
    chips: ChipLoader,
    class_names: Sequence[str],
    *,
    temperature: float = 1.0,
    lines: Sequence[int] = (),
) -> PixelEvaluation:
    """Evaluate a network on every pixel of the chips of a loader, on its device, in the order of the loader's data set.

    Chips larger than the loader's images are predicted in overlapping windows of that size.

    Args:
        network: To evaluate.
        chips: That are not shuffled.
        class_names: By index.
        temperature: Logits are divided by it before confidences are computed.
        lines: Indices of the classes whose center lines are compared too.
    """
    count, of_lines = len(class_names), LineScores(lines)
    confusion, boundaries = ConfusionMatrix.empty(count), BoundaryIoU(count)
    calibration = Calibration(temperature=temperature)
    losses: list[float] = []
    scores: list[float] = []
    network, chips = whole_chips(network, chips)
    network.to(chips.device).eval()
    for _, masks, output in predict_batches(network, chips):
        logits = output.float()
        predicted = logits.max(1).indices
        confusion.add(predicted, masks)
        calibration.add(logits, masks)
        boundaries.add(logits, masks)
        if lines:
            of_lines.add(logits, masks)
        losses.extend(mean_losses(_pixel_losses(logits, masks), masks))
        scores.extend(score_chips(predicted, masks, count))
    for note in describe_undefined(confusion, boundaries, class_names):
        log.warning('%s', note)
    per_class = tabulate_metrics(confusion, class_names)
    return PixelEvaluation(
        metrics={'accuracy': confusion.accuracy, 'miou': confusion.miou} | (of_lines.values() if lines else {}),
        per_class=per_class,
        per_chip=scores,
        esri={
            'accuracy': f'{confusion.accuracy:.4e}',
            'per_class_metrics': per_class.drop(columns='iou').rename(index=str).T.to_json(),
        },
        confusion=confusion,
        calibration=calibration,
        boundaries=boundaries,
        losses=losses,
    )


def whole_chips(network: nn.Module, chips: ChipLoader) -> tuple[nn.Module, ChipLoader]:
    """Return a network and a loader of whole chips, if chips are larger than the loader's images.

    They are predicted in windows of the size of these images, which overlap as much as it takes to cover the chip
    evenly; where they do, outputs are averaged.
    """
    whole = chips.of_whole_chips()
    return (network if whole is chips else SlidingWindow(network, chips.dataset.chip_size)), whole


class SlidingWindow(nn.Module):
    """A network that sees windows of an image, and returns the mean logits of each pixel.

    Args:
        network: Of images (n, bands, window, window), or (n, dates, bands, window, window).
        window: Side in pixels.
    """

    def __init__(self, network: nn.Module, window: int) -> None:
        super().__init__()
        self.network, self.window = network, window

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, channels, height, width) of images of any size from that of a window.

        Networks whose output is finer than their input (super-resolution) keep this factor.
        """
        height, width = images.shape[-2:]
        total, counts = images.new_zeros(0), images.new_zeros(0)
        for top, left in itertools.product(_starts(height, self.window), _starts(width, self.window)):
            seen = images[..., top : top + self.window, left : left + self.window]
            output = self.network(seen).float()
            factor = output.shape[-1] // seen.shape[-1]
            if not len(total):
                total = output.new_zeros(*output.shape[:2], height * factor, width * factor)
                counts = output.new_zeros(total.shape[2:])
            part = tuple(slice(start * factor, (start + self.window) * factor) for start in (top, left))
            total[..., part[0], part[1]] += output
            counts[part] += 1
        return total / counts


def _starts(length: int, window: int) -> list[int]:
    """Return where the fewest windows that cover a length begin, evenly spread."""
    count = math.ceil(length / window)
    spare = max(length - window, 0)
    return [round(number * spare / max(count - 1, 1)) for number in range(count)]


def describe_undefined(confusion: ConfusionMatrix, boundaries: BoundaryIoU, class_names: Sequence[str]) -> list[str]:
    """Say which metrics are undefined, and over which classes means are."""
    texts = [confusion.describe_mean(class_names)]
    if int(confusion.counts.sum()):
        texts.append(boundaries.describe_undefined(class_names))
    return [text for text in texts if text]


@torch.inference_mode()
def predict_each(
    network: Segmenter, chips: ChipLoader, indexes: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield image, truth and output, each of one chip and on the CPU, of some chips of a loader's data set.

    Chips larger than the loader's images are whole, and predicted in the windows in which they are evaluated.

    Args:
        network: To predict with.
        chips: Whose data set holds the chips.
        indexes: Their positions in it.
    """
    predict, whole = whole_chips(network, chips)
    predict.to(chips.device).eval()
    for index in indexes:
        image, truth = (part[None] for part in whole.dataset[index])
        output = predict(image.to(chips.device)).float().cpu()
        check_outputs(output, partial(_name_of, chips, index))
        yield image, truth, output


def _name_of(chips: ChipLoader, index: int) -> list[str]:
    return [chips.dataset.names[index]]


@torch.inference_mode()
def predict_chips(network: Segmenter, chips: ChipLoader, indexes: Sequence[int]) -> ChipPredictions:
    """Predict some chips of a loader's data set, one after the other; whole ones, as they are evaluated.

    Args:
        network: To predict with.
        chips: Whose data set holds the chips.
        indexes: Their positions in it, at least one.
    """
    rows = []
    for image, mask, logits in predict_each(network, chips, indexes):
        rows.append((image, mask, logits.max(1).indices, _pixel_losses(logits, mask)))
    return ChipPredictions(*(torch.cat(column) for column in zip(*rows)))


def mean_losses(losses: Tensor, masks: Tensor) -> list[float]:
    """Return the mean loss of each chip over its labelled pixels; NaN where nothing is labelled.

    Args:
        losses: (n, height, width), 0 where nothing is labelled.
        masks: (n, height, width) class indices or IGNORE_INDEX.
    """
    return (losses.sum((1, 2)) / (masks != classes.IGNORE_INDEX).sum((1, 2))).tolist()


def _pixel_losses(logits: Tensor, masks: Tensor) -> Tensor:
    return functional.cross_entropy(logits, masks, ignore_index=classes.IGNORE_INDEX, reduction='none')


def tabulate_metrics(matrix: ConfusionMatrix, class_names: Sequence[str]) -> 'pd.DataFrame':
    """Make a table of precision, recall, F1 and IoU of each class; NaN where undefined."""
    import pandas as pd  # late: with pyarrow it takes part of a second to import

    columns = {'precision': matrix.precision, 'recall': matrix.recall, 'f1': matrix.f1, 'iou': matrix.iou}
    table = {name: values.tolist() for name, values in columns.items()}
    return pd.DataFrame(table, index=pd.Index(list(class_names), name='class'))


def draw_chips(
    network: Segmenter, data: ChipData, spec: ModelSpec, indexes: Sequence[int], *, losses: bool = False
) -> 'Figure':
    """Draw whole validation chips with truth, prediction and where they differ; name, IoU and loss stand above each.

    Args:
        network: To predict with.
        data: Whose validation chips are drawn; of several dates the last, of pairs both.
        spec: Of the model.
        indexes: Positions among the validation chips, at least one.
        losses: Show the loss of each pixel, not where the prediction is wrong.
    """
    chips = predict_chips(network, data.valid_dl, indexes)
    titles = [
        plotting.describe_chip(name, IoU=score, loss=loss)
        for name, score, loss in zip(
            (data.table.names[data.valid_ds.positions[index]] for index in indexes),
            score_chips(chips.predictions, chips.masks, data.c),
            mean_losses(chips.losses, chips.masks),
            strict=True,
        )
    ]
    stretch = data.display_stretch
    if data.task == Task.CHANGE:
        shown = chips.losses if losses else None
        return show_changes(*chips[:3], spec.bands, spec.class_infos, titles=titles, losses=shown, stretch=stretch)
    images = chips.images[:, -1] if chips.images.dim() == 5 else chips.images
    if losses:
        return plotting.show_hard_examples(
            images, *chips[1:], spec.bands, spec.class_infos, titles=titles, stretch=stretch
        )
    return plotting.show_predictions(images, *chips[1:3], spec.bands, spec.class_infos, titles=titles, stretch=stretch)


MAX_PIXELS = 1_000_000
"""Pixels that a scatter plot is drawn from; of more, evenly chosen ones."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RegressionEvaluation(history.Evaluation):
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
        truth: (n, height, width) true values, NaN where there is none; or (n, bands, height, width) of images.
        predictions: Of the same shape.
    """

    images: Tensor
    truth: Tensor
    predictions: Tensor


@torch.inference_mode()
def evaluate_values(
    network: nn.Module, chips: ChipLoader, scores: RegressionScores | ImageScores
) -> RegressionEvaluation:
    """Evaluate a network on every pixel of the chips of a loader, on its device, in the order of its data set.

    Chips larger than the loader's images are predicted in overlapping windows of that size.

    Args:
        network: To evaluate.
        chips: That are not shuffled.
        scores: Empty.
    """
    errors: list[float] = []
    kept: list[Tensor] = []
    per_chip = max(1, MAX_PIXELS // max(len(chips.dataset), 1))
    network, chips = whole_chips(network, chips)
    network.to(chips.device).eval()
    for _, truth, predicted in predict_batches(network, chips):
        scores.add(predicted, truth)
        predicted = predicted if truth.dim() == 4 else predicted[:, 0]
        squared = (predicted - truth).square()
        errors.extend(squared.flatten(1).nanmean(1).sqrt().tolist())
        both = torch.stack([truth, predicted]).flatten(2)
        kept.append(both[:, :, :: -(-both.shape[2] // per_chip)].flatten(1).float().cpu())
    every, guesses = torch.cat(kept, 1) if kept else torch.zeros(2, 0)
    known = every.isfinite()
    return RegressionEvaluation(metrics=scores.values(), per_chip=errors, truth=every[known], predicted=guesses[known])


@torch.inference_mode()
def predict_values(network: Segmenter, chips: ChipLoader, indexes: Sequence[int]) -> ValuePredictions:
    """Predict some chips of a loader's data set, one after the other; whole ones, as they are evaluated.

    Args:
        network: To predict with.
        chips: Whose data set holds the chips.
        indexes: Their positions in it, at least one.
    """
    rows = []
    for image, truth, predicted in predict_each(network, chips, indexes):
        found = predicted if truth.dim() == 4 else predicted[:, 0]
        rows.append((image[:, -1] if image.dim() == 5 else image, truth, found))
    return ValuePredictions(*(torch.cat(column) for column in zip(*rows)))


def draw_regression_chips(network: Segmenter, data: ChipData, spec: ModelSpec, indexes: Sequence[int]) -> 'Figure':
    """Draw whole validation chips with truth, prediction and difference; name and RMSE stand above each.

    Args:
        network: To predict with.
        data: Whose validation chips are drawn.
        spec: Of the model.
        indexes: Positions among the validation chips, at least one.
    """
    chips = predict_values(network, data.valid_dl, indexes)
    errors = (chips.predictions - chips.truth).square().flatten(1).nanmean(1).sqrt().tolist()
    names = [data.table.names[data.valid_ds.positions[index]] for index in indexes]
    titles = [plotting.describe_chip(name, RMSE=error) for name, error in zip(names, errors)]
    if chips.truth.dim() == 4:
        return plotting.show_predicted_images(*chips, spec.bands, titles=titles, stretch=data.display_stretch)
    return plotting.show_regression(*chips, spec.bands, titles=titles, stretch=data.display_stretch)

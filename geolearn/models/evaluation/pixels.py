"""Go through validation chips once and count all that a report says of a pixel classifier."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from geolearn import plotting
from geolearn.chips.batches.loader import ChipLoader
from geolearn.classes import IGNORE_INDEX
from geolearn.data import ChipData
from geolearn.metrics import BoundaryIoU, Calibration, ConfusionMatrix, score_chips
from geolearn.networks.segmentation import Segmenter
from geolearn.networks.spec import ModelSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a pixel classifier does on some chips.

    Args:
        confusion: Of all labelled pixels.
        calibration: Of the same.
        boundaries: Of the same.
        losses: Mean cross-entropy of each chip, NaN where nothing is labelled.
        scores: Mean IoU of each chip, NaN where nothing is labelled.
    """

    confusion: ConfusionMatrix
    calibration: Calibration
    boundaries: BoundaryIoU
    losses: list[float]
    scores: list[float]


class JudgedChips(NamedTuple):
    """Some chips with what the network makes of them, on the CPU: what figures are drawn from.

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
def judge_chips(network: Segmenter, chips: ChipLoader, class_count: int, *, temperature: float = 1.0) -> Judgement:
    """Count everything over all chips, on the loader's device; chips come in the order of the loader's data set.

    Args:
        network: To judge.
        chips: That are not shuffled.
        class_count: Number of classes.
        temperature: Logits are divided by it to say how sure the network is.
    """
    calibration = Calibration(temperature=temperature)
    found = Judgement(ConfusionMatrix.empty(class_count), calibration, BoundaryIoU(class_count), [], [])
    network.to(chips.device).eval()
    for images, masks in chips:
        logits = network(images).float()
        predicted = logits.max(1).indices
        found.confusion.add(predicted, masks)
        found.calibration.add(logits, masks)
        found.boundaries.add(logits, masks)
        found.losses.extend(mean_costs(_costs(logits, masks), masks))
        found.scores.extend(score_chips(predicted, masks, class_count))
    return found


@torch.inference_mode()
def predict_each(
    network: Segmenter, chips: ChipLoader, indexes: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield image, truth and output, each of one chip and on the CPU, of some chips of a loader's data set.

    Args:
        network: To look at.
        chips: Whose data set holds the chips.
        indexes: Their positions in it.
    """
    network.to(chips.device).eval()
    for index in indexes:
        image, truth = (part[None] for part in chips.dataset[index])
        yield image, truth, network(image.to(chips.device)).float().cpu()


@torch.inference_mode()
def look_at(network: Segmenter, chips: ChipLoader, indexes: Sequence[int]) -> JudgedChips:
    """Predict some chips of a loader's data set, one after the other.

    Args:
        network: To look at.
        chips: Whose data set holds the chips.
        indexes: Their positions in it, at least one.
    """
    rows = []
    for image, mask, logits in predict_each(network, chips, indexes):
        rows.append((image, mask, logits.max(1).indices, _costs(logits, mask)))
    return JudgedChips(*(torch.cat(column) for column in zip(*rows)))


def mean_costs(losses: Tensor, masks: Tensor) -> list[float]:
    """Return the mean loss of each chip over its labelled pixels; NaN where nothing is labelled.

    Args:
        losses: (n, height, width), 0 where nothing is labelled.
        masks: (n, height, width) class indices or IGNORE_INDEX.
    """
    return (losses.sum((1, 2)) / (masks != IGNORE_INDEX).sum((1, 2))).tolist()


def _costs(logits: Tensor, masks: Tensor) -> Tensor:
    return functional.cross_entropy(logits, masks, ignore_index=IGNORE_INDEX, reduction='none')


@torch.inference_mode()
def count_confusion(network: Segmenter, chips: ChipLoader, class_count: int) -> ConfusionMatrix:
    """Count truth against prediction over all chips, on the loader's device."""
    matrix = ConfusionMatrix.empty(class_count)
    network.to(chips.device).eval()
    for images, masks in chips:
        matrix.add(network(images).max(1).indices, masks)
    return matrix


def tabulate_metrics(matrix: ConfusionMatrix, class_names: list[str]) -> pd.DataFrame:
    """Make a table of precision, recall, F1 and IoU of each class; NaN where undefined."""
    columns = {'precision': matrix.precision, 'recall': matrix.recall, 'f1': matrix.f1, 'iou': matrix.iou}
    table = {name: values.tolist() for name, values in columns.items()}
    return pd.DataFrame(table, index=pd.Index(class_names, name='class'))


def draw_chips(seen: JudgedChips, spec: ModelSpec, titles: Sequence[str], *, losses: bool) -> 'Figure':
    """Draw chips with truth, prediction and where they differ, or what each pixel costs.

    Args:
        seen: The chips; of several dates the last is drawn.
        spec: Of the model.
        titles: Above the rows.
        losses: Show what each pixel costs, not where it is wrong.
    """
    images = seen.images[:, -1] if seen.images.dim() == 5 else seen.images
    if losses:
        return plotting.show_hard_examples(images, *seen[1:], spec.bands, spec.class_infos, titles=titles)
    return plotting.show_predictions(images, *seen[1:3], spec.bands, spec.class_infos, titles=titles)


def name_chips(seen: JudgedChips, data: ChipData, indexes: Sequence[int]) -> list[str]:
    """Return for each chip its name, IoU and mean loss, as titles.

    Args:
        seen: The chips.
        data: Whose validation chips they are.
        indexes: Their positions among these.
    """
    names = [data.table.names[data.valid_ds.positions[index]] for index in indexes]
    scores = score_chips(seen.predictions, seen.masks, data.c)
    losses = mean_costs(seen.losses, seen.masks)
    return [
        plotting.describe_chip(name, IoU=score, loss=loss)
        for name, score, loss in zip(names, scores, losses, strict=True)
    ]

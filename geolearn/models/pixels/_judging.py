"""Go through validation chips once and count all that a report says of a pixel classifier."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from geolearn import plotting
from geolearn.chips.loader import ChipLoader
from geolearn.classes import IGNORE_INDEX
from geolearn.metrics import BoundaryIoU, Calibration, ConfusionMatrix
from geolearn.models.pixels.segmenter import Segmenter


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
        found.scores.extend(plotting.score_chips(predicted, masks, class_count))
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

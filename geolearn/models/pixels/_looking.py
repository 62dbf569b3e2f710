"""What a pixel classifier does on validation chips, counted and drawn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch

from geolearn import plotting
from geolearn.chips.loader import ChipLoader
from geolearn.data import ChipData
from geolearn.metrics import ConfusionMatrix
from geolearn.models.pixels._judging import JudgedChips, mean_costs
from geolearn.models.pixels.segmenter import Segmenter
from geolearn.models.spec import ModelSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    scores = plotting.score_chips(seen.predictions, seen.masks, data.c)
    losses = mean_costs(seen.losses, seen.masks)
    return [
        plotting.describe_chip(name, IoU=score, loss=loss)
        for name, score, loss in zip(names, scores, losses, strict=True)
    ]

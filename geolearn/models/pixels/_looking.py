"""What a pixel classifier does on validation chips, counted and drawn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch

from geolearn import plotting
from geolearn.chips.loader import ChipLoader
from geolearn.data import ChipData
from geolearn.metrics import ConfusionMatrix
from geolearn.models.pixels._judging import look_at
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


def draw_results(network: Segmenter, data: ChipData, spec: ModelSpec, indexes: Sequence[int]) -> 'Figure':
    """Draw validation chips with truth, prediction and where they differ.

    Args:
        network: To look at.
        data: Whose validation chips are drawn.
        spec: Of the model.
        indexes: Positions of the chips in `data.valid_ds`.
    """
    seen = look_at(network, data.valid_dl, indexes)
    scores = plotting.score_chips(seen.predictions, seen.masks, len(spec.class_infos))
    titles = [plotting.describe_chip(name, IoU=score) for name, score in zip(chip_names(data, indexes), scores)]
    return plotting.show_predictions(
        seen.images, seen.masks, seen.predictions, spec.bands, spec.class_infos, titles=titles
    )


def draw_hard_examples(network: Segmenter, data: ChipData, spec: ModelSpec, indexes: Sequence[int]) -> 'Figure':
    """Draw validation chips with what each of their pixels costs; arguments as in `draw_results`."""
    seen = look_at(network, data.valid_dl, indexes)
    titles = chip_names(data, indexes)
    return plotting.show_hard_examples(*seen, spec.bands, spec.class_infos, titles=titles)


def chip_names(data: ChipData, indexes: Sequence[int]) -> list[str]:
    """Return the names of validation chips."""
    return [data.table.names[data.valid_ds.positions[index]] for index in indexes]

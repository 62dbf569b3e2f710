"""What a pixel classifier does on validation chips, counted and drawn."""

from typing import TYPE_CHECKING

import pandas as pd
import torch

from geolearn import plotting
from geolearn.backbones.adapt import DEFAULT_ADAPTATION
from geolearn.chips.loader import ChipLoader
from geolearn.metrics import ConfusionMatrix
from geolearn.models.segmenter import Segmenter
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


def draw_results(network: Segmenter, chips: ChipLoader, spec: ModelSpec, rows: int) -> 'Figure':
    """Draw the first chips with truth and prediction."""
    images, masks = next(iter(chips))
    images, masks = images[:rows], masks[:rows]
    network.to(images.device).eval()
    with torch.inference_mode():
        predicted = network(images).max(1).indices
    if images.dim() == 5:  # of several dates the last is shown
        images = images[:, -1]
    return plotting.show_predictions(images.cpu(), masks.cpu(), predicted.cpu(), spec.bands, spec.class_infos)


def describe_model(spec: ModelSpec, network: Segmenter, *, epochs: int, trains: bool) -> str:
    """Lay out in lines what a model is.

    Args:
        spec: Of the model.
        network: Of the model.
        epochs: Number of epochs trained.
        trains: Whether there is data to train on, so that it matters which parameters learn.
    """
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    counts = f'{sum(size for size, _ in sizes) / 1e6:.1f} M parameters'
    if trains and spec.adaptation != DEFAULT_ADAPTATION:
        counts += f' ({sum(size for size, learns in sizes if learns) / 1e6:.2f} M of them learn)'
    report = network.backbone.load_report
    lines = [
        f'{spec.model} on {spec.backbone}: {counts}, {epochs} epochs trained',
        f'  bands    {", ".join(band.name for band in spec.bands)}',
        f'  classes  {", ".join(info.name for info in spec.class_infos)}',
    ]
    return '\n'.join(lines + ([f'  weights  {report}'] if report else []))

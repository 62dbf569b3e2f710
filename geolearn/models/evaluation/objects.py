"""What a detector does on validation chips, counted and drawn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch

from geolearn.chips.batches.loader import ChipLoader
from geolearn.data import ChipData
from geolearn.metrics import DetectionScores
from geolearn.networks.detection.detector import Detector
from geolearn.networks.spec import ModelSpec
from geolearn.plotting import describe_chip
from geolearn.plotting.detection import show_detections

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@torch.inference_mode()
def count_objects(network: Detector, chips: ChipLoader, scores: DetectionScores) -> DetectionScores:
    """Compare what is found with the truth over all chips."""
    network.to(chips.device).eval()
    for images, objects in chips:
        scores.add(network(images)[0], objects)
    return scores


def tabulate_scores(scores: DetectionScores, class_names: list[str]) -> pd.DataFrame:
    """Make a table of average precision and recall of each class; NaN where there is no true object."""
    return pd.DataFrame(scores.per_class(), index=pd.Index(class_names, name='class'))


def draw_results(network: Detector, chips: ChipLoader, spec: ModelSpec, *, rows: int, threshold: float) -> 'Figure':
    """Draw the first chips with true and found objects."""
    images, objects = next(iter(chips))
    images, objects = images[:rows], objects[:rows]
    network.to(images.device).eval()
    with torch.inference_mode():
        found, _ = network(images)
    if images.dim() == 5:  # of several dates the last is shown
        images = images[:, -1]
    shown = [objects.filter_by_score(threshold).cpu() for objects in found]
    truth = [known.to(torch.device('cpu')) for known in objects]
    return show_detections(images.cpu(), truth, shown, spec.bands, spec.class_infos)


@torch.inference_mode()
def draw_chips(
    network: Detector,
    data: ChipData,
    spec: ModelSpec,
    indexes: Sequence[int],
    notes: Sequence[str],
    *,
    threshold: float,
) -> 'Figure':
    """Draw validation chips by their positions with true and found objects.

    Args:
        network: To look at.
        data: Whose validation chips are drawn.
        spec: Of the model.
        indexes: Positions among the validation chips, at least one.
        notes: What to say beside the name of each.
        threshold: Lowest score of what is drawn.
    """
    device = data.valid_dl.device
    network.to(device).eval()
    pairs = [data.valid_ds[index] for index in indexes]
    found = [network(image[None].to(device))[0][0].filter_by_score(threshold).cpu() for image, _ in pairs]
    images = torch.stack([image[-1] if image.dim() == 4 else image for image, _ in pairs])
    truth = [objects for _, objects in pairs]
    names = [data.table.names[data.valid_ds.positions[index]] for index in indexes]
    titles = [f'{describe_chip(name)} · {note}' for name, note in zip(names, notes)]
    return show_detections(images, truth, found, spec.bands, spec.class_infos, titles=titles, side=3.0)

"""What a detector does on validation chips, counted and drawn."""

from typing import TYPE_CHECKING

import pandas as pd
import torch

from geolearn.bundle import FIGURES
from geolearn.chips.loader import ChipLoader
from geolearn.history import Evaluation
from geolearn.inference.found import Found
from geolearn.metrics import DetectionScores
from geolearn.models._saving import png
from geolearn.models.detection.detector import Detector
from geolearn.models.spec import ModelSpec
from geolearn.plotting.detection import show_detections

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from geolearn.models.detection.object_detector import ObjectDetector


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
    shown = [surer(objects, threshold).cpu() for objects in found]
    truth = [known.to(torch.device('cpu')) for known in objects]
    return show_detections(images.cpu(), truth, shown, spec.bands, spec.class_infos)


def surer(found: Found, threshold: float) -> Found:
    """Return the objects of at least this score."""
    return found.select(found.scores >= threshold)


def evaluate_objects(model: 'ObjectDetector') -> Evaluation:
    """Judge a detector on its validation chips, for its bundle."""
    found = model.average_precision_score()
    figures = {
        f'{FIGURES}show_results.png': png(model.show_results()),
        f'{FIGURES}precision_recall.png': png(model.plot_precision_recall()),
    }
    if model.history.batch_losses:
        figures[f'{FIGURES}loss_graph.png'] = png(model.plot_losses())
    return Evaluation(
        metrics=model.scores().values() | {'average_precision_score': found},
        esri={'average_precision_score': found, 'per_class_metrics': model.per_class_metrics().T.to_json()},
        figures=figures,
    )

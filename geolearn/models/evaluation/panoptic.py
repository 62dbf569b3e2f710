"""Evaluation of panoptic models: their maps of the validation chips against the true segments, and figures of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import torch

from geolearn import plotting
from geolearn.chips.batches.loader import ChipLoader
from geolearn.data import ChipData
from geolearn.history import Evaluation
from geolearn.metrics import PanopticScores
from geolearn.metrics.panoptic import true_map
from geolearn.networks.detection.panoptic import PanopticNetwork
from geolearn.networks.spec import ModelSpec
from geolearn.training.nonfinite import check_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, kw_only=True)
class PanopticEvaluation(Evaluation):
    """Validation results of a panoptic model; `per_chip` is the PQ of each chip.

    Args:
        segments: Counted.
    """

    segments: PanopticScores


@torch.inference_mode()
def evaluate_panoptic(
    network: PanopticNetwork, chips: ChipLoader, scores: PanopticScores, class_names: Sequence[str]
) -> PanopticEvaluation:
    """Evaluate a network on all chips of a loader, on its device.

    Args:
        network: To evaluate.
        chips: That are not shuffled.
        scores: Empty.
        class_names: By index.
    """
    network.to(chips.device).eval()
    check_weights(network)
    for images, masks, objects in chips:
        scores.add(network(images)[0], (masks, objects))
    per_class = pd.DataFrame(scores.per_class(), index=pd.Index(list(class_names), name='class'))
    return PanopticEvaluation(
        metrics=scores.values(),
        per_class=per_class,
        per_chip=list(scores.per_image),
        esri={'per_class_metrics': per_class.T.to_json()},
        segments=scores,
    )


@torch.inference_mode()
def draw_panoptic_chips(
    network: PanopticNetwork, data: ChipData, spec: ModelSpec, indexes: Sequence[int], *, notes: Sequence[str] = ()
) -> 'Figure':
    """Draw validation chips by their positions with true and predicted segments.

    Args:
        network: To predict with.
        data: Whose validation chips are drawn.
        spec: Of the model.
        indexes: Positions among the validation chips, at least one.
        notes: Texts beside the name of each.
    """
    device = data.valid_dl.device
    network.to(device).eval()
    rows = [data.valid_ds[index] for index in indexes]
    predicted = [network(image[None].to(device))[0][0] for image, _, _ in rows]
    truth = [true_map(masks, objects, network.things) for _, masks, objects in rows]
    images = torch.stack([image[-1] if image.dim() == 4 else image for image, _, _ in rows])
    names = [data.table.names[data.valid_ds.positions[index]] for index in indexes]
    titles = [' · '.join(part) for part in zip(map(plotting.describe_chip, names), *([notes] if notes else []))]
    draw = partial(plotting.show_panoptic, titles=titles, stretch=data.display_stretch)
    return draw(images, truth, predicted, spec.bands, spec.class_infos)

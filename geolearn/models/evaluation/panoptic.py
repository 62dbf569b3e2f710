"""Evaluation of panoptic models: their maps of the validation chips against the true segments, and figures of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor, nn

from geolearn import plotting
from geolearn.batch import PanopticMap
from geolearn.chips.batches.loader import ChipLoader
from geolearn.data import ChipData
from geolearn.history import Evaluation
from geolearn.metrics import PanopticScores
from geolearn.metrics.panoptic import true_map
from geolearn.models.evaluation.objects import WindowedDetector, whole_chips
from geolearn.models.evaluation.pixels import SlidingWindow
from geolearn.networks.detection.panoptic import Classes, PanopticNetwork, Things, merge_segments
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
    network: PanopticNetwork,
    chips: ChipLoader,
    scores: PanopticScores,
    class_names: Sequence[str],
    *,
    typical_side: float = 0.0,
) -> PanopticEvaluation:
    """Evaluate a network on the chips of a loader, on its device.

    Chips larger than the loader's images are segmented in overlapping windows; see `WindowedPanoptic`.

    Args:
        network: To evaluate.
        chips: That are not shuffled.
        scores: Empty.
        class_names: By index.
        typical_side: Side in pixels that nearly no object exceeds; windows overlap by it.
    """
    network.to(chips.device).eval()
    check_weights(network)
    segment, whole = whole_chips(network, chips, typical_side, WindowedPanoptic)
    for images, masks, objects in whole:
        scores.add(segment(images)[0], (masks, objects))
    per_class = pd.DataFrame(scores.per_class(), index=pd.Index(list(class_names), name='class'))
    return PanopticEvaluation(
        metrics=scores.values(),
        per_class=per_class,
        per_chip=list(scores.per_image),
        esri={'per_class_metrics': per_class.T.to_json()},
        segments=scores,
    )


class WindowedPanoptic(nn.Module):
    """A panoptic network that sees windows of an image: their objects and their classes are joined, then merged.

    This is what `predict_raster` does with tiles: objects come through windows as those of detectors, each once and
    whole, and classes as those of classifiers; then objects are laid over the classes of the whole image.

    Args:
        network: Of images (n, [dates,] bands, window, window).
        window: Side in pixels.
        typical_side: Side in pixels that nearly no object exceeds.
        most: Windows in which objects are sought at once.
    """

    def __init__(self, network: PanopticNetwork, window: int, *, typical_side: float, most: int) -> None:
        super().__init__()
        self.stuff, self.options = network.stuff, network.options
        self.objects = WindowedDetector(
            Things(network), window, typical_side=typical_side, most=most, threshold=network.options.threshold
        )
        self.classes = SlidingWindow(Classes(network), window)

    def forward(self, images: Tensor) -> tuple[list[PanopticMap], dict[str, Tensor]]:
        """Return the segments of images (n, [dates,] bands, height, width) on the CPU, and no losses."""
        pairs = zip(self.objects(images)[0], self.classes(images).cpu())
        return [merge_segments(*pair, self.stuff, self.options)[0] for pair in pairs], {}


@torch.inference_mode()
def draw_panoptic_chips(
    network: PanopticNetwork,
    data: ChipData,
    spec: ModelSpec,
    indexes: Sequence[int],
    *,
    typical_side: float,
    notes: Sequence[str] = (),
) -> 'Figure':
    """Draw validation chips by their positions with true and predicted segments; whole ones, as they are evaluated.

    Args:
        network: To predict with.
        data: Whose validation chips are drawn.
        spec: Of the model.
        indexes: Positions among the validation chips, at least one.
        typical_side: As for `evaluate_panoptic`.
        notes: Texts beside the name of each.
    """
    device = data.valid_dl.device
    network.to(device).eval()
    segment, whole = whole_chips(network, data.valid_dl, typical_side, WindowedPanoptic)
    rows = [whole.dataset[index] for index in indexes]
    predicted = [segment(image[None].to(device))[0][0] for image, _, _ in rows]
    truth = [true_map(masks, objects, network.things) for _, masks, objects in rows]
    images = torch.stack([image[-1] if image.dim() == 4 else image for image, _, _ in rows])
    names = [data.table.names[data.valid_ds.positions[index]] for index in indexes]
    titles = [' · '.join(part) for part in zip(map(plotting.describe_chip, names), *([notes] if notes else []))]
    draw = partial(plotting.show_panoptic, titles=titles, stretch=data.display_stretch)
    return draw(images, truth, predicted, spec.bands, spec.class_infos)

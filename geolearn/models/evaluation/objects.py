"""Evaluation of detectors: detections on the validation chips against true objects, and figures of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from rasterio.features import rasterize
from torch import Tensor, nn
from torch.nn import functional

from geolearn.batch import Detections
from geolearn.chips.batches.loader import ChipLoader
from geolearn.data import ChipData
from geolearn.history import Evaluation
from geolearn.inference import merging, placing
from geolearn.metrics import DetectionScores
from geolearn.networks.network import Network
from geolearn.networks.spec import ModelSpec
from geolearn.plotting import describe_chip, show_detections
from geolearn.tiling import TileGrid, make_grid
from geolearn.training.nonfinite import check_weights, checked_maps

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from geolearn.networks.detection.detector import Detector

CONFIDENCE = 0.5
"""Lowest score of objects that are drawn and counted: that from which on `predict` and `detect_objects` return them."""

OVERLAP = 0.5
"""Intersection over union from which on a detection is a true positive."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DetectionEvaluation(Evaluation):
    """Validation results of a detector; `per_chip` is the F1 of each chip at `CONFIDENCE` and `OVERLAP`.

    Args:
        detections: Matched with true objects.
        matches: (chips, classes, 3) true positives, false positives and false negatives at `CONFIDENCE` and `OVERLAP`.
    """

    detections: DetectionScores
    matches: Tensor


@torch.inference_mode()
def evaluate_objects(
    network: 'Detector',
    chips: ChipLoader,
    scores: DetectionScores,
    class_names: Sequence[str],
    *,
    typical_side: float = 0.0,
) -> DetectionEvaluation:
    """Evaluate a network on the chips of a loader, on its device.

    Chips larger than the loader's images are searched in overlapping windows of about that size, and what several
    windows show becomes one object, as `detect_objects` does it in rasters.

    Args:
        network: To evaluate.
        chips: That are not shuffled.
        scores: Empty; by boxes or by masks.
        class_names: By index.
        typical_side: Side in pixels that nearly no training box exceeds; windows overlap by it.
    """
    network.to(chips.device).eval()
    check_weights(network)
    find, whole = whole_chips(network, chips, typical_side)
    windows = find.count(whole.dataset.chip_size) if isinstance(find, WindowedDetector) else 1
    scores.max_detections *= windows
    for number, (images, objects) in enumerate(whole):
        names = whole.batch_names(number) * windows
        with checked_maps(network.levels, partial(list, names)):
            scores.add(find(images)[0], objects)
    per_class = tabulate_scores(scores, class_names)
    matches = scores.count_matches(iou=OVERLAP, score=CONFIDENCE)
    average_precision = dict(zip(class_names, scores.average_precision(iou=0.5, score=0.0)))
    return DetectionEvaluation(
        metrics=scores.values(),
        per_class=per_class,
        per_chip=f1_score(matches.sum(1)).tolist(),
        esri={'average_precision_score': average_precision, 'per_class_metrics': per_class.T.to_json()},
        detections=scores,
        matches=matches,
    )


class WindowedDetector(nn.Module):
    """A detector that sees windows of an image; what several of them show becomes one object, cut ones become whole.

    Args:
        network: Of images (n, [dates,] bands, window, window), such as a `Detector`.
        window: Largest side in pixels, rounded up to a multiple of the coarsest stride.
        typical_side: Side in pixels that nearly no object exceeds.
        most: Windows that the network sees at once.
        threshold: Lowest score of an object.
    """

    def __init__(
        self, network: Network, window: int, *, typical_side: float, most: int, threshold: float = 0.0
    ) -> None:
        super().__init__()
        self.network, self.window, self.most, self.strides = network, window, most, network.backbone.strides
        self.threshold = threshold
        self.halo = placing.choose_halo(window, 0, typical_side=typical_side, overlap=None)

    def cut(self, shape: tuple[int, int]) -> TileGrid:
        """Return the windows of an image of this height and width, of one size; the last may reach beyond it."""
        multiple = math.lcm(1, *self.strides)
        return make_grid(shape, tile_size=self.window, halo=self.halo, multiple=multiple)

    def count(self, side: int) -> int:
        """Return the number of windows of a square image."""
        return len(placing.number_tiles(self.cut((side, side))))

    def forward(self, images: Tensor) -> tuple[list[Detections], dict[str, Tensor]]:
        """Return the objects of images (n, [dates,] bands, height, width), and no losses."""
        return [self._find(image) for image in images], {}

    def _find(self, image: Tensor) -> Detections:
        from geolearn.inference.detecting import as_arrays  # late: it takes torchvision, which pixels do not need

        shape = (image.shape[-2], image.shape[-1])
        grid = self.cut(shape)
        corners = list(placing.number_tiles(grid).items())
        (bottom, right), (height, width) = corners[-1][0], grid.tile_shape
        beyond = (0, max(right + width - shape[1], 0), 0, max(bottom + height - shape[0], 0))
        padded = functional.pad(image, beyond, value=math.nan)
        parts = []
        for first in range(0, len(corners), self.most):
            some = corners[first : first + self.most]
            windows = torch.stack([padded[..., row : row + height, col : col + width] for (row, col), _ in some])
            for detections, (corner, number) in zip(self.network(windows)[0], some):
                found = as_arrays(detections.cpu())
                parts.append(placing.place(found, grid, corner, number, shape))
        options = placing.DetectOptions(self.threshold, nms_overlap=merging.SAME_OVERLAP)
        return _as_detections(placing.merge_tiles(parts, grid, options, None), shape)


def whole_chips(
    network: Network,
    chips: ChipLoader,
    typical_side: float,
    windowed: Callable[..., nn.Module] = WindowedDetector,
) -> tuple[nn.Module, ChipLoader]:
    """Return a network and a loader of whole chips, one at a time if chips are larger than the loader's images.

    Args:
        network: Of images of the loader's size.
        chips: Of images of that size.
        typical_side: Side in pixels that nearly no object exceeds.
        windowed: Makes a network of whole chips of one of windows, as `WindowedDetector` does.
    """
    whole = chips.of_whole_chips(batch_size=1)
    if whole is chips:
        return network, chips
    side, most = chips.dataset.chip_size, chips.batch_size
    return windowed(network, side, typical_side=typical_side, most=most).eval(), whole


def _as_detections(objects: merging.TileDetections, shape: tuple[int, int]) -> Detections:
    """Return the objects of an image of this height and width as tensors, outlines as masks."""
    masks = None
    if objects.outlines is not None:
        drawn = [rasterize([outline], shape).astype(bool) for outline in objects.outlines]
        masks = torch.from_numpy(np.stack(drawn) if drawn else np.zeros((0, *shape), bool))
    return Detections(
        torch.from_numpy(objects.boxes).float(),
        torch.from_numpy(objects.labels),
        torch.from_numpy(objects.scores).float(),
        masks,
        None if objects.turned is None else torch.from_numpy(objects.turned).float(),
    )


def f1_score(matches: Tensor) -> Tensor:
    """Return F1 (...) of (..., 3) true positives, false positives and false negatives; NaN where undefined."""
    tp, fp, fn = matches.double().unbind(-1)
    return 2 * tp / (2 * tp + fp + fn)


def tabulate_scores(scores: DetectionScores, class_names: Sequence[str]) -> 'pd.DataFrame':
    """Make a table of average precision and recall of each class; NaN where there is no true object."""
    import pandas as pd  # late: with pyarrow it takes part of a second to import

    return pd.DataFrame(scores.per_class(), index=pd.Index(list(class_names), name='class'))


@torch.inference_mode()
def draw_detected_chips(
    network: 'Detector',
    data: ChipData,
    spec: ModelSpec,
    indexes: Sequence[int],
    *,
    threshold: float,
    typical_side: float,
    notes: Sequence[str] = (),
) -> 'Figure':
    """Draw validation chips by their positions with true objects and detections; whole ones, as `evaluate_objects`.

    Args:
        network: To predict with.
        data: Whose validation chips are drawn.
        spec: Of the model.
        indexes: Positions among the validation chips, at least one.
        threshold: Lowest score of what is drawn.
        typical_side: As for `evaluate_objects`.
        notes: Texts beside the name of each.
    """
    device = data.valid_dl.device
    network.to(device).eval()
    find, whole = whole_chips(network, data.valid_dl, typical_side)
    pairs = [whole.dataset[index] for index in indexes]
    detections = [find(image[None].to(device))[0][0].filter_by_score(threshold).cpu() for image, _ in pairs]
    images = torch.stack([image[-1] if image.dim() == 4 else image for image, _ in pairs])
    truth = [objects for _, objects in pairs]
    names = [data.table.names[data.valid_ds.positions[index]] for index in indexes]
    titles = [' · '.join(part) for part in zip(map(describe_chip, names), *([notes] if notes else []))]
    return show_detections(
        images, truth, detections, spec.bands, spec.class_infos, titles=titles, side=3.0, stretch=data.display_stretch
    )

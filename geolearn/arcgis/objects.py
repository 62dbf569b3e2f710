"""The raster functions of chips and objects: classify chips, detect objects as boxes or outlines."""

import math
from typing import Any, ClassVar

import numpy as np
import torch

from geolearn.arcgis import raster_functions
from geolearn.batch import Detections
from geolearn.inference import classify_polygons, detecting, merging
from geolearn.models import Model
from geolearn.networks.classification import THRESHOLD, ChipOptions, check_threshold
from geolearn.oriented import geometry


class ClassifyObjects(raster_functions.VectorFunction):
    """Classifiers of chips.

    ArcGIS Pro cuts the chips, and blackens what is around a feature where the .emd says so.
    """

    model_types = ('ObjectClassification',)
    raster = 'rasters'
    columns: ClassVar[dict[str, type]] = {'Label': str, 'Confidence': float}

    def __init__(self) -> None:
        super().__init__()
        self._threshold, self._batch_size = THRESHOLD, 4

    def getConfiguration(self, **scalars: str) -> dict[str, Any]:
        """Take what the user said, as text, and return what chips are wanted."""
        configuration = super().getConfiguration(**scalars)
        threshold, batch_size = (
            raster_functions.read_number(scalars, 'threshold'),
            raster_functions.read_number(scalars, 'batch_size'),
        )
        self._threshold = self._threshold if threshold is None else threshold
        check_threshold(self._threshold)
        self._batch_size = max(1, int(self._batch_size if batch_size is None else batch_size))
        # not known to be asked for here, but how else would chips be cut as in training
        cropping = {name: self._emd[name] for name in ('CropSizeFixed', 'BlackenAroundFeature')}
        return configuration | cropping

    def vectorize(self, **blocks: Any) -> dict[str, str]:
        """Classify chips.

        Args:
            blocks: ``rasters_pixels``, chips (bands, h, w) of any sizes, and ``rasters_mask``, 0 where there is no
                data.

        Returns:
            Under ``output_vectors`` a feature for each chip in their order, with its class, several joined by ``;``,
            the confidence in percent, and the chip's edges in pixels. Chips without data have neither.
        """
        chips = [self._fit(*block) for block in zip(blocks['rasters_pixels'], blocks['rasters_mask'])]
        logits = self._classify(chips)
        names = [info.name for info in self._spec.class_infos]
        multi_label = ChipOptions.from_json(self._spec.options).multi_label
        labels, confidences = classify_polygons.name_rows(
            logits, names, multi_label=multi_label, threshold=self._threshold
        )
        rows = [
            {'Label': label, 'Confidence': None if label is None else round(float(confidence), 2)}
            for label, confidence in zip(labels, confidences)
        ]
        shapes = [
            raster_functions.box_rings(0, 0, pixels.shape[-1], pixels.shape[-2]) for pixels in blocks['rasters_pixels']
        ]
        return {'output_vectors': raster_functions.feature_set(self.columns, rows, shapes)}

    def _fit(self, pixels: np.ndarray, mask: np.ndarray) -> torch.Tensor:
        """Return a chip of the size of those in training: smaller ones at the upper left, of larger ones the middle."""
        image = torch.from_numpy(self._read_block(pixels, mask))
        size = self._spec.chip_size
        top, left = (max(0, (length - size) // 2) for length in image.shape[-2:])
        part = image[..., top : top + size, left : left + size]
        chip = torch.full((*image.shape[:-2], size, size), torch.nan)
        chip[..., : part.shape[-2], : part.shape[-1]] = part
        return chip

    @torch.inference_mode()
    def _classify(self, chips: list[torch.Tensor]) -> np.ndarray:
        """Return logits (chips, classes), NaN where a chip has no data."""
        network = self._loaded.network
        device = next(network.parameters()).device
        logits = np.full((len(chips), len(self._spec.class_infos)), np.nan, np.float32)
        known = [number for number, chip in enumerate(chips) if not chip.isnan().all()]
        for start in range(0, len(known), self._batch_size):
            rows = known[start : start + self._batch_size]
            batch = torch.stack([chips[row] for row in rows]).to(device)
            logits[rows] = network(batch).float().cpu().numpy()
        return logits

    def _usual_tiling(self, model: Model) -> raster_functions.Tiling:
        return raster_functions.Tiling(model.spec.chip_size, 0)

    def _parameters(self) -> list[dict[str, Any]]:
        return [
            raster_functions.describe('batch_size', 'GPLong', self._batch_size, 'Chips computed together'),
            raster_functions.describe(
                'threshold', 'GPDouble', self._threshold, 'Confidence of a class, where chips may hold several'
            ),
            *self._unit_parameters(),
        ]


MOST_PADDING = 0.25
"""Share of a block's side; with more, each pixel would be computed four times and over."""


class DetectObjects(raster_functions.VectorFunction):
    """Detectors, which give boxes.

    Blocks overlap by their padding. An object is given by the block in whose inner part its middle lies, so that each
    comes once; one of more than twice the padding may be cut off.
    """

    model_types = ('ObjectDetection', 'InstanceDetection')
    columns: ClassVar[dict[str, type]] = {'Class': str, 'Confidence': float}

    def __init__(self) -> None:
        super().__init__()
        self._threshold, self._nms_overlap, self._augment = 0.5, 0.3, False

    def getConfiguration(self, **scalars: str) -> dict[str, Any]:
        """Take what the user said, as text, and return what blocks are wanted, with the numbers for detection."""
        configuration = super().getConfiguration(**scalars)
        for name in ('threshold', 'nms_overlap'):
            value = raster_functions.read_number(scalars, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f'{name} must be in 0..1, got {value}')
        self._threshold = _or(raster_functions.read_number(scalars, 'threshold'), self._threshold)
        self._nms_overlap = _or(raster_functions.read_number(scalars, 'nms_overlap'), self._nms_overlap)
        self._augment = str(scalars.get('test_time_augmentation', self._augment)).lower() == 'true'
        return configuration | {'threshold': self._threshold, 'nms_overlap': self._nms_overlap}

    def vectorize(self, **blocks: Any) -> dict[str, str]:
        """Find the objects of a block.

        Args:
            blocks: ``raster_pixels`` (bands, h, w) and ``raster_mask``, 0 where there is no data.

        Returns:
            Under ``output_vectors`` a feature for each object, with its class, its confidence in percent, and
            its outline in pixels of the block, padding and all.
        """
        image = torch.from_numpy(self._read_block(blocks['raster_pixels'], blocks['raster_mask']))
        detections = self._detect(image)
        names = [info.name for info in self._spec.class_infos]
        rows = [
            {'Class': names[label], 'Confidence': round(100 * score, 2)}
            for label, score in zip(detections.labels.tolist(), detections.scores.tolist())
        ]
        return {'output_vectors': raster_functions.feature_set(self.columns, rows, self._shapes(detections))}

    def _detect(self, image: torch.Tensor) -> Detections:
        """Return the objects whose center lies in the inner part of a block."""
        nothing = torch.zeros(0)
        if image.isnan().all():
            return Detections(nothing.view(0, 4), nothing.long(), nothing, turned=nothing.view(0, 5))
        network = self._loaded.network
        predict = detecting.make_predict_fn(
            network, threshold=self._threshold, nms_overlap=self._nms_overlap, augment=self._augment
        )
        with torch.inference_mode():
            (detections,) = predict(image[None])
        centers = (detections.boxes[:, :2] + detections.boxes[:, 2:]) / 2
        if detections.turned is not None:  # boxes end at the edge of the block
            centers = detections.turned[:, :2]
        start = self._tiling.padding
        end = torch.tensor([image.shape[-1] - start, image.shape[-2] - start])
        return detections.select(((centers >= start) & (centers < end)).all(1))

    def _shapes(self, detections: Detections) -> list[list[raster_functions.Ring]]:
        if detections.turned is not None:
            return [raster_functions.corner_rings(corners) for corners in geometry.corners(detections.turned).tolist()]
        return [raster_functions.box_rings(*box) for box in detections.boxes.tolist()]

    def _usual_tiling(self, model: Model) -> raster_functions.Tiling:
        side, halo = super()._usual_tiling(model)
        half = math.ceil(model.spec.options['typical_side'] / 2 + merging.EDGE_MARGIN)
        return raster_functions.Tiling(side, max(halo, min(half, int(side * MOST_PADDING))))

    def _parameters(self) -> list[dict[str, Any]]:
        return [
            *super()._parameters(),
            raster_functions.describe(
                'threshold', 'GPDouble', self._threshold, 'Lowest confidence of an object, 0 to 1'
            ),
            raster_functions.describe(
                'nms_overlap', 'GPDouble', self._nms_overlap, 'Overlap from which on two objects are one, 0 to 1'
            ),
            raster_functions.describe(
                'test_time_augmentation',
                'GPString',
                str(self._augment),
                'Predict four times, flipped',
                domain=('True', 'False'),
            ),
        ]


class DetectInstances(DetectObjects):
    """Detectors that draw masks, which give outlines along the pixels."""

    def _shapes(self, detections: Detections) -> list[list[raster_functions.Ring]]:
        if detections.masks is None:  # no detections
            return super()._shapes(detections)
        pairs = zip(detections.masks.numpy(), detections.boxes.numpy())
        return [
            raster_functions.outline_rings(merging.outline_mask(mask, box))
            if mask.any()
            else raster_functions.box_rings(*box.tolist())
            for mask, box in pairs
        ]


def _or(value: float | None, usual: float) -> float:
    return usual if value is None else value

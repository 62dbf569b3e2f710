"""Detect objects in ArcGIS Pro: blocks of pixels to boxes or outlines."""

import math
from typing import Any, ClassVar, cast

import torch

from geolearn.arcgis._esri import Ring, box_rings, feature_set, outline_rings
from geolearn.arcgis._function import Tiling, VectorFunction, describe, read_number
from geolearn.inference.found import Found
from geolearn.inference.merging import EDGE_MARGIN
from geolearn.inference.objects import looker
from geolearn.inference.outlines import outline_mask
from geolearn.models import Model
from geolearn.models.detection.object_detector import ObjectDetector
from geolearn.models.detection.options import DetectorOptions

MOST_PADDING = 0.25
"""Share of a block's side; more would look at each pixel four times and over."""


class DetectObjects(VectorFunction):
    """Detectors, which give boxes.

    Blocks overlap by their padding. An object is given by the block in whose inner part its middle lies, so that each
    comes once; one of more than twice the padding may be cut off.
    """

    serves = (ObjectDetector,)
    columns: ClassVar[dict[str, type]] = {'Class': str, 'Confidence': float}

    def __init__(self) -> None:
        super().__init__()
        self._threshold, self._nms_overlap, self._augment = 0.5, 0.3, False

    def getConfiguration(self, **scalars: str) -> dict[str, Any]:
        """Take what the user said, as text, and return what blocks are wanted, with the numbers for detection."""
        configuration = super().getConfiguration(**scalars)
        for name in ('threshold', 'nms_overlap'):
            value = read_number(scalars, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f'{name} must be in 0..1, got {value}')
        self._threshold = _or(read_number(scalars, 'threshold'), self._threshold)
        self._nms_overlap = _or(read_number(scalars, 'nms_overlap'), self._nms_overlap)
        self._augment = str(scalars.get('test_time_augmentation', self._augment)).lower() == 'true'
        return configuration | {'threshold': self._threshold, 'nms_overlap': self._nms_overlap}

    def vectorize(self, **blocks: Any) -> dict[str, str]:
        """Find the objects of a block.

        Args:
            blocks: ``raster_pixels`` (bands, h, w) and ``raster_mask``, 0 where there is no data.

        Returns:
            Under ``output_vectors`` a feature for each object, with its class, how sure the model is in percent, and
            its outline in pixels of the block, padding and all.
        """
        image = self._read_block(blocks['raster_pixels'], blocks['raster_mask'])
        found = self._look(image)
        names = [info.name for info in self._spec.class_infos]
        rows = [
            {'Class': names[label], 'Confidence': round(100 * score, 2)}
            for label, score in zip(found.labels.tolist(), found.scores.tolist())
        ]
        return {'output_vectors': feature_set(self.columns, rows, self._shapes(found))}

    def _look(self, image: torch.Tensor) -> Found:
        """Return the objects whose middle lies in the inner part of a block."""
        nothing = torch.zeros(0)
        if image.isnan().all():
            return Found(nothing.view(0, 4), nothing.long(), nothing)
        network = self._loaded.network
        look = looker(network, threshold=self._threshold, nms_overlap=self._nms_overlap, augment=self._augment)
        with torch.inference_mode():
            (found,) = look(image[None])
        middles = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
        start = self._tiling.padding
        end = torch.tensor([image.shape[-1] - start, image.shape[-2] - start])
        return found.select(((middles >= start) & (middles < end)).all(1))

    def _shapes(self, found: Found) -> list[list[Ring]]:
        return [box_rings(*box) for box in found.boxes.tolist()]

    def _usual_tiling(self, model: Model) -> Tiling:
        side, halo = super()._usual_tiling(model)
        options = DetectorOptions.from_json(model.spec.options, head=cast(ObjectDetector, model).recipe.options)
        half = math.ceil(options.typical_side / 2 + EDGE_MARGIN)
        return Tiling(side, max(halo, min(half, int(side * MOST_PADDING))))

    def _parameters(self) -> list[dict[str, Any]]:
        return [
            *super()._parameters(),
            describe('threshold', 'GPDouble', self._threshold, 'Lowest confidence of an object, 0 to 1'),
            describe('nms_overlap', 'GPDouble', self._nms_overlap, 'Overlap from which on two objects are one, 0 to 1'),
            describe(
                'test_time_augmentation',
                'GPString',
                str(self._augment),
                'Look four times, flipped',
                domain=('True', 'False'),
            ),
        ]


class DetectInstances(DetectObjects):
    """Detectors that draw masks, which give outlines along the pixels."""

    def _shapes(self, found: Found) -> list[list[Ring]]:
        if found.masks is None:  # nothing was found
            return super()._shapes(found)
        pairs = zip(found.masks.numpy(), found.boxes.numpy())
        return [
            outline_rings(outline_mask(mask, box)) if mask.any() else box_rings(*box.tolist()) for mask, box in pairs
        ]


def _or(value: float | None, usual: float) -> float:
    return usual if value is None else value

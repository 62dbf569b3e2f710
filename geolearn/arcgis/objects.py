"""The raster functions of objects: detect them as boxes or outlines; boxes also by the ONNX graph, without torch."""

import math
from typing import Any, ClassVar

import numpy as np

from geolearn.arcgis import raster_functions
from geolearn.bundle import GraphOutput
from geolearn.inference import merging
from geolearn.inference.outlines import outline_mask
from geolearn.inference.placing import ArrayDetections
from geolearn.oriented import geometry

MOST_PADDING = 0.25
"""Share of a block's side; with more, each pixel would be computed four times and over."""


class DetectObjects(raster_functions.VectorFunction):
    """Detectors, which give boxes.

    Blocks overlap by their padding. An object is given by the block in whose inner part its middle lies, so that each
    comes once; one of more than twice the padding may be cut off.
    """

    model_types = ('ObjectDetection', 'InstanceDetection')
    graph_output: ClassVar[GraphOutput | None] = 'objects'
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
        image = self._read_block(blocks['raster_pixels'], blocks['raster_mask'])
        detections = self._detect(image)
        names = [info.name for info in self._spec.class_infos]
        rows = [
            {'Class': names[label], 'Confidence': round(100 * score, 2)}
            for label, score in zip(detections.labels.tolist(), detections.scores.tolist())
        ]
        return {'output_vectors': raster_functions.feature_set(self.columns, rows, self._shapes(detections))}

    def _detect(self, image: np.ndarray) -> ArrayDetections:
        """Return the objects whose center lies in the inner part of a block."""
        if np.isnan(image).all():
            nothing = np.zeros(0, np.float32)
            return ArrayDetections(nothing.reshape(0, 4), nothing.astype(np.int64), nothing)
        detections = self._compute(image)
        centers = (detections.boxes[:, :2] + detections.boxes[:, 2:]) / 2
        if detections.turned is not None:  # boxes end at the edge of the block
            centers = detections.turned[:, :2]
        start = self._tiling.padding
        end = np.array([image.shape[-1] - start, image.shape[-2] - start])
        return detections.select(((centers >= start) & (centers < end)).all(1))

    def _compute(self, image: np.ndarray) -> ArrayDetections:
        """Return all objects of a block."""
        if self._graph is not None:
            return self._graph.detect(
                image[None], threshold=self._threshold, nms_overlap=self._nms_overlap, augment=self._augment
            )[0]
        import torch

        from geolearn.inference import detecting

        predict = detecting.make_predict_fn(
            self._loaded.network, threshold=self._threshold, nms_overlap=self._nms_overlap, augment=self._augment
        )
        with torch.inference_mode():
            (detections,) = predict(torch.from_numpy(image)[None])
        return detecting.as_arrays(detections)

    def _shapes(self, detections: ArrayDetections) -> list[list[raster_functions.Ring]]:
        if detections.turned is not None:
            return [raster_functions.corner_rings(corners) for corners in geometry.corners(detections.turned).tolist()]
        return [raster_functions.box_rings(*box) for box in detections.boxes.tolist()]

    def _usual_tiling(self) -> raster_functions.Tiling:
        side, halo = super()._usual_tiling()
        half = math.ceil(self._spec.options['typical_side'] / 2 + merging.EDGE_MARGIN)
        return raster_functions.Tiling(side, max(halo, min(half, int(side * MOST_PADDING))))

    def _parameters(self) -> list[dict[str, Any]]:
        augment = raster_functions.describe(
            'test_time_augmentation',
            'GPString',
            str(self._augment),
            'Predict four times, flipped',
            domain=('True', 'False'),
        )
        return [
            *super()._parameters(),
            raster_functions.describe(
                'threshold', 'GPDouble', self._threshold, 'Lowest confidence of an object, 0 to 1'
            ),
            raster_functions.describe(
                'nms_overlap', 'GPDouble', self._nms_overlap, 'Overlap from which on two objects are one, 0 to 1'
            ),
            augment,
        ]


class DetectInstances(DetectObjects):
    """Detectors that draw masks, which give outlines along the pixels; these have no graph."""

    graph_output = None

    def _shapes(self, detections: ArrayDetections) -> list[list[raster_functions.Ring]]:
        if detections.masks is None:  # no detections
            return super()._shapes(detections)
        pairs = zip(detections.masks, detections.boxes)
        return [
            raster_functions.outline_rings(outline_mask(mask, box))
            if mask.any()
            else raster_functions.box_rings(*box.tolist())
            for mask, box in pairs
        ]


def _or(value: float | None, usual: float) -> float:
    return usual if value is None else value

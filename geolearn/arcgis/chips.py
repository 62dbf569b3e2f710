"""The raster function of chips: classify them, without torch by the ONNX graph."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from geolearn.arcgis import raster_functions
from geolearn.bundle import GraphOutput
from geolearn.networks.chip_decisions import THRESHOLD, check_threshold, name_rows


class ClassifyObjects(raster_functions.VectorFunction):
    """Classifiers of chips.

    ArcGIS Pro cuts the chips, and blackens what is around a feature where the .emd says so.
    """

    model_types = ('ObjectClassification',)
    graph_output: ClassVar[GraphOutput | None] = 'chip classes'
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
        multi_label = self._spec.options['multi_label'] is True
        labels, confidences = name_rows(logits, names, multi_label=multi_label, threshold=self._threshold)
        rows = [
            {'Label': label, 'Confidence': None if label is None else round(float(confidence), 2)}
            for label, confidence in zip(labels, confidences)
        ]
        shapes = [
            raster_functions.box_rings(0, 0, pixels.shape[-1], pixels.shape[-2]) for pixels in blocks['rasters_pixels']
        ]
        return {'output_vectors': raster_functions.feature_set(self.columns, rows, shapes)}

    def _fit(self, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return a chip of the size of those in training: smaller ones at the upper left, of larger ones the middle."""
        image = self._read_block(pixels, mask)
        size = self._spec.chip_size
        top, left = (max(0, (length - size) // 2) for length in image.shape[-2:])
        part = image[..., top : top + size, left : left + size]
        chip = np.full((*image.shape[:-2], size, size), np.nan, np.float32)
        chip[..., : part.shape[-2], : part.shape[-1]] = part
        return chip

    def _classify(self, chips: Sequence[np.ndarray]) -> np.ndarray:
        """Return logits (chips, classes), NaN where a chip has no data."""
        logits = np.full((len(chips), len(self._spec.class_infos)), np.nan, np.float32)
        known = [number for number, chip in enumerate(chips) if not np.isnan(chip).all()]
        for start in range(0, len(known), self._batch_size):
            rows = known[start : start + self._batch_size]
            logits[rows] = self._compute(np.stack([chips[row] for row in rows]))
        return logits

    def _compute(self, images: np.ndarray) -> np.ndarray:
        if self._graph is not None:
            return self._graph.run(images)
        import torch

        from geolearn.device import device_of

        network = self._loaded.network
        with torch.inference_mode():
            logits: np.ndarray = network(torch.from_numpy(images).to(device_of(network))).float().cpu().numpy()
        return logits

    def _usual_tiling(self) -> raster_functions.Tiling:
        return raster_functions.Tiling(self._spec.chip_size, 0)

    def _parameters(self) -> list[dict[str, Any]]:
        return [
            raster_functions.describe('batch_size', 'GPLong', self._batch_size, 'Chips computed together'),
            raster_functions.describe(
                'threshold', 'GPDouble', self._threshold, 'Confidence of a class, where chips may hold several'
            ),
            *self._unit_parameters(),
        ]

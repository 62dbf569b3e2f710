"""Classify objects in ArcGIS Pro: chips around features to their classes."""

from typing import Any, ClassVar

import numpy as np
import torch

from geolearn.arcgis._esri import box_rings, feature_set
from geolearn.arcgis._function import Tiling, VectorFunction, describe, read_number
from geolearn.models import FeatureClassifier, Model
from geolearn.models.classification._objects import name_rows
from geolearn.models.classification._outputs import THRESHOLD, check_threshold
from geolearn.models.classification.options import ChipOptions


class ClassifyObjects(VectorFunction):
    """Classifiers of chips.

    ArcGIS Pro cuts the chips, and blackens what is around a feature where the .emd says so.
    """

    serves = (FeatureClassifier,)
    raster = 'rasters'
    columns: ClassVar[dict[str, type]] = {'Label': str, 'Confidence': float}

    def __init__(self) -> None:
        super().__init__()
        self._threshold, self._batch_size = THRESHOLD, 4

    def getConfiguration(self, **scalars: str) -> dict[str, Any]:
        """Take what the user said, as text, and return what chips are wanted."""
        configuration = super().getConfiguration(**scalars)
        threshold, batch_size = read_number(scalars, 'threshold'), read_number(scalars, 'batch_size')
        self._threshold = self._threshold if threshold is None else threshold
        check_threshold(self._threshold)
        self._batch_size = max(1, int(self._batch_size if batch_size is None else batch_size))
        # not known to be asked for here, but how else would chips be cut as in training
        told = {name: self._emd[name] for name in ('CropSizeFixed', 'BlackenAroundFeature')}
        return configuration | told

    def vectorize(self, **blocks: Any) -> dict[str, str]:
        """Classify chips.

        Args:
            blocks: ``rasters_pixels``, chips (bands, h, w) of any sizes, and ``rasters_mask``, 0 where there is no
                data.

        Returns:
            Under ``output_vectors`` a feature for each chip in their order, with its class, several joined by ``;``,
            how sure the model is in percent, and the chip's edges in pixels. Chips without data have neither.
        """
        chips = [self._fit(*block) for block in zip(blocks['rasters_pixels'], blocks['rasters_mask'])]
        logits = self._classify(chips)
        names = [info.name for info in self._spec.class_infos]
        multi_label = ChipOptions.from_json(self._spec.options).multi_label
        labels, confidences = name_rows(logits, names, multi_label=multi_label, threshold=self._threshold)
        rows = [
            {'Label': label, 'Confidence': None if label is None else round(float(confidence), 2)}
            for label, confidence in zip(labels, confidences)
        ]
        shapes = [box_rings(0, 0, pixels.shape[-1], pixels.shape[-2]) for pixels in blocks['rasters_pixels']]
        return {'output_vectors': feature_set(self.columns, rows, shapes)}

    def _fit(self, pixels: np.ndarray, mask: np.ndarray) -> torch.Tensor:
        """Return a chip of the size of those in training: smaller ones at the upper left, of larger ones the middle."""
        image = self._read_block(pixels, mask)
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
        seen = [number for number, chip in enumerate(chips) if not chip.isnan().all()]
        for start in range(0, len(seen), self._batch_size):
            rows = seen[start : start + self._batch_size]
            batch = torch.stack([chips[row] for row in rows]).to(device)
            logits[rows] = network(batch).float().cpu().numpy()
        return logits

    def _usual_tiling(self, model: Model) -> Tiling:
        return Tiling(model.spec.chip_size, 0)

    def _parameters(self) -> list[dict[str, Any]]:
        return [
            describe('batch_size', 'GPLong', self._batch_size, 'Chips computed together'),
            describe('threshold', 'GPDouble', self._threshold, 'Confidence of a class, where chips may hold several'),
            *self._unit_parameters(),
        ]

"""Classify pixels in ArcGIS Pro: blocks of pixels to blocks of class values."""

from typing import Any

import numpy as np
import torch

from geolearn.arcgis._esri import attribute_table
from geolearn.arcgis._function import RasterFunction
from geolearn.inference.encoding import ClassEncoding
from geolearn.models.change.detector import ChangeDetector
from geolearn.models.pixels.judged import JudgedClassifier


class ClassifyPixels(RasterFunction):
    """Pixel classifiers and change detectors; before and after are the first and the last bands of one raster."""

    serves = (JudgedClassifier,)

    def updateRasterInfo(self, **arguments: Any) -> dict[str, Any]:
        """Say that the output has one band of class values, and what they mean."""
        info = arguments['output_info']
        info['bandCount'] = 1
        info['pixelType'] = 'u1' if self._encoding.dtype == 'uint8' else 'i4'
        info['rasterAttributeTable'] = attribute_table(self._spec.class_infos)
        return arguments

    def updatePixels(self, tlc: Any, shape: Any, props: dict[str, Any], **blocks: Any) -> dict[str, Any]:
        """Classify a block.

        Args:
            tlc: Its upper left corner; not needed.
            shape: Of the input; not needed.
            props: Of the output; its ``pixelType`` is.
            blocks: ``raster_pixels`` (bands, h, w) and ``raster_mask``, 0 where there is no data.

        Returns:
            The blocks with ``output_pixels`` (1, h - 2 * padding, w - 2 * padding), and ``output_mask`` likewise, 0
            where the input has no data.
        """
        image = self._read_block(blocks['raster_pixels'], blocks['raster_mask'])
        model, encoding = self._loaded, self._encoding
        missing = self._missing(image)
        found = np.full(missing.shape, encoding.nodata, encoding.dtype)
        if not missing.all():
            device = next(model.network.parameters()).device
            with torch.inference_mode():
                found = encoding.encode(model.network(image[None].to(device)))[0]
            found[missing] = encoding.nodata
        edge = self._tiling.padding
        inner = tuple(slice(edge, length - edge) for length in missing.shape)
        blocks['output_pixels'] = found[inner][None].astype(props['pixelType'], copy=False)
        blocks['output_mask'] = (~missing[inner])[None].astype('u1')
        return blocks

    @property
    def _encoding(self) -> ClassEncoding:
        return ClassEncoding(self._spec.class_infos)

    def _missing(self, image: torch.Tensor) -> np.ndarray:
        """Return where (h, w) data does not tell what a pixel is: change needs both dates, a class needs one."""
        absent = image.isnan().all(-3)
        if absent.dim() == 3:
            absent = absent.any(0) if isinstance(self._loaded, ChangeDetector) else absent.all(0)
        missing: np.ndarray = absent.numpy()
        return missing

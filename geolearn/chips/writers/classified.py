"""Classified_Tiles: a raster of class values beside each image."""

import numpy as np

from geolearn.chips.label import Label, Task
from geolearn.chips.writers._format import ChipFile, FormatWriter, need


class ClassifiedWriter(FormatWriter):
    """``labels/<chip>.tif`` holds class values, 0 where unlabelled; one byte a pixel unless a class needs two.

    Or numbers to learn, float32 with NaN as NoData.
    """

    task = Task.PIXELS

    def write(self, chip: ChipFile, label: Label) -> tuple[str, ...]:
        """Write the class values or numbers."""
        raster = need(label.raster, 'raster', chip)
        if raster.dtype.kind == 'f':
            return (self.write_raster(f'labels/{chip.stem}.tif', raster.astype(np.float32), chip, nodata=np.nan),)
        dtype = np.uint8 if max(self.names, default=0) < 256 else np.uint16
        return (self.write_raster(f'labels/{chip.stem}.tif', raster.astype(dtype), chip),)

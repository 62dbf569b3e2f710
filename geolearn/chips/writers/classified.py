"""Classified_Tiles: a raster of class values beside each image."""

import numpy as np

from geolearn.chips.label import Label, Task
from geolearn.chips.writers._format import ChipFile, FormatWriter, need


class ClassifiedWriter(FormatWriter):
    """``labels/<chip>.tif`` holds class values, 0 where unlabelled; one byte a pixel unless a class needs two."""

    task = Task.PIXELS

    def write(self, chip: ChipFile, label: Label) -> tuple[str, ...]:
        """Write the class values."""
        raster = need(label.raster, 'raster', chip)
        dtype = np.uint8 if max(self.names, default=0) < 256 else np.uint16
        return (self.write_raster(f'labels/{chip.stem}.tif', raster.astype(dtype), chip),)

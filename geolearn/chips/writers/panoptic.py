"""Panoptic_Segmentation: a raster of class values, and for classes with objects rasters that number them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geolearn.chips.label import Label, Task
from geolearn.chips.writers._format import ChipFile
from geolearn.chips.writers._masks import write_masks
from geolearn.chips.writers._names import check_folders
from geolearn.chips.writers.classified import ClassifiedWriter
from geolearn.classes import ClassInfo


class PanopticWriter(ClassifiedWriter):
    """``labels/<chip>.tif`` and ``labels2/<class name>/<chip>.tif``; the .emd lists the classes that have objects."""

    task = Task.PANOPTIC
    folders = ('images', 'labels', 'labels2')

    def __init__(self, root: Path, classes: Sequence[ClassInfo], compress: str) -> None:
        super().__init__(root, classes, compress)
        self._seen = set[int]()

    def check(self) -> None:
        """Refuse names that are no folder names."""
        check_folders(self.classes, 'Panoptic_Segmentation')

    def write(self, chip: ChipFile, label: Label) -> tuple[str, ...]:
        """Write class values and numbered objects."""
        self._seen.update(label.values.tolist())
        return super().write(chip, label) + write_masks(self, 'labels2', chip, label)

    def emd(self) -> Mapping[str, Any]:
        """Return the classes that have objects."""
        rows = [{'Value': info.value, 'Name': info.name} for info in self.classes if info.value in self._seen]
        return {'Panoptic_Segmentation_Instance_Classes': rows}

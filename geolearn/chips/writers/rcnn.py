"""RCNN_Masks: for each class a folder of rasters that number its objects."""

from geolearn.chips.label import Label, Task
from geolearn.chips.writers._format import ChipFile, FormatWriter
from geolearn.chips.writers._masks import write_masks
from geolearn.chips.writers._names import check_folders


class RcnnWriter(FormatWriter):
    """``labels/<class name>/<chip>.tif`` for the classes that occur in a chip."""

    task = Task.INSTANCES

    def check(self) -> None:
        """Refuse names that are no folder names."""
        check_folders(self.classes, 'RCNN_Masks')

    def write(self, chip: ChipFile, label: Label) -> tuple[str, ...]:
        """Write the numbered objects."""
        return write_masks(self, 'labels', chip, label)

"""Export_Tiles: images without labels."""

from geolearn.chips.label import Label, Task
from geolearn.chips.writers._format import ChipFile, FormatWriter


class ExportTilesWriter(FormatWriter):
    """Images alone, for pretraining and inference."""

    task = Task.UNLABELLED
    folders = ('images',)

    def write(self, chip: ChipFile, label: Label) -> tuple[str, ...]:
        """Write nothing."""
        return ()

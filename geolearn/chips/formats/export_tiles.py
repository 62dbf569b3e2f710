"""Export_Tiles: images without labels."""

from pathlib import Path

from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats._files import list_images
from geolearn.chips.formats._writer import ChipFile, FormatWriter
from geolearn.chips.label import Label, Task
from geolearn.chips.source import ChipSource, Listing, read_no_label


def list_export_tiles(folder: Path, metadata: ExportMetadata) -> Listing:
    """List ``images/``; what lies in ``images2/`` or ``labels/`` is not read, but told.

    Raises:
        ChipFolderError: If there is no image.
    """
    images = list_images(folder / 'images')
    chips = tuple(ChipSource(name, ((path,),), (), read_no_label) for name, path in sorted(images.items()))
    unread = [name for name in ('images2', 'labels') if (folder / name).is_dir()]
    return Listing(Task.UNLABELLED, chips, (), notes=tuple(f'{name}/ is not read: these are tiles' for name in unread))


class ExportTilesWriter(FormatWriter):
    """Images alone, for pretraining and inference."""

    task = Task.UNLABELLED
    folders = ('images',)

    def write(self, chip: ChipFile, label: Label) -> tuple[str, ...]:
        """Write nothing."""
        return ()

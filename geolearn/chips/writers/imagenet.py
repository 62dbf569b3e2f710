"""Imagenet: a folder of images for each class."""

from geolearn.chips.label import Label, Task
from geolearn.chips.writers._format import ChipFile, FormatWriter
from geolearn.chips.writers._names import check_folders
from geolearn.chips.writers.labeled import only_value


class ImagenetWriter(FormatWriter):
    """``images/<class name>/<chip>``."""

    task = Task.LABEL
    folders = ('images',)

    def check(self) -> None:
        """Refuse names that are no folder names."""
        check_folders(self.classes, 'Imagenet')

    def image(self, chip: ChipFile, label: Label) -> str:
        """Return where the image goes: the folder of its class."""
        folder = f'images/{self.names[only_value(label, chip)]}'
        self.make(folder)
        return f'{folder}/{chip.file}'

    def write(self, chip: ChipFile, label: Label) -> tuple[str, ...]:
        """Write nothing; the folder is the label."""
        return ()

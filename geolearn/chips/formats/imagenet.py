"""Imagenet: a folder of images for each class."""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from geolearn.chips.emd import EMD_NAME, ExportMetadata
from geolearn.chips.formats import files, labeled, writing
from geolearn.chips.formats.content import FolderContent, has_class_folders
from geolearn.chips.label import ChipSource, Label, Listing, Task
from geolearn.errors import ChipFolderError, RasterError
from geolearn.raster import open_raster


def is_imagenet(content: FolderContent) -> bool:
    """Whether images lie in folders that may be classes, and nothing else may be their labels."""
    if content.labels.is_dir():
        return False
    if content.images.is_dir():
        return 0 not in content.image_depths and has_class_folders(content.images)
    return has_class_folders(content.root)


def list_imagenet(folder: Path, metadata: ExportMetadata) -> Listing:
    """List ``images/<class name>/*``, or ``<class name>/*`` where there is no ``images/``.

    Raises:
        ChipFolderError: If no image lies in a folder that is named after a class.
    """
    base = folder / 'images' if (folder / 'images').is_dir() else folder
    found = files.list_images(base)
    images = {name: path for name, path in found.items() if name.count('/') == 1}
    parents = sorted({name.split('/')[0] for name in images})
    classes = metadata.classes or files.classes_of_folders(parents)
    values = files.match_class_folders(parents, classes)
    chips = tuple(
        ChipSource(name, ((path,),), (), partial(read_chip_value, values[name.split('/')[0]]))
        for name, path in sorted(images.items())
        if name.split('/')[0] in values
    )
    if not chips:
        held = f'has folders {", ".join(parents[:8])}' if parents else 'has no folder of images'
        known = ', '.join(info.name for info in classes[:8])
        wanted = f'{EMD_NAME} lists the classes {known}' if known else 'a folder of images for each class is needed'
        raise ChipFolderError(f'{base} {held}; {wanted}')
    notes = _unknown_notes(images, values)
    if metadata.metadata_mode is None:
        notes += _check_one_ground(base, images)
    if base != folder and len(found) > len(images):
        notes.append(f'{len(found) - len(images)} images lie outside images/<class name>/ and were left out')
    numbered = not metadata.classes and files.counts_folders(classes)
    return Listing(Task.LABEL, chips, classes, notes=tuple(notes), numbered=numbered)


def _check_one_ground(base: Path, images: Mapping[str, Path]) -> list[str]:
    """Refuse folders that show the same ground: they hold images and labels, or several sensors, and no classes.

    Where images name no place, equal lists of file names are noted.
    """
    lists: dict[str, set[str]] = {}
    for name in images:
        parent, _, last = name.partition('/')
        lists.setdefault(parent, set()).add(last)
    common = set.intersection(*lists.values())
    parents = sorted(lists)
    if len(parents) < 2 or not common:
        return []
    name = min(common)
    found = []
    for parent in parents[:2]:
        with suppress(RasterError), open_raster(images[f'{parent}/{name}']) as src:
            found.append(src.geobox)
    both, shown = ' and '.join(parents[:2]), ', '.join(parents[:8])
    advice = (
        'Where one of them holds labels, pass both to from_rasters or export_training_data as lists, or call them '
        'images/ and labels/'
    )
    if len(found) == 2 and found[0].crs and found[0].crs == found[1].crs and found[0].bounds == found[1].bounds:
        raise ChipFolderError(
            f'{base}: {name} of {both} shows the same ground, so the folders ({shown}) are no classes. {advice}'
        )
    if all(names == common for names in lists.values()):
        return [f'the folders {shown} hold files of the same names and are taken as classes. {advice}']
    return []


def _unknown_notes(images: Mapping[str, Path], values: Mapping[str, int]) -> list[str]:
    unknown = sorted({name.split('/')[0] for name in images} - values.keys())
    if not unknown:
        return []
    count = sum(name.split('/')[0] not in values for name in images)
    shown = ', '.join(unknown[:8])
    return [f'{count} images lie in folders that no class of {EMD_NAME} is named after ({shown}) and were left out']


def read_chip_value(value: int, shape: tuple[int, int]) -> Label:
    """Return the label of a chip that is one class as a whole, whatever its shape."""
    return Label(class_ids=np.array([value], np.int64))


class ImagenetWriter(writing.FormatWriter):
    """``images/<class name>/<chip>``."""

    task = Task.LABEL
    folders = ('images',)

    def check(self) -> None:
        """Refuse names that are no folder names."""
        writing.check_folders(self.classes, 'Imagenet')

    def image(self, chip: writing.ChipFile, label: Label) -> str:
        """Return where the image goes: the folder of its class."""
        folder = f'images/{self.names[labeled.only_value(label, chip)]}'
        self.make(folder)
        return f'{folder}/{chip.file}'

    def write(self, chip: writing.ChipFile, label: Label) -> tuple[str, ...]:
        """Write nothing; the folder is the label."""
        return ()

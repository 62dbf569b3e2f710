"""Classified_Tiles, and ChangeDetection: a raster of class values beside each image, or beside each pair of images."""

from functools import partial
from pathlib import Path

import numpy as np

from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats._files import list_files, list_images, pair_notes, require_pairs
from geolearn.chips.formats._writer import ChipFile, FormatWriter, need
from geolearn.chips.label import Label, Task
from geolearn.chips.source import ChipSource, Listing
from geolearn.errors import ChipFolderError
from geolearn.raster import read_label

LEGACY_DATES = ('images_before', 'images_after')


def list_classified_tiles(folder: Path, metadata: ExportMetadata) -> Listing:
    """List ``images/`` with ``labels/``: rasters of class values, 0 where unlabelled, in any format.

    Raises:
        ChipFolderError: If a folder is missing or no image has a label.
    """
    images, labels = list_images(folder / 'images'), list_files(folder / 'labels')
    names = sorted(images.keys() & labels.keys())
    require_pairs(folder, names, len(images), len(labels), 'labels/000000001.tif')
    chips = [_raster_chip(name, ((images[name],),), labels[name]) for name in names]
    return Listing(Task.PIXELS, tuple(chips), metadata.classes or None, notes=tuple(pair_notes(images, labels.keys())))


def list_change_detection(folder: Path, metadata: ExportMetadata) -> Listing:
    """List ``images/`` (before) with ``images2/`` (after) and ``labels/``, or Esri's older names for the first two.

    The values of the labels stay what they are: without classes in the .emd any value but 0 means change.

    Raises:
        ChipFolderError: If a folder is missing or nothing has two images and a label.
    """
    legacy = not (folder / 'images').is_dir() and (folder / LEGACY_DATES[0]).is_dir()
    first, second = LEGACY_DATES if legacy else ('images', 'images2')
    before, after = list_images(folder / first), list_images(folder / second)
    labels = list_files(folder / 'labels')
    pairs = {name: before[name] for name in before.keys() & after.keys()}
    names = sorted(pairs.keys() & labels.keys())
    require_pairs(folder, names, len(pairs), len(labels), f'{second}/000000001.tif and labels/000000001.tif')
    chips = [_raster_chip(name, ((before[name],), (after[name],)), labels[name]) for name in names]
    notes = []
    for here, there, lonely in (
        (first, second, before.keys() - after.keys()),
        (second, first, after.keys() - before.keys()),
    ):
        if lonely:
            count = len(lonely)
            notes.append(f'{count} images of {here}/ have none in {there}/ and were left out, as {min(lonely)}')
    notes += pair_notes(pairs, labels.keys() - (before.keys() ^ after.keys()))
    return Listing(Task.CHANGE, tuple(chips), metadata.classes or None, notes=tuple(notes))


def _raster_chip(name: str, dates: tuple[tuple[Path, ...], ...], label: Path) -> ChipSource:
    return ChipSource(name, dates, (label,), partial(read_class_raster, label))


def read_class_raster(path: Path, shape: tuple[int, int]) -> Label:
    """Read a raster of class values as they are stored; palette images give their indices.

    Args:
        path: Single-band raster.
        shape: Height and width of the image.

    Raises:
        RasterError: If the file cannot be read.
        ChipFolderError: If its size is not that of the image, or values are not within 0..65535.
    """
    raster = read_label(path)
    require_shape(path, raster.shape, shape)
    if raster.size and (int(raster.min()) < 0 or int(raster.max()) > 65535):
        raise ChipFolderError(
            f'{path} holds values from {raster.min()} to {raster.max()}; class values lie in 0..65535'
        )
    return Label(raster=raster)


def require_shape(path: Path, found: tuple[int, ...], shape: tuple[int, int]) -> None:
    """Refuse a label raster whose height and width are not those of its image.

    Raises:
        ChipFolderError: If they differ.
    """
    if found != shape:
        raise ChipFolderError(
            f'{path} is {found[1]}x{found[0]} pixels but its image is {shape[1]}x{shape[0]}; '
            'export both with one tile size'
        )


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

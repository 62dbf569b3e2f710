"""RCNN_Masks: for each class a folder of rasters that number its objects."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from rasterio.windows import Window

from geolearn.chips.emd import EMD_NAME, ExportMetadata
from geolearn.chips.formats import tiles, writing
from geolearn.chips.formats.content import FolderContent
from geolearn.chips.formats.files import (
    classes_of_folders,
    counts_folders,
    list_files,
    list_images,
    list_subfolders,
    match_class_folders,
    require_pairs,
)
from geolearn.chips.label import ChipSource, Label, Listing, Task, mask_boxes
from geolearn.chips.meaning.values import refuse_lossy
from geolearn.errors import ChipFolderError
from geolearn.raster import open_raster, read_window

MAX_MASK_BYTES = 2**31
"""Masks of one chip may not take more memory; a file that asks for it numbers pixels, not objects."""

MaskFile = tuple[int, Path]
"""A class value, and the raster that numbers the objects of this class."""


def is_rcnn_masks(content: FolderContent) -> bool:
    """Whether labels are rasters in folders, and images are not."""
    return content.label_kinds == {'raster'} and content.image_depths == {0} and content.label_depths == {1}


def list_rcnn_masks(folder: Path, metadata: ExportMetadata) -> Listing:
    """List ``images/`` with ``labels/<class name>/``: 0 is background, other numbers are objects of that class.

    An image without any file in the class folders is a chip without objects.

    Raises:
        ChipFolderError: If a folder is missing, no class folder is named after a class, or no image has a label.
    """
    content = FolderContent(folder)
    images = list_images(content.images)
    folders = {path.name: list_files(path) for path in list_subfolders(content.labels)}
    if not folders:
        raise ChipFolderError(f'{folder / "labels"} has no folder for any class; RCNN_Masks are labels/<class name>/*')
    classes = metadata.classes or classes_of_folders(name for name, files in folders.items() if files)
    values = match_class_folders(folders, classes)
    notes = unknown_folder_notes('labels', folders, values)
    known = {name: files for name, files in folders.items() if name in values}
    if not known:
        raise ChipFolderError(f'{folder / "labels"}: {"; ".join(notes)}')
    masks = mask_files(known, values)
    labelled = images.keys() & masks.keys()
    require_pairs(folder, list(labelled), len(images), len(masks), 'labels/<class name>/000000001.tif')
    chips = tuple(_chip(name, images[name], masks.get(name, ())) for name in sorted(images))
    numbered = not metadata.classes and counts_folders(classes)
    return Listing(Task.INSTANCES, chips, classes, notes=(*notes, *_pair_notes(images, masks)), numbered=numbered)


def mask_files(folders: Mapping[str, Mapping[str, Path]], values: Mapping[str, int]) -> dict[str, tuple[MaskFile, ...]]:
    """Return the mask files of each chip, given those of each class folder and the folders' class values."""
    found: dict[str, list[MaskFile]] = {}
    for folder, files in folders.items():
        for name, path in files.items():
            found.setdefault(name, []).append((values[folder], path))
    return {name: tuple(sorted(files)) for name, files in found.items()}


def unknown_folder_notes(where: str, folders: Mapping[str, Mapping[str, Path]], values: Mapping[str, int]) -> list[str]:
    """Tell which class folders are named after no class of the .emd."""
    return [
        f'{where}/{name}/ is named after no single class of {EMD_NAME}; its {len(files)} files were left out'
        for name, files in folders.items()
        if name not in values and files
    ]


def _chip(name: str, image: Path, files: tuple[MaskFile, ...]) -> ChipSource:
    return ChipSource(name, ((image,),), tuple(path for _, path in files), partial(read_instances, files))


def _pair_notes(images: Mapping[str, Path], masks: Mapping[str, tuple[MaskFile, ...]]) -> list[str]:
    empty, orphans = sorted(images.keys() - masks.keys()), sorted(masks.keys() - images.keys())
    notes = []
    if empty:
        notes.append(
            f'{len(empty)} images have no file in any class folder and count as images without objects, '
            f'the first is {empty[0]}'
        )
    if orphans:
        notes.append(f'{len(orphans)} labels have no image and were left out, the first is {orphans[0]}')
    return notes


def read_instances(files: tuple[MaskFile, ...], shape: tuple[int, int]) -> Label:
    """Read the objects of one chip, class after class.

    Args:
        files: Class values with their rasters; each band numbers objects of its own, as they may overlap.
        shape: Height and width of the image.

    Raises:
        RasterError: If a file cannot be read.
        ChipFolderError: If a file's size is not that of the image, it holds no whole numbers, or far too many objects.
    """
    values: list[int] = []
    masks: list[np.ndarray] = []
    skipped: list[str] = []
    for value, path in files:
        for band in _read_bands(path, shape, skipped):
            ids = np.unique(band[band > 0])
            if (len(masks) + len(ids)) * band.size > MAX_MASK_BYTES:
                raise ChipFolderError(
                    f'{path} holds {len(ids)} different values above 0 in {band.shape[1]}x{band.shape[0]} pixels; '
                    'an instance raster has one number for each object; export smaller chips if these are objects'
                )
            masks.extend(band == number for number in ids)
            values.extend([value] * len(ids))
    return Label(None, np.array(values, np.int64), mask_boxes(masks), tuple(masks), tuple(skipped))


def _read_bands(path: Path, shape: tuple[int, int], skipped: list[str]) -> Iterator[np.ndarray]:
    """Yield each band as whole numbers, 0 where it has no data; what is left out is added to `skipped`."""
    earlier: list[np.ndarray] = []
    with open_raster(path, chip=True) as src:
        tiles.require_shape(path, (src.height, src.width), shape)
        refuse_lossy(src, str(path))
        for index in src.indexes:
            # a band's own mask is of no use: GDAL takes the fourth of four bytes for opacity
            pixels, _ = read_window(src, Window(0, 0, src.width, src.height), [index])
            nodata = src.nodatavals[index - 1]
            missing = np.isnan(pixels[0]) if nodata is not None and np.isnan(nodata) else pixels[0] == nodata
            band = pixels[0] if nodata is None else np.where(missing, 0, pixels[0])
            if not (np.isfinite(band).all() and (np.rint(band) == band).all()):
                raise ChipFolderError(f'{path} holds fractions, NaN or infinity; objects are numbered 1, 2, 3, ...')
            if (band < 0).any():
                skipped.append('pixels with a negative object number')
            if not (band > 0).any():
                continue
            if any(np.array_equal(band, other) for other in earlier):
                skipped.append('a band that repeats an earlier one')
                continue
            earlier.append(band)
            yield band


class RcnnWriter(writing.FormatWriter):
    """``labels/<class name>/<chip>.tif`` for the classes that occur in a chip."""

    task = Task.INSTANCES

    def check(self) -> None:
        """Refuse names that are no folder names."""
        writing.check_folders(self.classes, 'RCNN_Masks')

    def write(self, chip: writing.ChipFile, label: Label) -> tuple[str, ...]:
        """Write the numbered objects."""
        return writing.write_masks(self, 'labels', chip, label)

"""Folders of rasters: Classified_Tiles, ChangeDetection and MultiTemporal_Tiles with labels, Export_Tiles without."""

import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from rasterio.windows import Window

from geolearn.chips.emd import EMD_NAME, ExportMetadata
from geolearn.chips.formats import coco, files, writing
from geolearn.chips.formats.content import FolderContent, has_class_folders, visible_folders
from geolearn.chips.label import ChipSource, Label, Listing, Target, Task, read_no_label
from geolearn.chips.meaning.values import as_classes, as_numbers, refuse_lossy
from geolearn.errors import ChipFolderError, RasterError
from geolearn.raster import open_raster, read_window
from geolearn.raster.reading import read_stated_stack


def is_classified_tiles(content: FolderContent) -> bool:
    """Whether each image of one date may have a label raster."""
    if content.mixed and not content.labels.is_dir():
        return not content.has_date(2)
    return content.has_label_rasters and not content.has_date(2) and not (content.root / 'labels2').is_dir()


def is_change_detection(content: FolderContent) -> bool:
    """Whether each image of two dates may have a label raster."""
    one_more = content.has_date(2) and not content.has_date(3)
    return content.has_label_rasters and one_more and not (content.root / 'labels2').is_dir()


def is_multitemporal_tiles(content: FolderContent) -> bool:
    """Whether each image of three or more dates may have a label raster."""
    several = content.has_date(2) and content.has_date(3)
    return content.has_label_rasters and several and not (content.root / 'labels2').is_dir()


def is_export_tiles(content: FolderContent) -> bool:
    """Whether there are images, and nothing that may be meant as labels or classes of them."""
    if content.mixed or len(content.dates) > 1 or content.images.name != 'images' or 0 not in content.image_depths:
        return False
    if content.dota_folders:
        return False
    return not (content.labels.is_dir() or coco.coco_files(content.root) or has_class_folders(content.images))


def list_classified_tiles(folder: Path, metadata: ExportMetadata) -> Listing:
    """List ``images/`` with ``labels/``: rasters of class values, 0 where unlabelled, in any format.

    Raises:
        ChipFolderError: If a folder is missing or no image has a label.
    """
    content = FolderContent(folder)
    if content.mixed and not content.labels.is_dir():
        images, found = content.mixed
    else:
        images, found = files.list_images(content.images), files.list_files(content.labels)
    labels, paired = _by_image(images, found)
    names = sorted(images.keys() & labels.keys())
    files.require_pairs(folder, names, len(images), len(labels), f'{content.labels.name}/000000001.tif')
    chips = [_raster_chip(name, ((images[name],),), labels[name]) for name in names]
    notes = (*paired, *files.pair_notes(images, labels.keys()))
    return Listing(Task.PIXELS, tuple(chips), metadata.classes or None, notes=notes)


def _by_image(images: Mapping[str, Path], labels: Mapping[str, Path]) -> tuple[Mapping[str, Path], list[str]]:
    """Return labels, or images of another date, by the name of the image that each belongs to, and notes."""
    pairs, note = files.pair_names(images, labels)
    if note is None:
        return labels, []
    images_of = {label: image for image, label in pairs.items()}
    return {images_of.get(name, name): path for name, path in labels.items()}, [note]


def list_change_detection(folder: Path, metadata: ExportMetadata) -> Listing:
    """List ``images/`` (before) with ``images2/`` (after) and ``labels/``, or under other usual names.

    The values of the labels stay what they are: without classes in the .emd any value but 0 means change.

    Raises:
        ChipFolderError: If a folder is missing or nothing has two images and a label.
    """
    content = FolderContent(folder)
    first, second = (path.name for path in (*content.dates, folder / 'images2')[:2])
    before = files.list_images(folder / first)
    after, moved = _by_image(before, files.list_images(folder / second))
    labels, paired = _by_image(before, files.list_files(content.labels))
    pairs = {name: before[name] for name in before.keys() & after.keys()}
    names = sorted(pairs.keys() & labels.keys())
    files.require_pairs(
        folder, names, len(pairs), len(labels), f'{second}/000000001.tif and {content.labels.name}/000000001.tif'
    )
    chips = [_raster_chip(name, ((before[name],), (after[name],)), labels[name]) for name in names]
    notes = [*moved, *paired]
    for here, there, lonely in (
        (first, second, before.keys() - after.keys()),
        (second, first, after.keys() - before.keys()),
    ):
        if lonely:
            count = len(lonely)
            notes.append(f'{count} images of {here}/ have none in {there}/ and were left out, as {min(lonely)}')
    notes += files.pair_notes(pairs, labels.keys() - (before.keys() ^ after.keys()))
    return Listing(Task.CHANGE, tuple(chips), metadata.classes or None, notes=tuple(notes))


def _raster_chip(name: str, dates: tuple[tuple[Path, ...], ...], label: Path) -> ChipSource:
    return ChipSource(name, dates, (label,), partial(read_class_raster, label))


def read_class_raster(path: Path, shape: tuple[int, int], unlabelled: tuple[float, ...] = ()) -> Label:
    """Read a raster of class values as they are stored; palette images give their indices.

    What the raster declares as NoData, masks out or leaves as NaN is unlabelled.

    Args:
        path: Single-band raster.
        shape: Height and width of the image.
        unlabelled: Values that mean "not labelled" too.

    Raises:
        RasterError: If the file cannot be read, or holds several bands.
        ChipFolderError: If its compression is lossy, its size is not that of the image, or values are no whole numbers
            within 0..65535.
    """
    with open_raster(path, chip=True) as src:
        refuse_lossy(src, f'label {path}')
        pixels, mask = read_window(src, Window(0, 0, src.width, src.height), [1, 2, 3] if src.count == 3 else [1])
        # masks drawn in black and white are often stored as red, green and blue
        if src.count > 1 and (src.count != 3 or (pixels != pixels[:1]).any()):
            raise RasterError(
                f'label {path} holds {src.count} bands; a label raster has one band of class values. Where its colors '
                'stand for classes, write a number for each color into one band first'
            )
        place = src.geobox
    require_shape(path, pixels.shape[1:], shape)
    values, unknown = as_classes(pixels[0], mask, unlabelled, f'label {path}')
    return Label(raster=values, unlabelled=unknown, place=place)


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


class ClassifiedWriter(writing.FormatWriter):
    """``labels/<chip>.tif`` holds class values, one byte a pixel unless a class needs two.

    Unlabelled pixels are 0, or where 0 is a class a value that no class has, declared as NoData.

    Or regression targets, float32 with NaN as NoData.
    """

    task = Task.PIXELS

    def write(self, chip: writing.ChipFile, label: Label) -> tuple[str, ...]:
        """Write the class values or numbers."""
        raster = writing.need(label.raster, 'raster', chip)
        if raster.dtype.kind == 'f':
            return (self.write_raster(f'labels/{chip.stem}.tif', raster.astype(np.float32), chip, nodata=np.nan),)
        dtype = np.uint8 if max(self.names, default=0) < 256 else np.uint16
        nodata = None
        if label.unlabelled is not None:
            nodata = self._free_value()
            raster = np.where(label.unlabelled, nodata, raster)
            dtype = dtype if nodata < 256 else np.uint16
        return (self.write_raster(f'labels/{chip.stem}.tif', raster.astype(dtype), chip, nodata=nodata),)

    def _free_value(self) -> int:
        """Return the value of unlabelled pixels where 0 is a class, the same for all chips."""
        return next(value for value in (255, 65535, *range(65535, 0, -1)) if value not in self.names)


def list_multitemporal_tiles(folder: Path, metadata: ExportMetadata) -> Listing:
    """List ``images/``, ``images2/``, ``images3/`` ..., a folder for each date in order, with ``labels/``.

    Labels are rasters of class values, 0 where unlabelled. Where there is only ``images/``, its files hold the bands of
    all dates (see `split_dates`).

    Raises:
        ChipFolderError: If a date's folder is missing, nothing tells the number of dates, or no chip has all dates and
            a label.
    """
    names = _date_folders(folder)
    if len(names) == 1 and (metadata.dates or 1) < 2:
        raise ChipFolderError(
            f'{folder} holds no images2/, and {folder / EMD_NAME} tells of no dates within one file; '
            'add a folder for each date, or "geolearn": {"dates": 3} to the .emd'
        )
    by_date = [files.list_images(folder / name) for name in names]
    labels = files.list_files(folder / 'labels')
    whole = set(by_date[0]).intersection(*by_date)
    chosen = sorted(whole & labels.keys())
    files.require_pairs(folder, chosen, len(whole), len(labels), f'{names[-1]}/000000001.tif and labels/000000001.tif')
    chips = [
        ChipSource(
            name,
            tuple((images[name],) for images in by_date),
            (labels[name],),
            partial(read_class_raster, labels[name]),
        )
        for name in chosen
    ]
    every = set[str]().union(*by_date)
    notes = []
    if lonely := every - whole:
        notes.append(f'{len(lonely)} chips lack the image of a date and were left out, the first is {min(lonely)}')
    notes += files.pair_notes({name: by_date[0][name] for name in whole}, labels.keys() - lonely)
    return Listing(Task.PIXELS, tuple(chips), metadata.classes or None, notes=tuple(notes))


def _date_folders(folder: Path) -> list[str]:
    """Return images, images2, images3 ... as far as they go; a gap is refused."""
    listed = {path.name for path in files.list_subfolders(folder)}
    numbers = sorted(int(name[6:]) for name in listed if re.fullmatch('images[1-9][0-9]{0,3}', name))
    expected = list(range(2, len(numbers) + 2))
    if numbers != expected:
        gap = next(wanted for wanted, found in zip(expected, numbers) if wanted != found)
        raise ChipFolderError(
            f'{folder} holds images{numbers[-1]}/ but its dates must be images/, images2/, images3/ ...; '
            f'found {", ".join(f"images{number}/" for number in numbers)}, needed images{gap}/'
        )
    return ['images', *(f'images{number}' for number in numbers)]


def split_dates(folder: Path, metadata: ExportMetadata, listing: Listing) -> Listing:
    """Take in what the .emd says about dates: how many lie in each file, the bands of a date together.

    Args:
        folder: The export.
        metadata: What its .emd says.
        listing: Its chips; where those have a file for each date, or other dates lie beside them, files stay whole.

    Raises:
        ChipFolderError: If the chips have another number of dates than the .emd says.
    """
    dates = metadata.dates
    if dates is None or not listing.chips:
        return listing
    found = len(listing.chips[0].dates)
    if found == 1:
        if dates == 1 or (folder / 'images2').is_dir():
            return listing
        return replace(listing, chips=tuple(replace(chip, dates_in_file=dates) for chip in listing.chips))
    if found != dates:
        raise ChipFolderError(f'{folder / EMD_NAME} says that chips have {dates} dates, but there are {found} folders')
    return listing


def list_export_tiles(folder: Path, metadata: ExportMetadata) -> Listing:
    """List ``images/``; what lies in ``images2/`` or ``labels/`` is not read, and a note says so.

    So does one where a folder beside them, or beside the folder, holds text files of the images' names, such as
    ``labelTxt/``.

    Raises:
        ChipFolderError: If there is no image.
    """
    images = files.list_images(FolderContent(folder).images)
    chips = tuple(ChipSource(name, ((path,),), (), read_no_label) for name, path in sorted(images.items()))
    unread = [name for name in ('images2', 'labels') if (folder / name).is_dir()]
    notes = [f'{name}/ is not read: these are tiles' for name in unread]
    stems = {name.rpartition('/')[2] for name in images}
    for place in [*visible_folders(folder), *visible_folders(folder.resolve().parent)[:_SEARCHED]]:
        if place.name not in unread and (example := _label_of(place, stems)):
            notes.append(f'{place} holds {example} and more of the names of the images, which are not read as labels')
    return Listing(Task.UNLABELLED, chips, (), notes=tuple(notes))


_SEARCHED = 50
"""Folders beside chips, and files in each, in which labels that are not read are looked for."""


def _label_of(folder: Path, stems: Collection[str]) -> str | None:
    """Return the name of a text file in a folder that is called like an image."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in islice(entries, _SEARCHED):
            stem, suffix = os.path.splitext(entry.name)
            if suffix.lower() in ('.txt', '.xml', '.json', '.csv') and stem in stems:
                return entry.name
    return None


class ExportTilesWriter(writing.FormatWriter):
    """Images alone, for pretraining and inference."""

    task = Task.UNLABELLED
    folders = ('images',)

    def write(self, chip: writing.ChipFile, label: Label) -> tuple[str, ...]:
        """Write nothing."""
        return ()


def choose_target(listing: Listing, target: Target | None) -> Listing:
    """Read label rasters as classes or as numbers.

    Args:
        listing: The chips, with labels read as classes.
        target: As the user asked; None takes floating-point rasters as numbers unless the .emd lists classes.

    Returns:
        The same listing, or one of `Task.REGRESSION` whose label readers are `read_value_raster`, with a note on it.

    Raises:
        ChipFolderError: If numbers are asked for and chips have no label raster each.
    """
    if listing.task != Task.PIXELS:
        if target == 'values':
            raise ChipFolderError(
                "target='values' needs a raster of numbers for each chip, as in Classified_Tiles, but these labels "
                f'are of task {listing.task}; leave target out'
            )
        return listing
    dtype, scaled = _inspect_labels(listing)
    added = [] if scaled is None else [scaled]
    if target is None:
        if not dtype.startswith('float'):
            return listing
        if listing.classes:
            note = (
                f'labels are {dtype} rasters, read as classes as the .emd lists some; '
                "pass target='values' if they are numbers, for per-pixel regression"
            )
            return replace(listing, notes=(*listing.notes, note))
        added.insert(
            0, f"labels are {dtype} rasters, read as a number per pixel; pass target='classes' if they are class values"
        )
    elif target == 'classes':
        return listing
    chips = tuple(replace(chip, read_label=partial(read_value_raster, chip.labels[0])) for chip in listing.chips)
    return replace(listing, task=Task.REGRESSION, chips=chips, classes=(), notes=(*listing.notes, *added))


def _inspect_labels(listing: Listing) -> tuple[str, str | None]:
    """Return the type of the first label raster that opens, and a note on a scale that it states."""
    for chip in listing.chips[:20]:
        try:
            with open_raster(chip.labels[0], chip=True) as src:
                scale, offset = src.scales[0], src.offsets[0]
                note = (
                    f'the labels state scale {scale:g} and offset {offset:g}, which are not applied; '
                    'predictions will be in the stored units too'
                )
                return src.dtypes[0], None if (scale, offset) == (1, 0) else note
        except RasterError:
            continue  # reading the chip tells what is wrong
    return 'unknown', None


def read_value_raster(path: Path, shape: tuple[int, int], unlabelled: tuple[float, ...] = ()) -> Label:
    """Read a raster of numbers: float32, NaN where it has NoData, NaN or infinity.

    Args:
        path: Single-band raster of integers or floating-point numbers.
        shape: Height and width of the image.
        unlabelled: Numbers that mean NoData too.

    Raises:
        RasterError: If the file cannot be read.
        ChipFolderError: If it has several bands or another size than the image, or holds complex numbers or ones
            that float32 cannot hold.
    """
    pixels, masks, place, scaling = read_stated_stack([path])
    if len(pixels) != 1:
        raise ChipFolderError(f'label {path} holds {len(pixels)} bands; a raster of regression targets has one')
    require_shape(path, pixels.shape[1:], shape)
    numbers = as_numbers(pixels[0], None if masks is None else masks[0], f'label {path}', unlabelled)
    return Label(raster=numbers, place=place, scaling=scaling)

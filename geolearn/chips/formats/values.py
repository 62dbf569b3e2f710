"""Label rasters of numbers, such as biomass or height: when labels are such, and how they are read."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from geolearn.chips.formats.classified import require_shape
from geolearn.chips.label import Label, Target, Task
from geolearn.chips.meaning.values import as_numbers
from geolearn.chips.source import Listing
from geolearn.errors import ChipFolderError, RasterError
from geolearn.raster import open_raster, read_image


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
                f'teach {listing.task}; leave target out'
            )
        return listing
    dtype, scaled = _look(listing)
    told = [] if scaled is None else [scaled]
    if target is None:
        if not dtype.startswith('float'):
            return listing
        if listing.classes:
            note = (
                f'labels are {dtype} rasters, read as classes as the .emd lists some; '
                "pass target='values' if they are numbers to learn"
            )
            return replace(listing, notes=(*listing.notes, note))
        told.insert(
            0, f"labels are {dtype} rasters, read as a number per pixel; pass target='classes' if they are class values"
        )
    elif target == 'classes':
        return listing
    chips = tuple(replace(chip, read_label=partial(read_value_raster, chip.labels[0])) for chip in listing.chips)
    return replace(listing, task=Task.REGRESSION, chips=chips, classes=(), notes=(*listing.notes, *told))


def _look(listing: Listing) -> tuple[str, str | None]:
    """Return the type of the first label raster that opens, and a note on a scale that it states."""
    for chip in listing.chips[:20]:
        try:
            with open_raster(chip.labels[0]) as src:
                scale, offset = src.scales[0], src.offsets[0]
                note = (
                    f'the labels state scale {scale:g} and offset {offset:g}, which are not applied; '
                    'predictions will be in the stored units too'
                )
                return src.dtypes[0], None if (scale, offset) == (1, 0) else note
        except RasterError:
            continue  # reading the chip tells what is wrong
    return 'unknown', None


def read_value_raster(path: Path, shape: tuple[int, int]) -> Label:
    """Read a raster of numbers: float32, NaN where it has NoData, NaN or infinity.

    Args:
        path: Single-band raster of integers or floating-point numbers.
        shape: Height and width of the image.

    Raises:
        RasterError: If the file cannot be read.
        ChipFolderError: If it has several bands or another size than the image, or holds complex numbers or ones
            that float32 cannot hold.
    """
    pixels, mask, _ = read_image(path)
    if len(pixels) != 1:
        raise ChipFolderError(f'label {path} holds {len(pixels)} bands; a raster of numbers to learn has one')
    require_shape(path, pixels.shape[1:], shape)
    return Label(raster=as_numbers(pixels[0], mask, f'label {path}'))

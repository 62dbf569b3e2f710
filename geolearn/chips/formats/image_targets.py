"""Images as targets: another image of the same ground, or the image itself in finer pixels than the network sees."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from affine import Affine

from geolearn.chips.formats.files import list_images, pair_notes, require_pairs
from geolearn.chips.formats.tiles import require_shape
from geolearn.chips.label import ChipSource, Label, Listing, Task
from geolearn.chips.meaning.values import as_numbers
from geolearn.errors import ChipFolderError, RasterError
from geolearn.raster import GeoBox, open_raster, read_stack
from geolearn.raster.reading import read_stated_stack

MOST_TIMES = 16
"""Finer pixels are no targets of this world."""


def use_images_as_targets(folder: Path, listing: Listing, downsample: int) -> Listing:
    """Return a listing whose targets are images: ``images2/``, rasters in ``labels/``, or the images themselves.

    Args:
        folder: The export.
        listing: Its chips, images alone or with label rasters.
        downsample: Times that the pixels of the images become larger, to learn the images themselves from them; 1 where
            another image is the target.

    Raises:
        ChipFolderError: If there is no such image, or more than one thing could be meant.
    """
    if not isinstance(downsample, int) or isinstance(downsample, bool) or not 1 <= downsample <= MOST_TIMES:
        raise ChipFolderError(f'downsample must be a whole number in 1..{MOST_TIMES}, got {downsample!r}')
    second = folder / 'images2'
    if listing.task == Task.PIXELS or (listing.task == Task.UNLABELLED and second.is_dir()):
        if downsample > 1:
            raise ChipFolderError(
                f'{folder} holds images to learn ({"labels" if listing.task == Task.PIXELS else "images2"}/), so '
                'downsample= has no place; their pixels may be finer by a whole number'
            )
        chips, notes = _pairs(folder, listing, second) if listing.task == Task.UNLABELLED else (listing.chips, ())
        targets = tuple(replace(chip, read_label=partial(read_image_target, chip.labels[0])) for chip in chips)
        names = _band_names(targets[0].labels[0])
        return replace(listing, task=Task.REGRESSION, chips=targets, classes=(), notes=notes, target_bands=names)
    if listing.task != Task.UNLABELLED:
        raise ChipFolderError(
            f"target='images' needs images/ with images2/, or images/ alone with downsample=, but the labels of "
            f'{folder} are of task {listing.task}; leave target out'
        )
    if downsample == 1:
        raise ChipFolderError(
            f'{folder} holds images alone: pass downsample=2 (or more) to learn them from larger pixels, or add the '
            'images to learn as images2/'
        )
    targets = tuple(_coarse(chip, downsample) for chip in listing.chips)
    return replace(
        listing,
        task=Task.REGRESSION,
        chips=targets,
        classes=(),
        downsample=downsample,
        target_bands=_band_names(targets[0].image),
    )


def _pairs(folder: Path, listing: Listing, second: Path) -> tuple[tuple[ChipSource, ...], tuple[str, ...]]:
    images, targets = {chip.name: chip for chip in listing.chips}, list_images(second)
    names = sorted(images.keys() & targets.keys())
    require_pairs(folder, names, len(images), len(targets), 'images2/000000001.tif')
    chips = tuple(replace(images[name], labels=(targets[name],)) for name in names)
    paths = {name: chip.image for name, chip in images.items()}
    return chips, tuple(pair_notes(paths, targets.keys()))


def _coarse(chip: ChipSource, times: int) -> ChipSource:
    if len(chip.dates) != 1 or len(chip.dates[0]) != 1 or chip.read_image is not None:
        raise ChipFolderError(f'downsample= takes images of one date and file; {chip.image} is one of several')
    return replace(
        chip,
        labels=(chip.image,),
        read_image=partial(read_coarse_image, chip.image, times),
        read_label=partial(read_fine_image, chip.image, times),
    )


def _band_names(path: Path) -> tuple[str, ...]:
    try:
        with open_raster(path, chip=True) as src:
            return tuple(name or f'band {number}' for number, name in enumerate(src.descriptions, 1))
    except RasterError:
        return ()  # reading the chip tells what is wrong


def read_image_target(path: Path, shape: tuple[int, int], unlabelled: tuple[float, ...] = ()) -> Label:
    """Read an image as regression targets: float32 (bands, height, width), NaN where there is no data.

    Args:
        path: Raster of one or more bands.
        shape: Height and width of the image that it is learned from; its own are the same or a whole number of times.
        unlabelled: Numbers that mean NoData too.

    Raises:
        RasterError: If the file cannot be read.
        ChipFolderError: If its size does not fit, it is over `MOST_TIMES` times finer, or pixels are no real numbers.
    """
    pixels, masks, place, scaling = read_stated_stack([path])
    times = max(1, round(pixels.shape[1] / shape[0]))
    if pixels.shape[1:] != (shape[0] * times, shape[1] * times):
        require_shape(path, pixels.shape[1:], shape)
    if times > MOST_TIMES:
        raise ChipFolderError(
            f'{path} is {times} times finer than its image, and at most {MOST_TIMES} times can be learned; make it '
            'coarser, or take finer images'
        )
    planes = _as_planes(pixels, masks, path, unlabelled)
    return Label(raster=planes if len(planes) > 1 or times > 1 else planes[0], place=place, scaling=scaling)


def read_fine_image(path: Path, times: int, shape: tuple[int, int], unlabelled: tuple[float, ...] = ()) -> Label:
    """Read an image as the target of its own coarse form: what is no whole number of coarse pixels is cut off.

    Args:
        path: Raster.
        times: Pixels for each coarse one, down and across.
        shape: Of the coarse form.
        unlabelled: Numbers that mean NoData too.
    """
    pixels, masks, _ = read_stack([path])
    part = np.s_[:, : shape[0] * times, : shape[1] * times]
    return Label(raster=_as_planes(pixels[part], None if masks is None else masks[part], path, unlabelled))


def _as_planes(pixels: np.ndarray, masks: np.ndarray | None, path: Path, unlabelled: tuple[float, ...]) -> np.ndarray:
    known = [None] * len(pixels) if masks is None else np.broadcast_to(masks, pixels.shape)
    return np.stack([as_numbers(plane, mask, f'image {path}', unlabelled) for plane, mask in zip(pixels, known)])


def read_coarse_image(path: Path, times: int) -> tuple[np.ndarray, np.ndarray | None, GeoBox]:
    """Read an image in pixels that are `times` as large: means of those with data, where at least half have some.

    Returns:
        Pixels (bands, height, width) of the stored type, masks, and the place.
    """
    pixels, masks, box = read_stack([path])
    height, width = (length // times for length in pixels.shape[1:])
    if not height or not width:
        raise ChipFolderError(f'{path} is {pixels.shape[2]}x{pixels.shape[1]} pixels, too small for downsample={times}')

    def blocks(planes: np.ndarray) -> np.ndarray:
        cut = planes[:, : height * times, : width * times].astype(np.float64)
        return cut.reshape(len(planes), height, times, width, times)

    known = None if masks is None else blocks(np.broadcast_to(masks, pixels.shape))
    if pixels.dtype.kind == 'f' and not (finite := np.isfinite(pixels)).all():
        # NaN and infinities are no data, whatever the mask says
        known = blocks(finite) if known is None else known * blocks(finite)
        pixels = np.where(finite, pixels, 0)
    values = blocks(pixels)
    if known is None:
        means, valid = values.mean(axis=(2, 4)), None
    else:
        count = known.sum(axis=(2, 4))
        means = (values * known).sum(axis=(2, 4)) / np.maximum(count, 1)
        valid = count >= times * times / 2
    stored = np.rint(means) if pixels.dtype.kind in 'iu' else means
    t = box.transform
    place = Affine(t.a * times, t.b * times, t.c, t.d * times, t.e * times, t.f)
    return stored.astype(pixels.dtype), valid, GeoBox((height, width), place, box.crs)

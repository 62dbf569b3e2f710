"""Open rasters for a model: find its bands in them, and check units, dates and grids."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rasterio.windows import Window
from torch import Tensor

from geolearn.errors import RasterError
from geolearn.inference.options import ReadOptions
from geolearn.inference.resolution import choose_geobox
from geolearn.inference.source import Source
from geolearn.networks.spec import ModelSpec
from geolearn.raster import (
    GeoBox,
    find_band_indexes,
    open_raster,
    raster_geobox,
    require_place,
    require_same_grid,
    sample_pixels,
)
from geolearn.raster.nodata import as_float32, differs, missing
from geolearn.raster.raster import Raster
from geolearn.raster.reading import RasterPath
from geolearn.units import compare_units, typical_values

log = logging.getLogger('geolearn')


RasterSource = RasterPath | Sequence[RasterPath]
"""A raster, or several that make one mosaic; for models of several dates one such for each date, or one file of all."""


def open_dates(src: RasterSource, spec: ModelSpec, read: ReadOptions, stack: ExitStack) -> list[Source]:
    """Open a raster, or one of each date, and find the model's bands in it.

    Args:
        src: What the caller of `predict_raster` passed.
        spec: Of the model.
        read: How the raster is read.
        stack: Closes what is opened.

    Raises:
        RasterError: If bands, units, dates or grids do not fit.
    """
    if spec.dates == 1:
        return [match_raster(stack.enter_context(_open(src, read)), spec, read)]  # type: ignore[arg-type]
    if isinstance(src, str | Path):
        return _dates_in_one(stack.enter_context(open_raster(src)), spec, read)
    if len(src) != spec.dates:
        raise RasterError(
            f'this model takes images of {spec.dates} dates, found {len(src)} rasters; pass one for each date, oldest '
            'first, or a list of tiles for each date'
        )
    sources = [match_raster(stack.enter_context(_open(date, read)), spec, read) for date in src]
    first = raster_geobox(sources[0].dataset)
    for source in sources[1:]:
        require_same_grid(first, raster_geobox(source.dataset))
    return sources


def _open(src: RasterPath, read: ReadOptions) -> AbstractContextManager[Raster]:
    """Open a raster of one date with the user's names of bands; in a mosaic their NoData must not cover other files."""
    # of one file, several values are counted and matched where its bands are
    single = isinstance(src, str | Path) and not isinstance(read.nodata, int | float)
    return open_raster(src, bands=read.bands, nodata=None if single else read.nodata)


def match_raster(dataset: Any, spec: ModelSpec, read: ReadOptions) -> Source:
    """Find a model's bands in an open raster, and check that its values are in the units of the training chips.

    Raises:
        RasterError: If it has no place, or bands or units do not fit.
    """
    require_place(dataset)
    indexes = find_band_indexes(dataset, spec.bands, names=read.bands, sensor=read.sensor)
    return _make_source(dataset, indexes, spec, read)


def _dates_in_one(dataset: Any, spec: ModelSpec, read: ReadOptions) -> list[Source]:
    """Part a file that holds all bands of the first date, then all of the second, and so on."""
    require_place(dataset)
    bands = len(spec.bands)
    if dataset.count != spec.dates * bands:
        raise RasterError(
            f'this model takes {spec.dates} dates of {bands} bands, found one raster of {dataset.count} bands; pass a '
            'list of one raster for each date'
        )
    log.warning('%s bands taken as %s dates of %s bands, one date after the other', dataset.count, spec.dates, bands)
    firsts = range(1, dataset.count + 1, bands)
    return [_make_source(dataset, range(first, first + bands), spec, read) for first in firsts]


def _make_source(dataset: Any, indexes: Sequence[int], spec: ModelSpec, read: ReadOptions) -> Source:
    """Check the units and the size of the pixels of some bands, and say how they are read."""
    nodata = read.nodata_of(indexes, dataset.count)
    sample = sample_pixels(dataset, indexes)
    for band, value in enumerate(nodata):
        if (kept := differs(sample[band], value)) is not None:
            sample = sample[:, kept]
    check_units(sample, spec, read)
    shown = 'the mosaic' if str(dataset.name).startswith('<') else str(dataset.name)
    target = choose_geobox(raster_geobox(dataset), spec, read.resolution, shown=shown)
    return Source(dataset, tuple(indexes), target, nodata)


def check_target(src: RasterSource, dst: Path, *, overwrite: bool) -> Path:
    """Refuse before hours of work what could not be written after them.

    Raises:
        RasterError: If the target is one of the sources, a folder, or a file that is not to be replaced.
    """
    if any(os.path.realpath(source) == os.path.realpath(dst) for source in _all_files(src)):
        raise RasterError(f'{dst} is the raster to map; write the map to another file')
    if dst.is_dir():
        raise RasterError(f'{dst} is a folder; pass the GeoTIFF to write, such as {dst / "map.tif"}')
    if dst.exists() and not overwrite:
        raise RasterError(f'{dst} exists; pass overwrite=True to replace it, or another name')
    return dst


def _all_files(src: RasterSource) -> Iterator[str | Path]:
    if isinstance(src, str | Path):
        yield src
        if os.path.isdir(src):
            yield from (path for path in Path(src).rglob('*') if path.is_file())
    else:
        for part in src:
            yield from _all_files(part)


def check_units(sample: np.ndarray, spec: ModelSpec, read: ReadOptions) -> None:
    """Refuse pixels in other units than the training chips; a caller who says scale=1 is only told.

    Args:
        sample: Valid pixels (bands, n) in stored units, n possibly 0.
        spec: Of the model.
        read: How the pixels are read.

    Raises:
        RasterError: If they are in other units.
    """
    found = typical_values(sample, read.to_model_units)
    if found is None:
        return
    comparison = compare_units(found, spec.statistics, spec.bands)
    hint = f'The raster {comparison.hint}. ' if comparison.hint else ''
    if comparison.far and read.scale != 1:
        raise RasterError(
            f"the raster's values are in other units than the training chips: medians {comparison.table}. {hint}"
            'Pass scale= (and offset=) so that value * scale + offset is what the model was trained on; scale=1 if it '
            'is already'
        )
    if comparison.odd:
        log.warning('the raster may be in other units than the training chips: medians %s. %s', comparison.table, hint)


Image = np.ndarray | Tensor | RasterPath
"""Pixels (bands, H, W) in the model's order of bands, NaN where there is no data, or a raster file."""


class LoadedImage(NamedTuple):
    """Pixels (bands, H, W) float32 in the model's units, NaN where there is no data; and their place, if known."""

    pixels: Tensor
    place: GeoBox | None


def load_image(image: Image, spec: ModelSpec, read: ReadOptions) -> LoadedImage:
    """Take an image of one date whole.

    Args:
        image: An array, or a file that is small enough for memory.
        spec: Of the model that is to see it.
        read: How bands and values are read; names of bands are for files.

    Raises:
        RasterError: If bands or units do not fit, there is no data, or the file cannot be read.
        ValueError: If an array has another shape.
    """
    if isinstance(image, np.ndarray | Tensor):
        pixels, place = _from_array(image, spec), None
        check_units(pixels[:, ~missing(pixels, every_date=True)], spec, read)
        pixels = read.to_model_units(pixels)
    else:
        pixels, place = _from_file(image, spec, read)
    pixels = as_float32(pixels)
    if missing(pixels, every_date=True).all():
        raise RasterError('the image holds no pixel with data in all bands')
    return LoadedImage(torch.from_numpy(pixels), place)


def load_dates(images: Sequence[Image], spec: ModelSpec, read: ReadOptions) -> Tensor:
    """Take images of several dates, which lie on one grid, as `load_image` takes each.

    Args:
        images: One for each date, oldest first; an array may be (dates, bands, H, W).
        spec: Of the model that is to see them.
        read: How bands and values are read.

    Returns:
        (dates, bands, H, W) float32, NaN where there is no data.

    Raises:
        RasterError: If dates, grids, bands or units do not fit, or a date has no data.
        ValueError: If an array has another shape.
    """
    if isinstance(images, str | Path) or len(images) != spec.dates:
        raise RasterError(f'this model takes images of {spec.dates} dates; pass a list of one for each, oldest first')
    loaded = [load_image(image, spec, read) for image in images]
    places = [image.place for image in loaded if image.place is not None]
    for place in places[1:]:
        require_same_grid(places[0], place)
    if len({image.pixels.shape for image in loaded}) > 1:
        sizes = ' and '.join(f'{image.pixels.shape[2]}x{image.pixels.shape[1]}' for image in loaded)
        raise RasterError(f'images of all dates must be of one size, got {sizes} pixels')
    return torch.stack([image.pixels for image in loaded])


def _from_array(image: np.ndarray | Tensor, spec: ModelSpec) -> np.ndarray:
    pixels = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if pixels.ndim != 3 or len(pixels) != len(spec.bands) or 0 in pixels.shape:
        names = ', '.join(band.name for band in spec.bands)
        raise ValueError(f'an image must be an array of {len(spec.bands)} bands ({names}), H, W; got {pixels.shape}')
    if pixels.dtype.kind not in 'iuf':
        raise ValueError(f'an image must hold real numbers, got {pixels.dtype}')
    return as_float32(pixels)


def _from_file(path: RasterPath, spec: ModelSpec, read: ReadOptions) -> tuple[np.ndarray, GeoBox]:
    with _open(path, read) as dataset:
        source = match_raster(dataset, spec, read)
        height, width = source.shape
        stored, valid = source.read(Window(0, 0, width, height))
        pixels = read.to_model_units(stored)
        if valid is not None:
            pixels[:, ~valid] = np.nan
        return pixels, source.box

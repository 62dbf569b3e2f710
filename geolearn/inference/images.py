"""Take images that are small enough for memory: arrays in a model's order of bands, or raster files."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rasterio.windows import Window
from torch import Tensor

from geolearn import errors
from geolearn.inference import reading
from geolearn.inference.options import ReadOptions
from geolearn.networks.spec import ModelSpec
from geolearn.raster import GeoBox, require_same_grid
from geolearn.raster.acquisition import acquisition_date
from geolearn.raster.nodata import as_float32, missing
from geolearn.raster.reading import RasterPath

Image = np.ndarray | Tensor | RasterPath
"""Pixels (bands, H, W) in the model's order of bands, NaN where there is no data, or a raster file."""


class LoadedImage(NamedTuple):
    """Pixels ([dates,] bands, H, W) float32 in the model's units, NaN where there is no data; and what files state.

    The place is None where it is not known, and so is the day of each date.
    """

    pixels: Tensor
    place: GeoBox | None
    acquired: tuple[date | None, ...]


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
        pixels, place, acquired = _from_array(image, spec), None, None
        reading.check_units(pixels[:, ~missing(pixels, every_date=True)], spec, read)
        pixels = read.to_model_units(pixels)
    else:
        pixels, place, acquired = _from_file(image, spec, read)
    pixels = as_float32(pixels)
    if missing(pixels, every_date=True).all():
        raise errors.RasterError('the image holds no pixel with data in all bands')
    return LoadedImage(torch.from_numpy(pixels), place, (acquired,))


def load_dates(images: Sequence[Image], spec: ModelSpec, read: ReadOptions) -> LoadedImage:
    """Take images of several dates, which lie on one grid, as `load_image` takes each.

    Args:
        images: One for each date, oldest first; an array may be (dates, bands, H, W).
        spec: Of the model that is to see them.
        read: How bands and values are read.

    Raises:
        RasterError: If dates, grids, bands or units do not fit, or a date has no data.
        ValueError: If an array has another shape.
    """
    if isinstance(images, str | Path) or len(images) != spec.dates:
        raise errors.RasterError(
            f'this model takes images of {spec.dates} dates; pass a list of one for each, oldest first'
        )
    loaded = [load_image(image, spec, read) for image in images]
    places = [image.place for image in loaded if image.place is not None]
    for place in places[1:]:
        require_same_grid(places[0], place)
    if len({image.pixels.shape for image in loaded}) > 1:
        sizes = ' and '.join(f'{image.pixels.shape[2]}x{image.pixels.shape[1]}' for image in loaded)
        raise errors.RasterError(f'images of all dates must be of one size, got {sizes} pixels')
    days = tuple(image.acquired[0] for image in loaded)
    return LoadedImage(torch.stack([image.pixels for image in loaded]), places[0] if places else None, days)


def _from_array(image: np.ndarray | Tensor, spec: ModelSpec) -> np.ndarray:
    pixels = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if pixels.ndim != 3 or len(pixels) != len(spec.bands) or 0 in pixels.shape:
        names = ', '.join(band.name for band in spec.bands)
        raise ValueError(f'an image must be an array of {len(spec.bands)} bands ({names}), H, W; got {pixels.shape}')
    if pixels.dtype.kind not in 'iuf':
        raise ValueError(f'an image must hold real numbers, got {pixels.dtype}')
    return as_float32(pixels)


def _from_file(path: RasterPath, spec: ModelSpec, read: ReadOptions) -> tuple[np.ndarray, GeoBox, date | None]:
    with reading.open_date(path, read, spec) as dataset:
        source = reading.match_raster(dataset, spec, read)
        height, width = source.shape
        stored, valid = source.read(Window(0, 0, width, height))
        pixels = read.to_model_units(stored)
        if valid is not None:
            pixels[:, ~valid] = np.nan
        return pixels, source.box, acquisition_date(dataset)

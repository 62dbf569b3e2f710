"""Take an image for a model, from an array or a file: bands in order, units checked, NaN where there is no data."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rasterio.windows import Window
from torch import Tensor

from geolearn.errors import RasterError
from geolearn.models.mapping import Reading, check_reading, check_units, match_raster
from geolearn.models.spec import ModelSpec
from geolearn.raster import GeoBox, open_raster, raster_geobox, read_window, require_same_grid
from geolearn.raster.reading import RasterPath

Image = np.ndarray | Tensor | RasterPath
"""Pixels (bands, H, W) in the model's order of bands, NaN where there is no data, or a raster file."""


class LoadedImage(NamedTuple):
    """Pixels (bands, H, W) float32 in the model's units, NaN where there is no data; and their place, if known."""

    pixels: Tensor
    place: GeoBox | None


def load_image(image: Image, spec: ModelSpec, reading: Reading) -> LoadedImage:
    """Take an image of one date whole.

    Args:
        image: An array, or a file that is small enough for memory.
        spec: Of the model that is to see it.
        reading: How bands and values are understood; names of bands are for files.

    Raises:
        RasterError: If bands or units do not fit, there is no data, or the file cannot be read.
        ValueError: If an array has another shape.
    """
    check_reading(reading)
    if isinstance(image, np.ndarray | Tensor):
        pixels, place = _from_array(image, spec), None
        known = pixels[:, np.isfinite(pixels).all(0)]
        check_units(known, spec, reading)
        pixels = reading.pixel_scale.apply(pixels)
    else:
        pixels, place = _from_file(image, spec, reading)
    if not np.isfinite(pixels).all(0).any():
        raise RasterError('the image holds no pixel with data in all bands')
    # what lacks data in one band lacks it in all, as in training
    pixels[:, ~np.isfinite(pixels).all(0)] = np.nan
    return LoadedImage(torch.from_numpy(pixels), place)


def load_dates(images: Sequence[Image], spec: ModelSpec, reading: Reading) -> Tensor:
    """Take images of several dates, which lie on one grid, as `load_image` takes each.

    Args:
        images: One for each date, oldest first; an array may be (dates, bands, H, W).
        spec: Of the model that is to see them.
        reading: How bands and values are understood.

    Returns:
        (dates, bands, H, W) float32, NaN where there is no data.

    Raises:
        RasterError: If dates, grids, bands or units do not fit, or a date has no data.
        ValueError: If an array has another shape.
    """
    if isinstance(images, str | Path) or len(images) != spec.dates:
        raise RasterError(f'this model takes images of {spec.dates} dates; pass a list of one for each, oldest first')
    loaded = [load_image(image, spec, reading) for image in images]
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
    return pixels.astype(np.float32)


def _from_file(path: RasterPath, spec: ModelSpec, reading: Reading) -> tuple[np.ndarray, GeoBox]:
    with open_raster(path) as dataset:
        source = match_raster(dataset, spec, reading)
        window = Window(0, 0, dataset.width, dataset.height)
        stored, valid = read_window(dataset, window, source.indexes)
        pixels = reading.pixel_scale.apply(stored)
        if valid is not None:
            pixels[:, ~valid] = np.nan
        return pixels, raster_geobox(dataset)

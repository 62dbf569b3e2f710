"""Read one chip: the images of all its dates, their mask and the label, together."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from geolearn.chips.label import Label
from geolearn.chips.source import ChipSource
from geolearn.errors import ChipFolderError
from geolearn.raster import GeoBox, read_stack


class Chip(NamedTuple):
    """A training image with its label.

    `pixels` is (channels, height, width) in the stored dtype, where a channel is a band of one date and channels of one
    date lie together; `mask` is (channels, height, width) or (1, height, width), True where valid, or None where
    everything is; `dates` is their number.
    """

    pixels: np.ndarray
    mask: np.ndarray | None
    label: Label
    geobox: GeoBox
    dates: int = 1


def read_chip(source: ChipSource) -> Chip:
    """Read one chip.

    Raises:
        RasterError: If a file cannot be read.
        ChipFolderError: If dates, or image and label, do not fit together, or a label makes no sense.
    """
    images = [read_stack(files) for files in source.dates]
    pixels, mask, geobox = images[0]
    if len(pixels) % source.dates_in_file:
        raise ChipFolderError(
            f'{source.image} holds {len(pixels)} bands, which cannot be those of {source.dates_in_file} dates; '
            'every date needs the same bands'
        )
    if pixels.dtype.kind == 'c':
        raise ChipFolderError(f'{source.image} holds {pixels.dtype} numbers; export amplitude, or power in dB')
    for (other, _, _), files in zip(images[1:], source.dates[1:]):
        if other.dtype != pixels.dtype:
            raise ChipFolderError(
                f'{files[0]} holds {other.dtype} pixels but {source.image} {pixels.dtype}; '
                'all dates of a chip must be in the same units'
            )
        if other.shape != pixels.shape:
            raise ChipFolderError(
                f'{files[0]} is {_shape_text(other)} but {source.image} is {_shape_text(pixels)}; '
                'all dates of a chip must have the same bands and size'
            )
    if len(images) > 1:
        pixels, mask = np.concatenate([image[0] for image in images]), _join_masks(images)
    label = source.read_label(geobox.shape)
    if label.raster is not None:
        label = replace(label, raster=_storable(label.raster, source, geobox.shape))
    return Chip(pixels, mask, label, geobox, len(images) * source.dates_in_file)


def _shape_text(pixels: np.ndarray) -> str:
    bands, height, width = pixels.shape
    return f'{width}x{height} pixels of {bands} bands'


def _join_masks(images: list[tuple[np.ndarray, np.ndarray | None, GeoBox]]) -> np.ndarray | None:
    if all(mask is None for _, mask, _ in images):
        return None
    return np.concatenate([np.broadcast_to(True if mask is None else mask, image.shape) for image, mask, _ in images])


def _storable(raster: np.ndarray, source: ChipSource, shape: tuple[int, int]) -> np.ndarray:
    """Check a label raster and return class values in 8 or 16 bits; numbers stay float32."""
    name = source.labels[0] if source.labels else source.image
    if raster.shape != shape:
        raise ChipFolderError(
            f'{name} is {raster.shape[1]}x{raster.shape[0]} pixels but its image is {shape[1]}x{shape[0]}; '
            'export both with one tile size'
        )
    if raster.dtype == np.float32:
        return raster
    low, high = (int(raster.min()), int(raster.max())) if raster.size else (0, 0)
    if low < 0 or high > 65535:
        raise ChipFolderError(f'{name} holds values from {low} to {high}; class values lie in 0..65535')
    return raster.astype(np.uint8 if high < 256 else np.uint16, copy=False)

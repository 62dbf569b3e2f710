"""Write rasters as Zarr stores that xarray, GDAL and geolearn open: a variable for each band, with place and names."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.crs import CRS
from rasterio.windows import Window

from geolearn import extras
from geolearn.bands import unique_names
from geolearn.raster.arrays import BAND_ORDER
from geolearn.raster.geobox import GeoBox
from geolearn.raster.pieces import RasterContent, Watch

CHUNK = 512
"""Side of chunks in pixels."""


def require_zarr() -> Any:
    """Return the module zarr.

    Raises:
        MissingExtraError: If it is not installed.
    """
    return extras.require('zarr', extra='xarray', to='write Zarr')


def is_zarr_store(path: Path) -> bool:
    """Whether a folder is a Zarr store, which may be replaced by another."""
    return any((path / name).is_file() for name in ('.zgroup', '.zarray', 'zarr.json'))


def write_zarr(src: Any, path: Path, geobox: GeoBox, content: RasterContent, *, watch: Watch | None = None) -> None:
    """Copy the pixels of a raster into a new store, some rows at a time.

    Variables have the dimensions y and x and CF's attributes: ``_FillValue``, ``scale_factor``, ``flag_values``,
    ``flag_meanings`` and ``grid_mapping``; version 2 of the format, with consolidated metadata.

    Args:
        src: Open raster of the same shape.
        path: Of the store, which does not exist.
        geobox: Place of the raster.
        content: What its bands hold.
        watch: Called with how far the store is, after each few rows of a band.

    Raises:
        OSError: If it cannot be written.
    """
    zarr = require_zarr()
    bands = [_describe(content, number) for number in range(content.count)]
    names = unique_names([str(band['long_name']).replace('/', '_').replace(' ', '_') for band in bands])
    # Zarr lists variables by the alphabet
    attributes = {'Conventions': 'CF-1.10', BAND_ORDER: names, **content.tags}
    group = zarr.create_group(path, zarr_format=2, attributes=attributes)
    _write_place(group, geobox)
    for index, (name, band) in enumerate(zip(names, bands), 1):
        array = group.create_array(
            name,
            shape=geobox.shape,
            chunks=tuple(min(CHUNK, length) for length in geobox.shape),
            dtype=content.dtype,
            fill_value=content.nodata,
            attributes={'_ARRAY_DIMENSIONS': ['y', 'x'], **band},
        )
        for row in range(0, geobox.shape[0], CHUNK):
            rows = min(CHUNK, geobox.shape[0] - row)
            array[row : row + rows] = src.read(index, window=Window(0, row, geobox.shape[1], rows))
            if watch is not None:
                watch('joining', (index - 1 + (row + rows) / geobox.shape[0]) / len(bands))
    zarr.consolidate_metadata(path, zarr_format=2)


def _describe(content: RasterContent, number: int) -> dict[str, Any]:
    """Return the attributes of a band, by its number from 0 on."""
    found: dict[str, Any] = {'long_name': content.band_names[number], 'grid_mapping': 'spatial_ref'}
    if content.scales and content.scales[number] != 1:
        found['scale_factor'] = content.scales[number]
    if content.tallies:
        found |= content.tallies[number].statistics()
    if number == 0 and content.is_classes:
        values = sorted(content.class_names)
        found['flag_values'] = values
        # of CF, which parts them by blanks
        found['flag_meanings'] = ' '.join('_'.join(content.class_names[value].split()) or '_' for value in values)
        found |= {f'class_{value}': content.class_names[value] for value in values}
        if content.colors:
            shades = ['#{:02x}{:02x}{:02x}'.format(*content.colors.get(value, (0, 0, 0))) for value in values]
            found['flag_colors'] = ' '.join(shades)
    return found


def _write_place(group: Any, geobox: GeoBox) -> None:
    """Write the grid mapping, and the coordinates of the middles of pixels where axes are those of the CRS."""
    transform = geobox.transform
    attributes: dict[str, Any] = {'GeoTransform': ' '.join(repr(float(number)) for number in transform.to_gdal())}
    if geobox.crs is not None:
        text = CRS.from_user_input(geobox.crs).to_wkt()
        attributes |= {'crs_wkt': text, 'spatial_ref': text}
    place = group.create_array(
        'spatial_ref', shape=(), dtype='int32', attributes={'_ARRAY_DIMENSIONS': [], **attributes}
    )
    place[...] = 0
    if transform.b or transform.d:
        return
    height, width = geobox.shape
    for name, start, step, length in (('y', transform.f, transform.e, height), ('x', transform.c, transform.a, width)):
        axis = group.create_array(
            name,
            shape=(length,),
            dtype='float64',
            fill_value=math.nan,
            attributes={'_ARRAY_DIMENSIONS': [name], 'standard_name': f'projection_{name}_coordinate'},
        )
        axis[...] = start + step * (np.arange(length) + 0.5)

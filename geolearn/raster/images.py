"""Write one small image, such as a chip, straight to its place: TIFF, PNG, JPEG or MRF."""

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError

from geolearn.errors import RasterError, UnknownNameError
from geolearn.raster._opening import open_quietly
from geolearn.raster.geobox import GeoBox
from geolearn.raster.stamping import find_stamp

SUFFIXES = {'TIFF': '.tif', 'PNG': '.png', 'JPEG': '.jpg', 'MRF': '.mrf'}
"""Image formats of ArcGIS's export tool and the suffix of each."""

_DRIVERS = {'TIFF': 'GTiff', 'PNG': 'PNG', 'JPEG': 'JPEG', 'MRF': 'MRF'}
_TIFF_COMPRESSIONS = ('none', 'deflate', 'lzw', 'zstd')


def check_image_format(image_format: str, *, compress: str, count: int, dtype: str) -> None:
    """Refuse an image format that cannot hold such pixels.

    Args:
        image_format: Key of `SUFFIXES`.
        compress: GDAL's name of a lossless compression of TIFF.
        count: Number of bands.
        dtype: numpy name of the pixels' type.

    Raises:
        UnknownNameError: If there is no such format or compression.
        RasterError: If the format holds other numbers of bands or other types.
    """
    if image_format not in SUFFIXES:
        raise UnknownNameError('image format', image_format, SUFFIXES)
    if compress not in _TIFF_COMPRESSIONS:
        raise UnknownNameError('compression', compress, _TIFF_COMPRESSIONS)
    if image_format in ('PNG', 'JPEG') and (count not in (1, 3) or dtype != 'uint8'):
        raise RasterError(
            f'{image_format} images hold 1 or 3 bands of uint8, but these have {count} of {dtype}; '
            "use image_format='TIFF'"
        )


def write_image(
    path: Path,
    pixels: np.ndarray,
    geobox: GeoBox | None,
    *,
    image_format: str = 'TIFF',
    compress: str = 'none',
    nodata: float | None = None,
    band_names: Sequence[str] = (),
    mask: np.ndarray | None = None,
) -> None:
    """Write an image in one go; a failure may leave a part of it, so write into a folder that is not in use yet.

    Args:
        path: Target file.
        pixels: (bands, height, width).
        geobox: Place of the image; None writes none.
        image_format: Key of `SUFFIXES`.
        compress: Compression of a TIFF.
        nodata: NoData value, or None.
        band_names: Description of each band.
        mask: (height, width), True where pixels are valid, stored inside a TIFF; None where the pixels themselves tell.

    Raises:
        RasterError: If the file cannot be written.
    """
    options = _options(image_format, compress, pixels)
    if image_format == 'TIFF' and compress == 'none' and mask is None:
        stamp = find_stamp(pixels, geobox, nodata=nodata, band_names=band_names, options=tuple(options.items()))
        if stamp is not None:
            try:
                stamp.write(path, pixels, None if geobox is None else geobox.transform)
            except OSError as error:
                raise RasterError(f'cannot write {path}: {error}. Is the disk full?') from error
            return
    profile: dict[str, Any] = {
        'driver': _DRIVERS[image_format],
        'count': pixels.shape[0],
        'height': pixels.shape[1],
        'width': pixels.shape[2],
        'dtype': str(pixels.dtype),
        'nodata': nodata,
        **options,
    }
    if geobox is not None:
        profile |= {'transform': geobox.transform, 'crs': _parse_crs(geobox.crs) if geobox.crs else None}
    try:
        dst = open_quietly(path, 'w', profile)
        try:
            for index, name in enumerate(band_names, 1):
                dst.set_band_description(index, name)
            dst.write(pixels)
            if mask is not None:
                with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                    dst.write_mask(mask)
        except BaseException:
            with suppress(
                RasterioError, CPLE_BaseError, OSError
            ):  # closing may fail for the reason that is on its way already
                dst.close()
            raise
        dst.close()
        _check_size(path)
    except (RasterioError, CPLE_BaseError, OSError, TypeError, ValueError) as error:
        raise RasterError(f'cannot write {path}: {error}. Is the disk full?') from error


def _check_size(path: Path) -> None:
    """Refuse an empty file: GDAL writes late, and may report a full disk to nobody."""
    if path.stat().st_size == 0:
        raise OSError('nothing was written')


def _options(image_format: str, compress: str, pixels: np.ndarray) -> dict[str, Any]:
    if image_format == 'JPEG':
        return {'quality': 95}
    if image_format == 'MRF':
        return {'compress': 'deflate', 'blocksize': 512}
    if image_format == 'PNG':
        return {'zlevel': 1}
    # raw pixels of a band lie together: GDAL copies whole planes, which is fastest to write and to read
    options: dict[str, Any] = {'interleave': 'band'}
    if compress != 'none':
        options |= {'compress': compress, 'predictor': 3 if pixels.dtype.kind == 'f' else 2}
        options |= {'zlevel': 1} if compress == 'deflate' else {'zstd_level': 1} if compress == 'zstd' else {}
        if pixels.dtype.itemsize > 4 and pixels.dtype.kind != 'f':
            del options['predictor']
    if len(pixels) > 1 and pixels.dtype in (np.uint8, np.uint16):
        options['photometric'] = 'minisblack' if len(pixels) != 3 else 'rgb'
        options['alpha'] = 'no'  # GDAL takes the fourth of four bytes for opacity unless told otherwise
    return options


@lru_cache(maxsize=8)
def _parse_crs(text: str) -> CRS:
    return CRS.from_user_input(text)

"""Read a small image whole: from one file, or from a file for each band, brought to one grid."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.windows import Window

from geolearn.errors import RasterError
from geolearn.raster.geobox import GeoBox, same_crs
from geolearn.raster.nodata import compact, is_number
from geolearn.raster.reading import open_raster, raster_geobox, read_window_masks


def read_stack(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray | None, GeoBox]:
    """Read all bands of a file, or several single-band files that cover the same ground, as one image.

    Files of coarser pixels are resampled to the finest of them: bilinear, since pixels are measurements.

    Returns:
        Pixels (bands, height, width) in the stored dtype; a mask of shape (bands, height, width) or (1, height, width),
        True where valid, or None where everything is; and the image's place.

    Raises:
        RasterError: If a file cannot be read, or several files do not cover the same ground.
    """
    if len(paths) == 1:
        with open_raster(paths[0]) as src:
            pixels, masks = read_window_masks(src, Window(0, 0, src.width, src.height), src.indexes)
            return pixels, masks, raster_geobox(src)
    place = _finest(paths)
    planes, masks = zip(*(_read_resampled(path, place) for path in paths))
    return np.stack(planes), compact(np.stack(masks)), place


def _finest(paths: Sequence[Path]) -> GeoBox:
    places = []
    for path in paths:
        with open_raster(path) as src:
            if src.count != 1:
                raise RasterError(f'{path} holds {src.count} bands; a file for each band holds one')
            places.append(raster_geobox(src))
    best = max(range(len(places)), key=lambda index: places[index].shape[0] * places[index].shape[1])
    finest = places[best]
    for path, box in zip(paths, places):
        if not same_crs(box.crs, finest.crs):
            raise RasterError(
                f'{path} has {_crs_text(box.crs)}, but {paths[best]} {_crs_text(finest.crs)}; '
                'warp them to one, or fetch again what is truncated'
            )
        apart = np.abs(np.subtract(box.bounds, finest.bounds)).max()
        if apart > 0.5 * max(finest.resolution):
            raise RasterError(
                f'{_place_text(path, box)}, but {_place_text(paths[best], finest)}: their edges lie up to {apart:g} '
                'map units apart; warp them to one extent, or fetch again what is truncated'
            )
    return finest


def _crs_text(crs: str | None) -> str:
    if crs is None:
        return 'no CRS'
    found = CRS.from_wkt(crs)
    code = found.to_epsg()
    return f'EPSG:{code}' if code else f'the CRS {crs}'


def _place_text(path: Path, box: GeoBox) -> str:
    width, height = box.resolution
    return f'{path} covers {box.bounds} in {box.shape[1]}x{box.shape[0]} pixels of {width:g} x {height:g}'


def _read_resampled(path: Path, place: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    with open_raster(path) as src:
        if (src.height, src.width) == place.shape:
            pixels, masks = read_window_masks(src, Window(0, 0, src.width, src.height), [1])
            return pixels[0], np.ones(place.shape, bool) if masks is None else masks[0]
        return _resample(src, place.shape)


def _resample(src: Any, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    try:
        plane = src.read(1, out_shape=shape, resampling=Resampling.bilinear)
        valid = src.read_masks(1, out_shape=shape, resampling=Resampling.nearest) > 0
    except RasterioError as error:
        raise RasterError(f'cannot read {src.name}: {error.__cause__ or error}') from error
    known = is_number(plane)
    return plane, valid if known is None else valid & known

"""Read a small image whole: from one file, or from a file for each band, brought to one grid."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rasterio.crs import CRS
from rasterio.windows import Window

from geolearn.errors import RasterError
from geolearn.raster.geobox import GeoBox, same_crs
from geolearn.raster.nodata import compact
from geolearn.raster.reading import open_raster, raster_geobox, read_window_masks
from geolearn.raster.resampling import ResampledRaster


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
        with open_raster(paths[0], chip=True) as src:
            pixels, masks = read_window_masks(src, Window(0, 0, src.width, src.height), src.indexes)
            return pixels, masks, raster_geobox(src)
    place = _finest(paths)
    planes, masks = zip(*(_read_resampled(path, place) for path in paths))
    return np.stack(planes), compact(np.stack(masks)), place


def _finest(paths: Sequence[Path]) -> GeoBox:
    places = []
    for path in paths:
        with open_raster(path, chip=True) as src:
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
    with open_raster(path, chip=True) as src:
        aligned = src if src.shape == place.shape else ResampledRaster(src, place)
        pixels, masks = read_window_masks(aligned, Window(0, 0, aligned.width, aligned.height), [1])
        return pixels[0], np.ones(place.shape, bool) if masks is None else masks[0]

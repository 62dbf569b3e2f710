"""Draw a raster and its map as tiles for a web map, in Web Mercator, with rio-tiler."""

import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from morecantile import Tile
from PIL import Image
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds
from rio_tiler import reader
from rio_tiler.colormap import cmap
from rio_tiler.constants import WEB_MERCATOR_TMS, WGS84_CRS

from geolearn.errors import GeoLearnError
from geolearn.networks.spec import ModelSpec
from geolearn.plotting.display import DisplayStretch, fit_stretch, natural_colors
from geolearn.raster import find_band_indexes, open_raster
from geolearn.raster.opening import open_quietly
from geolearn.serve.rasters import RefusedError

SIDE = 256
"""Pixels of a tile."""

PREVIEW = 512
"""Pixels of the longer side of what colors are fitted to."""

LEVELS_WITHOUT_OVERVIEWS = 4
"""A tile of a raster without overviews is read from up to 2**4 times as many pixels a side."""

MAX_ZOOM = 24

_RAMP = 'viridis'

_drawing = threading.Semaphore(2)
"""A tile may read tens of megabytes; more at a time take memory and no less time."""


@dataclass(frozen=True)
class Layer:
    """A raster as layer of a web map.

    Args:
        path: The file.
        bounds: West, south, east, north in degrees.
        min_zoom: Below it no tile is drawn.
        max_zoom: At it, pixels of tiles are as large as those of the raster.
    """

    path: Path
    bounds: tuple[float, float, float, float]
    min_zoom: int
    max_zoom: int

    def read(self, zoom: int, x: int, y: int, **options: Any) -> Any:
        """Read the pixels under a tile.

        Args:
            zoom: Of the tile.
            x: Its column.
            y: Its row, from the north.
            **options: Of `rio_tiler.reader.part`.

        Returns:
            rio-tiler's image of `SIDE` pixels a side.

        Raises:
            RefusedError: If there is no such tile.
        """
        if not (self.min_zoom <= zoom <= MAX_ZOOM and 0 <= x < 2**zoom and 0 <= y < 2**zoom):
            raise RefusedError(f'there is no tile {zoom}/{x}/{y}; zooms are {self.min_zoom} to {MAX_ZOOM}', 404)
        tms = WEB_MERCATOR_TMS
        tile_bounds = tms.xy_bounds(Tile(x, y, zoom))
        with _drawing, open_quietly(self.path) as dataset:
            return reader.part(
                dataset, tile_bounds, bounds_crs=tms.rasterio_crs, dst_crs=tms.rasterio_crs, width=SIDE, height=SIDE,
                **options,
            )  # fmt: skip

    def preview(self, **options: Any) -> Any:
        """Read the whole raster at few pixels, as rio-tiler's image; `options` are those of `rio_tiler.reader.read`."""
        with _drawing, open_quietly(self.path) as dataset:
            return reader.read(dataset, max_size=PREVIEW, **options)


def locate_layer(path: Path) -> Layer:
    """Find where on a web map a raster lies.

    Raises:
        RefusedError: If it has no CRS, or one that Web Mercator does not show.
    """
    with open_quietly(path) as dataset:
        if dataset.crs is None:
            raise RefusedError('the raster has no CRS, so that it has no place on a map; download the result', 409)
        try:
            bounds = transform_bounds(dataset.crs, WGS84_CRS, *dataset.bounds)
            left, _, right, _ = transform_bounds(dataset.crs, WEB_MERCATOR_TMS.rasterio_crs, *dataset.bounds)
            zoom = min(WEB_MERCATOR_TMS.zoom_for_res((right - left) / dataset.width), MAX_ZOOM)
        except (RasterioError, ValueError) as error:
            raise RefusedError('the raster lies outside of what a web map shows; download the result', 409) from error
        if not np.isfinite(bounds).all():
            raise RefusedError('the raster lies outside of what a web map shows; download the result', 409)
        lowest = 0 if dataset.overviews(1) or max(dataset.shape) <= 2 * SIDE else zoom - LEVELS_WITHOUT_OVERVIEWS
    west, south, east, north = bounds
    return Layer(path, (west, max(south, -85.0), east, min(north, 85.0)), max(lowest, 0), zoom)


class ImageTiles:
    """The image as people expect it: red, green and blue by wavelength, in one stretch.

    Args:
        path: The file.
        spec: Of the model that maps it; its bands are what colors are made of.
        options: With which it is mapped: ``bands``, ``sensor``, ``nodata``.

    Raises:
        RefusedError: If it has no place on a web map.
    """

    def __init__(self, path: Path, spec: ModelSpec, options: Mapping[str, Any]) -> None:
        self.layer, self._bands = locate_layer(path), spec.bands
        with open_raster(path) as raster:
            try:
                self._indexes = find_band_indexes(
                    raster, spec.bands, names=options.get('bands'), sensor=options.get('sensor')
                )
            except GeoLearnError:  # a file of several dates: the first one
                self._indexes = [min(index, raster.count) for index in range(1, len(spec.bands) + 1)]
        self._reading = {'indexes': self._indexes, 'nodata': options.get('nodata')}
        self._stretch: DisplayStretch = fit_stretch(_with_nan(self.layer.preview(**self._reading)), self._bands)

    def draw(self, zoom: int, x: int, y: int) -> bytes:
        """Return a tile as PNG, clear where there is no data."""
        image = self.layer.read(zoom, x, y, **self._reading, resampling_method='bilinear')
        pixels = _with_nan(image)
        colors = np.moveaxis(natural_colors(pixels, self._bands, self._stretch), -1, 0)
        return _png(np.round(255 * colors).astype(np.uint8), np.isfinite(pixels).all(0))


class MapTiles:
    """A map of classes in their colors, or of numbers in one ramp.

    Args:
        path: The map.
        spec: Of the model that made it.

    Raises:
        RefusedError: If it has no place on a web map.
    """

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        self.layer = locate_layer(path)
        self._table = np.zeros((1 + max((info.value for info in spec.class_infos), default=0), 4), np.uint8)
        for info in spec.class_infos:
            self._table[info.value] = *info.color, 255
        self.range: tuple[float, float] | None = None
        """Of a map of numbers: the values at the ends of the ramp."""
        if not spec.class_infos:
            values = self.layer.preview(indexes=[1]).array.compressed()
            values = values[np.isfinite(values)]
            low, high = np.percentile(values, [2, 98]) if values.size else (0.0, 1.0)
            self.range = float(low), float(high)

    def draw(self, zoom: int, x: int, y: int) -> bytes:
        """Return a tile as PNG, clear where there is no data."""
        image = self.layer.read(
            zoom, x, y, indexes=[1], resampling_method=Resampling.nearest.name, reproject_method='nearest'
        )
        pixels = image.array.data[0]
        valid = ~np.ma.getmaskarray(image.array)[0] & np.isfinite(pixels)
        if self.range is None:
            colors = self._table[np.where(valid, pixels, 0).clip(0, len(self._table) - 1).astype(int)]
            return _png(np.moveaxis(colors[..., :3], -1, 0), valid & (colors[..., 3] > 0))
        low, high = self.range
        share = np.where(valid, (np.where(valid, pixels, low) - low) / max(high - low, 1e-12), 0)
        ramp = cmap.get(_RAMP)
        table = np.array([ramp[step][:3] for step in range(256)], np.uint8)
        return _png(np.moveaxis(table[np.round(255 * share.clip(0, 1)).astype(np.uint8)], -1, 0), valid)


def ramp_colors(count: int = 5) -> list[str]:
    """Return evenly spaced colors of the ramp of numbers, as CSS has them, for a legend."""
    ramp = cmap.get(_RAMP)
    return ['#{:02x}{:02x}{:02x}'.format(*ramp[round(255 * step / (count - 1))][:3]) for step in range(count)]


def _with_nan(image: Any) -> np.ndarray:
    """Return the pixels (bands, H, W) of rio-tiler's image as float32, NaN where one band has no data."""
    pixels = image.array.data.astype(np.float32)
    pixels[:, np.ma.getmaskarray(image.array).any(0)] = np.nan
    return pixels


def _png(colors: np.ndarray, valid: np.ndarray) -> bytes:
    pixels = np.concatenate([colors, 255 * valid[None].astype(np.uint8)])
    target = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1))).save(target, 'PNG', compress_level=3)
    return target.getvalue()

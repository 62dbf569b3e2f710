"""A part of a raster, cut out while it is read: a window, and in it the pixels whose centers lie in polygons."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from rasterio.windows import Window

from geolearn import extras
from geolearn.raster.nodata import compact
from geolearn.raster.opening import burn_polygons
from geolearn.raster.raster import Raster, RasterView

Rings = Sequence[np.ndarray]
"""The outer ring (n, 2) of a polygon and its holes, in pixels: x = columns, y = rows."""


@dataclass(frozen=True, eq=False)
class PixelArea:
    """A part of a raster.

    Args:
        window: Columns and rows that hold all of it.
        polygons: In pixels of the raster; None where all of the window belongs to it.
    """

    window: Window
    polygons: Sequence[Rings] | None = None

    def digest(self) -> str:
        """Return a hash, in hex, of what belongs to it."""
        found = hashlib.blake2b(repr(self.window).encode(), digest_size=16)
        for ring in (ring for rings in self.polygons or () for ring in rings):
            found.update(np.ascontiguousarray(ring, np.float64).tobytes())
        return found.hexdigest()

    @cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest column and row (n, 2) of each polygon: each tile asks which of them lie near."""
        outer = [rings[0] for rings in self.polygons or ()]
        return np.array([ring.min(axis=0) for ring in outer]), np.array([ring.max(axis=0) for ring in outer])

    def mask(self, window: Window) -> np.ndarray | None:
        """Return which pixels (height, width) of a window of the raster belong to the area; None for all."""
        if self.polygons is None:
            return None
        shape = int(window.height), int(window.width)
        corner = np.array([window.col_off, window.row_off])
        low, high = self._bounds
        near = np.flatnonzero(((high > corner) & (low < corner + shape[::-1])).all(axis=1)).tolist()
        shapes = [
            {'type': 'Polygon', 'coordinates': [(ring - corner).tolist() for ring in self.polygons[number]]}
            for number in near
        ]
        inside: np.ndarray = burn_polygons([(shape, 1) for shape in shapes], shape) > 0
        return None if inside.all() else inside

    def holds(self, points: np.ndarray) -> np.ndarray:
        """Return which points (n, 2), columns and rows in pixels, lie in the area."""
        window = self.window
        low = np.array([window.col_off, window.row_off])
        high = np.add(low, (window.width, window.height))
        inside: np.ndarray = ((points >= low) & (points < high)).all(axis=1)
        if self.polygons is not None and inside.any():
            shapely = extras.require('shapely', extra='vector', to='find objects in an area of interest')
            whole = shapely.MultiPolygon([(rings[0], rings[1:]) for rings in self.polygons])
            shapely.prepare(whole)
            inside &= shapely.intersects_xy(whole, *points.T)
        return inside


class CroppedRaster(RasterView):
    """A part of a raster; what lies in its window but not in its polygons lacks data.

    Args:
        raster: The whole.
        area: The part.
    """

    def __init__(self, raster: Raster, area: PixelArea) -> None:
        window = area.window
        self.area = area
        height, width = int(window.height), int(window.width)
        super().__init__(
            raster,
            raster.geobox.crop(int(window.row_off), int(window.col_off), (height, width)),
            block_shapes=[(min(rows, height), min(cols, width)) for rows, cols in raster.block_shapes],
        )
        self.gcps, self.rpcs = raster.gcps, raster.rpcs

    def read_masked(
        self, window: Window, indexes: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window that lies inside the part."""
        corner = self.area.window
        inner = Window(window.col_off + corner.col_off, window.row_off + corner.row_off, window.width, window.height)
        pixels, mask = self._raster.read_masked(inner, indexes, out)
        inside = self.area.mask(inner)
        if inside is None:
            return pixels, mask
        return pixels, compact(inside[None] if mask is None else mask & inside)

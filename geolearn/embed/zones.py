"""Pool the tokens of a raster over zones: the polygons, lines and points of a vector layer."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from geolearn import errors, extras
from geolearn.embed import images
from geolearn.embed.embeddings import VECTOR_COLUMN, write_features
from geolearn.embed.encoder import Encoder, Pooling
from geolearn.inference import map_progress
from geolearn.inference.classify_polygons import pixel_bounds, pixel_outlines, read_polygons
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.inference.plan import Part
from geolearn.inference.source import Source
from geolearn.raster.area import PixelArea
from geolearn.raster.opening import burn_polygons

log = logging.getLogger('geolearn')

PARTS = 8
"""Parts of a token, down and across, by which the share of it that a zone covers is counted."""


class ZoneStore:
    """Takes the rows of a grid, and adds up the vectors of each zone.

    Args:
        outlines: Geometries (zones,) in tokens of the grid of the whole raster.
        dimensions: Of the vectors.
        parts: What the grid is computed in.
        pooling: ``'mean'`` or ``'max'``.
    """

    def __init__(self, outlines: np.ndarray, dimensions: int, parts: Sequence[Part], pooling: Pooling) -> None:
        self.next_rows = [part.top for part in parts]
        self._parts, self._outlines, self._most = parts, outlines, pooling == 'max'
        self._bounds = pixel_bounds(outlines)
        self._sums = np.full((len(outlines), dimensions), -np.inf if self._most else 0, np.float32)
        self._weights = np.zeros(len(outlines))

    def write(self, part: int, row: int, pixels: Sequence[np.ndarray]) -> None:
        """Take rows of a part."""
        (values,), left = pixels, int(self._parts[part].core.col_off)
        rows, columns = values.shape[1:]
        low, high = np.array([left, row]), np.array([left + columns, row + rows])
        near = ((self._bounds[:, 2:] >= low) & (self._bounds[:, :2] <= high)).all(axis=1)
        for number in np.flatnonzero(near):
            window = _window(self._bounds[number], low, high)
            if window is None:
                continue
            top, first = int(window.row_off) - row, int(window.col_off) - left
            inside = values[:, top : top + int(window.height), first : first + int(window.width)]
            vectors = inside.reshape(len(values), -1)
            share = coverage(self._outlines[number], window).ravel()
            share[~np.isfinite(vectors).all(axis=0)] = 0
            known = share > 0
            if not known.any():
                continue
            if self._most:
                np.maximum(self._sums[number], vectors[:, known].max(axis=1), out=self._sums[number])
            else:
                self._sums[number] += vectors[:, known] @ share[known].astype(np.float32)
            self._weights[number] += share[known].sum()

    def pooled(self) -> np.ndarray:
        """Return the vector of each zone, (zones, dimensions); NaN where the raster has no data."""
        empty = self._weights == 0
        vectors = self._sums.copy() if self._most else self._sums / np.maximum(self._weights, 1e-12)[:, None]
        vectors[empty] = np.nan
        return vectors.astype(np.float32)


def _window(bounds: np.ndarray, low: np.ndarray, high: np.ndarray) -> Window | None:
    """Return the tokens of a block that the bounds of a zone reach into."""
    first = np.maximum(np.floor(bounds[:2]), low).astype(int)
    # a point on the edge between two tokens lies in the second
    last = np.minimum(np.maximum(np.ceil(bounds[2:]), np.floor(bounds[2:]) + (bounds[:2] == bounds[2:])), high)
    size = last.astype(int) - first
    return Window(*first.tolist(), *size.tolist()) if (size > 0).all() else None


def coverage(outline: Any, window: Window) -> np.ndarray:
    """Return the share of each token of a window (height, width) that a geometry in tokens covers, by `PARTS`."""
    shapely = extras.require('shapely', extra='vector', to='embed zones')
    corner = np.array([window.col_off, window.row_off])
    moved = shapely.transform(outline, lambda points: (points - corner) * PARTS)
    height, width = int(window.height), int(window.width)
    burnt = burn_polygons([(moved, 1)], (height * PARTS, width * PARTS)) > 0
    share: np.ndarray = burnt.reshape(height, PARTS, width, PARTS).mean(axis=(1, 3))
    return share


def place_zones(outlines: np.ndarray, stride: int) -> np.ndarray:
    """Bring geometries from pixels to tokens; polygons that no part of a token has its middle in become points."""
    shapely = extras.require('shapely', extra='vector', to='embed zones')
    placed = shapely.transform(outlines, lambda points: points / stride)
    area, bounds = shapely.area(placed), pixel_bounds(placed)
    for number in np.flatnonzero((shapely.get_dimensions(placed) == 2) & (area < 1) & ~np.isnan(bounds[:, 0])):
        low, high = np.floor(bounds[number, :2]), np.ceil(bounds[number, 2:])
        if (high - low).max() > PARTS * PARTS or not coverage(placed[number], Window(*low, *(high - low))).any():
            placed[number] = shapely.point_on_surface(placed[number])
    return placed


def find_area(outlines: np.ndarray, stride: int, shape: tuple[int, int]) -> PixelArea:
    """Return the pixels of all tokens that zones reach into.

    Args:
        outlines: Geometries in tokens.
        stride: Pixels for each token.
        shape: Height and width of the raster.

    Raises:
        RasterError: If no zone lies within the raster.
    """
    bounds = pixel_bounds(outlines)
    limit = np.array([math.ceil(shape[1] / stride), math.ceil(shape[0] / stride)])
    low = np.maximum(np.floor(bounds[:, :2]), 0)
    high = np.minimum(np.floor(bounds[:, 2:]) + 1, limit)
    inside = (high > low).all(axis=1)
    if not inside.any():
        raise errors.RasterError('no zone lies within the raster; check the CRS of both, and the order of x and y')
    corners = np.hstack([low, high])[inside] * stride
    corners = np.unique(corners, axis=0)
    rings = [[np.array([[x, y], [x, b], [r, b], [r, y], [x, y]])] for x, y, r, b in corners]
    left, top = corners[:, :2].min(axis=0)
    right, bottom = np.minimum(corners[:, 2:].max(axis=0), [shape[1], shape[0]])
    return PixelArea(Window(int(left), int(top), int(right - left), int(bottom - top)), rings)


def name_zones(frame: Any) -> Any:
    """Return zones with a name each: of the column ``name`` or, where it has none, the number of the row.

    Raises:
        ArgumentError: If a column is called as that of the vectors.
    """
    if VECTOR_COLUMN in frame.columns:
        raise errors.ArgumentError(
            f'zones have a column {VECTOR_COLUMN!r}, which is that of the vectors here; rename it or leave it out'
        )
    if 'name' not in frame.columns:
        frame = frame.copy()
        frame.insert(0, 'name', [str(label) for label in frame.index])
        return frame
    missing = frame['name'].isna()
    if missing.any():
        log.warning('%s of %s zones have no name; the numbers of their rows are taken', int(missing.sum()), len(frame))
        numbered = [str(label) if gone else str(name) for label, gone, name in zip(frame.index, missing, frame['name'])]
        frame = frame.assign(name=numbered)
    return frame


def pool_zones(
    encoder: Encoder,
    source: Source,
    zones: Any,
    dst: Path,
    *,
    read: ReadOptions,
    tiling: TilingOptions,
    layer: str | None = None,
    pooling: Pooling = 'mean',
    progress: map_progress.ProgressFn | None = None,
) -> Path:
    """Write the zones of a layer with a vector each, as GeoParquet; tiles without a zone are not computed.

    Args:
        encoder: Of the raster's bands.
        source: The open raster.
        zones: A vector file or GeoDataFrame.
        dst: File to write.
        read: How stored values become the encoder's units.
        tiling: How tiles are cut.
        layer: Of the file of zones; None takes the only one.
        pooling: ``'mean'`` or ``'max'``.
        progress: Called after each batch of tiles.

    Raises:
        ArgumentError: If a column of the zones is called as that of the vectors.
        RasterError: If no zone lies within the raster, or one of the two names no CRS.
        FileWriteError: If the file cannot be written.
        MissingExtraError: If the libraries of the extra ``vector`` are not installed.
    """
    if dst.suffix.lower() not in ('.parquet', '.geoparquet'):  # before hours of work
        raise errors.FileWriteError(f'zones are written as GeoParquet: {dst} must end in .parquet or .geoparquet')
    extras.require('pyarrow', extra='vector', to='write GeoParquet')
    frame = name_zones(read_polygons(zones, layer))
    stride = encoder.network.stride
    outlines = place_zones(pixel_outlines(frame, source.box), stride)
    area = find_area(outlines, stride, source.shape)
    store: ZoneStore = images.stream_grid(
        encoder,
        source,
        lambda dimensions, _, parts: ZoneStore(outlines, dimensions, parts, pooling),
        read=read,
        tiling=tiling,
        area=area,
        progress=progress,
    )
    vectors = store.pooled()
    empty = int(np.isnan(vectors[:, 0]).sum())
    if empty:
        log.warning('%s of %s zones lie outside of the raster or where it has no data; they are NaN', empty, len(frame))
    frame = frame.assign(**{VECTOR_COLUMN: list(vectors)})
    return write_features(frame, replace(encoder.source, pooling=pooling), dst)

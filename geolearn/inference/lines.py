"""Turn maps of probabilities into center lines: roads, rivers, edges of fields, a strip of rows at a time."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rasterio.windows import Window

from geolearn import errors, extras, progress
from geolearn.classes import ClassInfo
from geolearn.inference.vectors import check_vector_target, write_layer
from geolearn.raster import GeoBox, open_raster, read_window, require_place
from geolearn.raster.centerlines import LineGraph, bridge, drop_short, line_length, merge_nodes, prune, thin, trace

log = logging.getLogger('geolearn')

STRIP_PIXELS = 2**22
"""Pixels that are thinned at once: some hundred megabytes."""

LEAST_SPUR = 3.0
"""Pixels below which a spur says nothing, however narrow its line is."""


@dataclass(frozen=True)
class LineOptions:
    """How probabilities become lines; lengths are in pixels of the map.

    Args:
        threshold: Lowest probability of a line's pixel, 0..1.
        min_length: What is connected and shorter, all its lines together, is left out.
        simplify: By how much lines may move to have fewer points; 0 leaves them as they are.
        bridge: Longest gap between two ends that point at each other (within 30 degrees) and become one line.
        most_width: What is wider is no line, and is left out.

    Raises:
        ValueError: If a number is out of its range.
    """

    threshold: float = 0.5
    min_length: float = 20.0
    simplify: float = 1.0
    bridge: float = 20.0
    most_width: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f'threshold must be above 0 and at most 1, got {self.threshold}')
        for name in ('min_length', 'simplify', 'bridge'):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f'{name} must be a number of pixels from 0, got {getattr(self, name)}')
        if not 2 <= self.most_width <= 512:
            raise ValueError(f'most_width must be in 2..512 pixels, got {self.most_width}')


class CenterPixels(NamedTuple):
    """The pixels of center lines.

    Args:
        rows: (n,) int64.
        cols: (n,) int64.
        scores: (n,) float32 probability.
        radii: (n,) float32 pixels to the nearest pixel that is no line.
    """

    rows: np.ndarray
    cols: np.ndarray
    scores: np.ndarray
    radii: np.ndarray


def vectorize_lines(
    probabilities: str | Path, dst: str | Path, bands: Mapping[int, ClassInfo], options: LineOptions
) -> Path:
    """Write the center lines of a map of probabilities as a layer.

    Memory holds a strip of rows, and the pixels of the center lines of one class.

    Args:
        probabilities: Raster, such as `predict_raster` writes with ``outputs=['probabilities']``.
        dst: Layer to write.
        bands: Class of each 1-based band that holds lines.
        options: How probabilities become lines.

    Returns:
        The path written. Columns: ``Class`` (name), ``value``, ``length`` and ``width`` (in units of the CRS; meters
        where these are degrees) and ``Confidence`` (mean probability in percent); the longest first.

    Raises:
        RasterError: If the map has no place that `dst` can state.
        FileWriteError: If `dst` cannot be written; no part of it is left.
    """
    import pandas as pd  # late: its import takes part of a second

    target = check_vector_target(dst)
    with open_raster(probabilities) as src:
        require_place(src)
        box: GeoBox = src.geobox
        if target.suffix.lower() == '.geojson' and box.crs is None:
            raise errors.RasterError(f'GeoJSON is in WGS84, but {src.name} names no CRS; write a .gpkg instead')
        with progress.ProgressBar(src.height * len(bands), 'tracing lines', 'row') as bar:
            frames = [
                make_features(find_center_pixels(src, band, options, bar), info, box, options)
                for band, info in bands.items()
            ]
    frame = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
    frame = frame.sort_values('length', ascending=False, kind='stable', ignore_index=True)
    if not len(frame):
        log.warning('%s holds no line of at least %g pixels', probabilities, options.min_length)
    return write_layer(frame, target, geometry_type='LineString')


def find_center_pixels(src: Any, band: int, options: LineOptions, bar: progress.ProgressBar) -> CenterPixels:
    """Thin a band of probabilities, strip by strip; the result does not depend on where strips begin.

    Args:
        src: From `open_raster`.
        band: 1-based.
        options: How probabilities become lines.
        bar: Moves by the rows.
    """
    steps = -(-options.most_width // 2)
    halo = 2 * steps + 2
    rows = max(halo, STRIP_PIXELS // (src.width + 2 * halo) - 2 * halo)
    parts = [_center_pixels(*strip, options, steps, halo) for strip in _strips(src, band, rows, halo, bar)]
    return CenterPixels(*(np.concatenate(column) for column in zip(*parts)))


def _strips(
    src: Any, band: int, rows: int, halo: int, bar: progress.ProgressBar
) -> Iterator[tuple[int, np.ndarray, slice]]:
    """Yield row numbers, probabilities with `halo` rows and columns around, and which of the rows are wanted."""
    scale = (src.scales or (1.0,) * src.count)[band - 1] or 1.0
    for top in range(0, src.height, rows):
        bottom = min(top + rows, src.height)
        first, last = max(top - halo, 0), min(bottom + halo, src.height)
        pixels, valid = read_window(src, Window(0, first, src.width, last - first), [band])
        shares = pixels[0].astype(np.float32) * np.float32(scale)
        shares = np.nan_to_num(shares if valid is None else np.where(valid, shares, 0))
        # beyond the edge the raster is taken to go on: lines that leave it reach the edge
        around = (halo - (top - first), halo - (last - bottom)), (halo, halo)
        yield top, np.pad(shares, around, 'edge'), slice(halo, halo + bottom - top)
        bar.update(bottom - top)


def _center_pixels(
    top: int, shares: np.ndarray, wanted: slice, options: LineOptions, steps: int, halo: int
) -> CenterPixels:
    from scipy import ndimage  # late: its import takes part of a second

    # stored in steps of 0.004: half of one is no difference; 0 is also where there is no data
    mask = (shares >= options.threshold - 0.002) & (shares > 0)
    inner = np.s_[wanted, halo:-halo]
    if not mask[inner].any():
        nothing = np.zeros(0, np.int64)
        return CenterPixels(nothing, nothing, np.zeros(0, np.float32), np.zeros(0, np.float32))
    middle = thin(mask, most_steps=steps)[inner]
    rows, cols = np.nonzero(middle)
    radii = ndimage.distance_transform_edt(mask)[inner][rows, cols]
    return CenterPixels(rows + top, cols, shares[inner][rows, cols], radii.astype(np.float32))


class _Lookup:
    """Finds what is known of center pixels by points in them."""

    def __init__(self, pixels: CenterPixels) -> None:
        self._width = int(pixels.cols.max(initial=0)) + 2
        keys = pixels.rows * self._width + pixels.cols
        order = np.argsort(keys)
        self._keys, self._scores, self._radii = keys[order], pixels.scores[order], pixels.radii[order]

    def find(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and radii of those of the points (k, 2) that are pixels of a center line."""
        cols, rows = np.floor(points).astype(np.int64).T
        keys = rows * self._width + cols
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        places = places[self._keys[places] == keys]
        return self._scores[places], self._radii[places]


def connect_lines(pixels: CenterPixels, options: LineOptions) -> LineGraph:
    """Return the lines of center pixels: without spurs, with gaps bridged, and without short ones."""
    graph = merge_nodes(trace(pixels.rows, pixels.cols))
    if not len(graph.lines):
        return graph
    lookup, widths = _Lookup(pixels), np.full(len(graph.nodes), LEAST_SPUR)
    for pair, line in zip(graph.ends, graph.lines):
        for node, points in ((pair[0], line[:3]), (pair[1], line[-3:])):
            radii = lookup.find(points)[1]
            widths[node] = max(widths[node], 2 * radii.max(initial=0))
    graph = prune(graph, widths)
    return drop_short(bridge(graph, options.bridge), options.min_length)


def make_features(pixels: CenterPixels, info: ClassInfo, box: GeoBox, options: LineOptions) -> Any:
    """Make a GeoDataFrame of the center lines of a class."""
    import pandas as pd  # late: its import takes part of a second

    geopandas = extras.require('geopandas', extra='vector', to='write lines')
    shapely = extras.require('shapely', extra='vector', to='write lines')
    graph = connect_lines(pixels, options)
    lookup = _Lookup(pixels)
    scores, widths = np.zeros(len(graph.lines)), np.zeros(len(graph.lines))
    for number, line in enumerate(graph.lines):
        found, radii = lookup.find(line)
        scores[number] = found.mean() if len(found) else math.nan
        widths[number] = 2 * radii.mean() - 1 if len(found) else math.nan
    shapes = np.array([shapely.linestrings(line) for line in graph.lines], object)
    lengths = np.array([line_length(line) for line in graph.lines])
    if len(shapes) and options.simplify:
        shapes = shapely.simplify(shapes, options.simplify)
    placed = _place_lines(shapes, box) if len(shapes) else shapes
    frame = geopandas.GeoDataFrame(
        {
            # the type of text is said, for a column without rows cannot show it
            'Class': pd.array([info.name] * len(shapes), 'string'),
            'value': np.full(len(shapes), info.value, np.int32),
        },
        geometry=geopandas.GeoSeries(placed, crs=box.crs),
    )
    # of the lines as they were traced: pixels of a map need not be squares, so widths follow the lines
    exact = geopandas.GeoSeries(
        _place_lines(np.array([shapely.linestrings(line) for line in graph.lines], object), box), crs=box.crs
    )
    measured = _lengths(exact)
    frame.insert(2, 'length', _lengths(frame.geometry))
    frame.insert(3, 'width', np.round(widths * measured / np.maximum(lengths, 1e-9), 3))
    frame.insert(4, 'Confidence', np.round(100 * scores, 2))
    return frame


def _place_lines(shapes: np.ndarray, box: GeoBox) -> np.ndarray:
    """Bring lines (n,) from pixels to map coordinates; their direction stays."""
    shapely = extras.require('shapely', extra='vector', to='write lines')
    t = box.transform

    def place(points: np.ndarray) -> np.ndarray:
        x, y = points.T
        return np.stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f], axis=1)

    placed: np.ndarray = shapely.transform(shapes, place) if len(shapes) else shapes
    return placed


def _lengths(lines: Any) -> np.ndarray:
    """Return the length of each line of a GeoSeries in units of its CRS; in meters where it has degrees."""
    if lines.crs is None or not lines.crs.is_geographic:
        flat: np.ndarray = lines.length.to_numpy(np.float64)
        return flat
    ellipsoid = lines.crs.get_geod()
    return np.array([ellipsoid.geometry_length(line) for line in lines], np.float64)


def choose_line_bands(
    class_infos: Sequence[ClassInfo], classes: Sequence[int] | None, known: Sequence[int]
) -> dict[int, ClassInfo]:
    """Return the bands of a map of probabilities that hold lines.

    Args:
        class_infos: Of the model; position is band less 1.
        classes: Label values of the classes that are lines, as a user gave them; None for what is clear.
        known: Indices of the classes that the model's loss knows as lines.

    Raises:
        ValueError: If there is no such class, or it is not clear which are lines.
    """
    values = [info.value for info in class_infos]
    if classes is not None:
        if not classes or (missing := sorted(set(classes) - set(values))):
            raise ValueError(f'classes must be among the label values {values}, got {list(classes) or missing}')
        return {values.index(value) + 1: class_infos[values.index(value)] for value in classes}
    if known:
        return {index + 1: class_infos[index] for index in known}
    if 0 in values:
        return {index + 1: info for index, info in enumerate(class_infos) if info.value}
    raise ValueError(
        f'it is not clear which classes are lines: none of the label values {values} is 0, which would be the others; '
        'pass classes='
    )

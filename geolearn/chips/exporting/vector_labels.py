"""Read vector labels: any file that OGR reads, GeoDataFrames, or a layer for each class."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from geolearn.chips.exporting.features import Features, areal, invert, move, need_shapely
from geolearn.chips.exporting.naming import Naming, class_values
from geolearn.chips.exporting.placement import NothingThereError
from geolearn.classes import ClassInfo
from geolearn.errors import ChipFolderError
from geolearn.extras import require
from geolearn.raster import GeoBox

SUFFIXES = frozenset(
    '.shp .gpkg .geojson .geojsonl .json .topojson .fgb .gml .kml .kmz .gpx .gdb .tab .mif .dxf .dgn .parquet '
    '.geoparquet .arrow .sqlite .csv .zip .ods .xlsx .osm .pbf'.split()
)


class Layer(NamedTuple):
    """A table of features; `name` is their class where the user said so."""

    name: str | None
    frame: Any
    shown: str


@dataclass(frozen=True, eq=False)
class VectorLabels:
    """Features in the raster's pixels, their classes, and what was left out of them."""

    features: Features
    classes: tuple[ClassInfo, ...]
    notes: tuple[str, ...]


def is_vector(labels: Any, layer: str | None) -> bool:
    """Whether labels are vectors: a GeoDataFrame, a mapping of them, or a file with such a suffix."""
    if isinstance(labels, Mapping) or hasattr(labels, 'geometry'):
        return True
    return isinstance(labels, str | Path) and (layer is not None or Path(labels).suffix.lower() in SUFFIXES)


def place_vectors(
    layers: Sequence[Layer], box: GeoBox, naming: Naming, *, crs: str | None, buffer_radius: float | None
) -> VectorLabels:
    """Bring features to the raster's CRS and then to its pixels.

    Args:
        layers: Tables from `read_layers`.
        box: Place of the raster.
        naming: Which fields hold the classes.
        crs: CRS of labels that name none.
        buffer_radius: Map units by which features grow; points and lines need it.

    Raises:
        NothingThereError: If features and raster do not overlap.
        ChipFolderError: If something cannot be placed, or no feature remains; the message says why.
    """
    counts: dict[str, int] = {}
    parts = [_place(item, box, crs, buffer_radius, counts) for item in layers]
    values, classes = class_values([(item, part[1]) for item, part in zip(layers, parts)], naming, counts)
    geometry = np.concatenate([part[0] for part in parts])
    kept = values > 0
    shown = ', '.join(item.shown for item in layers)
    if not kept.any():
        told = '; '.join(f'{count} {what}' for what, count in counts.items())
        raise ChipFolderError(f'{shown}: no feature can be used ({told or "it is empty"})')
    features = Features(move(geometry[kept], invert(box.transform)), values[kept])
    _check_overlap(need_shapely().total_bounds(geometry[kept]), box, shown)
    return VectorLabels(features, classes, tuple(f'{shown}: {count} {what}' for what, count in counts.items()))


def place_areas(layers: Sequence[Layer], box: GeoBox, crs: str | None) -> Any:
    """Return polygons as one geometry in pixels of the raster."""
    parts = [_place(item, box, crs, None, {})[0] for item in layers]
    return need_shapely().union_all(move(np.concatenate(parts), invert(box.transform)))


def read_layers(labels: Any, layer: str | None) -> Iterator[Layer]:
    """Yield tables of features.

    Args:
        labels: File, GeoDataFrame, or a mapping from class name to file, (file, layer) or GeoDataFrame.
        layer: Layer of the file.

    Raises:
        ChipFolderError: If something cannot be read; the message says why.
    """
    if not isinstance(labels, Mapping):
        yield _layer(None, labels, layer)
        return
    if not labels:
        raise ChipFolderError('labels is an empty mapping; name at least one class')
    for name, source in labels.items():
        pair = isinstance(source, tuple) and len(source) == 2
        yield _layer(str(name), *(source if pair else (source, layer)))


def _layer(name: str | None, source: Any, layer: str | None) -> Layer:
    geopandas = require('geopandas', extra='vector', to='read vector labels')
    if hasattr(source, 'geometry'):
        return Layer(name, source, f'labels of {name}' if name else 'labels')
    if not isinstance(source, str | Path):
        raise ChipFolderError(f'labels of type {type(source).__name__} cannot be read; pass a file or a GeoDataFrame')
    pyogrio = require('pyogrio', extra='vector', to='read vector labels')
    path = Path(source)
    try:
        if path.suffix.lower() in ('.parquet', '.geoparquet'):
            return Layer(name, geopandas.read_parquet(path), str(path))
        names = [str(found) for found, kind in pyogrio.list_layers(path) if kind is not None]
        if layer is None and len(names) > 1:
            raise ChipFolderError(
                f'{path} holds several layers: {", ".join(names)}. Name one with layer=, or where each is a class pass '
                f'labels={{class name: (file, layer), ...}}'
            )
        if layer is not None and layer not in names:
            raise ChipFolderError(f'{path} has no layer {layer!r}; it holds {", ".join(names) or "none"}')
        frame = geopandas.read_file(path, layer=layer or (names[0] if names else None))
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError, ValueError) as error:
        if isinstance(error, ChipFolderError):
            raise
        raise ChipFolderError(f'cannot read labels {path}: {error}') from error
    if not hasattr(frame, 'geometry'):
        raise ChipFolderError(f'{path} has no geometries; labels are polygons, or points with buffer_radius=')
    return Layer(name, frame, f'{path} ({layer})' if layer else str(path))


def _place(
    layer: Layer, box: GeoBox, crs: str | None, buffer_radius: float | None, counts: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the layer's usable polygons in the raster's CRS, and the rows that they come from."""
    shapely, frame = need_shapely(), _project(layer, box, crs)
    geometry = shapely.force_2d(np.asarray(frame.geometry.values, dtype=object))
    rows = _count(~(shapely.is_missing(geometry) | shapely.is_empty(geometry)), 'features without geometry', counts)
    broken = ~shapely.is_valid(geometry[rows])
    if broken.any():
        geometry[rows[broken]] = shapely.make_valid(geometry[rows[broken]])
        _add(counts, 'invalid polygons were repaired', int(broken.sum()))
    if buffer_radius is not None:
        geometry[rows] = shapely.buffer(geometry[rows], buffer_radius)
    geometry[rows] = [areal(item) for item in geometry[rows]]
    flat = shapely.get_dimensions(geometry[rows]) < 2
    if (flat & ~broken).any() and buffer_radius is None:
        kind = geometry[rows][flat & ~broken][0].geom_type
        raise ChipFolderError(
            f'{layer.shown}: {int(flat.sum())} features are no polygons but e.g. {kind}; pass buffer_radius= in units '
            'of the raster to make areas of points and lines'
        )
    usable = np.isfinite(shapely.bounds(geometry[rows])).all(axis=1) & (shapely.area(geometry[rows]) > 0)
    return geometry[rows[usable]], rows[_count(usable, 'features of no area or outside the CRS', counts)]


def _project(layer: Layer, box: GeoBox, crs: str | None) -> Any:
    frame = layer.frame
    if frame.crs is not None and box.crs is None:
        raise ChipFolderError(
            f'{layer.shown} lies in {frame.crs.name}, but the raster has no CRS; georeference the raster, or pass '
            'labels without CRS in the coordinates of the raster'
        )
    if frame.crs is None and crs is not None:
        frame = frame.set_crs(crs)
    elif frame.crs is not None and crs is not None and frame.crs != crs:
        raise ChipFolderError(f'{layer.shown} says that it lies in {frame.crs.name}, not in {crs}; drop labels_crs=')
    if frame.crs is None and box.crs is not None:
        raise ChipFolderError(
            f'{layer.shown} names no CRS, so its place is unknown; pass labels_crs=, such as labels_crs="EPSG:4326"'
        )
    return frame if box.crs is None else frame.to_crs(box.crs)


def _check_overlap(bounds: np.ndarray, box: GeoBox, shown: str) -> None:
    left, bottom, right, top = box.bounds
    if bounds[0] >= right or bounds[2] <= left or bounds[1] >= top or bounds[3] <= bottom:
        ours, theirs = (', '.join(f'{number:.6g}' for number in numbers) for numbers in (box.bounds, bounds))
        raise NothingThereError(
            f'{shown} and the raster do not overlap: in the CRS of the raster (left, bottom, right, top) the raster '
            f'covers {ours} and the labels {theirs}. Is the CRS of one of them wrong?'
        )


def _count(kept: np.ndarray, what: str, counts: dict[str, int]) -> np.ndarray:
    _add(counts, f'{what} were left out', int((~kept).sum()))
    return np.flatnonzero(kept)


def _add(counts: dict[str, int], what: str, count: int) -> None:
    if count:
        counts[what] = counts.get(what, 0) + count

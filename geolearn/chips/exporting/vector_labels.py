"""Read vector labels: any file that OGR reads, GeoDataFrames, or a layer for each class."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from affine import Affine

from geolearn import errors, extras
from geolearn.bands import Band
from geolearn.chips.exporting.placement import Cutout, NothingThereError
from geolearn.chips.formats.styles import ClassStyle
from geolearn.classes import ClassInfo, color_classes, tidy_name
from geolearn.raster import GeoBox
from geolearn.raster.geobox import apply_affine
from geolearn.raster.opening import DRIVERS

_PURPOSE = 'export vector labels'


def need_shapely() -> Any:
    """Return shapely, or say how to install it."""
    return extras.require('shapely', extra='vector', to=_PURPOSE)


@dataclass(frozen=True, eq=False)
class Clipped:
    """The features in one chip, in the order of their file.

    Args:
        geometry: (n,) polygons in pixels of the chip, clipped to it.
        class_ids: (n,) int64 class values.
        shares: (n,) how much of each feature's area is in the chip, 0..1.
        whole: (n,) whether all of the feature is.
        sources: (n,) the features before they were clipped, in pixels of the raster.
        to_chip: Affine from the raster's pixels to the chip's.
    """

    geometry: np.ndarray
    class_ids: np.ndarray
    shares: np.ndarray
    whole: np.ndarray
    sources: np.ndarray
    to_chip: Affine

    def select(self, kept: np.ndarray) -> 'Clipped':
        """Return some of the features, by boolean mask."""
        return replace(
            self,
            geometry=self.geometry[kept],
            class_ids=self.class_ids[kept],
            shares=self.shares[kept],
            whole=self.whole[kept],
            sources=self.sources[kept],
        )

    @property
    def uncut(self) -> np.ndarray:
        """The features (n,) in pixels of the chip, whole."""
        return move(self.sources, self.to_chip)


class Features:
    """Polygons in pixels of the raster (x = columns), with class values and a search tree.

    Args:
        geometry: (n,) shapely polygons and multipolygons with area.
        values: (n,) int64 class values.
    """

    def __init__(self, geometry: np.ndarray, values: np.ndarray) -> None:
        shapely = need_shapely()
        self.geometry, self.class_ids = geometry, values
        self.bounds: np.ndarray = shapely.bounds(geometry).reshape(-1, 4)
        self._areas, self._tree = shapely.area(geometry), shapely.STRtree(geometry)

    def __len__(self) -> int:
        return len(self.class_ids)

    def touching(self, cutouts: Sequence[Cutout]) -> list[int]:
        """Return the positions of the cutouts that touch any feature."""
        outlines = need_shapely().polygons(np.array([cutout.corners() for cutout in cutouts]).reshape(-1, 4, 2))
        found: list[int] = np.unique(self._tree.query(outlines, predicate='intersects')[0]).tolist()
        return found

    def cut(self, cutout: Cutout) -> Clipped:
        """Return the features that share an area with a cutout, or the one that the cutout was made for."""
        shapely = need_shapely()
        outline = shapely.polygons(cutout.corners())
        found = np.sort(self._tree.query(outline)) if cutout.feature is None else np.array([cutout.feature])
        bounds = self.bounds[found]
        low, high = cutout.corners().min(axis=0), cutout.corners().max(axis=0)
        whole = (bounds[:, :2] >= low).all(axis=1) & (bounds[:, 2:] <= high).all(axis=1) & (cutout.turn is None)
        geometry = self.geometry[found]
        geometry[~whole] = [areal(part) for part in shapely.intersection(geometry[~whole], outline)]
        areas = shapely.area(geometry)
        shares = np.clip(areas / self._areas[found], 0, 1)
        whole |= shares > 1 - 1e-9
        kept = areas > 0
        to_chip = invert(cutout.to_raster)
        moved = move(geometry[kept], to_chip)
        sources = self.geometry[found][kept]
        return Clipped(moved, self.class_ids[found][kept], shares[kept], whole[kept], sources, to_chip)


def areal(geometry: Any) -> Any:
    """Return the polygons of a geometry: cutting leaves points and lines where outlines only touch."""
    if geometry.geom_type != 'GeometryCollection':
        return geometry
    shapely = need_shapely()
    parts = [part for part in shapely.get_parts(geometry) if part.geom_type in ('Polygon', 'MultiPolygon')]
    return shapely.union_all(parts)


def move(geometry: np.ndarray, transform: Affine) -> np.ndarray:
    """Apply an affine to geometries."""
    moved: np.ndarray = need_shapely().transform(geometry, lambda points: apply_affine(transform, points))
    return moved


def invert(transform: Affine) -> Affine:
    """Return the inverse of an affine."""
    t = transform
    determinant = t.a * t.e - t.b * t.d
    a, b, d, e = t.e / determinant, -t.b / determinant, -t.d / determinant, t.a / determinant
    return Affine(a, b, -a * t.c - b * t.f, d, e, -d * t.c - e * t.f)


VALUE_FIELDS = ('classvalue', 'class_value', 'value')

NAME_FIELDS = ('classname', 'class_name')

MAX_VALUE = 65535

_UNNAMED = '1'


@dataclass(frozen=True)
class Naming:
    """Where classes come from.

    Args:
        value_field: Field of class values or texts; None looks for `VALUE_FIELDS`, then `NAME_FIELDS`.
        name_field: Field of class names; None looks for `NAME_FIELDS`.
        classes: Names and colors that go before those found; None takes what is found.
        unlabelled: Values that mean "not labelled"; where they are given without 0, value 0 is a class.
        style: Names and colors that go with values, or with texts that name classes.
    """

    value_field: str | None = None
    name_field: str | None = None
    classes: tuple[ClassInfo, ...] | None = None
    unlabelled: tuple[float, ...] | None = None
    style: Mapping[str, ClassStyle] = field(default_factory=dict)


def zero_is_class(unlabelled: Sequence[float] | None) -> bool:
    """Whether label value 0 is a class: where the user says what is unlabelled, and that is not 0."""
    return unlabelled is not None and 0 not in unlabelled


def class_values(
    parts: Sequence[tuple[Any, np.ndarray]], naming: Naming, counts: dict[str, int]
) -> tuple[np.ndarray, tuple[ClassInfo, ...]]:
    """Return the class value of each feature, -1 for those left out, and the classes in order of value.

    Args:
        parts: Layers (name, frame, shown), each with the rows used.
        naming: Where classes come from.
        counts: What was left out is counted here.

    Raises:
        ChipFolderError: If a field is missing or holds no class values.
    """
    values: list[np.ndarray] = []
    names: dict[int, str] = {}
    if parts[0][0].name is not None:
        called = [tidy_name(layer.name) for layer, _ in parts]
        table = _numbers(list(dict.fromkeys(called)), naming)
        values = [np.full(len(rows), table[name], np.int64) for name, (_, rows) in zip(called, parts)]
        names = {value: name for name, value in table.items()}
    else:
        for layer, rows in parts:
            found, named = _field_values(layer.frame.iloc[rows], layer.shown, naming, counts)
            values.append(found)
            names |= named
    return np.concatenate(values), _classes(names, naming)


_CODE = re.compile(r'[0-9]{1,9}(\.0{1,9})?')
"""A whole number as text; tables of numbers with gaps are often written as 1.0."""


def _name_notes(classes: Sequence[ClassInfo]) -> list[str]:
    """Say which names differ by case or blanks alone, as typing errors do, and which codes are no class values."""
    first: dict[str, str] = {}
    notes = []
    for info in classes:
        other = first.setdefault(' '.join(info.name.split()).casefold(), info.name)
        if other != info.name:
            notes.append(
                f'classes {other!r} and {info.name!r} differ by case or blanks alone; give them one name if one'
            )
    codes = [info for info in classes if _CODE.fullmatch(info.name) and int(float(info.name)) != info.value]
    if codes:
        notes.append(
            f'codes are not the class values, as not all of them are numbers up to {MAX_VALUE} that mean a class '
            f'(0 means unlabelled unless unlabelled= says else): {codes[0].name!r} is class {codes[0].value}'
        )
    return notes


def _classes(names: dict[int, str], naming: Naming) -> tuple[ClassInfo, ...]:
    if naming.classes is not None:
        if missing := sorted(names.keys() - {info.value for info in naming.classes}):
            raise errors.ChipFolderError(
                f'labels hold the class values {missing[:10]}, which classes= does not list: '
                f'{[info.value for info in naming.classes][:20]}; list them too, or leave them out with unlabelled='
            )
        return naming.classes
    styles = [naming.style.get(str(value), naming.style.get(names[value], ClassStyle())) for value in sorted(names)]
    return color_classes(
        (value, (found.name or str(value)) if names[value] == str(value) else names[value], found.color)
        for value, found in zip(sorted(names), styles)
    )


def _numbers(texts: Sequence[str], naming: Naming) -> dict[str, int]:
    """Give each text its class value: as `classes=` says, else 1, 2, 3, ... in the order given."""
    if naming.classes is None:
        if len(texts) > MAX_VALUE:
            raise errors.ChipFolderError(
                f'labels name {len(texts)} classes, at most {MAX_VALUE} can be distinguished; merge some'
            )
        return _own_values(texts, naming) or {text: value for value, text in enumerate(texts, 1)}
    known = {str(info.value): info.value for info in naming.classes} | {
        info.name: info.value for info in naming.classes
    }
    spelled = {text: text if text in known else ' '.join(text.split()) for text in texts}
    if unknown := sorted(text for text in texts if spelled[text] not in known):
        raise errors.ChipFolderError(
            f'labels name the classes {unknown[:10]}, which classes= does not list: {sorted(known)[:20]}; list them too'
        )
    return {text: known[spelled[text]] for text in texts}


def _own_values(texts: Sequence[str], naming: Naming) -> dict[str, int] | None:
    """Return the values of texts that are all whole numbers, such as codes of land cover; None where they are not."""
    lowest = 0 if zero_is_class(naming.unlabelled) else 1
    if not all(_CODE.fullmatch(text) for text in texts):
        return None
    values = {text: int(float(text)) for text in texts}
    return values if all(lowest <= value <= MAX_VALUE for value in values.values()) else None


def _field_values(frame: Any, shown: str, naming: Naming, counts: dict[str, int]) -> tuple[np.ndarray, dict[int, str]]:
    field = _find(frame, naming.value_field, (*VALUE_FIELDS, *NAME_FIELDS), shown)
    if field is None:
        found = _fields(frame)
        fields = ', '.join(found[:8]) + (', ...' if len(found) > 8 else '') or 'none'
        told = f'features are one class, as no field is called classvalue or classname; fields: {fields}'
        _add(counts, told, len(frame))
        only = naming.classes[0].value if naming.classes and len(naming.classes) == 1 else 1
        return np.full(len(frame), only, np.int64), {only: _UNNAMED} if len(frame) else {}
    column = frame[field]
    empty = column.isna().to_numpy()
    if column.dtype.kind not in 'iufb':  # formats without missing values, such as Shapefile, store empty texts
        empty = empty | np.array([not str(text).strip() for text in column], bool)
    if empty.any():
        what = f'features without a class in {field} were left out'
        counts[what] = counts.get(what, 0) + int(empty.sum())
    if column.dtype.kind in 'iufb':
        values = _whole(column, empty, f'{shown}: field {field}', naming, counts)
        return values, _names(frame, values, shown, naming, field)
    texts = [tidy_name(text) for text in column[~empty]]
    table = _numbers(sorted(set(texts)), naming)
    values = np.full(len(frame), -1, np.int64)
    values[~empty] = [table[text] for text in texts]
    return values, {value: text for text, value in table.items()}


def _whole(column: Any, empty: np.ndarray, shown: str, naming: Naming, counts: dict[str, int]) -> np.ndarray:
    """Return class values, -1 where a feature has none or one that means unlabelled."""
    numbers = column.fillna(-1).to_numpy(np.float64)
    said = ~empty & np.isin(numbers, naming.unlabelled or ())
    _add(counts, 'features whose value means unlabelled were left out', int(said.sum()))
    zero = ~empty & ~said & (numbers == 0) & (not zero_is_class(naming.unlabelled))
    what = 'features of value 0, which means unlabelled, were left out; pass unlabelled=[] if 0 is a class'
    _add(counts, what, int(zero.sum()))
    left = empty | said | zero
    wrong = ~left & ~((numbers >= 0) & (numbers <= MAX_VALUE) & (numbers == np.rint(numbers)))
    if wrong.any():
        found, lowest = f'{numbers[wrong][0]:g}', 0 if zero_is_class(naming.unlabelled) else 1
        raise errors.ChipFolderError(
            f'{shown} holds {found}; class values are whole numbers from {lowest} to {MAX_VALUE}. Pass '
            f'unlabelled=[{found}] if it means not labelled, or name another field with class_value_field='
        )
    return np.where(left, -1, numbers).astype(np.int64)


def _names(frame: Any, values: np.ndarray, shown: str, naming: Naming, field: str) -> dict[int, str]:
    name_field = _find(frame, naming.name_field, NAME_FIELDS, shown)
    if name_field is None or name_field == field:
        return {int(value): str(value) for value in np.unique(values[values >= 0])}
    names: dict[int, str] = {}
    for value, name in zip(values.tolist(), frame[name_field]):
        if (
            value >= 0
            and names.setdefault(value, text := tidy_name(name) if isinstance(name, str) else str(value)) != text
        ):
            raise errors.ChipFolderError(
                f'{shown}: class value {value} is called {names[value]!r} and {text!r} in {name_field}; a value has '
                'one name'
            )
    return names


def _fields(frame: Any) -> list[str]:
    return [str(column) for column in frame.columns if column != frame.geometry.name]


def _find(frame: Any, wanted: str | None, usual: Sequence[str], shown: str) -> str | None:
    fields = _fields(frame)
    if wanted is not None:
        if wanted not in fields:
            raise errors.ChipFolderError(f'{shown} has no field {wanted!r}; it has {", ".join(fields) or "none"}')
        return wanted
    lowered = {field.lower(): field for field in reversed(fields)}
    return next((lowered[name] for name in usual if name in lowered), None)


def sensor_notes(sensor: str, bands: Sequence[Band], shown: str, *, given: bool) -> list[str]:
    """Tell where a sensor is named that says nothing about the bands of a raster, or about those that are `given`."""
    unknown = [band.name for band in bands if band.wavelength_um is None and not band.is_radar]
    if sensor == 'Undefined' or not unknown:
        return []
    named = ', '.join(unknown[:8]) + (', ...' if len(unknown) > 8 else '')
    advice = 'wavelengths of these are unknown' if given else f'name the bands in {shown}, or pass bands='
    return [f'{sensor} has no band called {named}; {advice}']


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
    if not isinstance(labels, str | Path):
        return False
    suffix = Path(labels).suffix.lower()
    return suffix in SUFFIXES or (layer is not None and suffix not in DRIVERS)


def refuse_vector_options(labels: Any, **options: Any) -> None:
    """Refuse options of vector labels where labels are rasters, which would change nothing.

    Raises:
        ChipFolderError: If one is given.
    """
    if given := [name for name, value in options.items() if value is not None]:
        shown = labels if isinstance(labels, str | Path) else 'the labels'
        raise errors.ChipFolderError(
            f'{", ".join(f"{name}=" for name in given)} is for vector labels, but {shown} is a raster; leave it out'
        )


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
    kept = values >= 0
    shown = ', '.join(item.shown for item in layers)
    if not kept.any():
        reasons = '; '.join(f'{count} {what}' for what, count in counts.items())
        raise errors.ChipFolderError(f'{shown}: no feature can be used ({reasons or "it is empty"})')
    features = Features(move(geometry[kept], invert(box.transform)), values[kept])
    _check_overlap(need_shapely().total_bounds(geometry[kept]), box, shown)
    notes = [f'{shown}: {count} {what}' for what, count in counts.items()]
    return VectorLabels(features, classes, (*notes, *(f'{shown}: {note}' for note in _name_notes(classes))))


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
        raise errors.ChipFolderError('labels is an empty mapping; name at least one class')
    for name, source in labels.items():
        pair = isinstance(source, tuple) and len(source) == 2
        yield _layer(str(name), *(source if pair else (source, layer)))


def _layer(name: str | None, source: Any, layer: str | None) -> Layer:
    geopandas = extras.require('geopandas', extra='vector', to='read vector labels')
    if hasattr(source, 'geometry'):
        return Layer(name, source, f'labels of {name}' if name else 'labels')
    if not isinstance(source, str | Path):
        raise errors.ChipFolderError(
            f'labels of type {type(source).__name__} cannot be read; pass a file or a GeoDataFrame'
        )
    pyogrio = extras.require('pyogrio', extra='vector', to='read vector labels')
    path = Path(source)
    try:
        if path.suffix.lower() in ('.parquet', '.geoparquet'):
            return Layer(name, geopandas.read_parquet(path), str(path))
        names = [str(found) for found, kind in pyogrio.list_layers(path) if kind is not None]
        if layer is None and len(names) > 1:
            raise errors.ChipFolderError(
                f'{path} holds several layers: {", ".join(names)}. Name one with layer=, or where each is a class pass '
                f'labels={{class name: (file, layer), ...}}'
            )
        if layer is not None and layer not in names:
            raise errors.ChipFolderError(f'{path} has no layer {layer!r}; it holds {", ".join(names) or "none"}')
        frame = geopandas.read_file(path, layer=layer or (names[0] if names else None))
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError, ValueError) as error:
        if isinstance(error, errors.ChipFolderError):
            raise
        # GDAL goes on to advise prefixes of drivers, which no path here takes
        said = str(error).partition('; It might help')[0]
        why = 'its name is not UTF-8; rename it' if isinstance(error, UnicodeEncodeError) else said
        raise errors.ChipFolderError(f'cannot read labels {path}: {why}') from error
    if not hasattr(frame, 'geometry'):
        raise errors.ChipFolderError(f'{path} has no geometries; labels are polygons, or points with buffer_radius=')
    return Layer(name, frame, f'{path} ({layer})' if layer else str(path))


def _place(
    layer: Layer, box: GeoBox, crs: str | None, buffer_radius: float | None, counts: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the layer's usable polygons in the raster's CRS, and the rows that they come from."""
    shapely, frame = need_shapely(), _project(layer, box, crs)
    geometry = shapely.force_2d(np.asarray(frame.geometry.values, dtype=object))
    rows = _count(~(shapely.is_missing(geometry) | shapely.is_empty(geometry)), 'features without geometry', counts)
    finite = np.isfinite(shapely.bounds(geometry[rows])).all(axis=1)
    rows = rows[_count(finite, 'features with coordinates that are no numbers', counts)]
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
        raise errors.ChipFolderError(
            f'{layer.shown}: {int(flat.sum())} features are no polygons but e.g. {kind}; pass buffer_radius= in units '
            'of the raster to make areas of points and lines'
        )
    usable = np.isfinite(shapely.bounds(geometry[rows])).all(axis=1) & (shapely.area(geometry[rows]) > 0)
    return geometry[rows[usable]], rows[_count(usable, 'features of no area or outside the CRS', counts)]


def _project(layer: Layer, box: GeoBox, crs: str | None) -> Any:
    frame = layer.frame
    if crs is not None:
        pyproj = extras.require('pyproj', extra='vector', to='place vector labels')
        try:
            wanted = pyproj.CRS.from_user_input(crs)
        except pyproj.exceptions.CRSError as error:
            raise errors.ChipFolderError(
                f'labels_crs= is {crs!r}, which is no CRS; pass one such as EPSG:4326'
            ) from error
    if frame.crs is not None and box.crs is None:
        raise errors.ChipFolderError(
            f'{layer.shown} lies in {frame.crs.name}, but the raster has no CRS; georeference the raster, or pass '
            'labels without CRS in the coordinates of the raster'
        )
    if frame.crs is None and crs is not None:
        frame = frame.set_crs(wanted)
    elif frame.crs is not None and crs is not None and frame.crs != wanted:
        raise errors.ChipFolderError(
            f'{layer.shown} says that it lies in {frame.crs.name}, not in {crs}; drop labels_crs='
        )
    if frame.crs is None and box.crs is not None:
        raise errors.ChipFolderError(
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

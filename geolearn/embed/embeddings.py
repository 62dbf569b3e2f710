"""Embeddings, a value: vectors with the model that made them, what each is of, and where it lies."""

import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from affine import Affine
from rasterio.windows import Window
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from geolearn import errors, extras, files, notebook
from geolearn._version import __version__
from geolearn.embed import search
from geolearn.raster import GeoBox, crs_name, open_raster, raster_geobox, read_window

if TYPE_CHECKING:
    import xarray

FORMAT = 'geolearn embeddings'
FORMAT_VERSION = 1

KEY = 'geolearn_embeddings'
"""Of the metadata of safetensors and Parquet files."""

VECTOR_COLUMN = 'embedding'
"""Of GeoParquet: a list of float32 in each row."""


@dataclass(frozen=True, slots=True)
class EmbeddingSource:
    """What made embeddings; two sets of them can be compared only where what changes vectors is the same.

    Args:
        backbone: Its name, or that of a product such as ``'alphaearth'``.
        weights: Where its weights came from; ``'random'`` for none. Of a product, its version.
        weights_hash: Of all weights, in hex; empty for a product.
        bands: Names of the bands, in order.
        wavelengths_um: Center wavelength of each band in micrometers; None for radar and for unknown ones.
        scaling: What the pixels were normalized by, in words.
        mean: What became 0, per band, in the images' units; empty where nothing was normalized.
        std: What became a distance of 1, per band.
        pooling: ``'mean'``, ``'max'`` or ``'cls'``; empty for a grid of tokens.
        layer: Block whose output was taken, counted from 0; -1 for the last, after the final norm.
        stride: Pixels from one token to the next; 0 where it is not known.
        context: Side of the images that a transformer saw at most, in pixels; 0 where it is not known.
        blend: How neighboring images met, ``'crop'`` or ``'hann'``; empty where it is not known.
        geolearn: Version that made them.
    """

    backbone: str
    weights: str = ''
    weights_hash: str = ''
    bands: tuple[str, ...] = ()
    wavelengths_um: tuple[float | None, ...] = ()
    scaling: str = ''
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    pooling: str = ''
    layer: int = -1
    stride: int = 0
    context: int = 0
    blend: str = ''
    geolearn: str = __version__

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> 'EmbeddingSource':
        """Undo `to_json`.

        Raises:
            ValueError: If the text is something else.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as error:
            raise ValueError(f'this says not how embeddings were made: {error}') from error


@dataclass(frozen=True, eq=False, repr=False)
class Embeddings:
    """Vectors that describe images, polygons or the tokens of a raster; ``numpy.asarray`` gives them.

    Args:
        values: float32: pooled (items, dimensions); the grid of one raster (dimensions, rows, columns), of which a
            column is the vector of a token; or the grids of several images (items, dimensions, rows, columns). NaN
            where there was no data.
        source: What made them.
        names: Of the items, one each; empty for the grid of one raster.
        geobox: Where the grid of one raster lies; its pixels are the tokens.
        geometries: Outline or point of each item as well-known binary (WKB); empty where they have no place.
        crs: Of the geometries, WKT or ``'EPSG:...'``.

    Raises:
        ValueError: If the numbers of values, names and geometries do not fit together.
    """

    values: np.ndarray
    source: EmbeddingSource
    names: tuple[str, ...] = ()
    geobox: GeoBox | None = None
    geometries: tuple[bytes, ...] = field(default=(), repr=False)
    crs: str | None = None

    def __post_init__(self) -> None:
        values = np.ascontiguousarray(self.values, np.float32)
        object.__setattr__(self, 'values', values)
        object.__setattr__(self, 'names', tuple(map(str, self.names)))
        object.__setattr__(self, 'geometries', tuple(self.geometries))
        if values.ndim not in (2, 3, 4):
            raise ValueError(
                'embeddings are (items, dimensions), (dimensions, rows, columns) or (items, dimensions, rows, columns);'
                f' got values of shape {values.shape}'
            )
        items = 0 if values.ndim == 3 else len(values)
        if len(self.names) != items:
            raise ValueError(f'{items} items need one name each, got {len(self.names)} names')
        if self.geometries and len(self.geometries) != items:
            raise ValueError(f'{items} items need one geometry each, got {len(self.geometries)}')
        if self.geobox is not None and (values.ndim != 3 or self.geobox.shape != values.shape[1:]):
            raise ValueError(
                f'a geobox of {self.geobox.shape} tokens needs values of shape (dimensions, rows, columns) with as '
                f'many, got {values.shape}'
            )

    @property
    def is_grid(self) -> bool:
        """Whether there is a vector for each token, not for each image."""
        return self.values.ndim > 2

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self.values.shape[0 if self.values.ndim == 3 else 1]

    @property
    def vectors(self) -> np.ndarray:
        """All vectors (n, dimensions): of the items, or of the tokens, row by row of each grid."""
        if self.values.ndim == 2:
            return self.values
        return np.moveaxis(self.values, -3, -1).reshape(-1, self.dimensions)

    @property
    def valid(self) -> np.ndarray:
        """Which of `vectors` are of data, as bool (n,)."""
        finite: np.ndarray = np.isfinite(self.vectors).all(axis=1)
        return finite

    def __len__(self) -> int:
        """Return the number of vectors."""
        return self.values.size // self.dimensions if self.dimensions else 0

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if dtype is not None and np.dtype(dtype) != self.values.dtype:
            return self.values.astype(dtype)
        return self.values.copy() if copy else self.values

    def __repr__(self) -> str:
        source, shape = self.source, ' x '.join(map(str, self.values.shape))
        kind = 'grid' if self.is_grid else 'pooled'
        empty = len(self) - int(self.valid.sum())
        bands = [
            name if wave is None else f'{name} ({wave:g} µm)'
            for name, wave in zip(source.bands, source.wavelengths_um or (None,) * len(source.bands))
        ]
        layer = 'last' if source.layer == -1 else str(source.layer)
        place = '' if self.geobox is None else f'{crs_name(self.geobox.crs)}, bounds {self.geobox.bounds}'
        rows = [
            ('backbone', source.backbone + (f', layer {layer}' if source.weights_hash else '')),
            ('weights', f'{source.weights} {source.weights_hash[:12]}'.strip()),
            ('bands', ', '.join(bands)),
            ('scaling', source.scaling),
            ('pooling', source.pooling),
            ('items', ', '.join(self.names[:3]) + (', ...' if len(self.names) > 3 else '')),
            ('context', f'{source.context} px' if source.context else ''),
            ('stride', f'{source.stride} px' if self.is_grid and source.stride else ''),
            ('place', place or (crs_name(self.crs) if self.geometries else '')),
            ('no data', f'{empty:,} of {len(self):,} vectors' if empty else ''),
        ]
        lines = [f'Embeddings: {kind}, {shape} float32 ({", ".join(_axes(self.values.ndim))})']
        return '\n'.join([*lines, *(f'  {label:<8} {text}' for label, text in rows if text)])

    def _repr_html_(self) -> str:
        return notebook.rows_as_html(repr(self))

    def nearest(
        self,
        query: Any,
        k: int = 5,
        *,
        metric: Literal['cosine', 'euclidean'] = 'cosine',
        index: Literal['faiss'] | None = None,
    ) -> search.Neighbors:
        """Find the vectors nearest to a query, exactly.

        Args:
            query: A vector (dimensions,) or several (n, dimensions), or embeddings of the same source; or the name or
                the number of an item (a token, in a grid), which is then not among its own neighbors.
            k: How many.
            metric: ``'cosine'`` similarity, or ``'euclidean'`` distance.
            index: ``'faiss'`` for the library of that name, which is faster for thousands of queries.

        Returns:
            Numbers, names and scores of the neighbors, nearest first.

        Raises:
            ValueError: If the query does not fit, or there are fewer than `k` vectors.
            MissingExtraError: If FAISS is asked for and not installed.
            UnknownNameError: If no item has that name.
        """
        own = self._number(query)
        if isinstance(query, Embeddings):
            differing = _differences(self.source, query.source)
            if differing:
                raise ValueError(f'only embeddings of one source can be compared; what differs: {", ".join(differing)}')
            query = query.vectors
        elif own is not None:
            query = self.vectors[own]
        return search.find_nearest(
            self.vectors, query, k, metric=metric, index=index, names=self._vector_names(), leave_out=own
        )

    def _number(self, query: Any) -> int | None:
        """Return the number of the vector that a query names."""
        if isinstance(query, str):
            if query not in self.names:
                raise errors.UnknownNameError('item', query, self.names)
            if self.is_grid:
                raise ValueError('a grid has many vectors; pass the number of a token, or a vector')
            if (count := self.names.count(query)) > 1:
                raise ValueError(f'{count} items are called {query!r}; pass the number of one of them')
            return self.names.index(query)
        if isinstance(query, int | np.integer) and not isinstance(query, bool):
            if not -len(self) <= query < len(self):
                raise ValueError(f'there are {len(self)} vectors, numbered from 0, and none of number {query}')
            return int(query) % len(self)
        return None

    def _vector_names(self) -> tuple[str, ...]:
        return () if self.is_grid else self.names

    def to_xarray(self) -> 'xarray.DataArray':
        """Return a labelled array: dimensions item, dimension, y and x, with coordinates where they are known.

        A grid with a place has coordinates of the tokens' centers, and its CRS in ``spatial_ref`` as rioxarray has it.

        Raises:
            MissingExtraError: If xarray is not installed.
        """
        library = extras.require('xarray', extra='xarray', to='label embeddings')
        axes = _axes(self.values.ndim)
        coordinates: dict[str, Any] = {'dimension': np.arange(self.dimensions)}
        if 'item' in axes:
            coordinates['item'] = list(self.names)
        if self.geobox is not None:
            t, (rows, columns) = self.geobox.transform, self.geobox.shape
            if not (t.b or t.d):
                coordinates['x'] = t.c + t.a * (np.arange(columns) + 0.5)
                coordinates['y'] = t.f + t.e * (np.arange(rows) + 0.5)
            facts = {'crs_wkt': self.geobox.crs or '', 'GeoTransform': ' '.join(f'{v!r}' for v in t.to_gdal())}
            coordinates['spatial_ref'] = library.Variable((), 0, attrs=facts)
        attributes = {name: value for name, value in asdict(self.source).items() if value not in ('', ())}
        return library.DataArray(self.values, coordinates, axes, name=VECTOR_COLUMN, attrs=attributes)

    def to_geopandas(self) -> Any:
        """Return a GeoDataFrame: columns name, embedding (a vector in each row) and geometry.

        Tokens of a grid become points at their centers; those without data are left out.

        Raises:
            ValueError: If the embeddings have no place.
            MissingExtraError: If geopandas is not installed.
        """
        geopandas = extras.require('geopandas', extra='vector', to='write embeddings as features')
        shapely = extras.require('shapely', extra='vector', to='write embeddings as features')
        if self.geobox is not None:
            t, (rows, columns) = self.geobox.transform, self.geobox.shape
            row, column = (side.ravel() + 0.5 for side in np.indices((rows, columns)))
            shapes = shapely.points(t.a * column + t.b * row + t.c, t.d * column + t.e * row + t.f)
            names = [f'{int(r)},{int(c)}' for r, c in zip(row, column)]
            keep, crs = self.valid, self.geobox.crs
        elif self.geometries and not self.is_grid:
            shapes, names, crs = shapely.from_wkb(np.array(self.geometries, object)), list(self.names), self.crs
            keep = np.ones(len(self), bool)
        else:
            raise ValueError('these embeddings have no place; embed georeferenced rasters or chips')
        return geopandas.GeoDataFrame(
            {
                'name': np.array(names, object)[keep],
                VECTOR_COLUMN: [vector for vector in self.vectors[keep]],
            },
            geometry=shapes[keep],
            crs=crs,
        )

    def to_geoparquet(self, path: str | Path) -> Path:
        """Write the features of `to_geopandas` as GeoParquet, with what made them in the metadata of the file.

        Args:
            path: File to write, which ends in ``.parquet`` or ``.geoparquet``; one that is there is replaced.

        Raises:
            ValueError: If the embeddings have no place.
            FileWriteError: If it cannot be written; nothing is left behind.
            MissingExtraError: If geopandas or pyarrow is not installed.
        """
        return write_features(self.to_geopandas(), self.source, path)

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file; one that is there is replaced.

        Args:
            path: File to write; ``.safetensors`` is added to other names.

        Raises:
            FileWriteError: If it cannot be written; nothing is left behind.
        """
        path = Path(path).expanduser()
        if path.suffix.lower() != '.safetensors':
            path = path.with_name(f'{path.name}.safetensors')
        box = self.geobox
        facts = {
            'format': FORMAT,
            'version': FORMAT_VERSION,
            'source': asdict(self.source),
            'geobox': None if box is None else {'shape': box.shape, 'transform': box.transform[:6], 'crs': box.crs},
            'crs': self.crs,
        }
        tensors = {'values': self.values, 'names': _as_bytes(json.dumps(self.names).encode('utf-8', 'surrogatepass'))}
        if self.geometries:
            tensors['geometries'] = _as_bytes(b''.join(self.geometries))
            tensors['geometry_ends'] = np.cumsum([len(shape) for shape in self.geometries], dtype=np.int64)
        with files.atomic_write(path) as part:
            save_file(tensors, part, metadata={KEY: json.dumps(facts)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> 'Embeddings':
        """Read what `save` wrote, the GeoParquet of polygons or points, or a grid that `embed_raster` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file holds something else.
        """
        path = Path(path).expanduser()
        if path.is_dir() and path.suffix.lower() == '.zarr':
            return _read_grid(path)
        if not path.is_file():
            raise FileNotFoundError(f'{path} is no file; pass one that Embeddings.save wrote')
        if path.suffix.lower() in ('.parquet', '.geoparquet'):
            return _read_features(path)
        if path.suffix.lower() in ('.tif', '.tiff'):
            return _read_grid(path)
        try:
            with safe_open(path, framework='numpy') as stored:
                facts = json.loads((stored.metadata() or {})[KEY])
                tensors = {name: stored.get_tensor(name) for name in list(stored.keys())}
            if facts['version'] > FORMAT_VERSION:
                raise ValueError(f'its format has version {facts["version"]}, this geolearn reads {FORMAT_VERSION}')
            box, ends = facts['geobox'], tensors.get('geometry_ends', np.zeros(0, np.int64))
            blob = tensors.get('geometries', np.zeros(0, np.uint8)).tobytes()
            return cls(
                tensors['values'],
                EmbeddingSource.from_json(json.dumps(facts['source'])),
                tuple(json.loads(tensors['names'].tobytes().decode('utf-8', 'surrogatepass'))),
                None if box is None else GeoBox(tuple(box['shape']), Affine(*box['transform']), box['crs']),
                tuple(blob[start:end] for start, end in zip([0, *ends], ends)),
                facts['crs'],
            )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{path} holds no embeddings of geolearn: {error}') from error


def _axes(count: int) -> tuple[str, ...]:
    return {2: ('item', 'dimension'), 3: ('dimension', 'y', 'x'), 4: ('item', 'dimension', 'y', 'x')}[count]


def _as_bytes(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


def _differences(one: EmbeddingSource, other: EmbeddingSource) -> list[str]:
    """Return the names of the facts that differ, of those that make vectors comparable."""
    names = ['backbone', 'weights_hash', 'bands', 'wavelengths_um', 'mean', 'std', 'layer']
    # the mean of tokens lies among tokens; and what was written before says nothing of its context
    names += [name for name in ('pooling', 'context') if getattr(one, name) and getattr(other, name)]
    return [
        f'{name} ({getattr(one, name)} and {getattr(other, name)})' if name in ('pooling', 'context') else name
        for name in names
        if getattr(one, name) != getattr(other, name)
    ]


def write_features(frame: Any, source: EmbeddingSource, path: str | Path) -> Path:
    """Write a GeoDataFrame with a column `VECTOR_COLUMN` as GeoParquet, and what made its vectors as metadata.

    Raises:
        FileWriteError: If it cannot be written; nothing is left behind.
        MissingExtraError: If pyarrow is not installed.
    """
    pyarrow = extras.require('pyarrow', extra='vector', to='write GeoParquet')
    parquet = extras.require('pyarrow.parquet', extra='vector', to='write GeoParquet')
    path = Path(path).expanduser()
    if path.suffix.lower() not in ('.parquet', '.geoparquet'):
        raise errors.FileWriteError(f'{path} must end in .parquet or .geoparquet: other formats hold no lists')
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    table = parquet.read_table(pyarrow.BufferReader(buffer.getvalue()))
    metadata = {**(table.schema.metadata or {}), KEY.encode(): source.to_json().encode()}
    with files.atomic_write(path) as part:
        parquet.write_table(table.replace_schema_metadata(metadata), part)
    return path


def _read_features(path: Path) -> Embeddings:
    """Read what `write_features` wrote."""
    geopandas = extras.require('geopandas', extra='vector', to='read GeoParquet')
    parquet = extras.require('pyarrow.parquet', extra='vector', to='read GeoParquet')
    pyarrow = extras.require('pyarrow', extra='vector', to='read GeoParquet')
    try:
        stated = (parquet.read_schema(path).metadata or {}).get(KEY.encode())
        if stated is None:
            raise ValueError('its metadata do not say what made them')
        source, frame = EmbeddingSource.from_json(stated), geopandas.read_parquet(path)
        values = np.stack(frame[VECTOR_COLUMN].to_list()) if len(frame) else np.zeros((0, 0))
        column = frame['name']
        names = [str(row) if gone else str(name) for row, (name, gone) in enumerate(zip(column, column.isna()))]
    except (pyarrow.ArrowException, KeyError, ValueError) as error:
        raise ValueError(f'{path} holds no embeddings of geolearn: {error}') from error
    crs = None if frame.crs is None else frame.crs.to_wkt()
    return Embeddings(values, source, tuple(names), geometries=tuple(frame.geometry.to_wkb()), crs=crs)


def _read_grid(path: Path) -> Embeddings:
    """Read a GeoTIFF or Zarr store of `embed_raster`."""
    with open_raster(path, quiet=True) as src:
        stated = src.tags().get(KEY.upper())
        if stated is None:
            raise ValueError(f'{path} holds no embeddings of geolearn: its metadata do not say what made them')
        pixels, _ = read_window(src, Window(0, 0, src.width, src.height), src.indexes)
        return Embeddings(pixels, EmbeddingSource.from_json(stated), geobox=raster_geobox(src))

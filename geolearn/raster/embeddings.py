"""Precomputed embeddings as rasters: which product one holds, and its stored codes as vectors (AlphaEarth, TESSERA).

AlphaEarth stores 64 bands A00..A63 of int8 codes c: value = sign(c) (|c| / 127.5)^2, NoData -128; vectors have length
1. TESSERA stores 128 int8 codes and a scale for each pixel in a file beside: value = code * scale, no data where the
scale is 0; its exported float vectors are 0 in all bands there. Codes are never averaged: vectors are.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rasterio.windows import Window

from geolearn.errors import RasterError, UnknownNameError
from geolearn.raster.geobox import GeoBox
from geolearn.raster.nodata import compact
from geolearn.raster.raster import FileRaster, OpenFiles, Raster, RasterView

Dequantize = Literal['alphaearth', 'tessera']
"""How stored codes become vectors."""

TITLES = {'alphaearth': 'AlphaEarth', 'tessera': 'TESSERA'}

ALPHAEARTH_SQUARED = 127.5**2

ALPHAEARTH_NODATA = -128

ALPHAEARTH_BANDS, TESSERA_BANDS = 64, 128

LENGTHS = (0.97, 1.03)
"""Median length of AlphaEarth's vectors; anything else is no AlphaEarth, or its codes."""

VERSION_TAGS = ('TESSERA_DATASET_VERSION', 'TESSERA_VERSION')

SCALES = '_scales'
"""The file of TESSERA's scales is called as that of its codes, with this before the suffix."""


@dataclass(frozen=True, slots=True)
class EmbeddingProduct:
    """What precomputed embeddings are of; models keep it, and refuse rasters of another product, version or form.

    Args:
        name: Of the product, such as ``'AlphaEarth'``.
        version: Such as ``'v1'``; empty where it is not known.
        year: Of the imagery; empty where it is not known. Years of one version share a space, so they may differ.
        form: Whether pixels are vectors (``'floats'``) or stored codes.
        dequantize: How codes become the vectors that the model takes; None where rasters are read as they are.
    """

    name: str
    version: str = ''
    year: str = ''
    form: Literal['floats', 'codes'] = 'floats'
    dequantize: Dequantize | None = None

    def __str__(self) -> str:
        words = [self.name or 'a product without name', self.version, self.year and f'({self.year})']
        form = 'as int8 codes' if self.form == 'codes' else 'as float vectors'
        return ' '.join([*filter(None, words), form])

    def __post_init__(self) -> None:
        check_dequantize(self.dequantize)

    @property
    def has_unit_length(self) -> bool:
        """Whether vectors have length 1, which means of them must be given again."""
        return self.name == 'AlphaEarth' and self.form == 'floats'

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON."""
        return {name: getattr(self, name) for name in ('name', 'version', 'year', 'form', 'dequantize')}


def check_dequantize(method: object) -> None:
    """Raise UnknownNameError unless `method` is None or one of `Dequantize`."""
    if method is not None and method not in get_args(Dequantize):
        raise UnknownNameError('dequantize', str(method), get_args(Dequantize))


def name_product(text: str) -> EmbeddingProduct:
    """Return the product that a user names, such as ``'alphaearth v1'`` or ``'tessera v1.1 2024'``.

    Raises:
        ValueError: If the text is empty.
    """
    words = text.split()
    if not words:
        raise ValueError("product= is empty; pass name and version, such as 'alphaearth v1'")
    year = next((word for word in words[1:] if re.fullmatch(r'(19|20)\d\d', word)), '')
    version = ' '.join(word for word in words[1:] if word != year)
    return EmbeddingProduct(TITLES.get(words[0].lower(), words[0]), version.lower(), year)


CHUNK = 2**16
"""Values that are converted at once, which stay in a processor's cache."""


def dequantize_alphaearth(codes: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return AlphaEarth's codes as float32, NaN where they are -128: sign(c) (|c| / 127.5)^2, in -0.992..0.992."""
    values = np.empty(codes.shape, np.float32) if out is None else out
    _put_alphaearth(codes, values)
    if codes.size and codes.min() == ALPHAEARTH_NODATA:
        values[codes == ALPHAEARTH_NODATA] = np.nan
    return values


def _put_alphaearth(codes: np.ndarray, values: np.ndarray) -> None:
    """Convert codes (..., width) into `values`, a part at a time; -128 is converted as any other."""
    step = max(1, CHUNK // max(1, codes.shape[-1]))
    rows = codes.reshape(-1, *codes.shape[-2:]), values.reshape(-1, *values.shape[-2:])
    wide, squares = np.empty((2, step, codes.shape[-1]), np.int16)
    for plane, target in zip(*rows):
        for start in range(0, len(plane), step):
            part, found = plane[start : start + step], target[start : start + step]
            signed, square = wide[: len(part)], squares[: len(part)]
            # whole numbers up to 128^2 are exact in int16, of which a processor takes twice as many at once
            np.copyto(signed, part)
            np.abs(signed, out=square)
            np.multiply(signed, square, out=square)
            np.copyto(found, square)
            np.divide(found, np.float32(ALPHAEARTH_SQUARED), out=found)


def find_product(raster: Raster, *, stated: str | None = None, by_method: bool = True) -> EmbeddingProduct | None:
    """Return the product that a raster holds, by its tags, the names of its bands and of its files.

    Args:
        raster: Open, dequantized or not.
        stated: What the user says that it is; None where they say nothing.
        by_method: Whether the method that its codes are made vectors with tells the product too.

    Returns:
        None where nothing tells that it holds embeddings.

    Raises:
        RasterError: If files are of different versions, or the raster says that it is another product than `stated`.
    """
    found = _recognize(raster)
    form: Literal['floats', 'codes'] = 'codes' if np.dtype(raster.dtypes[0]).kind in 'iu' else 'floats'
    method = raster.dequantized
    if stated is not None:
        named = name_product(stated)
        if found is not None:
            if difference(replace(found, form=named.form), named):
                raise RasterError(f'product= says {named.name} {named.version}, but {raster.name} holds {found}')
            named = replace(named, version=named.version or found.version, year=named.year or found.year)
        found = named
    if found is None and method is not None and by_method:
        found = EmbeddingProduct(TITLES[method])
    return None if found is None else replace(found, form=form, dequantize=method)


def _recognize(raster: Raster) -> EmbeddingProduct | None:
    names = [name or '' for name in raster.stated]
    paths = [str(name).replace('\\', '/') for name in raster.files] or [str(raster.name)]
    tags = {key.upper(): str(value) for key, value in raster.tags().items()}
    if len(names) > 1 and all(re.fullmatch(r'A[0-6]\d', name) for name in names):
        return EmbeddingProduct('AlphaEarth', *_shared(paths, r'satellite[_-]embedding/(v\d[\d.]*)', raster))
    if any('satellite_embedding' in path.lower() for path in paths) and len(names) == ALPHAEARTH_BANDS:
        return EmbeddingProduct('AlphaEarth', *_shared(paths, r'satellite[_-]embedding/(v\d[\d.]*)', raster))
    grid = all(re.match(r'grid_-?[\d.]+_-?[\d.]+', path.rpartition('/')[2]) for path in paths)
    version = next((tags[key] for key in VERSION_TAGS if key in tags), '')
    if version or (grid and len(names) == TESSERA_BANDS):
        known, year = _shared(paths, r'(v\d[\d.]*)/global_0\.1_degree', raster)
        return EmbeddingProduct('TESSERA', version.lower() or known, tags.get('TESSERA_YEAR', year))
    return None


def _shared(paths: Sequence[str], pattern: str, raster: Raster) -> tuple[str, str]:
    """Return version and year that the paths of files name; files of several versions are refused."""
    versions = {found[1].lower() for path in paths if (found := re.search(pattern, path, re.IGNORECASE))}
    if len(versions) > 1:
        raise RasterError(
            f'{raster.name} and the other files are of versions {" and ".join(sorted(versions))} of one product, whose '
            'vectors cannot be compared; pass files of one version'
        )
    years = {found[1] for path in paths if (found := re.search(r'(?:/|_)(20[12]\d)(?=/|\.tiff?$)', path))}
    return (versions.pop() if versions else ''), (years.pop() if len(years) == 1 else '')


def difference(found: EmbeddingProduct, wanted: EmbeddingProduct) -> str:
    """Say in which word two products differ: ``'product'``, ``'version'`` or ``'form'``; empty where they do not."""
    if found.name.lower() != wanted.name.lower():
        return 'product'
    if found.version and wanted.version and found.version != wanted.version:
        return 'version'
    return 'form' if found.form != wanted.form else ''


def check_lengths(sample: np.ndarray, product: EmbeddingProduct, shown: str) -> None:
    """Refuse vectors (bands, n) of AlphaEarth that do not have length 1: they are codes, or another product.

    Raises:
        RasterError: If the median length is outside of `LENGTHS`.
    """
    if product.name != 'AlphaEarth' or product.form != 'floats' or len(sample) != ALPHAEARTH_BANDS:
        return
    lengths = np.linalg.norm(sample[:, np.isfinite(sample).all(axis=0)].astype(np.float64), axis=0)
    if lengths.size and not LENGTHS[0] <= (middle := float(np.median(lengths))) <= LENGTHS[1]:
        raise RasterError(
            f'{shown} should hold {product}, whose vectors have length 1, but their median length is {middle:.3g}: '
            "these are codes or another product. Pass dequantize='alphaearth' for codes, or product= with its name"
        )


class DequantizedRaster(RasterView):
    """A raster of codes, read as float32 vectors; pixels without data are NaN and masked.

    Args:
        raster: The codes, which is closed with the view.
        method: How codes become vectors.
        scales: Of TESSERA: one band, or one for each band, on the same grid.

    Raises:
        RasterError: If the raster cannot hold such codes.
    """

    def __init__(self, raster: Raster, method: Dequantize, scales: Raster | None = None) -> None:
        super().__init__(raster, raster.geobox, block_shapes=raster.block_shapes)
        self.dtypes = ('float32',) * raster.count
        self.nodatavals = (float('nan'),) * raster.count
        self.dequantized = method
        self._scales = scales
        self._declared = set(raster.nodatavals) == {ALPHAEARTH_NODATA}
        if scales is None:
            self.code_dtype = 'int8'
        else:
            self.files = (*raster.files, *scales.files)
            if scales.shape != raster.shape or scales.count not in (1, raster.count):
                raise RasterError(
                    f'{scales.name} holds {scales.count} bands of {scales.shape} pixels, needed are the scales of '
                    f'{raster.name}: 1 band, or {raster.count}, of {raster.shape} pixels'
                )

    def check_border(self, check: Any) -> None:
        """Check nothing: what lacks data says so."""

    def close(self) -> None:
        """Close the codes and their scales."""
        super().close()
        if self._scales is not None:
            self._scales.close()

    def read_masked(
        self, window: Window, indexes: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window that lies inside the raster as vectors."""
        if self._scales is None:
            codes, valid = self.read_codes(window, indexes)
            values = np.empty(codes.shape, np.float32) if out is None else out
            _put_alphaearth(codes, values)
        else:
            codes, valid = self._raster.read_masked(window, indexes)
            values = np.empty(codes.shape, np.float32) if out is None else out
            scales, stated = self._scales.read_masked(window, indexes if self._scales.count > 1 else [1])
            np.multiply(codes, scales, out=values, casting='unsafe', dtype=np.float32)
            known = np.isfinite(scales) & (scales > 0)
            valid = known if valid is None else valid & known
            valid = compact(valid if stated is None else valid & stated)
        if valid is not None:
            np.copyto(values, np.float32(np.nan), where=~valid)
        return values, valid

    def read_codes(
        self, window: Window, indexes: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window that lies inside the raster as codes of AlphaEarth."""
        codes, valid = self._raster.read_masked(window, indexes, out)
        if not self._declared and codes.size and codes.min() == ALPHAEARTH_NODATA:
            known = codes != ALPHAEARTH_NODATA
            valid = compact(known if valid is None else valid & known)
        return codes, valid

    def put_values(self, codes: np.ndarray, values: np.ndarray) -> None:
        """Put the values of AlphaEarth's codes into an array float32 of the same shape."""
        _put_alphaearth(codes, values)


class ZeroVectors(RasterView):
    """TESSERA's float vectors: pixels that were never computed are 0 in all bands, which is no data.

    Args:
        raster: The vectors, which is closed with the view.
    """

    def __init__(self, raster: Raster) -> None:
        super().__init__(raster, raster.geobox, block_shapes=raster.block_shapes)
        self.dequantized = 'tessera'

    def read_masked(
        self, window: Window, indexes: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window that lies inside the raster."""
        values, valid = self._raster.read_masked(window, indexes, out)
        known = (values != 0).any(axis=0)[None]
        if known.all():
            return values, valid
        return values, compact(known if valid is None else valid & known)


class TesseraTile(Raster):
    """The codes or scales of a TESSERA tile, which lie in a .npy file (height, width[, bands]), mapped into memory.

    Args:
        path: The .npy file.
        geobox: Its place, which only the tile's land mask knows.
    """

    def __init__(self, path: Path, geobox: GeoBox, crs: Any) -> None:
        try:
            pixels = np.load(path, mmap_mode='r', allow_pickle=False)
        except (OSError, ValueError) as error:
            raise RasterError(f'cannot open raster {path}: {error}') from error
        self._pixels = pixels if pixels.ndim == 3 else pixels[..., None] if pixels.ndim == 2 else pixels
        if self._pixels.ndim != 3 or self._pixels.shape[:2] != geobox.shape:
            raise RasterError(
                f'{path} holds an array of shape {pixels.shape}; the land mask of the tile has {geobox.shape} pixels'
            )
        count = self._pixels.shape[2]
        super().__init__(
            str(path),
            geobox,
            dtypes=[str(pixels.dtype)] * count,
            descriptions=[f'T{number:03d}' for number in range(count)],
            nodatavals=[None] * count,
            block_shapes=[(min(256, geobox.shape[0]), geobox.shape[1])] * count,
            scales=[1.0] * count,
            offsets=[0.0] * count,
            colorinterp=[],
            crs=crs,
        )
        self.files = (str(path),)

    def read_masked(
        self, window: Window, indexes: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window that lies inside the tile."""
        rows = slice(int(window.row_off), int(window.row_off + window.height))
        cols = slice(int(window.col_off), int(window.col_off + window.width))
        found = np.moveaxis(self._pixels[rows, cols], 2, 0)[[index - 1 for index in indexes]]
        if out is None:
            return np.ascontiguousarray(found), None
        out[...] = found
        return out, None


def check_one_product(rasters: Sequence[Raster]) -> None:
    """Refuse the tiles of a mosaic that are of different products, versions or forms.

    Raises:
        RasterError: If two differ; the message names both.
    """
    first = find_product(rasters[0])
    for other in rasters[1:]:
        check_same_product(first, find_product(other), rasters[0].name, other.name)


def check_same_product(one: EmbeddingProduct | None, other: EmbeddingProduct | None, name: str, second: str) -> None:
    """Refuse two rasters of different products, versions or forms.

    Raises:
        RasterError: If they differ; the message names both.
    """
    if (one is None) != (other is None) or (one and other and difference(one, other)):
        raise RasterError(
            f'{name} holds {one or "no embeddings"} and {second} {other or "no embeddings"}, which cannot be mixed; '
            'pass files of one product and version'
        )


def as_vectors(raster: Raster, method: Dequantize, files: OpenFiles) -> Raster:
    """Return an open raster of stored codes, or of vectors already, as vectors.

    Args:
        raster: AlphaEarth's, or TESSERA's with the file of its scales beside it.
        method: How codes become vectors.
        files: Keeps the scales open.

    Raises:
        RasterError: If the raster holds no such codes, or TESSERA's scales are missing.
    """
    check_dequantize(method)
    if {np.dtype(dtype).kind for dtype in raster.dtypes} == {'f'}:  # vectors already
        if method == 'tessera':
            return ZeroVectors(raster)
        raster.dequantized = method
        return raster
    if set(raster.dtypes) != {'int8'}:
        found = ', '.join(sorted(set(raster.dtypes)))
        raise RasterError(
            f'dequantize={method!r} takes int8 codes, or float vectors as they are, but {raster.name} holds {found}; '
            'leave dequantize= out, or pass the file of the product'
        )
    product = _recognize(raster)
    if product is not None and product.name != TITLES[method]:
        raise RasterError(
            f'dequantize={method!r} is for {TITLES[method]}, but {raster.name} holds {product.name}; '
            f'pass dequantize={product.name.lower()!r}'
        )
    if method == 'alphaearth':
        return DequantizedRaster(raster, method)
    path = Path(raster.name)
    for suffix in dict.fromkeys((path.suffix, '.tif', '.tiff')):
        beside = path.with_name(f'{path.stem}{SCALES}{suffix}')
        if beside.is_file():
            return DequantizedRaster(raster, method, FileRaster(beside, files))
    raise RasterError(
        f'{raster.name} holds int8 codes of TESSERA, which need a scale for each pixel: put it beside as '
        f'{path.stem}{SCALES}{path.suffix or ".tif"}, or pass the float vectors that geotessera exports'
    )


def open_tessera_tile(path: Path, files: OpenFiles) -> Raster:
    """Open a tile as geotessera stores it: codes, scales beside them, and the land mask that knows the place.

    Raises:
        RasterError: If one of the three is missing, or they do not fit together.
    """
    scales = path.with_name(f'{path.stem}{SCALES}.npy')
    folders = [path.parent, *(folder / 'global_0.1_degree_tiff_all' for folder in path.parents[:4])]
    masks = [folder / f'{path.stem}{suffix}' for folder in folders for suffix in ('.tiff', '.tif')]
    mask = next((file for file in masks if file.is_file()), None)
    if mask is None or not scales.is_file():
        lacking = f'its scales, {scales.name},' if not scales.is_file() else f'its land mask, {path.stem}.tiff,'
        raise RasterError(f'{path} is a tile of TESSERA, and {lacking} is not there; put it beside')
    place = FileRaster(mask, files)
    return DequantizedRaster(
        TesseraTile(path, place.geobox, place.crs), 'tessera', TesseraTile(scales, place.geobox, place.crs)
    )

"""Arrays of xarray as rasters: DataArrays, Datasets of one variable per band, and Zarr stores."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError
from rasterio.windows import Window

from geolearn import extras
from geolearn.bands import unique_names
from geolearn.errors import RasterError
from geolearn.raster.geobox import MISFIT_PX, GeoBox
from geolearn.raster.nodata import valid_by_band
from geolearn.raster.raster import NoData, Raster, place_names, printable_name

ACROSS = ('x', 'lon', 'longitude', 'easting', 'X')
DOWN = ('y', 'lat', 'latitude', 'northing', 'Y')
BANDS = ('band', 'bands', 'channel', 'variable', 'wavelength')
"""Names of dimensions."""

MISSING = ('_FillValue', 'missing_value', 'nodata', 'nodatavals')
"""Attributes that state NoData, in the order in which they are believed."""


BAND_ORDER = 'band_order'
"""Attribute of a store with the names of its variables in the order of the bands."""

HEX_COLOR = re.compile('#[0-9a-fA-F]{6}')


def is_array(source: object) -> bool:
    """Whether a source is a DataArray or Dataset of xarray, which is not imported to find out."""
    return type(source).__module__.partition('.')[0] == 'xarray'


def is_zarr(source: object) -> bool:
    """Whether a source is a Zarr store by its name."""
    return isinstance(source, str | Path) and str(source).rstrip('/').lower().endswith('.zarr')


class ArrayRaster(Raster):
    """A DataArray with dimensions y, x and maybe one of bands; only the windows that are read are computed.

    CRS and transform are those that rioxarray writes (``spatial_ref``), else attributes ``crs`` and coordinates.

    Args:
        array: DataArray or Dataset.
        bands: Names of the bands instead of those it states.
        nodata: Values that mean NoData besides those it states.
        name: For messages; None for that of the array.

    Raises:
        RasterError: If dimensions or coordinates make no raster.
    """

    def __init__(
        self, array: Any, *, bands: Sequence[str] | None = None, nodata: NoData = None, name: str | None = None
    ) -> None:
        xarray = extras.require('xarray', extra='xarray', to='read DataArrays')
        planes = list(_planes(array, xarray, name or 'the Dataset'))
        first, shown = planes[0][1], name or f'the DataArray {getattr(array, "name", None) or "without a name"}'
        across, down = _dimension(first, ACROSS, shown), _dimension(first, DOWN, shown)
        self._planes = [_plane(plane, down, across, shown) for _, plane in planes]
        stated = [printable_name(label) for label, _ in planes]
        colors = [ColorInterp.undefined] * len(planes)
        names = unique_names(stated) if bands is None else place_names(bands, colors, shown)
        crs, transform = _place(first, across, down, shown)
        shape = (first.sizes[down], first.sizes[across])
        super().__init__(
            shown,
            GeoBox(shape, transform, None if crs is None else crs.to_wkt()),
            dtypes=[str(plane.dtype) for plane in self._planes],
            descriptions=[label or None for label in names],
            nodatavals=[_stated_nodata(plane) for _, plane in planes],
            block_shapes=[_chunk(self._planes[0], shape)] * len(planes),
            scales=[1.0] * len(planes),
            offsets=[0.0] * len(planes),
            colorinterp=colors,
            crs=crs,
        )
        self.stated = tuple(stated if bands is None else names)
        self.numbered = bands is None and names != stated
        named = [nodata] * len(planes) if nodata is None or isinstance(nodata, int | float) else list(nodata)
        if len(named) != len(planes):
            raise RasterError(f'nodata= holds {len(named)} values but {shown} has {len(planes)} bands')
        self._nodata = [*zip(self.nodatavals, named)]

    def tags(self, index: int = 0, ns: str | None = None) -> Mapping[str, str]:
        """Return the attributes of a band that are texts or numbers, by its number; of 0 those of the first."""
        if ns is not None:
            return {}
        attributes = self._planes[max(index, 1) - 1].attrs.items()
        return {str(key): str(value) for key, value in attributes if isinstance(value, str | int | float)}

    def colormap(self, index: int) -> Mapping[int, tuple[int, int, int, int]]:
        """Return the colors of a band's values, which ``flag_values`` and ``flag_colors`` state."""
        attributes = self._planes[index - 1].attrs
        values, colors = np.ravel(attributes.get('flag_values', ())), str(attributes.get('flag_colors', '')).split()
        if not colors or len(values) != len(colors) or not all(map(HEX_COLOR.fullmatch, colors)):
            return super().colormap(index)
        return {int(value): (*bytes.fromhex(color[1:]), 255) for value, color in zip(values, colors)}

    def read_masked(
        self, window: Window, indexes: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window that lies inside the raster."""
        rows = slice(int(window.row_off), int(window.row_off + window.height))
        cols = slice(int(window.col_off), int(window.col_off + window.width))
        if out is None:
            out = np.empty((len(indexes), int(window.height), int(window.width)), self.common_dtype(indexes))
        try:
            for plane, index in zip(out, indexes):
                plane[...] = self._planes[index - 1][rows, cols].to_numpy()
        except (OSError, KeyError, RuntimeError) as error:  # of what stands behind a lazy array
            raise RasterError(f'cannot read rows {rows.start}..{rows.stop} of {self.name}: {error}') from error
        return out, valid_by_band(out, [self._nodata[index - 1] for index in indexes])


def open_zarr(path: str | Path) -> Any:
    """Open a Zarr store as a Dataset; values stay as they are stored.

    Raises:
        RasterError: If it is none.
    """
    xarray = extras.require('xarray', extra='xarray', to='read Zarr')
    extras.require('zarr', extra='xarray', to='read Zarr')
    try:
        opened = xarray.open_zarr(path, chunks=None, mask_and_scale=False, decode_coords='all')
    except (OSError, ValueError, KeyError) as error:
        raise RasterError(f'cannot open {path} as Zarr: {error}') from error
    order = opened.attrs.pop(BAND_ORDER, ())
    known = [name for name in order if name in opened.data_vars]
    return opened[[*known, *(name for name in opened.data_vars if name not in known)]]


def _planes(array: Any, xarray: Any, shown: str) -> list[tuple[str, Any]]:
    """Return the name and the two-dimensional DataArray of each band."""
    if isinstance(array, xarray.Dataset):
        flat = [
            (str(name), variable.assign_attrs({**array.attrs, **variable.attrs}))
            for name, variable in array.data_vars.items()
            if {*variable.dims} & {*ACROSS} and {*variable.dims} & {*DOWN}
        ]
        if not flat:
            raise RasterError(
                f'{shown} holds no variable with dimensions y and x; it holds {", ".join(array.data_vars)}'
            )
        found = []
        for name, variable in flat:
            parts = [(label if label != name else '', part) for label, part in _bands_of(variable, shown)]
            found += [(label if len(flat) == 1 and label else f'{name}_{label}' if label else name, part)
                      for label, part in parts]  # fmt: skip
        return found
    if not isinstance(array, xarray.DataArray):
        raise RasterError(f'{type(array).__name__} is no raster; pass a DataArray or a Dataset')
    return _bands_of(array, f'the DataArray {array.name}')


def _bands_of(array: Any, shown: str) -> list[tuple[str, Any]]:
    sides = {_dimension(array, ACROSS, shown), _dimension(array, DOWN, shown)}
    rest = [name for name in array.dims if name not in sides]
    for name in [name for name in rest if array.sizes[name] == 1 and name not in BANDS]:
        array = array.isel({name: 0})
        rest.remove(name)
    if len(rest) > 1 or (rest and rest[0] not in BANDS):
        odd = next(name for name in rest if name not in BANDS) if any(n not in BANDS for n in rest) else rest[1]
        dims = ', '.join(map(str, array.dims))
        raise RasterError(
            f'{shown} has dimensions {dims}, and a raster has y, x and maybe band; take one of the {array.sizes[odd]} '
            f'along {odd!r} first, such as array.isel({odd}=0), or pass a list of one for each date'
        )
    if not rest:
        return [(str(array.name or ''), array)]
    names = array.attrs.get('long_name')
    labels = array.coords[rest[0]].to_numpy().tolist() if rest[0] in array.coords else []
    if isinstance(names, list | tuple) and len(names) == array.sizes[rest[0]]:
        labels = list(names)
    texts = [label if isinstance(label, str) else '' for label in labels] or [''] * array.sizes[rest[0]]
    return [(text, array.isel({rest[0]: number})) for number, text in enumerate(texts)]


def _dimension(array: Any, names: Sequence[str], shown: str) -> str:
    found = [name for name in array.dims if name in names]
    if len(found) != 1:
        raise RasterError(
            f'{shown} has dimensions {", ".join(map(str, array.dims))}; one called {" or ".join(names[:3])} is needed '
            '(array.rename)'
        )
    return str(found[0])


def _plane(array: Any, down: str, across: str, shown: str) -> Any:
    if {*array.dims} != {down, across}:
        raise RasterError(f'the bands of {shown} have different dimensions: {array.dims} and ({down}, {across})')
    return array.transpose(down, across)


def _stated_nodata(array: Any) -> float | None:
    # decoding scaled the values, and made those that were missing NaN
    decoded = bool({'scale_factor', 'add_offset'} & {*array.encoding})
    for source in (array.attrs, {} if decoded else array.encoding):
        for key in MISSING:
            value = np.ravel(source.get(key, ()))
            if len(value) and value.dtype.kind in 'iuf':
                return float(value[0])
    return None


def _chunk(array: Any, shape: tuple[int, int]) -> tuple[int, int]:
    sizes = array.encoding.get('preferred_chunks') or {}
    rows = array.chunks[0][0] if array.chunks else sizes.get(array.dims[0], min(256, shape[0]))
    return min(int(rows), shape[0]), shape[1]


def _place(array: Any, across: str, down: str, shown: str) -> tuple[CRS | None, Affine]:
    """Return CRS and transform."""
    reference: Mapping[str, Any] = {}
    for name in (array.encoding.get('grid_mapping'), array.attrs.get('grid_mapping'), 'spatial_ref', 'crs'):
        if name in array.coords:
            reference = array.coords[name].attrs
            break
    text = reference.get('crs_wkt') or reference.get('spatial_ref') or array.attrs.get('crs')
    try:
        crs = None if not text else CRS.from_user_input(text)
    except CRSError as error:
        raise RasterError(f'the CRS of {shown} is not known: {text!r}') from error
    if across in array.coords and down in array.coords:
        x, y = (np.asarray(array.coords[name].to_numpy(), np.float64) for name in (across, down))
        if len(x) > 1 and len(y) > 1:
            return crs, _from_centers(x[0], _step(x, across, shown), y[0], _step(y, down, shown))
    if isinstance(transform := reference.get('GeoTransform'), str):
        return crs, Affine.from_gdal(*map(float, transform.split()))
    if across in array.coords and down in array.coords and len(x) + len(y) > 2:
        # one row or column says nothing of its side: pixels are square, and north is up
        width = _step(x, across, shown) if len(x) > 1 else abs(_step(y, down, shown))
        height = _step(y, down, shown) if len(y) > 1 else -abs(width)
        return crs, _from_centers(x[0], width, y[0], height)
    if crs is not None:
        raise RasterError(
            f'{shown} has a CRS but nothing that says how large its pixels are; write it with '
            'array.rio.write_transform()'
        )
    return crs, Affine.identity()


def _from_centers(x: float, width: float, y: float, height: float) -> Affine:
    """Return the transform of a raster from the center of its first pixel."""
    return Affine(width, 0, x - width / 2, 0, height, y - height / 2)


def _step(values: np.ndarray, name: str, shown: str) -> float:
    """Return the distance between neighbors along an axis, which must be the same everywhere."""
    step = float((values[-1] - values[0]) / (len(values) - 1))
    if step == 0 or np.abs(values - values[0] - step * np.arange(len(values))).max() > MISFIT_PX * abs(step):
        raise RasterError(f'the coordinates {name} of {shown} are not evenly spaced; interpolate them to a grid first')
    return step

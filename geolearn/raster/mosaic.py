"""Several rasters of one grid seen as one, without copying a pixel (a GDAL virtual raster in memory)."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geolearn.errors import RasterError

_GDAL_TYPES = {
    'uint8': 'Byte',
    'int8': 'Int8',
    'uint16': 'UInt16',
    'int16': 'Int16',
    'uint32': 'UInt32',
    'int32': 'Int32',
    'float32': 'Float32',
    'float64': 'Float64',
}


class _Source(NamedTuple):
    path: str
    width: int
    height: int
    transform: Any
    crs: Any
    dtypes: tuple[str, ...]
    nodata: float | None
    descriptions: tuple[str | None, ...]


def mosaic(paths: Sequence[str | Path]) -> str:
    """Describe a mosaic of rasters that share bands, type, CRS and pixel grid.

    Later files lie over earlier ones. Places that no file covers are invalid.

    Returns:
        The XML of a GDAL virtual raster, which `open_raster` opens like a file name.

    Raises:
        RasterError: If a file cannot be opened or does not fit the first; the message names both.
    """
    if not paths:
        raise RasterError('no raster was given; pass at least one file')
    sources = [_inspect(path) for path in paths]
    first = sources[0]
    for other in sources[1:]:
        _check_fits(first, other)
    cell_x, cell_y = first.transform.a, first.transform.e
    left = min(s.transform.c for s in sources)
    top = max(s.transform.f for s in sources)
    placed = [(s, round((s.transform.c - left) / cell_x), round((s.transform.f - top) / cell_y)) for s in sources]
    width = max(col + s.width for s, col, _ in placed)
    height = max(row + s.height for s, _, row in placed)
    body = [f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">']
    if first.crs:
        body.append(f'<SRS>{escape(first.crs.to_wkt())}</SRS>')
    body.append(f'<GeoTransform>{left!r}, {cell_x!r}, 0, {top!r}, 0, {cell_y!r}</GeoTransform>')
    for band, dtype in enumerate(first.dtypes, 1):
        body.append(f'<VRTRasterBand dataType="{_GDAL_TYPES[dtype]}" band="{band}">')
        if first.descriptions[band - 1]:
            body.append(f'<Description>{escape(str(first.descriptions[band - 1]))}</Description>')
        if first.nodata is not None:
            body.append(f'<NoDataValue>{first.nodata!r}</NoDataValue>')
        body.extend(_source_xml(s, col, row, str(band)) for s, col, row in placed)
        body.append('</VRTRasterBand>')
    if first.nodata is None:
        body.append('<MaskBand><VRTRasterBand dataType="Byte">')
        body.extend(_source_xml(s, col, row, 'mask,1') for s, col, row in placed)
        body.append('</VRTRasterBand></MaskBand>')
    body.append('</VRTDataset>')
    return ''.join(body)


def _inspect(path: str | Path) -> _Source:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with rasterio.open(path) as src:
                shape = (src.width, src.height, src.transform, src.crs, src.dtypes, src.nodata, src.descriptions)
                return _Source(str(Path(path).resolve()), *shape)
    except RasterioError as error:
        raise RasterError(f'cannot open raster {path}: {error}') from error


def _check_fits(first: _Source, other: _Source) -> None:
    a, b = first.transform, other.transform
    problems = []
    if first.dtypes != other.dtypes:
        problems.append(f'bands {list(first.dtypes)} and {list(other.dtypes)}')
    if first.crs != other.crs:
        problems.append(f'CRS {first.crs} and {other.crs}')
    if first.nodata != other.nodata:
        problems.append(f'NoData {first.nodata} and {other.nodata}')
    if abs(a.a - b.a) + abs(a.e - b.e) > 1e-6 * abs(a.a) or a.b or a.d or b.b or b.d:
        problems.append(f'pixel sizes {(a.a, a.e)} and {(b.a, b.e)}')
    else:
        offsets = ((b.c - a.c) / a.a, (b.f - a.f) / a.e)
        if any(abs(offset - round(offset)) > 0.01 for offset in offsets):
            problems.append(f'grids that are shifted by a part of a pixel: {offsets}')
    if problems:
        raise RasterError(
            f'{first.path} and {other.path} cannot be one mosaic: {"; ".join(problems)}. Warp them to one grid first'
        )


def _source_xml(source: _Source, col: int, row: int, band: str) -> str:
    size = f'xSize="{source.width}" ySize="{source.height}"'
    return (
        f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(source.path)}</SourceFilename>'
        f'<SourceBand>{band}</SourceBand><SrcRect xOff="0" yOff="0" {size}/>'
        f'<DstRect xOff="{col}" yOff="{row}" {size}/></SimpleSource>'
    )

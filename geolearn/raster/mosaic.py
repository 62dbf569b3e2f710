"""Several rasters of one grid seen as one, without copying a pixel (a GDAL virtual raster in memory)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, SubElement, tostring

from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError

from geolearn.errors import RasterError
from geolearn.raster.geobox import MISFIT_PX
from geolearn.raster.opening import open_quietly

_GDAL_TYPES = {
    'uint8': 'Byte',
    'int8': 'Int8',
    'uint16': 'UInt16',
    'int16': 'Int16',
    'uint32': 'UInt32',
    'int32': 'Int32',
    'uint64': 'UInt64',
    'int64': 'Int64',
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
    masked: bool
    descriptions: tuple[str | None, ...]


class _Placed(NamedTuple):
    """A source and the pixel of the mosaic where it begins."""

    source: _Source
    col: int
    row: int


def mosaic(paths: Sequence[str | Path]) -> str:
    """Describe a mosaic of rasters that share bands, type, CRS and pixel grid.

    Later files lie over earlier ones where they hold data. Places that no file covers are invalid. Tags of the first
    file are the mosaic's.

    Returns:
        The XML of a GDAL virtual raster, which `open_raster` opens like a file name.

    Raises:
        RasterError: If a file cannot be opened or does not fit the first; the message names both.
    """
    if not paths:
        raise RasterError('no raster was given; pass at least one file')
    sources = [_inspect(path) for path in paths]
    first = sources[0]
    if len(sources) > 1 and first.transform.is_identity:
        raise RasterError(f'{first.path} has no place on the ground, so nothing can lie beside it; georeference it')
    for other in sources[1:]:
        _check_fits(first, other)
    cell_x, cell_y = first.transform.a, first.transform.e
    left = (min if cell_x > 0 else max)(s.transform.c for s in sources)
    top = (max if cell_y < 0 else min)(s.transform.f for s in sources)
    placed = [
        _Placed(s, round((s.transform.c - left) / cell_x), round((s.transform.f - top) / cell_y)) for s in sources
    ]
    width = max(p.col + p.source.width for p in placed)
    height = max(p.row + p.source.height for p in placed)
    root = Element('VRTDataset', rasterXSize=str(width), rasterYSize=str(height))
    if first.crs:
        SubElement(root, 'SRS').text = first.crs.to_wkt()
    SubElement(root, 'GeoTransform').text = f'{left!r}, {cell_x!r}, 0, {top!r}, 0, {cell_y!r}'
    _describe(root, first, placed)
    return tostring(root, encoding='unicode')


def _describe(root: Element, first: _Source, placed: Sequence[_Placed]) -> None:
    """Add metadata, bands and, where no NoData value says what is valid, a mask."""
    with open_quietly(first.path) as src:
        _add_tags(root, src.tags())
        for index, dtype in zip(src.indexes, first.dtypes):
            band = SubElement(root, 'VRTRasterBand', dataType=_GDAL_TYPES[dtype], band=str(index))
            if first.descriptions[index - 1]:
                SubElement(band, 'Description').text = first.descriptions[index - 1]
            if first.nodata is not None:
                SubElement(band, 'NoDataValue').text = repr(first.nodata)
            _add_tags(band, src.tags(index))
            _add_tags(band, src.tags(index, ns='IMAGERY'), domain='IMAGERY')
            for part in placed:
                _add_source(band, part, str(index), skipped=first.nodata)
    if first.nodata is None:
        mask = SubElement(SubElement(root, 'MaskBand'), 'VRTRasterBand', dataType='Byte')
        for part in placed:
            _add_source(mask, part, 'mask,1', skipped=0)


def _add_tags(parent: Element, tags: Mapping[str, str], **attributes: str) -> None:
    kept = {key: value for key, value in tags.items() if not key.startswith('STATISTICS_')}  # true of one file only
    if kept:
        metadata = SubElement(parent, 'Metadata', attributes)
        for key, value in kept.items():
            SubElement(metadata, 'MDI', key=key).text = value


def _add_source(parent: Element, part: _Placed, band: str, *, skipped: float | None) -> None:
    """Lay a file over those before it, except where it holds the `skipped` value or its own mask says so."""
    source, col, row = part
    by_mask = source.masked and not band.startswith('mask')
    kind = 'SimpleSource' if skipped is None and not by_mask else 'ComplexSource'
    element = SubElement(parent, kind)
    size = {'xSize': str(source.width), 'ySize': str(source.height)}
    SubElement(element, 'SourceFilename', relativeToVRT='0').text = source.path
    SubElement(element, 'SourceBand').text = band
    SubElement(element, 'SrcRect', {'xOff': '0', 'yOff': '0'} | size)
    SubElement(element, 'DstRect', {'xOff': str(col), 'yOff': str(row)} | size)
    if skipped is not None:
        SubElement(element, 'NODATA').text = repr(skipped)
    elif by_mask:
        SubElement(element, 'UseMaskBand').text = 'true'


def _inspect(path: str | Path) -> _Source:
    try:
        with open_quietly(path) as src:
            masked = src.nodata is None and MaskFlags.all_valid not in src.mask_flag_enums[0]
            source = _Source(
                # what is no local file ('/vsizip/...', 's3://...') is GDAL's own name for it
                path=str(Path(path).resolve() if Path(path).exists() else path),
                width=src.width,
                height=src.height,
                transform=src.transform,
                crs=src.crs,
                dtypes=src.dtypes,
                nodata=src.nodata,
                masked=masked,
                descriptions=src.descriptions,
            )
    except (RasterioError, UnicodeDecodeError) as error:
        raise RasterError(f'cannot open raster {path}: {error}') from error
    if source.transform.b or source.transform.d:
        raise RasterError(f'{path} is turned or sheared, so it fits no mosaic. Warp it to a north-up grid first')
    if strange := set(source.dtypes) - set(_GDAL_TYPES):
        raise RasterError(f'{path} holds {", ".join(sorted(strange))} numbers, of which no mosaic is made')
    return source


def _check_fits(first: _Source, other: _Source) -> None:
    a, b = first.transform, other.transform
    names, other_names = list(first.descriptions), list(other.descriptions)
    problems = []
    if first.dtypes != other.dtypes:
        problems.append(f'bands {list(first.dtypes)} and {list(other.dtypes)}')
    elif any(names) and any(other_names) and names != other_names:
        problems.append(f'band names {names} and {other_names}')
    if first.crs != other.crs:
        problems.append(f'CRS {first.crs} and {other.crs}')
    # repr: NaN is NoData too, and differs from itself
    if repr(first.nodata) != repr(other.nodata):
        problems.append(f'NoData {first.nodata} and {other.nodata}')
    widest, tallest = max(first.width, other.width), max(first.height, other.height)
    if max(widest * abs(b.a / a.a - 1), tallest * abs(b.e / a.e - 1)) > MISFIT_PX:
        problems.append(f'pixel sizes {(a.a, a.e)} and {(b.a, b.e)}')
    else:
        offsets = ((b.c - a.c) / a.a, (b.f - a.f) / a.e)
        if any(abs(offset - round(offset)) > MISFIT_PX for offset in offsets):
            problems.append(f'grids that are shifted by a part of a pixel: {offsets}')
    if problems:
        raise RasterError(
            f'{first.path} and {other.path} cannot be one mosaic: {"; ".join(problems)}. Warp them to one grid first'
        )

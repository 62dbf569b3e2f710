"""Write GeoTIFFs beside their target and rename them, with their sidecars, when they are whole."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from xml.etree import ElementTree

import numpy as np
from rasterio.errors import RasterioError
from rasterio.windows import Window

from geolearn import errors, files
from geolearn.classes import ClassInfo
from geolearn.raster.geobox import GeoBox
from geolearn.raster.opening import find_driver, open_quietly, printable
from geolearn.raster.qml import style_name, write_raster_style

MAX_CATEGORY = 255
"""The list of names counts from 0 without gaps; beyond a byte it would be mostly empty lines."""


SIDECARS = ('.aux.xml', '.ovr', '.msk')
"""What GDAL looks for behind the name of a raster."""


def write_class_names(
    path: Path,
    class_names: Mapping[int, str],
    *,
    colors: Mapping[int, tuple[int, int, int]] | None = None,
    counts: Mapping[int, int] | None = None,
) -> None:
    """Write the names of a raster's pixel values beside it, where QGIS, ArcGIS and GDAL look for them.

    Args:
        path: The raster.
        class_names: By pixel value; empty writes nothing.
        colors: Color of each, for the raster attribute table.
        counts: Number of pixels of each, likewise.
    """
    if not class_names:
        return
    root = ElementTree.Element('PAMDataset')
    band = ElementTree.SubElement(root, 'PAMRasterBand', band='1')
    if max(class_names) <= MAX_CATEGORY:
        names = ElementTree.SubElement(band, 'CategoryNames')
        for value in range(max(class_names) + 1):
            ElementTree.SubElement(names, 'Category').text = printable(class_names.get(value, ''))
    if counts is not None:
        _add_attribute_table(band, class_names, colors or {}, counts)
    if len(band):
        ElementTree.ElementTree(root).write(path.with_name(f'{path.name}.aux.xml'), encoding='utf-8')


def write_style(path: Path, class_names: Mapping[int, str], colors: Mapping[int, tuple[int, int, int]]) -> None:
    """Write a style for QGIS of a raster whose pixel values have names and colors."""
    named = sorted(class_names.items())
    if classes := [ClassInfo(value, name, colors[value]) for value, name in named if value in colors]:
        write_raster_style(path, classes)


_COLUMNS = (('Value', 0, 5), ('Count', 1, 1), ('Class', 2, 2), ('Red', 0, 6), ('Green', 0, 7), ('Blue', 0, 8))
"""Of the raster attribute table: name, GDAL's number of the type (whole, real, text), and of the meaning."""


def _add_attribute_table(
    band: ElementTree.Element,
    class_names: Mapping[int, str],
    colors: Mapping[int, tuple[int, int, int]],
    counts: Mapping[int, int],
) -> None:
    table = ElementTree.SubElement(band, 'GDALRasterAttributeTable', tableType='thematic')
    for index, (name, kind, meaning) in enumerate(_COLUMNS):
        column = ElementTree.SubElement(table, 'FieldDefn', index=str(index))
        for key, text in (('Name', name), ('Type', str(kind)), ('Usage', str(meaning))):
            ElementTree.SubElement(column, key).text = text
    for index, (value, name) in enumerate(sorted(class_names.items())):
        row = ElementTree.SubElement(table, 'Row', index=str(index))
        for cell in (value, counts.get(value, 0), printable(name), *colors.get(value, (0, 0, 0))):
            ElementTree.SubElement(row, 'F').text = str(cell)


COMPRESSION = 'lzw'
"""Lossless, read by everything, and fast both ways."""

BLOCK_SIZE = 256


class RasterWriter:
    """Write a GeoTIFF by full-width rows, top to bottom; the target appears only when all of it is written.

    Args:
        path: Target file.
        geobox: Shape, transform and CRS of the raster.
        dtype: numpy dtype name of the pixels.
        count: Number of bands.
        nodata: NoData value, or None.
        colors: Colour of each pixel value, for 8- and 16-bit single-band rasters.
        band_names: Description of each band.
        class_names: Name of each pixel value, kept as tags and in an .aux.xml where QGIS and GDAL find it; with colors
            also in a style for QGIS, ``<name>.qml``.
        tags: Dataset metadata.
        compress: GDAL's compression name.
    """

    def __init__(
        self,
        path: str | Path,
        geobox: GeoBox,
        *,
        dtype: str,
        count: int = 1,
        nodata: float | None = None,
        band_names: Sequence[str] = (),
        colors: Mapping[int, tuple[int, int, int]] | None = None,
        class_names: Mapping[int, str] | None = None,
        tags: Mapping[str, str] | None = None,
        compress: str = COMPRESSION,
    ) -> None:
        self.path = Path(path)
        self._geobox = geobox
        self._profile: dict[str, Any] = {
            'driver': find_driver(path, by_rows=True),
            'height': geobox.shape[0],
            'width': geobox.shape[1],
            'count': count,
            'dtype': dtype,
            'nodata': nodata,
            'compress': compress,
            'transform': geobox.transform,
            'crs': geobox.crs,
            'BIGTIFF': 'IF_SAFER',
            # bands that are read together lie together
            'interleave': 'pixel',
        }
        if min(geobox.shape) >= BLOCK_SIZE:
            self._profile |= {'tiled': True, 'blockxsize': BLOCK_SIZE, 'blockysize': BLOCK_SIZE}
        if compress in ('lzw', 'deflate') and count > 1:
            self._profile |= {'predictor': 3 if dtype.startswith('float') else 2}
        if count == 4 and dtype == 'uint8':
            self._profile |= {'alpha': 'no'}  # GDAL takes the fourth of four bytes for opacity unless told otherwise
        self._band_names, self._colors = band_names, colors
        self._class_names, self._tags = class_names, tags
        self._scope = files.atomic_write_all(
            self.path, error=errors.RasterError, replaces=[self.path.name + suffix for suffix in SIDECARS]
        )

    def __enter__(self) -> Self:
        self._part = self._scope.__enter__()
        try:
            self._dst = self._create()
            self._describe()
        except BaseException as error:
            self._abandon(error)
            raise
        return self

    def _create(self) -> Any:
        try:
            return open_quietly(self._part, 'w', self._profile)
        except (RasterioError, OSError) as error:
            raise errors.RasterError(self._failure(error)) from error
        except (TypeError, ValueError) as error:  # rasterio's word for a type, CRS or NoData that no GeoTIFF can hold
            raise errors.RasterError(f'cannot write {self.path}: {error}') from error

    def _describe(self) -> None:
        for index, name in enumerate(self._band_names, 1):
            self._dst.set_band_description(index, printable(name))
        if self._colors and self._profile['dtype'] in ('uint8', 'uint16'):
            self._dst.write_colormap(1, {value: (*rgb, 255) for value, rgb in self._colors.items()})
        if self._class_names:
            names = {f'class_{value}': printable(name) for value, name in sorted(self._class_names.items())}
            self._dst.update_tags(1, **names)
        if self._tags:
            self._dst.update_tags(**{key: printable(text) for key, text in self._tags.items()})

    def write(self, row: int, pixels: np.ndarray) -> None:
        """Write rows starting at `row`: (bands, rows, width), or (rows, width) for one band.

        Raises:
            RasterError: If the disk is full or the file cannot be written.
        """
        block = pixels if pixels.ndim == 3 else pixels[None]
        try:
            self._dst.write(block, window=Window(0, row, block.shape[2], block.shape[1]))
        except RasterioError as error:
            raise errors.RasterError(self._failure(error.__cause__ or error)) from error

    def _failure(self, reason: object) -> str:
        return f'cannot write {self.path}: {reason}. Is the disk full? Nothing was left behind'

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            try:
                self._dst.close()
                self._check_readable()
                write_class_names(self._part, self._class_names or {})
                style = self._part.with_name(style_name(self.path))
                write_style(style, self._class_names or {}, self._colors or {})
            except (RasterioError, OSError) as failure:
                refused = errors.RasterError(self._failure(failure))
                self._abandon(refused)
                raise refused from failure
            self._scope.__exit__(None, None, None)
        else:
            # GDAL may fail again while flushing what cannot be written; the first error is the one to show
            with suppress(RasterioError, OSError):
                self._dst.close()
            self._abandon(error)

    def _abandon(self, error: BaseException) -> None:
        """Delete what was written; the error is the caller's to raise."""
        with suppress(errors.RasterError, type(error)):
            self._scope.__exit__(type(error), error, error.__traceback__)

    def _check_readable(self) -> None:
        """Read the last pixel back: GDAL writes late, and a full disk may only show at the end."""
        height, width = self._geobox.shape
        with open_quietly(self._part) as src:
            src.read(1, window=Window(width - 1, height - 1, 1, 1))


def write_raster(
    path: str | Path,
    pixels: np.ndarray,
    *,
    transform: Any,
    crs: str | None,
    nodata: float | None = None,
    band_names: Sequence[str] = (),
    colors: Mapping[int, tuple[int, int, int]] | None = None,
    tags: Mapping[str, str] | None = None,
    compress: str = COMPRESSION,
) -> Path:
    """Write an array as a GeoTIFF.

    Args:
        path: Target file.
        pixels: (bands, height, width), or (height, width) for one band.
        transform: Affine from (column, row) to map coordinates.
        crs: WKT or ``'EPSG:...'``, or None.
        nodata: NoData value, or None.
        band_names: Description of each band.
        colors: Colour of each pixel value of a single-band integer raster.
        tags: Dataset metadata.
        compress: GDAL's compression name.

    Returns:
        The path written.

    Raises:
        RasterError: If the file cannot be written; no part of it is left.
    """
    block = pixels if pixels.ndim == 3 else pixels[None]
    geobox = GeoBox(block.shape[1:], transform, crs)
    writer = RasterWriter(
        path,
        geobox,
        dtype=str(block.dtype),
        count=block.shape[0],
        nodata=nodata,
        band_names=band_names,
        colors=colors,
        tags=tags,
        compress=compress,
    )
    with writer:
        writer.write(0, block)
    return Path(path)

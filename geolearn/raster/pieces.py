"""Rasters that are written in pieces, which lie in files of their own until one GeoTIFF is made of all of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.env import getenv, hasenv
from rasterio.errors import RasterioError
from rasterio.shutil import copy
from rasterio.windows import Window

from geolearn.raster import writing
from geolearn.raster.geobox import GeoBox
from geolearn.raster.opening import find_driver, open_quietly, printable, unwarned
from geolearn.raster.tally import BandTally
from geolearn.raster.writing import BLOCK_SIZE, COMPRESSION

PIECE = '.piece.tif'
"""Ends the names of pieces."""


MOST_INTERLEAVED = 32
"""Bands that are stored pixel by pixel; more are stored one after the other."""

SMALL_BLOCK = 128
"""Side of the blocks of cloud-optimized GeoTIFFs of more bands, the least that GDAL takes: 48 MiB for 768 float32."""

UNTILED = 512
"""Side up to which a GeoTIFF is cloud-optimized without blocks and overviews."""


@dataclass(frozen=True, eq=False)
class RasterContent:
    """What the bands of a raster hold, and what it says of them.

    Args:
        dtype: numpy's name of the type of the pixels; ``'float16'`` is stored in 16 bits and read as float32.
        nodata: NoData value, or None.
        band_names: Description of each band; their number is that of the bands.
        colors: Color of each pixel value of the first band.
        class_names: Name of each pixel value of the first band.
        scales: What stored values of each band are multiplied by; empty for 1.
        tags: Metadata.
        tallies: What each band holds, once that is known, to state its statistics.
        compression: GDAL's name of how blocks are compressed; ``'none'`` for values of which each digit differs.
    """

    dtype: str
    nodata: float | None
    band_names: tuple[str, ...]
    colors: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    class_names: Mapping[int, str] = field(default_factory=dict)
    scales: tuple[float, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    tallies: tuple[BandTally, ...] = ()
    compression: str = COMPRESSION

    @property
    def count(self) -> int:
        """Number of bands."""
        return len(self.band_names)

    @property
    def memory_dtype(self) -> str:
        """Type of the pixels in memory, as GDAL takes them."""
        return 'float32' if self.dtype == 'float16' else self.dtype

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel in the file, before compression."""
        return self.count * np.dtype(self.dtype).itemsize

    @property
    def is_classes(self) -> bool:
        """Whether the first band holds classes, which have no mean."""
        return bool(self.class_names)

    def creation_options(self) -> dict[str, Any]:
        """Return GDAL's options of how pixels are stored."""
        # a block of hundreds of bands side by side would take hundreds of megabytes
        interleave = 'pixel' if self.count <= MOST_INTERLEAVED else 'band'
        options: dict[str, Any] = {'compress': self.compression, 'interleave': interleave, 'BIGTIFF': 'IF_SAFER'}
        if self.dtype == 'float16':
            options['NBITS'] = 16
        if self.count == 4 and self.dtype == 'uint8':
            options['alpha'] = 'no'  # GDAL takes the fourth of four bytes for opacity unless told otherwise
        return options

    @property
    def predictor(self) -> int:
        """TIFF's number of what is compressed in place of the values: 1 values, 2 and 3 their differences."""
        if self.compression == 'none':
            return 1
        if self.memory_dtype.startswith('float'):
            return 3
        return 2 if self.count > 1 else 1


class PieceFile:
    """One piece that is being written, by rows.

    Args:
        path: To write.
        shape: Rows and columns.
        content: Of the raster that it is a part of.
    """

    def __init__(self, path: Path, shape: tuple[int, int], content: RasterContent) -> None:
        self.path, self.shape = path, shape
        profile = {
            'driver': 'GTiff',
            'height': shape[0],
            'width': shape[1],
            'count': content.count,
            'dtype': content.memory_dtype,
            'predictor': content.predictor,
            **content.creation_options(),
        }
        if min(shape) >= BLOCK_SIZE:
            profile |= {'tiled': True, 'blockxsize': BLOCK_SIZE, 'blockysize': BLOCK_SIZE}
        # GDAL opens what is there before it replaces it, and a killed run may leave half of a file
        path.unlink(missing_ok=True)
        self._dst = open_quietly(path, 'w', profile)

    def write(self, row: int, pixels: np.ndarray) -> None:
        """Write rows (bands, rows, width) from `row` of this piece on."""
        self._dst.write(pixels, window=Window(0, row, pixels.shape[2], pixels.shape[1]))

    def close(self) -> None:
        """Finish the file, and read its last pixel back: on a full disk GDAL may fail at the end, without an error."""
        self._dst.close()
        height, width = self.shape
        with open_quietly(self.path) as src:
            src.read(1, window=Window(width - 1, height - 1, 1, 1))

    def abandon(self) -> None:
        """Close and delete the file; GDAL may fail again while it flushes what cannot be written."""
        with suppress(RasterioError, OSError):
            self._dst.close()
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class PlacedPiece:
    """A finished piece, and the pixels of the raster that it holds."""

    path: Path
    window: Window


@contextmanager
def open_pieces(pieces: Sequence[PlacedPiece], listing: Path, geobox: GeoBox, content: RasterContent) -> Iterator[Any]:
    """Open pieces that cover a raster as one.

    Args:
        pieces: In the folder of `listing`, or one below.
        listing: A file to write, a VRT; it is deleted.
        geobox: Place of the raster.
        content: What it says of itself.
    """
    _write_listing(pieces, listing, geobox, content)
    with open_quietly(listing) as src:
        yield src
    listing.unlink()


FileStage = Literal['overviews', 'joining']
"""What is done while a GeoTIFF is made of pieces."""

Watch = Callable[[FileStage, float], None]
"""Takes what is done, and the share of the work on the files that is done, 0 to 1."""

WATCH_SECONDS = 0.5
"""Between two looks at how far GDAL is."""

OVERVIEW_BYTES = 0.35
"""Of overviews, for each byte of the pieces, about."""


def join_pieces(
    pieces: Sequence[PlacedPiece],
    path: Path,
    geobox: GeoBox,
    content: RasterContent,
    *,
    cog: bool,
    style: str,
    watch: Watch | None = None,
) -> None:
    """Make one GeoTIFF of pieces that cover a raster; block by block, so that memory stays flat.

    Args:
        pieces: In the folder of `path`, or one below.
        path: To write, in a folder where other files may be written too.
        geobox: Place of the raster.
        content: What it says of itself.
        cog: Whether to write a cloud-optimized one, with overviews.
        style: Name of the style for QGIS, where the raster holds classes alone.
        watch: Called twice a second with how far the file is. An exception that it raises is raised once GDAL is done.

    Raises:
        RasterioError: Or OSError: if it cannot be written.
        RasterError: If the suffix of `path` is not that of a GeoTIFF.
    """
    driver = find_driver(path, by_rows=True)
    options = content.creation_options() | {'NUM_THREADS': 'ALL_CPUS'}
    # one small grid of hundreds of bands would be all padding
    cog = cog and (content.count <= MOST_INTERLEAVED or max(geobox.shape) > UNTILED)
    if cog:
        driver = 'COG'
        del options['interleave']
        options.pop('alpha', None)
        options |= {
            'predictor': 'YES' if content.predictor > 1 else 'NO',
            # the driver stores all bands of a pixel together, whatever their number
            'blocksize': BLOCK_SIZE if content.count <= MOST_INTERLEAVED else SMALL_BLOCK,
            # classes have no mean
            'overview_resampling': 'NEAREST' if content.is_classes else 'AVERAGE',
            'overview_compress': content.compression,
        }
    else:
        options |= {'predictor': content.predictor}
        if min(geobox.shape) >= BLOCK_SIZE:
            options |= {'tiled': True, 'blockxsize': BLOCK_SIZE, 'blockysize': BLOCK_SIZE}
    listing = path.with_name(f'{path.name}.pieces.vrt')
    _write_listing(pieces, listing, geobox, content)
    stored = path.with_name(f'{path.name}.whole.tif')
    by_pixel = cog and content.count > MOST_INTERLEAVED
    size = sum(piece.path.stat().st_size for piece in pieces)
    steps: list[tuple[FileStage, Path, float]] = [('joining', path, size * (1 + OVERVIEW_BYTES if cog else 1))]
    if cog:
        steps.insert(0, ('overviews', path.with_name(f'{path.name}.ovr.tmp'), size * OVERVIEW_BYTES))
    if by_pixel:
        steps.insert(0, ('joining', stored, size))
    with unwarned():
        if by_pixel:
            # the driver reads pixel by pixel, for which hundreds of bands that lie one by one are decoded many times
            block = {'tiled': True, 'blockxsize': SMALL_BLOCK, 'blockysize': SMALL_BLOCK, 'interleave': 'pixel'}
            _copy(listing, stored, {'driver': 'GTiff', 'BIGTIFF': 'IF_SAFER', **block}, steps, watch)
            listing.unlink()
            listing = stored
        _copy(listing, path, {'driver': driver, **options}, steps, watch)
    listing.unlink()
    listing.with_name(f'{listing.name}.aux.xml').unlink(missing_ok=True)
    with open_quietly(path) as src:
        src.read(1, window=Window(src.width - 1, src.height - 1, 1, 1))
    counts = content.tallies[0].counts if content.tallies else None
    writing.write_class_names(path, content.class_names, colors=content.colors, counts=counts)
    if content.count == 1:
        writing.write_style(path.with_name(style), content.class_names, content.colors)


def _copy(
    source: Path,
    path: Path,
    options: Mapping[str, Any],
    steps: Sequence[tuple[FileStage, Path, float]],
    watch: Watch | None,
) -> None:
    """Copy a raster, and say meanwhile how far it is.

    Args:
        source: To copy.
        path: To write.
        options: Of GDAL.
        steps: In order what is done, the file that it grows, and the bytes that this will have, about.
        watch: Takes how far the work is.
    """
    if watch is None:
        copy(source, path, **options)
        return
    given = getenv() if hasenv() else {}

    def work() -> None:
        with rasterio.Env(**given):  # options are those of a thread
            copy(source, path, **options)

    with ThreadPoolExecutor(1, 'geolearn-join') as pool:
        copying = pool.submit(work)
        number, share = 0, 0.0
        while not wait([copying], timeout=WATCH_SECONDS).done:
            # a file that is done may be gone
            number = max([number, *(index for index, (_, file, _) in enumerate(steps) if file.exists())])
            stage, file, size = steps[number]
            written = 0
            with suppress(OSError):
                written = file.stat().st_size
            share = max(share, (number + min(written / max(size, 1), 0.99)) / len(steps))
            watch(stage, share)
        copying.result()


def _write_listing(pieces: Sequence[PlacedPiece], path: Path, geobox: GeoBox, content: RasterContent) -> None:
    path.write_bytes(ElementTree.tostring(_list_pieces(pieces, geobox, content), encoding='unicode').encode())


_TYPES = {'uint8': 'Byte', 'uint16': 'UInt16', 'int16': 'Int16', 'float32': 'Float32', 'float64': 'Float64'}
"""GDAL's names of types."""


def _list_pieces(pieces: Sequence[PlacedPiece], geobox: GeoBox, content: RasterContent) -> ElementTree.Element:
    """Return a VRT, GDAL's description of a raster whose pixels lie in other files."""
    height, width = geobox.shape
    root = ElementTree.Element('VRTDataset', rasterXSize=str(width), rasterYSize=str(height))
    if geobox.crs is not None:
        ElementTree.SubElement(root, 'SRS').text = CRS.from_user_input(geobox.crs).to_wkt()
    # also where it is the identity, which says that the raster has no place
    place = ', '.join(repr(float(number)) for number in geobox.transform.to_gdal())
    ElementTree.SubElement(root, 'GeoTransform').text = place
    _add_metadata(root, {key: printable(text) for key, text in content.tags.items()})
    files = [str(piece.path.resolve()) for piece in pieces]  # once: grids of vectors have hundreds of bands
    for number, name in enumerate(content.band_names, 1):
        band = ElementTree.SubElement(root, 'VRTRasterBand', dataType=_TYPES[content.memory_dtype], band=str(number))
        ElementTree.SubElement(band, 'Description').text = printable(name)
        known: dict[str, str] = {}
        if content.tallies:
            known |= {key: repr(value) for key, value in content.tallies[number - 1].statistics().items()}
        if number == 1 and content.is_classes:
            known |= {f'class_{value}': printable(text) for value, text in sorted(content.class_names.items())}
        _add_metadata(band, known)
        if content.nodata is not None:
            ElementTree.SubElement(band, 'NoDataValue').text = repr(content.nodata)
        if number == 1 and content.colors and content.count == 1 and content.dtype in ('uint8', 'uint16'):
            ElementTree.SubElement(band, 'ColorInterp').text = 'Palette'
            table = ElementTree.SubElement(band, 'ColorTable')
            for value in range(max(content.colors) + 1):
                color = content.colors.get(value)
                names = zip(('c1', 'c2', 'c3', 'c4'), (*(color or (0, 0, 0)), 255))
                ElementTree.SubElement(table, 'Entry', {key: str(part) for key, part in names})
        else:
            ElementTree.SubElement(band, 'ColorInterp').text = 'Gray' if number == 1 else 'Undefined'
        if content.scales and content.scales[number - 1] != 1:
            ElementTree.SubElement(band, 'Scale').text = repr(content.scales[number - 1])
        for file, piece in zip(files, pieces):
            _add_source(band, number, file, piece.window)
    return root


def _add_metadata(parent: ElementTree.Element, texts: Mapping[str, str]) -> None:
    if texts:
        metadata = ElementTree.SubElement(parent, 'Metadata')
        for key, text in texts.items():
            ElementTree.SubElement(metadata, 'MDI', key=key).text = text


def _add_source(band: ElementTree.Element, number: int, file: str, window: Window) -> None:
    rows, cols = int(window.height), int(window.width)
    source = ElementTree.SubElement(band, 'SimpleSource')
    ElementTree.SubElement(source, 'SourceFilename', relativeToVRT='0').text = file
    ElementTree.SubElement(source, 'SourceBand').text = str(number)
    for name, col, row in (('SrcRect', 0, 0), ('DstRect', int(window.col_off), int(window.row_off))):
        places = {'xOff': col, 'yOff': row, 'xSize': cols, 'ySize': rows}
        ElementTree.SubElement(source, name, {key: str(number) for key, number in places.items()})

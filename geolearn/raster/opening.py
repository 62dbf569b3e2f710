"""Open files with rasterio, and put back what that changes for the whole process: warnings and GDAL's cache."""

import os
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from rasterio.env import get_gdal_config, set_gdal_config
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.features import rasterize, shapes

from geolearn.errors import RasterError

# GDAL's default cache is 5 % of the machine's memory; block rows are read once here, so little is enough.
CACHE_BYTES = 32 * 2**20


class Driver(NamedTuple):
    """A file format of rasters.

    Args:
        name: GDAL's.
        by_rows: Whether it is written row by row, without holding the raster in memory.
    """

    name: str
    by_rows: bool


DRIVERS = {
    '.tif': Driver('GTiff', by_rows=True),
    '.tiff': Driver('GTiff', by_rows=True),
    '.png': Driver('PNG', by_rows=False),
    '.jpg': Driver('JPEG', by_rows=False),
    '.jpeg': Driver('JPEG', by_rows=False),
    '.mrf': Driver('MRF', by_rows=False),
}
"""Formats that geolearn writes, by suffix."""


def find_driver(path: str | Path, *, by_rows: bool = False) -> str:
    """Return GDAL's name of the format to write a file in, by its suffix.

    Args:
        path: Target.
        by_rows: Whether the format must be one that is written row by row.

    Raises:
        RasterError: If the suffix stands for no such format.
    """
    driver = DRIVERS.get(Path(path).suffix.lower())
    if driver is None or (by_rows and not driver.by_rows):
        known = ', '.join(suffix for suffix, other in DRIVERS.items() if other.by_rows or not by_rows)
        raise RasterError(
            f'cannot write {path}: {Path(path).suffix or "no suffix"!r} is not the suffix of a format that such '
            f'rasters are written in; end the name in one of {known}'
        )
    return driver.name


def printable(text: str) -> str:
    """Replace what neither XML nor the metadata of a raster can hold: control characters and halves of characters."""
    return re.sub('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]', '\N{REPLACEMENT CHARACTER}', text)


_lock = threading.Lock()


class _Cache:
    """How many contexts want a small cache, and the size to go back to when none does."""

    users = 0
    former = 0


class _Filter:
    """How many threads are opening a file, and the warnings filter that they share."""

    changed = threading.Condition()
    users = 0
    entry: Any = None


_FORBIDDEN = frozenset(
    'DAAS DERIVED EEDA EEDAI GTI HTTP MEM Memory NGW OGCAPI PLMOSAIC PLScenes STACIT STACTA VRT WCS WMS WMTS'.split()
)
"""GDAL's drivers of text that names other files or asks hosts for pixels; a VRT is opened where its name says so."""

_BY_SUFFIX = {
    **{suffix: (driver.name,) for suffix, driver in DRIVERS.items()},
    '.vrt': ('VRT',),
    '.jp2': ('JP2OpenJPEG', 'JP2KAK', 'JP2ECW', 'JP2MrSID', 'JPEG2000'),
}

_PIXELS = ('GTiff', 'JPEG', 'PNG')
"""Formats that hold pixels and name no other file; the suffixes of images are often mixed up among them."""

_TIFF_MAGIC = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')

_MRF_BYTES = 2**20


def open_quietly(path: str | Path, mode: str = 'r', profile: Mapping[str, Any] | None = None) -> Any:
    """Open with rasterio; a raster without a place is refused where a place is needed, not warned of here.

    The suffix of a file decides which of GDAL's drivers may read it, so that no file is read as another thing than it
    says it is; and a VRT, which may name any other file or host, only ends in .vrt. Only GeoTIFF, PNG and JPEG, none of
    which names other files, may stand in for one another.
    """
    with unwarned():
        if mode == 'r':
            readers = _readers(str(path))
            if isinstance(readers, str):
                try:
                    return rasterio.open(path, driver=readers)
                except RasterioIOError:
                    others = [name for name in _PIXELS if name != readers]
                    if len(others) == len(_PIXELS) or not os.path.isfile(path):
                        raise
                    with suppress(RasterioIOError), rasterio.Env():
                        return rasterio.DatasetReader(path, driver=others, sharing=False)
                    raise
            with rasterio.Env():
                return rasterio.DatasetReader(path, driver=readers, sharing=False)
        return rasterio.open(path, mode, **(profile or {}))


def _readers(path: str) -> str | list[str]:
    """Return the drivers that may read a file; naming one also spares GDAL a third of the time a small file takes."""
    names = _BY_SUFFIX.get(os.path.splitext(path)[1].lower())
    if names is not None and len(names) == 1:
        return names[0]
    known = _all_drivers()
    return [name for name in known if names is None or name in names]


@cache
def _all_drivers() -> tuple[str, ...]:
    with rasterio.Env() as env:
        return tuple(sorted(set(env.drivers()) - _FORBIDDEN))


def check_chip_file(path: str | Path) -> None:
    """Refuse a file of a chip folder that could lead GDAL to other files or hosts.

    Raises:
        RasterError: If the file is neither GeoTIFF, PNG, JPEG nor MRF by its name, or it or what lies beside it names
            other files.
    """
    name = str(path)
    if '://' in name or name.startswith('/vsi'):
        raise RasterError(f'{name} is no file; images of chips lie in the folder of the chips')
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in DRIVERS:
        raise RasterError(f'{name} is no image of a chip, which ends in one of {", ".join(DRIVERS)}; convert it')
    if suffix == '.mrf':
        _check_mrf(name)
    for other in (f'{name}.msk', f'{name}.ovr'):
        with suppress(FileNotFoundError, NotADirectoryError), open(other, 'rb') as file:
            if file.read(4) not in _TIFF_MAGIC:
                raise RasterError(f'{other} is no TIFF, as masks and overviews beside a chip are; delete it')
    with suppress(FileNotFoundError, NotADirectoryError), open(f'{name}.aux.xml', 'rb') as file:
        if b'OVERVIEW_FILE' in file.read(_MRF_BYTES):
            raise RasterError(f'{name}.aux.xml names another file to take pixels from; delete it')


def _check_mrf(name: str) -> None:
    """Refuse an MRF whose pixels lie in another place than beside it."""
    try:
        with open(name, 'rb') as file:
            text = file.read(_MRF_BYTES + 1)
    except OSError as error:
        raise RasterError(f'cannot open raster {name}: {error.strerror}') from error
    names = re.findall(rb'<\s*(?:DataFile|IndexFile|Source)[^>]*>([^<]*)', text)
    odd = [other for other in names if re.search(rb'[/\\:&]', other)]
    if odd or b'CachedSource' in text or b'<!' in text or len(text) > _MRF_BYTES:
        place = odd[0].decode(errors='replace') if odd else 'a cached source'
        raise RasterError(
            f'{name} takes its pixels from another place ({place}); copy it into a GeoTIFF with gdal_translate first'
        )


@contextmanager
def unwarned() -> Iterator[None]:
    """Ignore warnings of missing places while any thread is inside.

    warnings.catch_warnings copies the filters and puts the copy back, and two threads would undo each other's change;
    a lock around it would let files be opened one at a time only. So one entry is shared, and taken out by the last.
    """
    with _Filter.changed:
        if _Filter.users == 0:
            # the message, which matches everything, tells this entry from a user's own
            warnings.filterwarnings('ignore', message='(?#geolearn)', category=NotGeoreferencedWarning)
            _Filter.entry = warnings.filters[0]
        _Filter.users += 1
    try:
        yield
    finally:
        with _Filter.changed:
            _Filter.users -= 1
            if _Filter.users == 0:
                with suppress(ValueError):  # somebody else has put other filters in
                    warnings.filters.remove(_Filter.entry)  # type: ignore[attr-defined]
                _Filter.changed.notify_all()


@contextmanager
def filters_to_oneself() -> Iterator[None]:
    """Keep other threads from opening files, for functions of rasterio that copy the warnings filters themselves."""
    with _Filter.changed:
        while _Filter.users:
            _Filter.changed.wait()
        yield


@contextmanager
def many_files() -> Iterator[None]:
    """Prepare a thread for opening many small files: what rasterio and geolearn set up for each is set up once."""
    with small_cache(), rasterio.Env():
        yield


@contextmanager
def small_cache() -> Iterator[None]:
    """Keep GDAL's block cache small while any thread is inside; the last to leave restores its size."""
    with _lock:
        if _Cache.users == 0:
            _Cache.former = get_gdal_config('GDAL_CACHEMAX')
            set_gdal_config('GDAL_CACHEMAX', min(_Cache.former, CACHE_BYTES))
        _Cache.users += 1
    try:
        yield
    finally:
        with _lock:
            _Cache.users -= 1
            if _Cache.users == 0:
                set_gdal_config('GDAL_CACHEMAX', _Cache.former)


def burn_polygons(
    pairs: Iterable[tuple[Any, int]], shape: tuple[int, ...], *, dtype: type = np.uint8, all_touched: bool = False
) -> np.ndarray:
    """Return (height, width) with the number of the last polygon that holds each pixel's center, else 0.

    Args:
        pairs: Polygon in pixels (x = columns, y = rows) and number of each.
        shape: Height and width.
        dtype: Type of the result.
        all_touched: Whether pixels count that a polygon only touches.
    """
    listed = list(pairs)
    if not listed:
        return np.zeros(shape, dtype)
    with filters_to_oneself():
        burnt: np.ndarray = rasterize(listed, out_shape=shape, dtype=dtype, all_touched=all_touched)
    return burnt


def group_pixels(values: np.ndarray) -> list[tuple[Any, int]]:
    """Return the outline and the value of each group of pixels of one value above 0 that share edges.

    Args:
        values: (height, width) unsigned integers of at most 16 bits.
    """
    with filters_to_oneself():
        return [(outline, int(value)) for outline, value in shapes(values, mask=values > 0, connectivity=4)]

"""Rasters that stay open between windows, for readers that come back to the same few files in any order."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geolearn.raster.embeddings import Dequantize
from geolearn.raster.opening import small_cache
from geolearn.raster.raster import Raster
from geolearn.raster.reading import RasterPath, open_unclosed, reading_errors

MOST_FILES = 32
"""Files of rasters that a thread keeps; two rasters are kept however many they have, as image and labels alternate."""


class _Opened(threading.local):
    """The rasters of a thread by what they were opened with, the one used last at the end; and their process."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.rasters = OrderedDict[object, tuple[Raster, object]]()


class KeptRasters:
    """Rasters that each thread opens once and keeps open, until there are too many or this object is gone.

    Opening costs far more than reading a small window: the headers of all files of a mosaic are read. GDAL's datasets
    belong to one thread and do not survive a fork, so threads and processes have their own; a copy, or what another
    process gets, begins with none. A file that was written anew is opened again.
    """

    def __init__(self) -> None:
        self._opened = _Opened()

    def __reduce__(self) -> tuple[type['KeptRasters'], tuple[()]]:
        return KeptRasters, ()

    @contextmanager
    def open(
        self, path: RasterPath, *, bands: tuple[str, ...] | None = None, dequantize: Dequantize | None = None
    ) -> Iterator[Raster]:
        """Open a raster for reading, or take the one that is open.

        Args:
            path: As in `open_raster`; what several files are taken for is not logged.
            bands: Names of the bands in file order.
            dequantize: As in `open_raster`.

        Yields:
            The raster.

        Raises:
            RasterError: If it cannot be opened or read.
        """
        with small_cache():
            raster, key = self._take(path, bands, dequantize)
            try:
                with reading_errors(raster):
                    yield raster
            except BaseException:
                self._close(key)
                raise
            if key is None:
                raster.close()

    def _take(
        self, path: RasterPath, bands: tuple[str, ...] | None, dequantize: Dequantize | None
    ) -> tuple[Raster, object]:
        opened = self._opened
        if opened.process != os.getpid():
            # the parent's datasets share their place in the file with it, so they are left alone
            opened = self._opened = _Opened()
        key = _key(path, bands, dequantize)
        if key is None:
            return open_unclosed(path, bands=bands, quiet=True, dequantize=dequantize), None
        found = opened.rasters.pop(key, None)
        if found is not None and found[1] != _state(found[0]):
            found[0].close()
            found = None
        if found is None:
            raster = open_unclosed(path, bands=bands, quiet=True, dequantize=dequantize)
            found = raster, _state(raster)
        opened.rasters[key] = found
        files = sum(max(1, len(raster.files)) for raster, _ in opened.rasters.values())
        while len(opened.rasters) > 2 and files > MOST_FILES:
            _, (oldest, _) = opened.rasters.popitem(last=False)
            files -= max(1, len(oldest.files))
            oldest.close()
        return found[0], key

    def _close(self, key: object) -> None:
        if (found := self._opened.rasters.pop(key, None)) is not None:
            found[0].close()


def _key(path: Any, bands: tuple[str, ...] | None, dequantize: Dequantize | None) -> object:
    """Return what tells rasters apart; None for those in memory, which need no opening."""
    if isinstance(path, str | Path):
        return str(path), bands, dequantize
    if isinstance(path, list | tuple) and all(isinstance(one, str | Path) for one in path):
        return tuple(map(str, path)), bands, dequantize
    return None


def _state(raster: Raster) -> object:
    """Return when the files of a raster were written, and how large they are; what is no local file does not change."""
    found = list[tuple[int, int, int] | None]()
    for name in raster.files:
        try:
            facts = os.stat(name)
        except OSError:
            found.append(None)
        else:
            found.append((facts.st_mtime_ns, facts.st_size, facts.st_ino))
    return found

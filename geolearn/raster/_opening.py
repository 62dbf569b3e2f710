"""Open files with rasterio, and put back what that changes for the whole process: warnings and GDAL's cache."""

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rasterio
from rasterio.env import get_gdal_config, set_gdal_config
from rasterio.errors import NotGeoreferencedWarning

# GDAL's default cache is 5 % of the machine's memory; block rows are read once here, so little is enough.
CACHE_BYTES = 32 * 2**20

_lock = threading.Lock()


class _Cache:
    """How many contexts want a small cache, and the size to go back to when none does."""

    users = 0
    former = 0


def open_quietly(path: str | Path, mode: str = 'r', profile: Mapping[str, Any] | None = None) -> Any:
    """Open with rasterio; a raster without a place is refused where a place is needed, not warned of here."""
    # warnings.filters belongs to the process: two threads that change it at once would restore each other's change
    with _lock, warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        return rasterio.open(path, mode, **(profile or {}))


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

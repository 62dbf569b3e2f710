"""Read rasters of other hosts: how GDAL asks for their bytes, waits and tries again."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import rasterio
from rasterio.env import get_gdal_config

SETTINGS = {
    # nothing beside the file is looked for: listing a folder of a bucket takes minutes
    'GDAL_DISABLE_READDIR_ON_OPEN': 'EMPTY_DIR',
    'GDAL_INGESTED_BYTES_AT_OPEN': '32768',
    'GDAL_HTTP_MERGE_CONSECUTIVE_RANGES': 'YES',
    'GDAL_HTTP_MULTIPLEX': 'YES',
    # a file is asked for anew each time it is opened: else GDAL remembers in this process that a host failed to answer,
    # and serves what it read of a file that has been replaced since
    'CPL_VSIL_CURL_NON_CACHED': '/vsi',
    'VSI_CACHE': 'YES',
    'VSI_CACHE_SIZE': str(2**25),
    'GDAL_HTTP_MAX_RETRY': '4',
    'GDAL_HTTP_RETRY_DELAY': '1',
    'GDAL_HTTP_CONNECTTIMEOUT': '15',
    # a host that sends less than a byte a second for so many seconds has stalled
    'GDAL_HTTP_LOW_SPEED_LIMIT': '1',
    'GDAL_HTTP_LOW_SPEED_TIME': '30',
}
"""GDAL's options; one that the user has set, in the environment or with rasterio.Env, stays as it is."""

_REMOTE = re.compile(
    r'^(?:[a-z]+\+)?(?:https?|ftp|s3|gs|az|oss|swift)://|/vsi(?:curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)[_a-z]*[/?]',
    re.IGNORECASE,
)


def is_remote(name: str) -> bool:
    """Whether a name that GDAL opens is of another host, also inside another: ``/vsizip//vsicurl/https://...``."""
    return _REMOTE.search(name) is not None


@contextmanager
def remote_access(needed: bool = True) -> Iterator[None]:
    """Set `SETTINGS` for this thread, where they are needed."""
    if not needed:
        yield
        return
    with rasterio.Env(**{name: value for name, value in SETTINGS.items() if get_gdal_config(name) is None}):
        yield

"""Where packs are kept, and the key that changes when a chip does."""

import hashlib
import os
from functools import cache
from pathlib import Path

import platformdirs

from geolearn.chips.source import Listing

CACHE_VARIABLE = 'GEOLEARN_CACHE'


def cache_folder() -> Path:
    """Return the folder for packs: what GEOLEARN_CACHE names, else the platform's place for caches."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir('geolearn')).expanduser().absolute()


def pack_path(folder: Path, dataset_type: str, listing: Listing, *, version: int) -> Path:
    """Return where the pack of a chip folder belongs.

    The parent is the folder's own; the name changes with the files' names, sizes and times, the classes and the
    pack's version.
    """
    state = cache(_state)  # one file may hold the labels of every chip
    digest = hashlib.sha256(repr((version, dataset_type, listing.classes)).encode())
    start = str(folder)
    for source in listing.chips:
        for path in (*(path for files in source.dates for path in files), *source.labels):
            # with its folder, which may be the class: a file that is moved keeps name, size and time
            name = str(path).removeprefix(start)
            digest.update(f'{source.name}|{name}|{state(path)}\n'.encode('utf-8', 'surrogateescape'))
    place = hashlib.sha256(str(folder.resolve()).encode('utf-8', 'surrogateescape')).hexdigest()[:12]
    return cache_folder() / 'packs' / f'{place}-{dataset_type}' / f'{digest.hexdigest()[:24]}.pack'


def _state(path: Path) -> str:
    """Return size and time of a file; one that cannot be seen is told of when it is read."""
    try:
        status = path.stat()
    except OSError:
        return 'absent'
    return f'{status.st_size}|{status.st_mtime_ns}'

"""Where packs are kept, and the key that changes when a chip does."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import platformdirs

from geolearn.chips.source import ChipSource, Listing
from geolearn.errors import ChipFolderError

CACHE_VARIABLE = 'GEOLEARN_CACHE'


def cache_folder() -> Path:
    """Return the folder for packs: what GEOLEARN_CACHE names, else the platform's place for caches."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir('geolearn')).expanduser()


def pack_path(folder: Path, dataset_type: str, listing: Listing, *, version: int) -> Path:
    """Return where the pack of a chip folder belongs.

    The parent is the folder's own; the name changes with the files' names, sizes and times, the classes and the
    pack's version.

    Raises:
        ChipFolderError: If a file has vanished since it was listed.
    """
    whole = folder.resolve()
    digest = hashlib.sha256(repr((version, dataset_type, listing.classes)).encode())
    for source in listing.chips:
        for line in _file_lines(source):
            digest.update(line)
    place = hashlib.sha256(str(whole).encode()).hexdigest()[:12]
    return cache_folder() / 'packs' / f'{place}-{dataset_type}' / f'{digest.hexdigest()[:24]}.pack'


def _file_lines(source: ChipSource) -> Iterable[bytes]:
    for path in (*(path for files in source.dates for path in files), *source.labels):
        try:
            status = path.stat()
        except OSError as error:
            raise ChipFolderError(f'cannot read {path}: {error.strerror}') from error
        yield f'{source.name}|{path.name}|{status.st_size}|{status.st_mtime_ns}\n'.encode()

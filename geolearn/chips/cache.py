"""Where packs are kept, and the key that changes when a chip does."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import platformdirs

from geolearn.chips.label import Task
from geolearn.chips.source import Listing

CACHE_VARIABLE = 'GEOLEARN_CACHE'

_BEHIND_NAME = ('.aux.xml', '.msk')
_BEHIND_STEM = tuple(
    '.aux.xml .wld .tfw .tifw .tiffw .pgw .pngw .jgw .jpgw .jpegw .idx .til .ppg .pjg .pzp .lrc .tst'.split()
)
"""Files beside a raster that GDAL takes NoData, mask, place or, for MRF, pixels from."""


def cache_folder() -> Path:
    """Return the folder for packs: what GEOLEARN_CACHE names, else the platform's place for caches."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir('geolearn')).expanduser().absolute()


def pack_path(folder: Path, dataset_type: str, listing: Listing, *, version: int) -> Path:
    """Return where the pack of a chip folder belongs.

    The parent is the folder's own; the name changes with the names, sizes and times of the chips' files and of the
    sidecars beside them, the classes and the pack's version. Labels read as numbers have a pack of their own.
    """
    states = _States()
    digest = hashlib.sha256(repr((version, dataset_type, listing.classes)).encode())
    start = str(folder)
    for source in listing.chips:
        if source.dates_in_file > 1:
            digest.update(f'{source.dates_in_file} dates|'.encode())
        for path in (*(path for files in source.dates for path in files), *source.labels):
            # with its folder, which may be the class: a file that is moved keeps name, size and time
            name = str(path).removeprefix(start)
            digest.update(f'{source.name}|{name}|{states.of(path)}\n'.encode('utf-8', 'surrogateescape'))
    kind = dataset_type if listing.task != Task.VALUES else f'{dataset_type}-{listing.task}'
    place = hashlib.sha256(str(folder.resolve()).encode('utf-8', 'surrogateescape')).hexdigest()[:12]
    return cache_folder() / 'packs' / f'{place}-{kind}' / f'{digest.hexdigest()[:24]}.pack'


class _States:
    """Size and time of files and of their sidecars; a folder is listed once, as few chips have any."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}  # one file may hold the labels of every chip
        self._listed: dict[str, dict[str, Path]] = {}

    def of(self, path: Path) -> str:
        """Return the state of a file; one that cannot be seen is told of when it is read."""
        if path not in self._known:
            told = [f'{other.name}|{_state(other)}' for other in self._beside(path)]
            self._known[path] = '|'.join([_state(path), *told])
        return self._known[path]

    def _beside(self, path: Path) -> list[Path]:
        found = self._sidecars(os.path.dirname(path))
        if not found:
            return []
        name = path.name.lower()
        stem = os.path.splitext(name)[0]
        names = {*(name + end for end in _BEHIND_NAME), *(stem + end for end in _BEHIND_STEM)}
        return [found[other] for other in sorted(names) if other in found]

    def _sidecars(self, folder: str) -> dict[str, Path]:
        """Return the sidecars in a folder by their name in lower case."""
        if folder not in self._listed:
            self._listed[folder] = found = {}
            with suppress(OSError), os.scandir(folder or '.') as entries:
                for entry in entries:
                    name = entry.name.lower()
                    if name.endswith(_BEHIND_NAME + _BEHIND_STEM):
                        found[name] = Path(entry.path)
        return self._listed[folder]


def _state(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return 'absent'
    return f'{status.st_size}|{status.st_mtime_ns}'

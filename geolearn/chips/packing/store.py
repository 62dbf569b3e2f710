"""Open a folder's chips for training: packed and mapped into memory, or read directly where there is no room."""

import errno
import hashlib
import logging
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs

from geolearn import errors, parallel, progress
from geolearn.chips.label import ChipSource, Listing, Task
from geolearn.chips.packing.pack import Pack, PackWriter, Places
from geolearn.chips.packing.read_chip import (
    Chip,
    ChipStatistics,
    ChipStore,
    TableBuilder,
    measure_chip,
    read_chip,
    samples_of,
)
from geolearn.chips.packing.table import ChipTable, join_tables
from geolearn.files import atomic_write
from geolearn.raster import many_files
from geolearn.raster.scaling import ADVICE, scaling_difference

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
    if listing.nodata or listing.unlabelled:
        digest.update(repr((listing.nodata, listing.unlabelled)).encode())
    start = str(folder)
    for source in listing.chips:
        if source.dates_in_file > 1:
            digest.update(f'{source.dates_in_file} dates|'.encode())
        if source.dequantize is not None:
            digest.update(f'{source.dequantize}|'.encode())
        if source.read_as:
            digest.update(f'read as {source.read_as}|'.encode())
        for path in (*(path for files in source.dates for path in files), *source.labels):
            # with its folder, which may be the class: a file that is moved keeps name, size and time
            name = str(path).removeprefix(start)
            digest.update(f'{source.name}|{name}|{states.of(path)}\n'.encode('utf-8', 'surrogateescape'))
    if listing.downsample > 1:
        digest.update(f'downsample {listing.downsample}'.encode())
    if listing.target_bands:
        digest.update(b'images')
    kind = dataset_type if listing.task != Task.REGRESSION else f'{dataset_type}-{listing.task}'
    place = hashlib.sha256(str(folder.resolve()).encode('utf-8', 'surrogateescape')).hexdigest()[:12]
    return cache_folder() / 'packs' / f'{place}-{kind}' / f'{digest.hexdigest()[:24]}.pack'


def state_of_chips(store: ChipStore, folder: Path, dataset_type: str, listing: Listing) -> str:
    """Return what changes with the names, sizes and times of the chips' files, wherever their folder lies."""
    path = store.path if isinstance(store, Pack) else pack_path(folder, dataset_type, listing, version=PACK_VERSION)
    return f'{dataset_type}/{path.stem}'


class _States:
    """Size and time of files and of their sidecars; a folder is listed once, as few chips have any."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}  # one file may hold the labels of every chip
        self._listed: dict[str, dict[str, Path]] = {}

    def of(self, path: Path) -> str:
        """Return the state of a file; one that cannot be seen is reported when it is read."""
        if path not in self._known:
            states = [f'{other.name}|{_state(other)}' for other in self._beside(path)]
            self._known[path] = '|'.join([_state(path), *states])
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


log = logging.getLogger('geolearn')

PACK_VERSION = 4

AT_ONCE = 8
"""So many chips a worker reads in one go."""

FEW_CHIPS = 200
"""Fewer are read without a progress bar and without processes, which take a while to begin."""


class DirectChips:
    """Chips read from their files each time, for where a pack does not fit.

    Args:
        sources: The chips that can be read.
        table: Facts about them.
    """

    def __init__(self, sources: Sequence[ChipSource], table: ChipTable) -> None:
        self._sources, self.table = sources, table

    def chip(self, position: int) -> Chip:
        """Read one chip.

        Raises:
            RasterError: If a file cannot be read any more.
            ChipFolderError: If the chip has other bands, type or size than when it was first read.
        """
        source, table = self._sources[position], self.table
        chip = read_chip(source)
        found = (str(chip.pixels.dtype), *chip.pixels.shape)
        known = (table.dtype, table.channels, *table.shapes[position].tolist())
        if found != known:
            raise errors.ChipFolderError(
                f'{source.image} has changed: it held {_kind_text(known)} and now holds {_kind_text(found)}; '
                'prepare the data again'
            )
        return chip


def _kind_text(kind: tuple[Any, ...]) -> str:
    dtype, channels, height, width = kind
    return f'{channels} bands of {width}x{height} {dtype} pixels'


class JoinedChips:
    """Several stores one after another.

    Args:
        stores: Stores of equal bands and dates.
        prefixes: Put before the chips' names, one for each store.
    """

    def __init__(self, stores: Sequence[ChipStore], prefixes: Sequence[str]) -> None:
        self.table = join_tables([store.table for store in stores], prefixes)
        self._places = [(store, position) for store in stores for position in range(len(store.table))]

    def chip(self, position: int) -> Chip:
        """Return one chip."""
        store, inner = self._places[position]
        return store.chip(inner)


def open_store(folder: Path, dataset_type: str, listing: Listing, *, pack: bool = True) -> tuple[ChipStore, list[str]]:
    """Open the pack of a folder's chips, making it first where there is none or a file has changed.

    Args:
        folder: The chip folder, for the pack's place in the cache.
        dataset_type: How its labels were read.
        listing: Its chips.
        pack: Whether to pack at all; without it every chip is read directly, each time.

    Returns:
        The store, and what a person should know about it.

    Raises:
        ChipFolderError: If no chip can be read, or chips differ in bands or type.
    """
    if not pack:
        return _read_all(listing, None, folder), []
    path = pack_path(folder, dataset_type, listing, version=PACK_VERSION)
    if os.path.exists(path):  # unlike Path.exists, False where the folder may not be listed
        try:
            return Pack(path), []
        except errors.ChipFolderError as error:
            log.warning('%s; packing again', error)
    return _make_pack(path, folder, listing)


def _make_pack(path: Path, folder: Path, listing: Listing) -> tuple[ChipStore, list[str]]:
    fork = len(listing.chips) >= FEW_CHIPS and parallel.can_fork()
    try:
        _make_room(path, listing)
        with atomic_write(path, make_folder=True, sync=False) as part, part.open('w+b') as file:
            written = _read_all(listing, PackWriter(file, shared=fork), folder, fork=fork)
    except OSError as error:
        return _without_pack(folder, listing, error)
    except BrokenExecutor as error:
        raise errors.ChipFolderError(
            f'{folder}: a process that read chips was ended from outside; is memory short?'
        ) from error
    _remove_older(path)
    try:
        return Pack(path), []
    except errors.ChipFolderError as error:  # another process found the folder changed and removed this pack
        log.warning('%s; chips are read from their files', error)
        return written, [f'chips are read from their files in every epoch, which is slow: {error}']


def _remove_older(path: Path) -> None:
    for older in set(path.parent.glob('*.pack')) - {path}:
        if not older.name.startswith('.'):  # which another process is writing
            with suppress(OSError):  # Windows keeps a file that another process has mapped
                older.unlink()


def _without_pack(folder: Path, listing: Listing, error: OSError) -> tuple[ChipStore, list[str]]:
    note = (
        f'chips are read from their files in every epoch, which is slow: the cache cannot hold a copy '
        f'({error.strerror or error}); free some room or set GEOLEARN_CACHE to a folder that has it'
    )
    log.warning('%s: %s', folder, note)
    return _read_all(listing, None, folder), [note]


def _make_room(path: Path, listing: Listing) -> None:
    """Raise OSError where the pack will not fit, even in place of older ones, by the first readable chip."""
    for source in listing.chips[:20]:
        found = _try_read(source, sampled=1)
        if not isinstance(found, str):
            pixels, channels = math.prod(found.facts.geobox.shape), found.facts.channels
            target = 4 * found.facts.target_bands * found.facts.target_times**2 if found.facts.target else 1
            needed = pixels * (channels * np.dtype(found.facts.dtype).itemsize + target) * len(listing.chips)
            path.parent.mkdir(parents=True, exist_ok=True)
            if needed > shutil.disk_usage(path.parent).free:
                _remove_older(path)
            if needed > shutil.disk_usage(path.parent).free:
                raise OSError(errno.ENOSPC, f'{needed / 2**20:,.0f} MB are needed in {path.parent}')
            return


class _Found(NamedTuple):
    facts: ChipStatistics
    places: Places | None


def _read_all(listing: Listing, writer: PackWriter | None, folder: Path, *, fork: bool = False) -> DirectChips:
    """Read every chip once, in order, writing them if there is a writer."""
    builder, unreadable = TableBuilder(), list[str]()
    first: ChipStatistics | None = None
    kept: list[ChipSource] = []
    sampled = samples_of(len(listing.chips))
    does = 'reading' if writer is None else 'packing'
    ahead = _read_ahead(listing.chips, lambda source: _try_read(source, sampled=sampled, writer=writer), fork=fork)
    with (
        progress.ProgressBar(len(listing.chips), f'{does} {folder.name}', 'chip', at_least=FEW_CHIPS) as bar,
        closing(ahead),
    ):
        for source, found in ahead:
            bar.update()
            if isinstance(found, str):
                unreadable.append(found)
                continue
            first = first or found.facts
            _check_alike(found.facts, source, first, (kept or [source])[0])
            builder.add(source.name, found.facts)
            if writer is not None and found.places is not None:
                writer.keep(found.places)
            kept.append(source)
    if not kept:
        raise errors.ChipFolderError(f'none of {len(listing.chips)} chips can be read; the first: {unreadable[0]}')
    table = builder.result(unreadable)
    if writer is not None:
        writer.finish(table)
    return DirectChips(kept, table)


def _check_alike(facts: ChipStatistics, source: ChipSource, first: ChipStatistics, first_source: ChipSource) -> None:
    if facts.channels != first.channels:
        raise errors.ChipFolderError(
            f'{first_source.image} holds {first.channels} bands but {source.image} {facts.channels}; export one set'
        )
    if (facts.target_bands, facts.target_times) != (first.target_bands, first.target_times):
        raise errors.ChipFolderError(
            f'the image to predict from {first_source.image} has {first.target_bands} bands, {first.target_times} '
            f'times as fine, and that from {source.image} {facts.target_bands} bands, {facts.target_times} times; '
            'export one set'
        )
    for what, here, there in (
        ('', first.scaling, facts.scaling),
        ('the labels of ', first.target_scaling, facts.target_scaling),
    ):
        if apart := scaling_difference(here, there):
            raise errors.ChipFolderError(
                f'{what}{first_source.image} and {source.image} hold values of different units: they state {apart}; '
                f'{ADVICE}'
            )
    if facts.dtype != first.dtype:
        raise errors.ChipFolderError(
            f'{first_source.image} holds {first.dtype} pixels but {source.image} {facts.dtype}; their units differ, '
            'so export one set'
        )


def _read_ahead(
    sources: Sequence[ChipSource], read: Callable[[ChipSource], _Found | str], *, fork: bool
) -> Generator[tuple[ChipSource, _Found | str], None, None]:
    """Read chips in order, a few ahead of the caller: all at once would fill the memory with them."""

    def read_some(start: int) -> list[_Found | str]:
        with many_files():
            return [read(source) for source in sources[start : start + AT_ONCE]]

    waiting: deque[tuple[int, Future[list[_Found | str]]]] = deque()
    with parallel.workers(read_some, fork=fork) as submit:
        for start in range(0, len(sources), AT_ONCE):
            waiting.append((start, submit(start)))
            if len(waiting) > 2 * parallel.WORKERS:
                first, future = waiting.popleft()
                yield from zip(sources[first : first + AT_ONCE], future.result())
        while waiting:
            first, future = waiting.popleft()
            yield from zip(sources[first : first + AT_ONCE], future.result())


def _try_read(source: ChipSource, *, sampled: int, writer: PackWriter | None = None) -> _Found | str:
    """Read a chip, or say why it cannot be used."""
    try:
        chip = read_chip(source)
    except (
        OSError,
        errors.ChipFolderError,
    ) as error:  # RasterErrors among them; none may pass for a fault of the cache
        return str(error)
    # only what is small leaves the thread: memory that is freed where it was taken is used again at once
    return _Found(measure_chip(chip, sampled=sampled), None if writer is None else writer.write(chip))

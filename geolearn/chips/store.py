"""Open a folder's chips for training: packed and mapped into memory, or read directly where there is no room."""

import errno
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm.auto import tqdm

from geolearn.chips._unnamed import UnnamedFile
from geolearn.chips.cache import pack_path
from geolearn.chips.pack import Pack, PackWriter
from geolearn.chips.reader import Chip, read_chip
from geolearn.chips.source import ChipSource, Listing
from geolearn.chips.table import SAMPLED_PIXELS, ChipFacts, ChipTable, TableBuilder, find_facts, join_tables
from geolearn.errors import ChipFolderError

log = logging.getLogger('geolearn')

PACK_VERSION = 1
READ_THREADS = max(4, os.cpu_count() or 1)
"""Decoding happens without Python's lock, so threads keep all cores busy."""

FEW_CHIPS = 200
"""So many are read without a progress bar."""


class ChipStore(Protocol):
    """Chips by position, with the table of all of them."""

    @property
    def table(self) -> ChipTable:
        """Facts about every chip."""

    def chip(self, position: int) -> Chip:
        """Return one chip."""


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
        known = (table.dtype, table.planes, *table.shapes[position].tolist())
        if found != known:
            raise ChipFolderError(
                f'{source.image} has changed: it held {_kind_text(known)} and now holds {_kind_text(found)}; '
                'prepare the data again'
            )
        return chip


def _kind_text(kind: tuple[Any, ...]) -> str:
    dtype, planes, height, width = kind
    return f'{planes} bands of {width}x{height} {dtype} pixels'


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
    if os.path.exists(path):  # unlike Path.exists, False where the folder may not be looked into
        try:
            return Pack(path), []
        except ChipFolderError as error:
            log.warning('%s; packing again', error)
    return _make_pack(path, folder, listing)


def _make_pack(path: Path, folder: Path, listing: Listing) -> tuple[ChipStore, list[str]]:
    try:
        _make_room(path, listing)
        target = UnnamedFile(path.parent)
    except OSError as error:
        return _without_pack(folder, listing, error)
    try:
        written = _read_all(listing, PackWriter(target.file), folder)
        target.publish(path)
    except OSError as error:
        return _without_pack(folder, listing, error)
    finally:
        target.discard()
    _remove_older(path)
    try:
        return Pack(path), []
    except ChipFolderError as error:  # another process found the folder changed and removed this pack
        log.warning('%s; chips are read from their files', error)
        return written, [f'chips are read from their files in every epoch, which is slow: {error}']


def _remove_older(path: Path) -> None:
    for older in set(path.parent.glob('*.pack')) - {path}:
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
    """Raise OSError where the pack will not fit, even in place of older ones, judged by the first readable chip."""
    for source in listing.chips[:20]:
        found = _try_read(source, sampled=1)
        if not isinstance(found, str):
            pixels, raster = found.chip.pixels, found.chip.label.raster
            needed = (pixels.nbytes + (0 if raster is None else raster.nbytes)) * len(listing.chips)
            path.parent.mkdir(parents=True, exist_ok=True)
            if needed > shutil.disk_usage(path.parent).free:
                _remove_older(path)
            if needed > shutil.disk_usage(path.parent).free:
                raise OSError(errno.ENOSPC, f'{needed / 2**20:,.0f} MB are needed in {path.parent}')
            return


class _Found(NamedTuple):
    chip: Chip
    facts: ChipFacts


def _read_all(listing: Listing, writer: PackWriter | None, folder: Path) -> DirectChips:
    """Read every chip once, in order, writing them if there is a writer."""
    builder, unreadable = TableBuilder(), list[str]()
    kept: list[ChipSource] = []
    sampled = max(1, min(256, SAMPLED_PIXELS // max(len(listing.chips), 1)))
    # nothing is passed where a bar may show, so that TQDM_DISABLE is heeded
    quiet: dict[str, Any] = {'disable': True} if len(listing.chips) < FEW_CHIPS else {}
    does = 'reading' if writer is None else 'packing'
    ahead = _read_ahead(listing.chips, lambda source: _try_read(source, sampled=sampled))
    with tqdm(total=len(listing.chips), desc=f'{does} {folder.name}', leave=False, **quiet) as bar, closing(ahead):
        for source, found in ahead:
            bar.update()
            if isinstance(found, str):
                unreadable.append(found)
                continue
            if kept:
                _check_alike(builder, found.chip, source, kept[0])
            builder.add(source.name, *found)
            if writer is not None:
                writer.add(found.chip)
            kept.append(source)
    if not kept:
        raise ChipFolderError(f'none of {len(listing.chips)} chips can be read; the first: {unreadable[0]}')
    table = builder.result(unreadable)
    if writer is not None:
        writer.finish(table)
    return DirectChips(kept, table)


def _check_alike(builder: TableBuilder, chip: Chip, source: ChipSource, first: ChipSource) -> None:
    here, there = (len(chip.pixels), str(chip.pixels.dtype)), (builder.planes, builder.dtype)
    if here[0] != there[0]:
        raise ChipFolderError(f'{first.image} holds {there[0]} bands but {source.image} {here[0]}; export one set')
    if here[1] != there[1]:
        raise ChipFolderError(
            f'{first.image} holds {there[1]} pixels but {source.image} {here[1]}; their units differ, so export one set'
        )


def _read_ahead(
    sources: Sequence[ChipSource], read: Callable[[ChipSource], _Found | str]
) -> Generator[tuple[ChipSource, _Found | str], None, None]:
    """Read chips in order, a few ahead of the caller: all at once would fill the memory with them."""
    waiting: deque[tuple[ChipSource, Future[_Found | str]]] = deque()
    with ThreadPoolExecutor(READ_THREADS) as pool:
        try:
            for source in sources:
                waiting.append((source, pool.submit(read, source)))
                if len(waiting) > 2 * READ_THREADS:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _try_read(source: ChipSource, *, sampled: int) -> _Found | str:
    """Read a chip, or say why it cannot be used."""
    try:
        chip = read_chip(source)
    except (OSError, ChipFolderError) as error:  # RasterErrors among them; none may pass for a fault of the cache
        return str(error)
    return _Found(chip, find_facts(chip, sampled=sampled))

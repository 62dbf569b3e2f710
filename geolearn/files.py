"""Write files whole or not at all: beside their target, flushed to the disk, and renamed when they are complete."""

import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from geolearn.errors import FileWriteError, GeoLearnError

PART = '.part'
"""Stands in the names of files that are being written."""

STALE_AFTER_S = 24 * 3600
"""What a process of another machine, or an older geolearn, began to write longer ago than that is given up."""


def lock_file(file: IO[Any]) -> bool:
    """Keep other processes out of an open file, until it is closed or this process ends, however it does.

    Returns:
        False where another process keeps this one out; True also where the file system cannot lock.
    """
    if sys.platform == 'win32':
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # not every file system locks
        return True
    return True


def decode_text(content: bytes) -> str:
    """Return the text of a file: UTF-8, or UTF-16 as editors of Windows write it, with or without a byte order mark.

    Raises:
        UnicodeDecodeError: If it is neither.
    """
    if content[:2] in (b'\xff\xfe', b'\xfe\xff'):
        return content.decode('utf-16')
    if (
        len(content) % 2 == 0 and content[:2].count(0) == 1
    ):  # no text begins with a zero byte, or has one in second place
        return content.decode('utf-16-le' if content[1] == 0 else 'utf-16-be')
    return content.decode('utf-8-sig')


@contextmanager
def atomic_write(
    path: str | Path,
    *,
    error: type[GeoLearnError] = FileWriteError,
    make_folder: bool = False,
    sync: bool = True,
) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it is renamed to `path` on success and deleted on any failure.

    What killed runs left in that folder is removed first.

    Args:
        path: Target.
        error: What is raised where the system refuses to write.
        make_folder: Whether to make the folder of the target.
        sync: Whether to wait until the disk holds the file; without, a power failure may leave an empty one, which is
            fine for caches.

    Raises:
        FileWriteError: Or `error`: if the folder is missing, or the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    with _reported(path, error):
        part = _begin(path, make_folder=make_folder)
        try:
            yield part
            if sync:
                flush_to_disk(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        if sync:
            _sync_folder(path.parent)


@contextmanager
def atomic_write_all(
    path: str | Path, *, error: type[GeoLearnError] = FileWriteError, replaces: Sequence[str] = ()
) -> Iterator[Path]:
    """Yield a path in a folder beside `path`, for a file with its sidecars; all of them are renamed on success.

    The file itself comes last, so that whoever sees it sees the sidecars that belong to it. It may be a folder, which
    takes the place of one that is there.

    Args:
        path: Target; the path that is yielded has its name.
        error: What is raised where the system refuses to write.
        replaces: Names of sidecars that an older file may have, which must not pass for those of the new one.

    Raises:
        FileWriteError: Or `error`: if the folder is missing, or a file cannot be written; nothing is left behind.
    """
    path = Path(path)
    with _reported(path, error):
        folder = _begin(path, make_folder=False)
        try:
            folder.mkdir()
            yield folder / path.name
            files = sorted(folder.iterdir(), key=lambda file: file.name == path.name)
            for file in files:
                for inner in [file] if file.is_file() else [each for each in file.rglob('*') if each.is_file()]:
                    flush_to_disk(inner)
            if path.is_dir() and not (folder / path.name).is_dir():  # before the sidecars of an older file are gone
                raise IsADirectoryError(f'{path} is a folder')
            for name in {*replaces} - {file.name for file in files}:
                (path.parent / name).unlink(missing_ok=True)
            for file in files:
                target = path.parent / file.name
                if file.is_dir() and target.is_dir():  # which no system replaces
                    target.replace(folder / f'.{file.name}.old')
                file.replace(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        _sync_folder(path.parent)


@contextmanager
def _reported(path: Path, error: type[GeoLearnError]) -> Iterator[None]:
    try:
        yield
    except OSError as failure:
        if isinstance(failure, GeoLearnError):
            raise
        reason = failure.strerror or str(failure)
        raise error(f'cannot write {path}: {reason}. Nothing was left behind') from failure


def _begin(path: Path, *, make_folder: bool) -> Path:
    """Return a new name beside `path`, that tells whose it is."""
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.is_dir():
        raise FileNotFoundError(None, f'the folder {path.parent} does not exist; create it first')
    remove_stale_parts(path)
    # names have at most 255 bytes
    stem = path.stem.encode('utf-8', 'surrogateescape')[:120].decode('utf-8', 'replace').replace('\ufffd', '_')
    return path.with_name(f'.{stem}-{_owner()}-{secrets.token_hex(4)}{PART}{path.suffix[:60]}')


def remove_stale_parts(path: Path) -> None:
    """Remove what runs that were killed left in the folder of `path`; what a living process writes stays."""
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name.startswith('.') and PART in entry.name and _is_stale(entry, path):
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)


def _is_stale(entry: os.DirEntry[str], path: Path) -> bool:
    words = entry.name.rpartition(PART)[0].rsplit('-', 4)
    if len(words) == 5 and all(_is_hex(word) for word in words[1:]):
        _, machine, process, started, _ = words
        if machine == _machine():
            return not _is_alive(int(process, 16), int(started, 16))
    elif not entry.name.startswith(f'.{path.stem}-'):
        return False  # not of geolearn, as far as its name says
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_AFTER_S


def _is_hex(text: str) -> bool:
    return bool(text) and set(text) <= set('0123456789abcdef')


def _owner() -> str:
    return f'{_machine()}-{os.getpid():x}-{_started(os.getpid()):x}'


@cache
def _machine() -> str:
    """Return what tells apart the places where numbers of processes count: machines, and containers on them."""
    container = ''
    with suppress(OSError):
        container = os.readlink('/proc/self/ns/pid')
    name = f'{socket.gethostname()}|{container}'.encode()
    # a checksum that is the same in every process, unlike hash()
    return f'{int.from_bytes(name, "little") % (2**61 - 1):016x}'


def _started(process: int) -> int:
    """Return when a process began, in ticks since the machine did; 0 where the system does not say, -1 if it ended."""
    try:
        # the name of the program, in parentheses, may hold blanks
        fields = Path(f'/proc/{process}/stat').read_text(errors='replace').rpartition(')')[2].split()
        return -1 if fields[0] in 'ZX' else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0


def _is_alive(process: int, started: int) -> bool:
    if sys.platform == 'win32':  # where signal 0 is no question but ends the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user
        return True
    now = _started(process)
    return now in (0, started) or started == 0 < now


def flush_to_disk(path: Path) -> None:
    """Wait until the disk holds a file."""
    with path.open('rb+') as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # not every system opens folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def file_states(paths: Iterable[str | Path]) -> list[tuple[str, int, int]]:
    """Return name, size and time of those of some paths that are files: what changes where one is written anew."""
    found = [path for path in map(Path, paths) if path.is_file()]
    return [(path.name, state.st_size, state.st_mtime_ns) for path in found for state in [path.stat()]]

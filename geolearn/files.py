"""A file that has no name until it is whole."""

import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from geolearn.errors import RasterError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a new empty file beside `path`; rename it to `path` on success, delete it on any failure."""
    path = Path(path)
    if not path.parent.is_dir():
        raise RasterError(f'cannot write {path}: the folder {path.parent} does not exist; create it first')
    try:
        handle, name = tempfile.mkstemp(prefix=f'.{path.stem}-', suffix=f'.part{path.suffix}', dir=path.parent)
    except OSError as error:
        raise RasterError(f'cannot write {path}: {error.strerror}') from error
    os.close(handle)
    part = Path(name)
    try:
        yield part
        try:
            umask = os.umask(0)
            os.umask(umask)
            part.chmod(0o666 & ~umask)  # mkstemp makes files private; a map is for sharing
            part.replace(path)
        except OSError as error:
            raise RasterError(f'cannot write {path}: {error.strerror}') from error
    finally:
        part.unlink(missing_ok=True)


STALE_AFTER_S = 3600


class UnnamedFile:
    """A file that appears under its name only when it is whole.

    Where the system has files without a name (Linux), a killed process leaves nothing at all; elsewhere it leaves a
    ``.part`` file, which a later one removes.

    Args:
        folder: Where the file will be; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob('*.part'):
            with suppress(OSError):  # another process may have removed it, or, on Windows, still have it open
                if time.time() - part.stat().st_mtime > STALE_AFTER_S:
                    part.unlink()
        self._part = folder / f'{secrets.token_hex(8)}.part'
        self._nameless = False
        self.file = self._open(folder)

    def _open(self, folder: Path) -> BinaryIO:
        # without /proc such a file could never be given a name
        if hasattr(os, 'O_TMPFILE') and Path('/proc/self/fd').is_dir():
            with suppress(OSError):  # this file system knows no files without a name
                handle = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o644)
                self._nameless = True
                return os.fdopen(handle, 'w+b')
        return self._part.open('w+b')

    def publish(self, path: Path) -> None:
        """Give the file its name, in place of an older one."""
        self.file.flush()
        if self._nameless:
            try:
                self._link(path)
            except FileExistsError:
                self._link(self._part)
        self.file.close()
        if self._part.exists():
            self._part.replace(path)

    def _link(self, path: Path) -> None:
        # without a folder's descriptor Python calls link(), which does not follow the symbolic link in /proc
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.link(f'/proc/self/fd/{self.file.fileno()}', path, src_dir_fd=handle, follow_symlinks=True)
        finally:
            os.close(handle)

    def discard(self) -> None:
        """Forget the file."""
        with suppress(OSError):  # closing flushes, which a full disk refuses once more
            self.file.close()
        with suppress(OSError):
            self._part.unlink(missing_ok=True)

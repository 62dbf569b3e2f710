"""Refuse before hours of work what could not be written after them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from geolearn.errors import RasterError


def check_target(src: Any, dst: Path, *, overwrite: bool) -> Path:
    """Return the target of a run over rasters.

    Args:
        src: The sources: a path, or lists of them, however deep.
        dst: File to write.
        overwrite: Whether it may exist.

    Raises:
        RasterError: If the target is one of the sources, a folder, or a file that is not to be replaced.
    """
    if any(os.path.realpath(source) == os.path.realpath(dst) for source in _all_files(src)):
        raise RasterError(f'{dst} is one of the sources; write the result to another file')
    if dst.is_dir():
        raise RasterError(f'{dst} is a folder; pass the file to write, such as {dst / "map.tif"}')
    if dst.exists() and not overwrite:
        raise RasterError(f'{dst} exists; pass overwrite=True to replace it, or another name')
    return dst


def _all_files(src: Any) -> Iterator[str | Path]:
    if isinstance(src, str | Path):
        yield src
        if os.path.isdir(src):
            yield from (path for path in Path(src).rglob('*') if path.is_file())
    elif isinstance(src, list | tuple):
        for part in src:
            yield from _all_files(part)

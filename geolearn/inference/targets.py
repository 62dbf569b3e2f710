"""Refuse before hours of work what could not be written after them."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from geolearn import files
from geolearn.errors import RasterError
from geolearn.raster import open_raster
from geolearn.raster.arrays import is_array, is_zarr
from geolearn.raster.remote import is_remote
from geolearn.raster.stac import is_stac, read_items
from geolearn.raster.zarr_maps import is_zarr_store, require_zarr

COMPRESSION = 10
"""How many times smaller maps of classes easily become; less than that is not refused before it is tried."""


def check_target(src: Any, dst: Path, *, overwrite: bool, layers: Sequence[Any] = ()) -> Path:
    """Return the target of a run over rasters.

    Args:
        src: The sources: a path, or lists of them, however deep.
        dst: File to write.
        overwrite: Whether it may exist.
        layers: Vector layers that are read: zones, polygons, an area of interest.

    Raises:
        RasterError: If the target is a source or a layer, a folder, or a file that is not to be replaced.
    """
    if dst.is_dir() and not is_zarr(dst):
        raise RasterError(f'{dst} is a folder; pass the file to write, such as {dst / "map.tif"}')
    if (found := find_source(src, [dst])) is not None:
        if found.holder is None:
            raise RasterError(f'{dst} is the raster to map; write the map to another file')
        raise RasterError(f'{dst} is a file that {found.holder} takes its pixels from; write to another file')
    if find_source([layer for layer in layers if isinstance(layer, str | Path)], [dst]) is not None:
        raise RasterError(f'{dst} is a layer that this run reads; write to another file')
    if is_zarr(dst):
        require_zarr()
        if dst.exists() and not is_zarr_store(dst):
            raise RasterError(f'{dst} exists and is no Zarr store, so it is not replaced; pass another name')
    if dst.exists() and not overwrite:
        raise RasterError(f'{dst} exists; pass overwrite=True to replace it, or another name')
    return dst


@contextmanager
def claim_target(dst: Path) -> Iterator[None]:
    """Keep other runs from writing a file meanwhile, for what is computed without a journal, which does that too.

    Args:
        dst: File to write.

    Raises:
        RasterError: If another run is writing it.
    """
    path = dst.with_name(f'.{dst.name}.lock')
    if not dst.parent.is_dir():  # what writes says so
        yield
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open('a'))
        except OSError as error:
            raise RasterError(f'cannot write {dst}: {error}') from error
        if not files.lock_file(file):
            raise RasterError(f'another run is writing {dst}; wait for it, or write to another file')
        stack.callback(path.unlink, missing_ok=True)
        yield


class SourceFile(NamedTuple):
    """A file that pixels are read from, which is one of some targets.

    Args:
        target: Of these.
        holder: What names the file, such as a VRT or an item, for messages; None where the caller does.
    """

    target: Path
    holder: str | None


def find_source(src: Any, targets: Iterable[Path]) -> SourceFile | None:
    """Return the first file that sources read and a run would replace, through links of whatever kind.

    Args:
        src: A source, or lists of them, however deep.
        targets: Files that the run writes.
    """
    known = {state: target for target in targets if (state := _identity(target)) is not None}
    if not known:
        return None
    folders = {os.path.realpath(target) + os.sep: target for target in known.values() if target.is_dir()}
    for name, holder in _source_files(src, set()):
        if (state := _identity(name)) in known and state is not None:
            return SourceFile(known[state], holder)
        inside = os.path.realpath(name) if folders and state is not None else ''
        for folder, target in folders.items():
            if inside.startswith(folder):
                return SourceFile(target, holder)
    return None


def _identity(name: str | Path) -> tuple[int, int] | None:
    """Return what tells a file from others on this machine; None where there is none."""
    try:
        found = os.stat(name)
    except (OSError, ValueError):  # absent, or remote
        return None
    return found.st_dev, found.st_ino


def _source_files(src: Any, seen: set[str], holder: str | None = None) -> Iterator[tuple[str, str | None]]:
    """Yield the names of the files that a source reads, and what names them.

    Args:
        src: The source.
        seen: Names that were opened; VRTs may name each other.
        holder: What named the source.
    """
    shown = str(src) if isinstance(src, str | Path) else f'the {type(src).__name__}'
    if is_array(src):
        for part in (src, *getattr(src, 'data_vars', {}).values()):
            yield from _source_files(str(part.encoding.get('source') or ''), seen, shown)
    elif is_stac(src):
        if isinstance(src, str | Path):
            yield str(src), holder
        # what cannot be read is refused where it is opened
        with suppress(RasterError):
            for href in {asset.href for item in read_items(src) for asset in item.assets}:
                yield from _source_files(href, seen, shown)
    elif isinstance(src, str | Path):
        text = str(src)
        yield from ((name, holder) for name in _names_in(text))
        if os.path.isdir(text):
            for path in Path(text).rglob('*'):
                if path.suffix.lower() == '.vrt':
                    yield from _source_files(path, seen, holder)
                elif path.is_file():
                    yield str(path), holder
        elif text.lower().endswith('.vrt') and text not in seen:
            seen.add(text)
            with suppress(RasterError), open_raster(text, quiet=True) as raster:
                for name in raster.files:
                    yield from _source_files(name, seen, shown)
    elif isinstance(src, Iterable) and not isinstance(src, Mapping | Iterator | bytes):
        for part in src:
            yield from _source_files(part, seen, holder)


def _names_in(text: str) -> Iterator[str]:
    """Yield a name that GDAL opens, and the files that it may name: ``GPKG:map.gpkg:a``, ``/vsizip/a.zip/b.tif``."""
    yield text
    if os.path.exists(text) or is_remote(text):
        return
    yield from (piece for piece in re.split('[:"!?,]', text) if piece)
    if text.startswith('/vsi'):
        tail = re.sub(r'^(/vsi\w+/)+', '', text)
        yield from map(str, (tail, *Path(tail).parents))


def check_space(dst: Path, needed: int) -> None:
    """Refuse a result that the disk cannot hold.

    Args:
        dst: File to write.
        needed: Bytes that it takes before compression.

    Raises:
        RasterError: If less is free, even if compression makes it `COMPRESSION` times smaller.
    """
    if not dst.parent.is_dir():  # what writes says so
        return
    free = shutil.disk_usage(dst.parent).free
    if needed / COMPRESSION > free:
        raise RasterError(
            f'{dst} would hold {needed / 2**30:.3g} GiB before compression, and {free / 2**30:.3g} GiB are free on its '
            'disk; write to another disk, or map a part with bbox= or aoi=, or coarser with resolution='
        )

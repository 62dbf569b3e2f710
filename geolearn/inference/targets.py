"""Refuse before hours of work what could not be written after them."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from geolearn.errors import RasterError
from geolearn.raster import open_raster
from geolearn.raster.arrays import is_zarr
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
    if dst.exists():
        target = os.path.realpath(dst)
        for source in _all_files(src):
            if isinstance(source, str | Path) and (os.path.realpath(source) == target or _is_same(source, dst)):
                raise RasterError(f'{dst} is the raster to map; write the map to another file')
            # what a VRT or an item takes its pixels from
            if target in {os.path.realpath(name) for name in _files_inside(source)}:
                raise RasterError(f'{dst} is a file that {_shown(source)} takes its pixels from; write to another file')
        for layer in layers:
            if isinstance(layer, str | Path) and _is_same(layer, dst):
                raise RasterError(f'{dst} is a layer that this run reads; write to another file')
    if is_zarr(dst):
        require_zarr()
        if dst.exists() and not is_zarr_store(dst):
            raise RasterError(f'{dst} exists and is no Zarr store, so it is not replaced; pass another name')
    elif dst.is_dir():
        raise RasterError(f'{dst} is a folder; pass the file to write, such as {dst / "map.tif"}')
    if dst.exists() and not overwrite:
        raise RasterError(f'{dst} exists; pass overwrite=True to replace it, or another name')
    return dst


def _is_same(source: str | Path, dst: Path) -> bool:
    """Whether two names are those of one file, through links of whatever kind."""
    try:
        return os.path.samefile(source, dst)
    except (OSError, ValueError):  # remote
        return False


def _files_inside(source: Any) -> Iterator[str]:
    """Yield the files that a source of several names."""
    if is_stac(source):
        yield from (asset.href for item in read_items(source) for asset in item.assets)
    elif isinstance(source, str | Path) and str(source).lower().endswith('.vrt'):
        with open_raster(source, quiet=True) as raster:
            yield from raster.files


def _shown(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else f'the {type(source).__name__}'


def _all_files(src: Any) -> Iterator[Any]:
    if isinstance(src, str | Path):
        yield src
        if os.path.isdir(src):
            yield from (path for path in Path(src).rglob('*') if path.is_file())
    elif is_stac(src):
        yield src
    elif isinstance(src, list | tuple):
        for part in src:
            yield from _all_files(part)


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

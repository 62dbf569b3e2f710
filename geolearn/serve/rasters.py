"""Which rasters a client may have read: GeoTIFFs of bounded size that name no other file, in allowed folders."""

import math
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from geolearn.errors import GeoLearnError, RasterError
from geolearn.inference.area import AreaOfInterest
from geolearn.inference.reading import choose_geobox
from geolearn.networks.spec import ModelSpec
from geolearn.raster import open_raster
from geolearn.raster.opening import check_chip_file, open_quietly

SUFFIXES = ('.tif', '.tiff')

MAX_SIDE = 60_000
"""Pixels: memory depends on a raster's width."""

MAX_BLOCK_BYTES = 256 * 2**20
"""Of one strip or tile of a file, which is decompressed whole."""

MAX_BLOCKS = 2_000_000

MAX_EXPANSION = 250
"""How many times larger than its file a raster may be, from `FREE_BYTES` on."""

FREE_BYTES = 2**30

_MAGIC = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')

_OTHERS = (
    (b'PK', 'a zip archive'),
    (b'\x1f\x8b', 'a gzip archive'),
    (b'\xfd7zXZ', 'an xz archive'),
    (b'\x89PNG', 'a PNG image'),
    (b'\xff\xd8\xff', 'a JPEG image'),
    (b'\x89HDF', 'an HDF5 file'),
    (b'<VRTDataset', 'a VRT, which names other files'),
    (b'<', 'XML or HTML'),
)
"""First bytes of what is sent in place of a GeoTIFF."""


class RefusedError(GeoLearnError, ValueError):
    """A request that is not served.

    Args:
        message: For the client.
        status: Of the answer, 400 to 599.
    """

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client can ask of the server, and all of them together.

    Args:
        upload_bytes: Of the files of one request.
        pixels: Height times width of a raster, on the grid that it is mapped on.
        waiting: Jobs that wait for a worker, uploads in progress included; more are refused.
        kept: Finished jobs whose results are kept; the oldest makes way for the next.
        keep_seconds: How long a result is kept after its job has ended.
        upload_seconds: How long an upload may take.
    """

    upload_bytes: int = 2 * 2**30
    pixels: int = 400_000_000
    waiting: int = 8
    kept: int = 32
    keep_seconds: float = 3600.0
    upload_seconds: float = 600.0

    def __post_init__(self) -> None:
        for name in ('upload_bytes', 'pixels', 'waiting', 'kept', 'keep_seconds', 'upload_seconds'):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f'{name} must be above 0 and finite, got {value}')


def resolve_folders(folders: Sequence[str | Path]) -> tuple[Path, ...]:
    """Return the folders that clients may name rasters in, without symbolic links.

    Raises:
        RasterError: If one is no folder.
    """
    resolved = tuple(Path(folder).expanduser().resolve() for folder in folders)
    for folder, given in zip(resolved, folders):
        if not folder.is_dir():
            raise RasterError(f'{given} is no folder; name an existing folder of GeoTIFFs')
    return resolved


def find_named(name: str, folders: Sequence[Path]) -> Path:
    """Return the file that a client names.

    Args:
        name: Relative to one of the folders, or a full path in one of them.
        folders: Resolved.

    Raises:
        RefusedError: If it lies in no such folder, names a remote or virtual file, passes through a symbolic link, or
            is no regular .tif.
    """
    if not folders:
        raise RefusedError('this server reads no files of its own; upload the raster', 403)
    pure = PurePath(name)
    if not name or '\0' in name or '\\' in name or '://' in name or re.match(r'/+vsi|[A-Za-z][\w+-]*:', name):
        raise RefusedError(f'{_shown(name)} is no path of a file; name a GeoTIFF in an allowed folder', 403)
    if '..' in pure.parts:
        raise RefusedError(f"{_shown(name)} holds '..'; name the file by its path in an allowed folder", 403)
    if pure.suffix.lower() not in SUFFIXES:
        raise RefusedError(f'{_shown(name)} must end in {" or ".join(SUFFIXES)}', 415)
    inside = [folder for folder in folders if not pure.is_absolute() or pure.is_relative_to(folder)]
    if not inside:
        raise RefusedError(f'{_shown(name)} lies outside the allowed folders', 403)
    for folder in inside:
        if (found := _find_below(folder, folder / pure)) is not None:
            return found
    raise RefusedError(f'there is no {_shown(name)} in the allowed folders', 404)


def _find_below(folder: Path, path: Path) -> Path | None:
    """Return a regular file below a folder; None where there is none."""
    part, mode = folder, 0  # of the folder itself, which is no file
    for name in path.relative_to(folder).parts:
        part = part / name
        try:
            mode = part.lstat().st_mode
        except (OSError, ValueError):
            return None
        if stat.S_ISLNK(mode):
            raise RefusedError(f'{_shown(name)} is a symbolic link, which is not followed', 403)
    return path if stat.S_ISREG(mode) and path.resolve().is_relative_to(folder) else None


def check_file_name(name: str | None) -> str:
    """Return the name of an uploaded file, which is shown and never opened.

    Raises:
        RefusedError: If it holds a path or is not that of a GeoTIFF.
    """
    text = name or 'upload.tif'
    if re.search(r'[/\\\0:]', text) or text.startswith('.'):
        raise RefusedError(f'the file name {_shown(text)} holds a path; send the plain name of a GeoTIFF', 400)
    if PurePath(text).suffix.lower() not in SUFFIXES:
        raise RefusedError(f'the file name {_shown(text)} must end in {" or ".join(SUFFIXES)}', 415)
    return re.sub(r'[^\w.\- ()+]', '_', text)[-100:]


def check_raster(
    path: Path, name: str, spec: ModelSpec, limits: Limits, resolution: float | str | None, area: AreaOfInterest
) -> None:
    """Refuse a file that is no whole GeoTIFF of bounded size, before anything of it is mapped.

    Args:
        path: The file.
        name: For messages.
        spec: Of the model that is to map it.
        limits: Of the server.
        resolution: Side of the pixels that it is to be mapped at; None for its own.
        area: What of it is to be mapped.

    Raises:
        RefusedError: If it is another kind of file, too large, or names other files.
        RasterError: If it cannot be read, or its pixels do not fit the model.
    """
    _check_kind(path, name)
    check_chip_file(path)
    try:
        with open_quietly(path) as dataset:
            _check_structure(dataset, path, name, limits)
    except RasterError:
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, RefusedError):
            raise
        raise RefusedError(f'{name} cannot be read as a GeoTIFF; it is damaged or was cut short') from error
    with open_raster(path) as raster:
        target = choose_geobox(raster.geobox, spec, resolution, shown=name)  # type: ignore[arg-type]
        area.locate(raster.geobox if target is None else target, shown=name)
    if target is not None:
        _check_size(*target.shape, f'{name} at resolution={resolution}', limits)


def _check_kind(path: Path, name: str) -> None:
    with path.open('rb') as file:
        head = file.read(1024)
    if head.startswith(_MAGIC):
        return
    if not head:
        raise RefusedError(f'{name} is empty; send a GeoTIFF')
    found = next((text for magic, text in _OTHERS if head.lstrip().startswith(magic)), 'another kind of file')
    raise RefusedError(f'{name} is {found}; send a GeoTIFF', 415)


def _check_structure(dataset: Any, path: Path, name: str, limits: Limits) -> None:
    """Check what the head of a file says against its size."""
    if dataset.driver != 'GTiff':
        raise RefusedError(f'{name} is {dataset.driver}; send a GeoTIFF', 415)
    for file in dataset.files:
        if os.path.islink(file):  # of the raster itself, or of mask, overviews, place or metadata beside it
            raise RefusedError(
                f'{Path(file).name} beside {name} is a symbolic link, which is not followed; put the file itself there',
                403,
            )
    if dataset.tags(ns='OVERVIEWS'):
        raise RefusedError(f'{name} names another file to take overviews from; write it anew with gdal_translate')
    _check_size(dataset.height, dataset.width, name, limits)
    itemsize = max(_itemsize(dtype) for dtype in dataset.dtypes)
    total = dataset.height * dataset.width * dataset.count * itemsize
    size = path.stat().st_size
    if total > FREE_BYTES and total > MAX_EXPANSION * size:
        raise RefusedError(
            f'{name} holds {_amount(size)} that expand to {_amount(total)}, as decompression bombs do; '
            f'rasters over {_amount(FREE_BYTES)} may be {MAX_EXPANSION} times larger than their files'
        )
    interleaved = str(dataset.profile.get('interleave', '')).lower() == 'pixel'
    bands = 1 if interleaved else dataset.count
    height, width = dataset.block_shapes[0]
    if height * width * itemsize * (dataset.count if interleaved else 1) > MAX_BLOCK_BYTES:
        raise RefusedError(
            f'{name} has blocks of {width} x {height} pixels, over {_amount(MAX_BLOCK_BYTES)} each; tile it, as with '
            'gdal_translate -of COG'
        )
    across, down = math.ceil(dataset.width / width), math.ceil(dataset.height / height)
    if across * down * bands > MAX_BLOCKS:
        raise RefusedError(
            f'{name} has over {MAX_BLOCKS} blocks; write it with larger tiles, as gdal_translate -of COG'
        )
    for band in range(1, bands + 1):
        for row in range(down):
            for col in range(across):
                start = dataset.get_tag_item(f'BLOCK_OFFSET_{col}_{row}', 'TIFF', bidx=band)
                if start is None:  # a block that was left out is NoData or 0
                    continue
                count = dataset.get_tag_item(f'BLOCK_SIZE_{col}_{row}', 'TIFF', bidx=band)
                if int(start) + int(count or 0) > size:
                    raise RefusedError(f'{name} was cut short: its file ends at {size} bytes; send it again')


def _check_size(height: int, width: int, name: str, limits: Limits) -> None:
    if max(height, width) > MAX_SIDE or height * width > limits.pixels:
        raise RefusedError(
            f'{name} has {width} x {height} pixels; this server maps up to {limits.pixels:,} pixels, of at most '
            f'{MAX_SIDE:,} a side. Cut it into parts, or run geolearn predict',
            413,
        )


def _itemsize(dtype: str) -> int:
    """Return the bytes of a value of one of rasterio's types, among which are complex integers."""
    bits = re.search(r'\d+$', dtype)
    size = int(bits[0]) // 8 if bits else 8
    return 2 * size if dtype.startswith('complex_') else size


def _amount(count: int) -> str:
    for unit, size in (('GiB', 2**30), ('MiB', 2**20), ('KiB', 2**10)):
        if count >= size:
            return f'{count / size:.3g} {unit}'
    return f'{count} bytes'


def _shown(name: str) -> str:
    return repr(name if len(name) <= 120 else f'{name[:117]}...')


def as_shown_to_clients(message: str, places: Sequence[tuple[Path, str]]) -> str:
    """Replace paths of this machine by the names that the client knows.

    Args:
        message: Of an error.
        places: Paths and their names.
    """
    for path, name in places:
        message = message.replace(os.fspath(path), name)
    return ' '.join(message.split())

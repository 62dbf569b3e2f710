"""Read a raster's tiles in full batches: each block row once, in a thread of its own, a few batches ahead."""

import logging
import math
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date, datetime
from itertools import groupby, islice
from queue import Full, Queue
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from affine import Affine
from rasterio.windows import Window

from geolearn import errors, tiling, units
from geolearn.inference.area import AreaOfInterest
from geolearn.inference.engines import Engine
from geolearn.inference.plan import BLENDS, Blend
from geolearn.precision import Precision, check_precision
from geolearn.raster import Dequantize, GeoBox, common_dtype, raster_geobox, read_window
from geolearn.raster.area import PixelArea
from geolearn.raster.nodata import differs, missing, valid_in_all_bands

if TYPE_CHECKING:
    import torch  # loaded where it is needed: other engines read tiles too
    from scipy.sparse import csr_matrix

Resolution = float | Literal['training']
"""Side of the pixels in units of the raster's CRS, or that of the training chips."""

Scale = float | Literal['db']
"""Factor of stored values, or ``'db'``: radar bands are linear power, of which 10 * log10 is taken."""

NoData = float | Sequence[float | None] | None
"""Value that marks missing pixels in all bands, or one for each band of the file in file order, None for no value."""


def _as_day(given: object) -> date:
    if isinstance(given, datetime):
        return given.date()
    try:
        return given if isinstance(given, date) else date.fromisoformat(str(given))
    except ValueError as error:
        raise ValueError(f"dates must be dates or texts such as '2024-05-01', got {given!r}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class ReadOptions:
    """How a raster's bands and values are read; None leaves it to the file.

    Args:
        bands: Names of the bands in file order.
        sensor: Sensor whose band names they are.
        scale: Factor of the stored values; 1 states that they are in the model's units already. ``'db'`` makes decibels
            of the radar bands, and leaves others as they are.
        offset: Added after scaling.
        nodata: Value that marks missing pixels, on top of what the file says, or one for each band of the file.
        resolution: Side of the pixels to resample to while reading, in units of the raster's CRS, or ``'training'`` for
            that of the training chips; None reads the raster as it is.
        radar: Whether each band of the model is radar, for ``scale='db'``.
        area: Part of the raster that is read; None for all of it.
        dequantize: How codes of precomputed embeddings become vectors; None does what the model was trained with.
        product: Name and version of the embeddings that the raster holds, where it does not say so itself.
        dates: When the image of each date was taken, as dates or ISO texts, for networks that read it.
        is_checked: Whether units and borders were checked already, by the process that this one computes for.

    Raises:
        ValueError: If a number cannot scale pixel values, or is not a size, or dates are none.
    """

    bands: Sequence[str] | None = None
    sensor: str | None = None
    scale: Scale | None = None
    offset: float = 0.0
    nodata: NoData = None
    resolution: Resolution | None = None
    radar: tuple[bool, ...] = ()
    area: AreaOfInterest | None = None
    dequantize: Dequantize | None = None
    product: str | None = None
    dates: Sequence[date | str] | None = None
    is_checked: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.scale, str):
            if self.scale != 'db' or not any(self.radar):
                raise ValueError(
                    f"scale must be a number, or 'db' for a model with radar bands in decibels, got {self.scale!r}"
                )
        elif self.scale == 0 or not math.isfinite(self.factor):
            raise ValueError(f'scale must be a finite number other than 0, got {self.scale}')
        if not math.isfinite(self.offset):
            raise ValueError(f'offset must be a finite number, got {self.offset}')
        values = self.nodata if isinstance(self.nodata, Sequence) else (self.nodata,)
        if isinstance(values, str) or not all(value is None or _is_number(value) for value in values):
            raise ValueError(f'nodata must be a number, or one for each band, got {self.nodata!r}')
        size = self.resolution
        if size is not None and size != 'training' and not (_is_number(size) and 0 < size < math.inf):
            raise ValueError(f"resolution must be a number above 0 or 'training', got {size!r}")

    @property
    def days(self) -> tuple[date, ...] | None:
        """The dates as such; None where they are not given.

        Raises:
            ValueError: If one is no date.
        """
        if self.dates is None:
            return None
        if isinstance(self.dates, str) or not isinstance(self.dates, Sequence):
            raise ValueError(f"dates must be a list, such as ['2024-05-01'], got {self.dates!r}")
        return tuple(map(_as_day, self.dates))

    @property
    def factor(self) -> float:
        """The scale, 1 where none is given, or decibels are made."""
        return 1.0 if self.scale is None or isinstance(self.scale, str) else self.scale

    def nodata_of(self, indexes: Sequence[int], count: int) -> tuple[float | None, ...]:
        """Return the value of missing pixels in each band that is read.

        Args:
            indexes: 1-based bands.
            count: Bands of the file.

        Raises:
            ValueError: If there is not one value for each band of the file.
        """
        if not isinstance(self.nodata, Sequence):
            return (self.nodata,) * len(indexes)
        values = tuple(self.nodata)
        if len(values) != count:
            raise ValueError(f'nodata must be a number, or one for each of {count} bands; got {len(values)}: {values}')
        return tuple(values[index - 1] for index in indexes)

    def to_model_units(self, pixels: np.ndarray) -> np.ndarray:
        """Return stored pixels as float32 in the units that the network was trained on: pixels * scale + offset."""
        values = np.empty(pixels.shape, np.float32)
        self.put_model_units(pixels, values)
        return values

    def put_model_units(self, pixels: np.ndarray, values: np.ndarray) -> None:
        """Convert as `to_model_units` does, into an array float32 of the same shape."""
        with np.errstate(over='ignore', invalid='ignore'):  # what float32 cannot hold is no data
            np.copyto(values, pixels, casting='unsafe')
        self.scale_values(values)

    def scale_values(self, values: np.ndarray) -> None:
        """Change float32 values in stored units into the units that the network was trained on."""
        if self.scale == 'db':
            rows = np.flatnonzero(self.radar)
            values[rows] = units.to_decibels(values[rows])
        if self.factor != 1.0:
            values *= np.float32(self.factor)
        if self.offset:
            values += np.float32(self.offset)


@dataclass(frozen=True)
class TilingOptions:
    """How tiles are cut and computed; None leaves it to the network.

    Args:
        tile_size: Side of the tiles in pixels.
        halo: Pixels dropped at inner tile edges.
        batch_size: Tiles computed together.
        device: Torch device; None means CUDA where there is one.
        compile: Whether to compile the network first. It takes up to a minute and gave convolutions 1.1 to 1.4 times
            the speed, plain transformers hardly any on processors without AVX-512: for thousands of tiles.
        blend: How the tiles of a map meet.
        augment: Test-time augmentation of maps: each tile is computed ``'flips'`` 4 times, flipped, or (True) 8 times,
            flipped and turned, and the mean of the outputs is taken.
        max_memory: Bytes that rows and tiles may take, besides the network and what it computes; None for 160 MiB, or
            72 MiB where a raster is stored in tiles and ``blend`` is ``'crop'``.
        engine: What computes maps: torch, the network's ONNX graph in onnxruntime or OpenVINO, or the fastest.
        mixed_precision: ``'bf16'``, ``'fp16'`` (CUDA only), True for the better of them on a GPU, None or False for
            float32 throughout. On CPUs torch and OpenVINO have the first, and it alone.

    Raises:
        ValueError: If a number is out of its range, or options do not go together.
        UnknownNameError: If there is no such way to blend or to augment, or no such engine.
    """

    tile_size: int | None = None
    halo: int | None = None
    batch_size: int | None = None
    device: str | None = None
    compile: bool = False
    blend: Blend | None = None
    augment: bool | Literal['flips'] = False
    max_memory: int | None = None
    engine: Engine = 'torch'
    mixed_precision: Precision | bool | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ('blend', self.blend, BLENDS),
            ('augment', self.augment, ('flips',)),
            ('engine', self.engine, get_args(Engine)),
        ):
            if value is not None and not isinstance(value, bool) and value not in known:
                raise errors.UnknownNameError(name, str(value), known)
        if isinstance(self.blend, bool):
            raise errors.UnknownNameError('blend', str(self.blend), BLENDS)
        if self.compile and self.engine not in ('torch', 'auto'):
            raise ValueError(f"compile=True is for engine='torch', got engine={self.engine!r}")
        check_precision(self.mixed_precision)
        if self.mixed_precision and self.engine == 'onnx':
            raise ValueError(
                f"mixed_precision={self.mixed_precision!r} is not for engine='onnx': onnxruntime computes in float32 "
                "on CPUs; leave out mixed_precision, or pass engine='openvino' or 'torch'"
            )
        if self.max_memory is not None and self.max_memory < 1:
            raise ValueError(f'max_memory must be a number of bytes above 0, got {self.max_memory}')
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f'batch_size must be at least 1, got {self.batch_size}')
        if self.tile_size is not None and self.tile_size < 1:
            raise ValueError(f'tile_size must be at least 1 pixel, got {self.tile_size}')


MIN_VALID_SHARE = 0.5
"""Share of the ground of a resampled pixel that needs data."""


@dataclass(frozen=True)
class Source:
    """An open raster, or one date of it.

    Args:
        dataset: From `open_raster`.
        indexes: 1-based bands in the network's order.
        target: Grid to resample to while reading; None reads the raster's own.
        nodata: Value of missing pixels in each band, on top of what the file says; None for no value.
        unit_length: Whether pixels are vectors of length 1, which resampled ones are made again.
        repeats: How often each pixel is repeated, down and across, for networks whose outputs are finer.
    """

    dataset: Any
    indexes: tuple[int, ...]
    target: GeoBox | None = None
    nodata: tuple[float | None, ...] = ()
    unit_length: bool = False
    repeats: int = 1

    @property
    def box(self) -> GeoBox:
        """Place of the pixels that are read."""
        box = raster_geobox(self.dataset) if self.target is None else self.target
        if self.repeats == 1:
            return box
        t, times = box.transform, self.repeats
        place = Affine(t.a / times, t.b / times, t.c, t.d / times, t.e / times, t.f)
        return GeoBox((box.shape[0] * times, box.shape[1] * times), place, box.crs)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what is read."""
        return self.box.shape

    @property
    def dtype(self) -> Any:
        """Of the pixels that are read: as stored, float32 where they are resampled."""
        return common_dtype(self.dataset, self.indexes) if self.target is None else np.dtype('float32')

    @property
    def _has_codes(self) -> bool:
        """Whether pixels are held as the codes that their values follow from."""
        if self.target is not None or self.repeats > 1 or not self.dataset.code_dtype:
            return False
        return all(value is None for value in self.nodata)

    @property
    def held_dtype(self) -> Any:
        """Of the pixels that `read_held` returns, which memory holds until tiles are cut: `dtype`, or that of codes."""
        return np.dtype(self.dataset.code_dtype) if self._has_codes else self.dtype

    @property
    def block_rows(self) -> int:
        """Rows that the file stores together."""
        stored = self.dataset.block_shapes[0][0] * self.repeats
        return stored if self.target is None else max(1, round(stored / self._factors[0]))

    @property
    def _factors(self) -> tuple[float, float]:
        """Rows and columns of the raster for each row and column that is read."""
        box = self.box
        (across, down), (wide, high) = raster_geobox(self.dataset).resolution, box.resolution
        return high / down, wide / across

    def read(self, window: Window, *, out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window that lies inside the grid.

        Resampled pixels are means over their ground where they are larger than the raster's, weighted by area and
        without pixels that lack data, and bilinear between the nearest ones where they are smaller.

        Args:
            window: Columns and rows.
            out: Array of the result's shape to read into, or None for a new one.

        Returns:
            Pixels (bands, height, width) in `dtype`, and a mask (height, width), True where there is data, or None
            where that is everywhere.

        Raises:
            RasterError: If the file cannot be read there.
        """
        if self.repeats > 1:
            return self._read_repeated(window, out)
        if self.target is None:
            return self._read_stored(window, out)
        down, across = self._factors
        top, rows = _axis_weights(int(window.row_off), int(window.height), down, self.dataset.height)
        left, cols = _axis_weights(int(window.col_off), int(window.width), across, self.dataset.width)
        inside = Window(left, top, cols.shape[1], rows.shape[1])
        stored, valid = self._read_stored(inside)
        known = np.ones(stored.shape[1:], np.float32) if valid is None else valid.astype(np.float32)
        share = rows @ (cols @ known.T).T
        pixels = np.empty((len(stored), *share.shape), np.float32) if out is None else out
        for band, plane in zip(pixels, stored):
            values = plane.astype(np.float32)
            band[:] = rows @ (cols @ (values if valid is None else np.where(valid, values, 0)).T).T
            band /= np.maximum(share, np.finfo(np.float32).tiny)
        if self.unit_length:
            pixels /= np.maximum(np.linalg.norm(pixels, axis=0), np.finfo(np.float32).tiny)
        return pixels, None if valid is None else share >= MIN_VALID_SHARE

    def read_held(self, window: Window, *, out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window as `read` does, in `held_dtype`."""
        if not self._has_codes:
            return self.read(window, out=out)
        codes, valid = self.dataset.read_codes(window, self.indexes, out)
        return codes, valid_in_all_bands(valid)

    def put_model_units(self, held: np.ndarray, values: np.ndarray, read: ReadOptions) -> None:
        """Convert pixels from `read_held` into the network's units, into an array float32 of the same shape."""
        if not self._has_codes:
            read.put_model_units(held, values)
            return
        self.dataset.put_values(held, values)
        read.scale_values(values)

    def _read_repeated(self, window: Window, out: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        times = self.repeats
        top, left = int(window.row_off) // times, int(window.col_off) // times
        bottom, right = (
            -(-int(end) // times) for end in (window.row_off + window.height, window.col_off + window.width)
        )
        pixels, valid = replace(self, repeats=1).read(Window(left, top, right - left, bottom - top))
        rows = np.arange(int(window.row_off), int(window.row_off + window.height)) // times - top
        cols = np.arange(int(window.col_off), int(window.col_off + window.width)) // times - left
        repeated = pixels[:, rows[:, None], cols]
        if out is not None:
            out[...] = repeated
            repeated = out
        return repeated, None if valid is None else valid[rows[:, None], cols]

    def _read_stored(self, window: Window, out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        pixels, valid = read_window(self.dataset, window, self.indexes, out=out)
        for band, value in zip(pixels, self.nodata):
            if (kept := differs(band, value)) is not None:
                valid = kept if valid is None else valid & kept
        return pixels, valid


def _axis_weights(first: int, count: int, factor: float, length: int) -> tuple[int, 'csr_matrix']:
    """Return the first stored pixel needed along one axis, and the weights (count, stored) of resampled pixels.

    Args:
        first: First resampled pixel.
        count: Number of them.
        factor: Stored pixels for each.
        length: Number of stored pixels.
    """
    from scipy.sparse import csr_matrix  # late: half a second, and only resampled rasters need it

    numbers = first + np.arange(count)
    if factor > 1:
        low, high = numbers * factor, np.minimum((numbers + 1) * factor, length)
        taps = np.floor(low)[:, None] + np.arange(math.ceil(factor) + 1)
        weights = np.clip(np.minimum(high[:, None], taps + 1) - np.maximum(low[:, None], taps), 0, None)
    else:
        middles = (numbers + 0.5) * factor - 0.5
        taps = np.floor(middles)[:, None] + np.arange(2)
        nearness = middles - np.floor(middles)
        weights = np.stack([1 - nearness, nearness], axis=1)
    taps = np.clip(taps, 0, length - 1).astype(np.int64)
    weights /= weights.sum(axis=1, keepdims=True)
    start, stop = int(taps.min()), int(taps.max()) + 1
    rows = np.repeat(np.arange(count), taps.shape[1])
    entries = (weights.ravel().astype(np.float32), (rows, taps.ravel() - start))
    return start, csr_matrix(entries, (count, stop - start))


log = logging.getLogger('geolearn')

QUEUE_BATCHES = 2

BATCH_SIZE = 4
"""Tiles computed together, unless the caller says otherwise."""

MAX_BLOCK_ROWS = 2048


class TileBatch(NamedTuple):
    """Tiles that are computed together.

    Args:
        tiles: In the order of the grid.
        pixels: (n, [dates,] bands, h, w) float32, NaN where there is no data.
        absent: (n, h, w), True where there is too little data to map.
        through: All tiles up to this number, counted row by row, are in this batch or before it, or have no data.
    """

    tiles: list[tiling.Tile]
    pixels: np.ndarray
    absent: np.ndarray
    through: int


MEMORY_SHARE = 0.25
"""Share of the machine's memory that batches of tiles may take before they are computed."""


def fit_batch_size(batch_size: int, tiles: int, tile_bytes: int, *, memory: int | None = None) -> int:
    """Return how many tiles are read at once: no more than there are, and half as many until memory holds them.

    Args:
        batch_size: What the caller asks for.
        tiles: Of the raster.
        tile_bytes: Of one tile.
        memory: Bytes for all of them; None for a share of the machine's.
    """
    wanted = size = min(batch_size, max(tiles, 1))
    if memory is None:
        whole = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') if hasattr(os, 'sysconf') else 2**33
        memory = int(MEMORY_SHARE * whole)
    # a few batches wait for the network, and one is being computed
    while size > 1 and size * tile_bytes * (QUEUE_BATCHES + 2) > memory:
        size = (size + 1) // 2
    if size < wanted:
        log.warning('memory does not hold batches of %s tiles; taking %s at once', batch_size, size)
    return size


class MicroBatches:
    """Compute batches in parts that the device's memory holds: the whole batch, until that fails, and then halves.

    Args:
        compute: Takes images (n, ...).
        most: Images of a part; None for all.
    """

    def __init__(self, compute: Callable[['torch.Tensor'], Any], *, most: int | None = None) -> None:
        self._compute, self._size = compute, most or 0

    def parts(self, pixels: 'np.ndarray | torch.Tensor') -> Iterator[tuple[slice, Any]]:
        """Yield which images were computed, and what came out.

        Raises:
            RuntimeError: Of torch, if memory does not hold one image.
        """
        import torch

        images = torch.from_numpy(pixels) if isinstance(pixels, np.ndarray) else pixels
        start = 0
        while start < len(images):
            size = min(self._size or len(images), len(images) - start)
            part = slice(start, start + size)
            try:
                outputs = self._compute(images[part])
            except RuntimeError as error:
                from geolearn.device import is_out_of_memory

                if size == 1 or not is_out_of_memory(error):
                    raise
                self._size = (size + 1) // 2
                log.warning('out of memory with %s tiles at once; continuing with %s', size, self._size)
                continue
            yield part, outputs
            start += size


class _Rows(NamedTuple):
    """Memory for some rows of a raster: pixels (bands, rows, width) and validity (rows, width)."""

    pixels: np.ndarray
    valid: np.ndarray


def _map_memory(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array that the system has back as soon as it is dropped; malloc keeps what threads that ended had."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), dtype, math.prod(shape)).reshape(shape)


class RollingRows:
    """Rows of a raster, each read once, in whole block rows, and dropped when no tile needs them.

    Args:
        source: The raster.
        tile_rows: Most rows that are asked for at once.
        columns: First and last column + 1; None for all.
        most_block_rows: That are read at once.
        pool: One thread that reads, so that rows can be read ahead; it may be that of other rasters too. None reads
            where rows are asked for.
    """

    def __init__(
        self,
        source: Source,
        tile_rows: int,
        columns: tuple[int, int] | None = None,
        most_block_rows: int = MAX_BLOCK_ROWS,
        pool: Executor | None = None,
    ) -> None:
        self.source, (self._height, width) = source, source.shape
        self.left, right = (0, width) if columns is None else (max(columns[0], 0), min(columns[1], width))
        self._width = right - self.left
        # a raster that is one huge block is decoded whole by GDAL anyway; holding it here too would help nobody
        self._block_rows = min(source.block_rows, most_block_rows)
        self._capacity = min(tile_rows + self._block_rows, self._height)
        self._held = self._allocate()
        self._first = self._end = 0
        self._pool = pool
        self._spare: _Rows | None = None
        self._coming: Future[tuple[int, int]] | None = None

    def _allocate(self) -> _Rows:
        shape = (self._capacity, self._width)
        return _Rows(_map_memory((len(self.source.indexes), *shape), self.source.held_dtype), _map_memory(shape, bool))

    @property
    def end(self) -> int:
        """The last row + 1 that is held."""
        return self._end

    def rows(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels (bands, rows, width) and validity (rows, width) of rows top..bottom.

        Both are views that the next call overwrites; `top` must not go back. Rows that are passed over are not read.
        """
        if bottom > self._end:
            self.read_ahead(top, bottom)
            if self._coming is None:
                self._first, self._end = self._read(self._held, top, bottom)
            else:
                assert self._spare is not None
                self._first, self._end = self._coming.result()
                self._held, self._spare, self._coming = self._spare, self._held, None
        part = slice(top - self._first, bottom - self._first)
        return self._held.pixels[:, part], self._held.valid[part]

    def read_ahead(self, top: int, bottom: int) -> None:
        """Begin to read rows that are asked for later; those that are held stay as they are, and may be asked for."""
        if self._pool is None or self._coming is not None or bottom <= self._end:
            return
        if self._spare is None:
            self._spare = self._allocate()
        self._coming = self._pool.submit(self._read, self._spare, top, bottom)

    def _read(self, into: _Rows, top: int, bottom: int) -> tuple[int, int]:
        """Fill memory with rows from `top` on, of which some may be held; returns the first and the last + 1."""
        start = max(self._end, top)
        held, old = start - top, slice(top - self._first, self._end - self._first)
        if held:
            into.pixels[:, :held] = self._held.pixels[:, old]
            into.valid[:held] = self._held.valid[old]
        # up to a block's edge, so that no block is decompressed twice
        stop = min(-(-bottom // self._block_rows) * self._block_rows, self._height)
        filled = slice(held, held + stop - start)
        mask = self.source.read_held(Window(self.left, start, self._width, stop - start), out=into.pixels[:, filled])[1]
        into.valid[filled] = True if mask is None else mask
        return top, stop


class _WantedTile(NamedTuple):
    """A tile that is read: its number, and which pixels are wanted; None for all."""

    number: int
    tile: tiling.Tile
    wanted: np.ndarray | None


def _wanted_rows(grid: tiling.TileGrid, first: int, area: PixelArea | None) -> Iterator[list[_WantedTile]]:
    """Yield the tiles of each row from tile `first` on, without those outside of an area."""
    for _, row in groupby(islice(enumerate(iter(grid)), first, None), lambda item: item[0] // len(grid.cols)):
        found = []
        for number, tile in row:
            wanted = None if area is None else area.mask(tile.read)
            if wanted is None or wanted.any():
                found.append(_WantedTile(number, tile, wanted))
        if found:
            yield found


class _Ahead:
    """Rows of tiles, of which those to come can be seen.

    Args:
        rows: In order.
    """

    def __init__(self, rows: Iterator[list[_WantedTile]]) -> None:
        self._rows, self._seen = rows, deque[list[_WantedTile]]()

    def pop(self) -> list[_WantedTile] | None:
        """Return the next row; None behind the last one."""
        return self._seen.popleft() if self._seen else next(self._rows, None)

    def find(self, wanted: Callable[[list[_WantedTile]], bool]) -> list[_WantedTile] | None:
        """Return the first row to come that is wanted, which stays to come; None where none is."""
        for row in self._seen:
            if wanted(row):
                return row
        for row in self._rows:
            self._seen.append(row)
            if wanted(row):
                return row
        return None


def read_batches(
    sources: Sequence[Source],
    grid: tiling.TileGrid,
    *,
    batch_size: int,
    read: ReadOptions,
    first: int = 0,
    columns: tuple[int, int] | None = None,
    memory: int | None = None,
    every_date: bool = False,
    area: PixelArea | None = None,
    reuse: bool = False,
) -> Generator[TileBatch, None, None]:
    """Yield full batches of tiles in file order; tiles without a valid pixel, or outside of `area`, are left out.

    While the tiles of one row are cut, a thread reads the rows of the next.

    Args:
        sources: One for each date, all on one grid of pixels; tiles of several dates are (n, dates, bands, h, w).
        grid: How the raster is cut.
        batch_size: Tiles in a batch.
        read: How stored values become the network's units.
        first: Number of the tile to begin with, counted row by row.
        columns: Of the raster that these tiles show; None for all.
        memory: Bytes that batches may take; None for a share of the machine's.
        every_date: Whether a pixel needs data at every date.
        area: What is mapped; networks see what lies around it. None for all.
        reuse: Whether the pixels of a batch may be overwritten as soon as the caller, behind `prefetch`, asks for the
            next one: the system takes long to hand out new memory.
    """
    height, width = grid.tile_shape
    shape = sources[0].shape
    dates = (len(sources),) if len(sources) > 1 else ()

    def finish(pixels: np.ndarray, through: int) -> TileBatch:
        # missing in one band is missing in all, but for what has no logarithm
        bands = pixels if read.scale == 'db' else pixels[..., :1, :, :]
        absent = np.stack([missing(each, every_date=every_date) for each in bands])
        for gaps, wanted in zip(absent, masks):
            if wanted is not None:
                gaps |= ~wanted
        return TileBatch(tiles, pixels, absent, through)

    def reach(row: list[_WantedTile]) -> tuple[int, int]:
        # windows begin and end a few pixels outside of the raster
        top = int(row[0].tile.read.row_off)
        return max(top, 0), min(top + height, shape[0])

    def beyond(end: int) -> Callable[[list[_WantedTile]], bool]:
        return lambda row: reach(row)[1] > end

    tile_bytes = 4 * len(sources) * len(sources[0].indexes) * height * width
    total = len(grid.rows) * len(grid.cols)
    batch_size = fit_batch_size(batch_size, total - first, tile_bytes, memory=memory)
    tiles: list[tiling.Tile] = []
    masks: list[np.ndarray | None] = []
    batch = np.empty((batch_size, *dates, len(sources[0].indexes), height, width), np.float32)
    yielded: deque[np.ndarray] = deque()
    with ThreadPoolExecutor(1, 'geolearn-rows') as pool:
        rolling = [RollingRows(source, height, columns, pool=pool) for source in sources]
        coming = _Ahead(_wanted_rows(grid, first, area))
        while (row := coming.pop()) is not None:
            top, bottom = reach(row)
            for rows in rolling:
                rows.rows(top, bottom)
                # block rows may hold several rows of tiles: the first one that they do not is read meanwhile
                following = coming.find(beyond(rows.end))
                if following is not None:
                    rows.read_ahead(*reach(following))
            for number, tile, wanted in row:
                left = int(tile.read.col_off)
                inside = np.s_[top:bottom, max(left, 0) : min(left + width, shape[1])]
                corner = (top - int(tile.read.row_off), inside[1].start - left)
                targets = batch[len(tiles)].reshape(len(sources), -1, height, width)
                # every date is read, so that all of them stay in step
                if not any([fill_tile(target, rows, inside, corner, read) for target, rows in zip(targets, rolling)]):
                    continue
                tiles.append(tile)
                masks.append(wanted)
                if len(tiles) == batch_size:
                    yield finish(batch, number)
                    if reuse:
                        yielded.append(batch)
                    # a few wait in the queue, and one is computed
                    tiles, masks = [], []
                    batch = yielded.popleft() if len(yielded) > QUEUE_BATCHES + 1 else np.empty_like(batch)
    if tiles:
        yield finish(batch[: len(tiles)], total - 1)


def fill_tile(
    target: np.ndarray,
    rolling: RollingRows,
    inside: tuple[slice, slice],
    corner: tuple[int, int],
    read: ReadOptions,
) -> bool:
    """Put the pixels of a tile into `target` (bands, h, w) from `corner` on, else NaN; returns whether it has data."""
    rows, cols = inside[0], slice(inside[1].start - rolling.left, inside[1].stop - rolling.left)
    pixels, valid = rolling.rows(rows.start, rows.stop)
    valid = valid[:, cols]
    if not valid.any():
        target[:] = np.nan
        return False
    if valid.shape != target.shape[1:]:
        target[:] = np.nan
    part = target[:, corner[0] : corner[0] + valid.shape[0], corner[1] : corner[1] + valid.shape[1]]
    rolling.source.put_model_units(pixels[:, :, cols], part, read)
    if not valid.all():
        part[:, ~valid] = np.nan
    if any(corner):  # above and left of the raster is its mirror image: a patch that is half empty misleads a network
        lead = [np.pad(np.arange(length), (before, 0), 'symmetric') for length, before in zip(valid.shape, corner)]
        filled = part[:, lead[0]][:, :, lead[1]]
        target[:, : filled.shape[1], : filled.shape[2]] = filled
    return True


def prefetch(batches: Generator[TileBatch, None, None]) -> Generator[TileBatch, None, None]:
    """Run a generator in a thread of its own, a bounded number of batches ahead; its error is raised here."""
    queue: Queue[TileBatch | None] = Queue(QUEUE_BATCHES)
    stopped = threading.Event()

    def put(item: TileBatch | None) -> bool:
        while not stopped.is_set():
            try:
                queue.put(item, timeout=0.1)
            except Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
        finally:
            batches.close()
            put(None)

    with ThreadPoolExecutor(1, 'geolearn-reader') as pool:
        reading = pool.submit(work)
        try:
            while (item := queue.get()) is not None:
                yield item
            reading.result()
        finally:
            stopped.set()

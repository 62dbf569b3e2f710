"""The pack: all chips of a folder in one file that is mapped into memory, so that training never waits for decoding.

The file is a magic word, the chips' arrays as they are (each at a multiple of 4096 bytes), the columns of the chips'
table and of the arrays' places as an .npz without pickles, and its offset with the magic word again. It is one file for
a folder and not for a split: another split, seed or share of labels then needs no new pack.
"""

import io
import mmap
import multiprocessing
import os
import struct
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from geolearn.chips.label import Label, mask_boxes
from geolearn.chips.packing.read_chip import Chip
from geolearn.chips.packing.table import ChipTable
from geolearn.errors import ChipFolderError

MAGIC = b'geopack2'

_FOOTER = struct.Struct('<Q8s')

_ALIGNMENT = 4096

_COLUMNS = ('pixels', 'mask', 'mask_channels', 'raster', 'raster_bytes', 'unlabelled')

MOST_BANDS = 4096

_RASTER_TYPES = {1: 'u1', 2: 'u2', 4: 'f4'}
"""Types of label rasters by the bytes of a pixel: class values, and numbers."""

_BROKEN = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    EOFError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading the end of a damaged file may raise."""


class Places(NamedTuple):
    """Where the parts of a chip are: offsets, -1 for a part that it lacks, and what it takes to read them."""

    pixels: int
    mask: int
    mask_channels: int
    raster: int
    raster_bytes: int
    unlabelled: int
    outlines: tuple[tuple[int, int, int, int, int], ...]
    """Offset, top, bottom, left and right of each outline."""


class _Number:
    """A number with a lock, as `multiprocessing.Value` is."""

    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def get_lock(self) -> threading.Lock:
        return self._lock


class PackWriter:
    """Write chips into a file, then the table that describes them.

    Args:
        file: Open for writing, empty.
        shared: Whether forked processes write too, so that they must agree on what is free.
    """

    def __init__(self, file: BinaryIO, *, shared: bool = False) -> None:
        self._file = file
        # a number with a lock, in memory that forked processes share
        self._end: Any = multiprocessing.get_context('fork').Value('Q', 0) if shared else _Number()
        self._places: list[Places] = []
        self._write(MAGIC)

    def write(self, chip: Chip) -> Places:
        """Write one chip where there is room; threads may do so at once."""
        mask, raster, outlines = chip.mask, chip.label.raster, []
        for outline in chip.label.masks or ():
            left, top, right, bottom = mask_boxes([outline])[0].astype(np.int64).tolist()
            outlines.append((self._write(np.packbits(outline[top:bottom, left:right])), top, bottom, left, right))
        return Places(
            self._write(chip.pixels),
            -1 if mask is None else self._write(np.packbits(mask)),
            0 if mask is None else len(mask),
            -1 if raster is None else self._write(raster),
            0 if raster is None else raster.dtype.itemsize,
            -1 if chip.label.unlabelled is None else self._write(np.packbits(chip.label.unlabelled)),
            tuple(outlines),
        )

    def keep(self, places: Places) -> None:
        """Count what was written as the next chip."""
        self._places.append(places)

    def add(self, chip: Chip) -> None:
        """Write one chip as the next."""
        self.keep(self.write(chip))

    def finish(self, table: ChipTable) -> None:
        """Append the table."""
        columns = zip(*(row[: len(_COLUMNS)] for row in self._places))
        places = {f'place_{name}': np.array(column, np.int64) for name, column in zip(_COLUMNS, columns)}
        outlines = np.array([outline for row in self._places for outline in row.outlines], np.int64).reshape(-1, 5)
        tail = io.BytesIO()
        np.savez(tail, **places, place_outlines=outlines, **table.to_arrays())  # type: ignore[arg-type]
        start = self._write(tail.getvalue())
        self._file.seek(self._end.value)
        self._file.write(_FOOTER.pack(start, MAGIC))

    def _write(self, data: np.ndarray | bytes) -> int:
        """Write bytes at the next multiple of the alignment; returns where."""
        content = memoryview(data) if isinstance(data, bytes) else np.ascontiguousarray(data).data.cast('B')
        with self._end.get_lock():
            start = self._end.value + -self._end.value % _ALIGNMENT
            self._end.value = start + len(content)
            if not hasattr(os, 'pwrite'):  # Windows writes in one place at a time only
                self._file.seek(start)
                self._file.write(content)
                return start
        done = 0
        while done < len(content):
            done += os.pwrite(self._file.fileno(), content[done:], start + done)
        return start


class Pack:
    """Chips in a packed file, mapped into memory; what `chip` returns are views of it.

    Args:
        path: The file.

    Raises:
        ChipFolderError: If it is no whole pack.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open('rb') as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            arrays = self._read_tail()
            self.table = ChipTable.from_arrays(arrays)
            _check_columns(self.table, arrays)
            _check_places(self.table, arrays, len(self._map))
        except _BROKEN as error:
            raise ChipFolderError(f'{path} is no whole pack of chips: {error}; remove it') from error
        # plain lists: indexing an array costs more than the rest of finding a chip
        self._places = {name: arrays[f'place_{name}'].tolist() for name in _COLUMNS}
        self._outlines = arrays['place_outlines']
        self._shapes = self.table.shapes.tolist()

    def _read_tail(self) -> dict[str, np.ndarray]:
        start, magic = _FOOTER.unpack(self._map[-_FOOTER.size :])
        if magic != MAGIC or self._map[: len(MAGIC)] != MAGIC:
            raise ValueError('its first or last bytes are others')
        with np.load(io.BytesIO(self._map[start : -_FOOTER.size]), allow_pickle=False) as tail:
            return dict(tail)

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.__init__(path)  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.table)

    def chip(self, position: int) -> Chip:
        """Return one chip; its arrays are read-only."""
        height, width = self._shapes[position]
        channels, place = self.table.channels, {name: column[position] for name, column in self._places.items()}
        pixels = self._view(self.table.dtype, place['pixels'], (channels, height, width))
        mask = raster = None
        if place['mask'] >= 0:
            mask = self._bits(place['mask'], (place['mask_channels'], height, width))
        if place['raster'] >= 0:
            shape: tuple[int, ...] = (height, width)
            if self.table.has_image_targets:
                times = self.table.target_times
                shape = (self.table.target_bands, height * times, width * times)
            raster = self._view(_RASTER_TYPES[place['raster_bytes']], place['raster'], shape)
        unlabelled = None if place['unlabelled'] < 0 else self._bits(place['unlabelled'], (height, width))
        return Chip(
            pixels, mask, self._label(position, raster, unlabelled), self.table.geobox(position), self.table.dates
        )

    def _label(self, position: int, raster: np.ndarray | None, unlabelled: np.ndarray | None) -> Label:
        values, boxes = self.table.objects(position)
        masks = None
        if len(self._outlines):
            first, last = self.table.object_offsets[position : position + 2].tolist()
            masks = tuple(self._outline(row, self._shapes[position]) for row in self._outlines[first:last].tolist())
        turned, ignored = self.table.oriented_boxes(position)
        return Label(raster, values, boxes, masks, unlabelled=unlabelled, turned=turned, ignored=ignored)

    def _outline(self, row: Sequence[int], shape: Sequence[int]) -> np.ndarray:
        place, top, bottom, left, right = row
        outline = np.zeros(shape, bool)
        outline[top:bottom, left:right] = self._bits(place, (bottom - top, right - left))
        return outline

    def _view(self, dtype: Any, place: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.ndarray(shape, dtype, self._map, place)

    def _bits(self, place: int, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape))
        packed = np.frombuffer(self._map, np.uint8, -(-count // 8), place)
        return np.unpackbits(packed, count=count).view(bool).reshape(shape)


def _check_columns(table: ChipTable, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError where the columns are not of one length, or have another type than they should."""
    count = len(table)
    shapes: dict[str, tuple[int, ...]] = {'shapes': (count, 2), 'transforms': (count, 6)}
    shapes |= {name: (count,) for name in ('crs_indexes', 'nodata_varies', *(f'place_{name}' for name in _COLUMNS))}
    shapes |= {name: (count, table.channels) for name in ('counts', 'means', 'm2s', 'minimums', 'maximums')}
    shapes |= {name: (count + 1,) for name in ('value_offsets', 'object_offsets')}
    wrong = [name for name, shape in shapes.items() if arrays[name].shape != shape]
    whole = ('shapes', 'crs_indexes', 'value_offsets', 'object_offsets', 'label_values', 'label_pixels')
    placed = [name for name in arrays if name.startswith('place_')]
    wrong += [name for name in (*whole, 'object_values', *placed) if arrays[name].dtype != np.int64]
    numeric = (*shapes, 'boxes', 'turned', 'ignored', 'sample', 'label_statistics')
    wrong += [name for name in numeric if arrays[name].dtype.kind not in 'biuf']
    if wrong or not count or not table.channels or table.dates < 1 or table.channels % table.dates:
        raise ValueError(f'columns do not fit one another: {", ".join(wrong) or "no chips, bands or dates"}')
    for offsets, held in ((table.value_offsets, table.label_values), (table.object_offsets, table.object_values)):
        if offsets[0] or offsets[-1] != len(held) or (np.diff(offsets) < 0).any():
            raise ValueError('labels do not belong to chips')
    objects, boxes, outlines = len(table.object_values), table.boxes, arrays['place_outlines']
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) not in (0, objects):
        raise ValueError('boxes do not belong to objects')
    if table.turned.shape not in ((0, 5), (objects, 5)) or table.ignored.shape not in ((0,), (objects,)):
        raise ValueError('oriented boxes do not belong to objects')
    if outlines.ndim != 2 or outlines.shape[1] != 5 or len(outlines) not in (0, objects):
        raise ValueError('outlines do not belong to objects')
    if not 1 <= table.target_bands <= MOST_BANDS or not 1 <= table.target_times <= MOST_BANDS:
        raise ValueError('images to predict have impossible sizes')
    if table.label_statistics.shape not in ((0, 5), (count, 5 * table.target_bands)):
        raise ValueError('statistics of labels do not belong to chips')
    if len(table.label_pixels) != len(table.label_values) or table.sample.shape[1:] != (table.channels,):
        raise ValueError('values or samples are missing')
    if table.crs_indexes.min() < 0 or table.crs_indexes.max() >= len(table.crs):
        raise ValueError('CRSs are missing')


def _check_places(table: ChipTable, arrays: Mapping[str, np.ndarray], size: int) -> None:
    """Raise ValueError where a chip's arrays would lie outside the file."""
    if np.dtype(table.dtype).kind not in 'iuf' or table.shapes.min() < 1:
        raise ValueError(f'chips of {table.dtype} or without a pixel')
    area = table.shapes.prod(axis=1, dtype=np.float64)
    place = {name: arrays[f'place_{name}'] for name in _COLUMNS}
    outlines = arrays['place_outlines']
    top, bottom, left, right = outlines.T[1:]
    limit = np.repeat(table.shapes, np.diff(table.object_offsets), axis=0)[: len(outlines)]
    ends = (
        (place['pixels'], area * table.channels * np.dtype(table.dtype).itemsize),
        (place['mask'], area * place['mask_channels'] / 8),
        (place['raster'], area * place['raster_bytes'] * table.target_bands * table.target_times**2),
        (place['unlabelled'], area / 8),
        (outlines[:, 0], (bottom - top).astype(np.float64) * (right - left) / 8),
    )
    inside = all((start + length <= size).all() for start, length in ends) and (place['pixels'] >= 0).all()
    ordered = ((top >= 0) & (left >= 0) & (top <= bottom) & (left <= right)).all() and (outlines[:, 0] >= 0).all()
    fitting = (np.stack([bottom, right], axis=1) <= limit).all()
    # what is absent, its place negative, has no size; what is there has one
    raster_bytes, mask_channels = place['raster_bytes'], place['mask_channels']
    known = np.where(place['raster'] >= 0, np.isin(raster_bytes, list(_RASTER_TYPES)), raster_bytes == 0).all()
    known &= np.where(place['mask'] >= 0, np.isin(mask_channels, (1, table.channels)), mask_channels == 0).all()
    if not (inside and ordered and fitting and known):
        raise ValueError('chips lie outside the file')
    # numbers have statistics, and class values have none
    if ((raster_bytes == 4) != (len(table.label_statistics) > 0)).any():
        raise ValueError('statistics of labels do not belong to them')

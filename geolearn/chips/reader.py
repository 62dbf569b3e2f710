"""Read chips: image, mask and label together, and what all of them amount to."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from geolearn.bands import Band
from geolearn.chips.folder import ChipFiles
from geolearn.errors import ChipFolderError, RasterError
from geolearn.raster import GeoBox, open_raster, raster_bands, read_image, read_label, tag_wavelengths_um
from geolearn.statistics import BandStatistics, RunningStatistics

MEMORY_BYTES = 2 * 2**30
"""Chips that decode to less than this altogether are kept in memory after their first reading."""

READ_THREADS = 4


class Chip(NamedTuple):
    """A training image with its label.

    `pixels` is (bands, height, width) in the stored dtype; `mask` is (height, width), True where all bands are valid,
    or None where everything is; `label` is (height, width) of class values.
    """

    pixels: np.ndarray
    mask: np.ndarray | None
    label: np.ndarray
    geobox: GeoBox


@dataclass(frozen=True)
class ChipSummary:
    """What one reading of every chip found.

    Args:
        files: Chips that can be read, in order.
        geoboxes: Place of each.
        value_counts: Valid pixels per label value and chip.
        statistics: Band statistics over all valid pixels.
        band_count: Number of bands.
        dtype: Stored dtype of the images.
        unreadable: Files that were left out, each with the reason.
    """

    files: tuple[ChipFiles, ...]
    geoboxes: tuple[GeoBox, ...]
    value_counts: tuple[Counter[int], ...]
    statistics: BandStatistics
    band_count: int
    dtype: str
    unreadable: tuple[str, ...]


def read_chip(files: ChipFiles, indexes: Sequence[int] | None = None) -> Chip:
    """Read one chip; `indexes` are 1-based bands.

    Raises:
        RasterError: If a file cannot be read.
        ChipFolderError: If image and label differ in size or the label's values are out of range.
    """
    pixels, mask, geobox = read_image(files.image, indexes)
    label = read_label(files.label)
    if label.shape != pixels.shape[1:]:
        raise ChipFolderError(
            f'{files.label} is {label.shape[1]}x{label.shape[0]} pixels but its image is '
            f'{pixels.shape[2]}x{pixels.shape[1]}; export both with one tile size'
        )
    if label.size and (int(label.min()) < 0 or int(label.max()) > 65535):
        raise ChipFolderError(
            f'{files.label} holds values from {label.min()} to {label.max()}; class values lie in 0..65535'
        )
    return Chip(pixels, mask, label, geobox)


def chip_bands(path: Path) -> tuple[tuple[Band, ...], list[float | None]]:
    """Return the bands that a chip's own metadata names, and the wavelengths that it states."""
    with open_raster(path) as src:
        return raster_bands(src), tag_wavelengths_um(src)


def scaling_note(path: Path) -> str | None:
    """Tell about a scale or offset that a chip states, since pixels are taken as they are stored."""
    with open_raster(path) as src:
        if set(src.scales) == {1.0} and set(src.offsets) == {0.0}:
            return None
        return (
            f'the chips state scale {src.scales[0]:g} and offset {src.offsets[0]:g}, which are not applied; '
            'rasters to predict must hold the same stored values'
        )


@dataclass
class ChipReader:
    """Chips by position, kept in memory if all of them fit.

    Args:
        files: The chips.
        indexes: 1-based bands to read, or None for all.
        memory: Decoded chips by position; None switches it off.
    """

    files: Sequence[ChipFiles]
    indexes: Sequence[int] | None = None
    memory: dict[int, Chip] | None = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> Chip:
        memory = self.memory  # another thread may switch it off
        if memory is None:
            return read_chip(self.files[position], self.indexes)
        if position not in memory:
            memory[position] = read_chip(self.files[position], self.indexes)
        return memory[position]

    def with_bands(self, indexes: Sequence[int]) -> 'ChipReader':
        """Return a reader of some bands, by 1-based index, that keeps chips in memory if this one does."""
        return ChipReader(self.files, indexes, None if self.memory is None else {})

    def select(self, positions: Sequence[int]) -> 'ChipReader':
        """Return a reader of some chips that shares what is in memory."""
        held = self.memory
        memory = None if held is None else {i: held[p] for i, p in enumerate(positions) if p in held}
        return ChipReader([self.files[p] for p in positions], self.indexes, memory)


def summarise(reader: ChipReader, *, on_chip: Callable[[], object] = lambda: None) -> tuple[ChipReader, ChipSummary]:
    """Read every chip once.

    Args:
        reader: The chips.
        on_chip: Called after each chip, for a progress bar.

    Returns:
        A reader of the chips that can be read, and the summary of these.

    Raises:
        ChipFolderError: If no chip can be read, or chips differ in band count.
    """
    running, bands, dtype = RunningStatistics(), 0, ''
    counts: list[Counter[int]] = []
    boxes: list[GeoBox] = []
    kept: list[int] = []
    unreadable: list[str] = []
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for position, found in enumerate(_read_ahead(pool, reader)):
            on_chip()
            if isinstance(found, str):
                unreadable.append(found)
                continue
            if kept and found.pixels.shape[0] != bands:
                first, this = reader.files[kept[0]].image, reader.files[position].image
                raise ChipFolderError(f'{first} holds {bands} bands but {this} {found.pixels.shape[0]}; export one set')
            bands, dtype = found.pixels.shape[0], str(found.pixels.dtype)
            if not kept and len(reader) * (found.pixels.nbytes + found.label.nbytes) > MEMORY_BYTES:
                reader.memory = None
            running.add(found.pixels, found.mask)
            values = found.label if found.mask is None else found.label[found.mask]
            counts.append(Counter(dict(zip(*(a.tolist() for a in np.unique(values, return_counts=True))))))
            boxes.append(found.geobox)
            kept.append(position)
    if not kept:
        raise ChipFolderError(f'none of {len(reader)} chips can be read; the first: {unreadable[0]}')
    if not len(running.count):
        raise ChipFolderError(f'all pixels of {len(kept)} chips are NoData; nothing can be learned from them')
    files = tuple(reader.files[p] for p in kept)
    summary = ChipSummary(files, tuple(boxes), tuple(counts), running.result(), bands, dtype, tuple(unreadable))
    return reader.select(kept), summary


def _read_ahead(pool: ThreadPoolExecutor, reader: ChipReader) -> Iterator[Chip | str]:
    """Read chips in order, a few ahead of the caller: all at once would fill the memory with them."""
    waiting: deque[Future[Chip | str]] = deque()
    for position in range(len(reader)):
        waiting.append(pool.submit(_try_read, reader, position))
        if len(waiting) > 2 * READ_THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _try_read(reader: ChipReader, position: int) -> Chip | str:
    """Read a chip, or say why it cannot be read."""
    try:
        return reader[position]
    except RasterError as error:
        return str(error)

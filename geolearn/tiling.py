"""Cut a raster into overlapping tiles whose cores cover it exactly once."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from affine import Affine
from rasterio.windows import Window


class Tile(NamedTuple):
    """A window to read, and the core of it to keep.

    All tiles of a raster have one size and start on one lattice, the multiples of the network's coarsest stride, so
    that all cut the ground into the same patches. Windows reach beyond the raster by less than that stride, as padding.
    """

    read: Window
    core: Window


class TileGrid(NamedTuple):
    """How a raster is cut: the tile's (height, width) and where reading and keeping start along each axis."""

    tile_shape: tuple[int, int]
    rows: list[tuple[int, int, int]]
    cols: list[tuple[int, int, int]]

    def __iter__(self) -> Iterator[Tile]:
        """Yield tiles row by row, left to right."""
        height, width = self.tile_shape
        for row, core_top, core_bottom in self.rows:
            for col, core_left, core_right in self.cols:
                yield Tile(
                    Window(col, row, width, height),
                    Window(core_left, core_top, core_right - core_left, core_bottom - core_top),
                )

    def enlarged(self, factor: int) -> 'TileGrid':
        """Return the same tiles in pixels of which `factor` times `factor` make one of these."""
        if factor == 1:
            return self
        rows, cols = ([tuple(n * factor for n in span) for span in spans] for spans in (self.rows, self.cols))
        height, width = self.tile_shape
        return TileGrid((height * factor, width * factor), rows, cols)  # type: ignore[arg-type]

    def overhead(self, shape: tuple[int, int]) -> float:
        """Share of pixels computed on top of the raster's own: 0.27 means 27 % twice."""
        computed = len(self.rows) * len(self.cols) * self.tile_shape[0] * self.tile_shape[1]
        return computed / (shape[0] * shape[1]) - 1


def make_grid(
    shape: tuple[int, int], *, tile_size: int, halo: int, multiple: int = 32, origin: tuple[int, int] = (0, 0)
) -> TileGrid:
    """Plan tiles of at most about `tile_size` pixels a side that overlap by at least `2 * halo`.

    The tile is made smaller where that covers the raster with fewer pixels computed twice.

    Args:
        shape: Height and width of the raster.
        tile_size: Largest side of a tile in pixels, rounded up to `multiple`, and to what leaves a core of it.
        halo: Pixels dropped at every inner edge of a tile.
        multiple: Tile sides and starts are multiples of this, the network's coarsest stride.
        origin: Row and column of the raster's first pixel, from where multiples are counted; see `lattice_origin`.

    Raises:
        ValueError: If the halo leaves no core.
    """
    tile_size = math.ceil(tile_size / multiple) * multiple
    if not 0 <= 2 * halo < tile_size:
        raise ValueError(f'halo must be at least 0 and under half the tile size {tile_size}, got {halo}')
    sides, spans = [], []
    for length, start in zip(shape, origin):
        side, starts = _cut_axis(length, tile_size, halo, multiple, start % multiple)
        sides.append(side)
        spans.append(_cores(starts, side, length))
    return TileGrid((sides[0], sides[1]), spans[0], spans[1])


def _cut_axis(length: int, tile_size: int, halo: int, multiple: int, lead: int) -> tuple[int, list[int]]:
    """Choose the tile side and the first pixel of each tile along one axis; `lead` pixels of the first are padding."""
    units = math.ceil((length + lead) / multiple)
    shared = math.ceil(2 * halo / multiple)
    largest = max(tile_size // multiple, shared + 1)
    if units <= largest:
        return units * multiple, [-lead]
    count = math.ceil((units - shared) / (largest - shared))
    side = math.ceil((units - shared) / count) + shared
    starts = [i * (units - side) // (count - 1) * multiple - lead for i in range(count)]
    return side * multiple, starts


def _cores(starts: list[int], side: int, length: int) -> list[tuple[int, int, int]]:
    """Give each tile the part from the middle of one overlap to the middle of the next."""
    cuts = [0, *((a + side + b) // 2 for a, b in pairwise(starts)), length]
    return list(zip(starts, cuts, cuts[1:]))


def blend_weights(starts: Sequence[int], side: int, length: int) -> list[np.ndarray]:
    """Return the weights (side,) of each tile's pixels along one axis: halves of Hann windows over the overlaps.

    Over all tiles they add up to 1 at each of `length` pixels; outside of these they are 0.

    Args:
        starts: First pixel of each tile.
        side: Of the tiles.
        length: Of the raster.
    """
    total, ramps = np.zeros(length), []
    for number, start in enumerate(starts):
        middles = np.arange(start, start + side) + 0.5
        ramp = np.ones(side)
        if number > 0:
            shared = starts[number - 1] + side - start
            ramp = np.minimum(ramp, _hann((middles - start) / max(shared, 1)))
        if number < len(starts) - 1:
            shared = start + side - starts[number + 1]
            ramp = np.minimum(ramp, _hann((start + side - middles) / max(shared, 1)))
        ramp[(middles < 0) | (middles > length)] = 0
        total[max(start, 0) : start + side] += ramp[max(-start, 0) : max(length - start, 0)]
        ramps.append(ramp)
    for start, ramp in zip(starts, ramps):
        ramp[max(-start, 0) : length - start] /= total[max(start, 0) : start + side]
    return [ramp.astype(np.float32) for ramp in ramps]


def _hann(share: np.ndarray) -> np.ndarray:
    """Return the rising half of a Hann window at shares 0..1 of its length; 1 beyond."""
    rising: np.ndarray = np.sin(np.pi / 2 * np.minimum(share, 1)) ** 2
    return rising


def lattice_origin(transform: Affine, multiple: int) -> tuple[int, int]:
    """Return the row and column of a raster's first pixel, counted from the origin of its CRS, modulo `multiple`.

    Tiles that start on multiples of it cut the ground into the same patches, whichever part of a scene the raster is.

    Args:
        transform: From (column, row) to map coordinates; the identity gives (0, 0).
        multiple: The network's coarsest stride.
    """
    inverse = ~transform
    # rasters often lie a whole or half pixel off: neither is near where this rounding turns
    col, row = (-math.floor(shift + 0.2) for shift in (inverse.c, inverse.f))
    return row % multiple, col % multiple


class Span(NamedTuple):
    """A window along one axis and the part of it whose objects count, in cells."""

    start: int
    core_start: float
    core_end: float


def spread_windows(length: int, side: int) -> list[Span]:
    """Spread windows evenly over an axis, each at least half over the next; their cores cover it once.

    Args:
        length: Of the axis in cells, at least `side`.
        side: Of the windows in cells.
    """
    count = count_windows(length, side)
    starts = [round(step * (length - side) / max(1, count - 1)) for step in range(count)]
    cuts = [-math.inf, *((start + side + other) / 2 for start, other in pairwise(starts)), math.inf]
    return [Span(*row) for row in zip(starts, cuts, cuts[1:])]


def count_windows(length: int, side: int) -> int:
    """Return how many windows `spread_windows` gives."""
    return -((side - length) // max(1, side // 2)) + 1

"""How the tiles of a raster are computed: in parts whose rows memory holds, and in shares for several machines."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from rasterio.windows import Window

from geolearn.tiling import TileGrid

Blend = Literal['hann', 'crop']
"""How neighboring tiles meet: they fade into each other over what they share, or are cut in the middle of it."""

BLENDS: tuple[Blend, ...] = ('hann', 'crop')

BUFFER_BYTES = 160 * 2**20
"""What rows and tiles take at most, unless the caller says otherwise."""

TILED_BUFFER_BYTES = 72 * 2**20
"""The same where a raster is read in parts at hardly any cost: it is stored in tiles, and what overlaps is cut."""


@dataclass(frozen=True)
class Share:
    """One of several shares of a raster, which are about equally large and are computed apart.

    Args:
        number: Of the share, from 1 on.
        count: Of all shares.

    Raises:
        ValueError: If there is no such share.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (self.number, self.count))
        if not whole or not 1 <= self.number <= self.count:
            raise ValueError(
                f'part must be (number, count) with number in 1..count, such as (3, 40); got ({self.number!r}, '
                f'{self.count!r})'
            )

    def __str__(self) -> str:
        return f'{self.number}/{self.count}'


def choose_share(part: tuple[int, int] | None, *, merge_parts: bool) -> Share | None:
    """Return the share to compute; None for all of the raster, or to merge shares.

    Raises:
        ValueError: If there is no such share, or it is to be computed and merged at once.
    """
    if part is None:
        return None
    if merge_parts:
        raise ValueError('merge_parts=True writes the map once all parts are computed; pass it without part=')
    return Share(*part)


@dataclass(frozen=True)
class Part:
    """A window of a raster that is mapped from top to bottom, on its own.

    Its pixels do not depend on how a raster is divided: tiles that reach into two parts are computed for both.

    Args:
        grid: Its tiles.
        core: The pixels that it makes.
    """

    grid: TileGrid
    core: Window

    @property
    def columns(self) -> tuple[int, int]:
        """First and last column + 1 that its tiles show; they may lie outside of the raster."""
        return self.grid.cols[0][0], self.grid.cols[-1][0] + self.grid.tile_shape[1]

    @property
    def top(self) -> int:
        """Its first row."""
        return int(self.core.row_off)

    @property
    def bottom(self) -> int:
        """Its last row + 1."""
        return int(self.core.row_off + self.core.height)

    def first_row_of_tiles(self, row: int) -> int:
        """Return the number of the first row of tiles that pixels from `row` on depend on."""
        height = self.grid.tile_shape[0]
        return sum(start + height <= row for start, _, _ in self.grid.rows)


def plan_parts(
    grid: TileGrid,
    window: Window,
    *,
    blend: Blend,
    most_columns: int | None = None,
    share: Share | None = None,
) -> list[Part]:
    """Divide a window of a raster, or a share of it, into parts of whole tiles.

    Args:
        grid: How the raster is cut into tiles.
        window: What is mapped. Its pixels are those of a map of the whole raster.
        blend: How tiles meet.
        most_columns: That the tiles of a part show, as far as one tile is not wider; None for one part.
        share: To divide; None for all of the window. With more shares than tiles some have no part.
    """
    height, width = grid.tile_shape
    low, high = int(window.row_off), int(window.row_off + window.height)
    kept_rows = _keeping(grid.rows, low, high)
    kept_cols = _keeping(grid.cols, int(window.col_off), int(window.col_off + window.width))
    first_row, end_row, first, end = 0, len(kept_rows), 0, len(kept_cols)
    if share is not None:
        (first_row, end_row), (first, end) = _tiles_of_share(end_row, end, share, blend)
    if first_row == end_row:
        return []
    # where a blended row of tiles begins, the rows above are complete
    edges = [low, *(max(row[0 if blend == 'hann' else 1], low) for row in kept_rows[1:]), high]
    top, bottom = edges[first_row], edges[end_row]
    rows = _reaching(grid.rows, height, top, bottom, blend)
    parts = []
    while first < end:
        last = first
        while last + 1 < end and (
            most_columns is None or kept_cols[last + 1][0] + 2 * width - kept_cols[first][0] <= most_columns
        ):
            last += 1
        left, right = kept_cols[first][1], kept_cols[last][2]
        cols = _reaching(grid.cols, width, left, right, blend)
        parts.append(Part(TileGrid(grid.tile_shape, rows, cols), Window(left, top, right - left, bottom - top)))
        first = last + 1
    return parts


def tiles_reaching(grid: TileGrid, window: Window) -> TileGrid:
    """Return the tiles of which a window of the raster shows some pixels."""
    (height, width), (top, left) = grid.tile_shape, (int(window.row_off), int(window.col_off))
    return TileGrid(
        grid.tile_shape,
        [row for row in grid.rows if row[0] < top + window.height and row[0] + height > top],
        [col for col in grid.cols if col[0] < left + window.width and col[0] + width > left],
    )


def _keeping(spans: list[tuple[int, int, int]], low: int, high: int) -> list[tuple[int, int, int]]:
    """Return the tiles along one axis that keep some of the pixels from `low` to `high`, and what of these."""
    return [
        (start, max(core_low, low), min(core_high, high))
        for start, core_low, core_high in spans
        if core_low < high and core_high > low
    ]


def _reaching(
    spans: list[tuple[int, int, int]], side: int, low: int, high: int, blend: Blend
) -> list[tuple[int, int, int]]:
    """Return the tiles along one axis that pixels from `low` to `high` depend on, with what they keep of them."""
    if blend == 'crop':
        return _keeping(spans, low, high)
    # of a tile that only fades into these pixels nothing is kept
    return [
        (start, min(max(core_low, low), high), max(min(core_high, high), low))
        for start, core_low, core_high in spans
        if start < high and start + side > low
    ]


def _tiles_of_share(rows: int, cols: int, share: Share, blend: Blend) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return first and last + 1 of the rows and of the columns of tiles that a share is made of."""
    counts, cuts = _lay_out(rows, cols, share.count, blend)
    ends = np.cumsum(counts)
    band = int(np.searchsorted(ends, share.number))
    number, count = share.number - 1 - int(ends[band] - counts[band]), int(counts[band])
    return (int(cuts[band]), int(cuts[band + 1])), (number * cols // count, (number + 1) * cols // count)


@lru_cache(maxsize=16)
def _lay_out(rows: int, cols: int, count: int, blend: Blend) -> tuple[np.ndarray, np.ndarray]:
    """Choose how many shares lie side by side in each band of rows, and where bands begin and end.

    Of the ways to do so, that whose largest share has the fewest tiles; of equal ones, that of most bands, since
    files are read row by row. Blended tiles at the edge of a share are computed for its neighbor too.
    """
    shared = 1 if blend == 'hann' else 0
    ways = []
    for bands in {int(number) for number in np.geomspace(1, min(count, rows), 64).round()}:
        counts = np.diff(np.arange(bands + 1) * count // bands)
        cuts = (2 * rows * np.concatenate([[0], np.cumsum(counts)]) + count) // (2 * count)
        largest = ((np.diff(cuts) + shared) * (-(-cols // counts) + 2 * shared)).max()
        ways.append((int(largest), -bands, counts, cuts))
    _, _, counts, cuts = min(ways, key=lambda way: way[:2])
    return counts, cuts

"""How the tiles of a raster are computed: in parts, side by side, whose rows memory holds."""

from dataclasses import dataclass
from typing import Literal

from rasterio.windows import Window

from geolearn.tiling import TileGrid

Blend = Literal['hann', 'crop']
"""How neighboring tiles meet: they fade into each other over what they share, or are cut in the middle of it."""

BLENDS: tuple[Blend, ...] = ('hann', 'crop')

BUFFER_BYTES = 512 * 2**20
"""What rows and tiles take at most, unless the caller says otherwise."""


@dataclass(frozen=True)
class Part:
    """Columns of a raster that are mapped from top to bottom, on their own.

    Its pixels do not depend on how a raster is divided: tiles that reach into two parts are computed for both.

    Args:
        grid: Its tiles.
        core: The pixels that it makes, over the whole height.
    """

    grid: TileGrid
    core: Window

    @property
    def columns(self) -> tuple[int, int]:
        """First and last column + 1 that its tiles show; they may lie outside of the raster."""
        return self.grid.cols[0][0], self.grid.cols[-1][0] + self.grid.tile_shape[1]

    def first_row_of_tiles(self, row: int) -> int:
        """Return the number of the first row of tiles that pixels from `row` on depend on."""
        height = self.grid.tile_shape[0]
        return sum(start + height <= row for start, _, _ in self.grid.rows)


def plan_parts(grid: TileGrid, shape: tuple[int, int], *, blend: Blend, most_columns: int | None = None) -> list[Part]:
    """Divide a raster into parts of whole tiles.

    Args:
        grid: How the raster is cut into tiles.
        shape: Height and width of the raster.
        blend: How tiles meet.
        most_columns: That the tiles of a part show, as far as one tile is not wider; None for one part.
    """
    parts, first = [], 0
    width = grid.tile_shape[1]
    while first < len(grid.cols):
        last = first
        while last + 1 < len(grid.cols) and (
            most_columns is None or grid.cols[last + 1][0] + 2 * width - grid.cols[first][0] <= most_columns
        ):
            last += 1
        left, right = grid.cols[first][1], grid.cols[last][2]
        cols = [
            (start, max(core_left, left), min(core_right, right))
            for start, core_left, core_right in grid.cols
            if (start < right and start + width > left if blend == 'hann' else left <= core_left < right)
        ]
        parts.append(Part(TileGrid(grid.tile_shape, grid.rows, cols), Window(left, 0, right - left, shape[0])))
        first = last + 1
    return parts

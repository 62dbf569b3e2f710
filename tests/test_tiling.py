import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geolearn.tiling import make_grid

SIDES = st.integers(1, 700)


@given(SIDES, SIDES, st.integers(1, 8), st.integers(0, 60))
def test_tile_cores_cover_the_raster_exactly_once(height, width, blocks, halo):
    tile_size = max(32 * blocks, 32 * (2 * halo // 32 + 1))
    hits = np.zeros((height, width), int)
    for tile in make_grid((height, width), tile_size=tile_size, halo=halo):
        c = tile.core
        hits[c.row_off : c.row_off + c.height, c.col_off : c.col_off + c.width] += 1
    assert (hits == 1).all()


@given(SIDES, st.integers(1, 8), st.integers(0, 60))
def test_cores_keep_the_halo_from_every_inner_tile_edge(length, blocks, halo):
    tile_size = max(32 * blocks, 32 * (2 * halo // 32 + 1))
    grid = make_grid((length, 40), tile_size=tile_size, halo=halo)
    side = grid.tile_shape[0]
    for start, top, bottom in grid.rows:
        assert start == 0 or top - start >= halo
        assert start + side >= length or start + side - bottom >= halo


@given(SIDES, SIDES, st.integers(1, 8))
def test_tiles_stay_inside_a_raster_that_is_larger_than_a_tile(height, width, blocks):
    grid = make_grid((height, width), tile_size=32 * blocks, halo=0)
    for tile in grid:
        assert tile.read.row_off == 0 or tile.read.row_off + tile.read.height <= height
        assert tile.read.col_off == 0 or tile.read.col_off + tile.read.width <= width
        assert tile.read.height % 32 == tile.read.width % 32 == 0


def test_overhead_is_the_share_of_pixels_computed_twice():
    assert make_grid((1024, 1024), tile_size=512, halo=0).overhead((1024, 1024)) == 0
    assert make_grid((4096, 4096), tile_size=1024, halo=32).overhead((4096, 4096)) < 0.27


def test_a_halo_that_leaves_no_core_is_refused():
    with pytest.raises(ValueError, match='under half the tile size 64, got 32'):
        make_grid((100, 100), tile_size=64, halo=32)

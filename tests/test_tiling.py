import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from geolearn.tiling import lattice_origin, make_grid

SIDES, PHASES = st.integers(1, 700), st.integers(0, 200)


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


@given(SIDES, SIDES, st.integers(1, 8), st.integers(0, 60), st.sampled_from([16, 32]), PHASES, PHASES)
def test_tiles_start_on_the_lattice_and_reach_outside_by_less_than_a_stride(
    height, width, blocks, halo, multiple, row, col
):
    tile_size = max(32 * blocks, 2 * halo + 1)
    given = {'tile_size': tile_size, 'halo': halo, 'multiple': multiple, 'origin': (row, col)}
    grid = make_grid((height, width), **given)
    for tile in grid:
        assert (tile.read.row_off + row) % multiple == (tile.read.col_off + col) % multiple == 0
        assert tile.read.row_off > -multiple
        assert tile.read.col_off > -multiple
        assert tile.read.row_off + tile.read.height < height + multiple
        assert tile.read.col_off + tile.read.width < width + multiple
        assert tile.read.height % multiple == tile.read.width % multiple == 0


@given(SIDES, SIDES, st.integers(0, 60), PHASES, PHASES)
def test_cores_cover_the_raster_once_wherever_the_lattice_begins(height, width, halo, row, col):
    grid = make_grid((height, width), tile_size=2 * halo + 1, halo=halo, origin=(row, col))
    hits = np.zeros((height, width), int)
    for tile in grid:
        c, r = tile.core, tile.read
        assert r.row_off <= c.row_off
        assert c.row_off + c.height <= r.row_off + r.height
        hits[c.row_off : c.row_off + c.height, c.col_off : c.col_off + c.width] += 1
    assert (hits == 1).all()
    for start, top, bottom in grid.rows:
        assert start <= 0 or top - start >= halo
        assert start + grid.tile_shape[0] >= height or start + grid.tile_shape[0] - bottom >= halo


@given(
    x=st.integers(-(10**7), 10**7),
    y=st.integers(-(10**7), 10**7),
    fraction=st.sampled_from([0, 0.25, 0.5, 2 / 3]),
    cell=st.sampled_from([0.3, 10.0, 8.983e-5]),
    row=st.integers(0, 200),
    col=st.integers(0, 200),
)
def test_the_lattice_of_a_part_is_that_of_the_whole(x, y, fraction, cell, row, col):
    whole = Affine(cell, 0, (x + fraction) * cell, 0, -cell, (y + fraction) * cell)
    first, second = (lattice_origin(place, 32) for place in (whole, whole @ Affine.translation(col, row)))
    assert ((first[0] + row) % 32, (first[1] + col) % 32) == second


def test_a_raster_without_a_place_has_its_lattice_at_its_corner():
    assert lattice_origin(Affine.identity(), 32) == (0, 0)


def test_overhead_is_the_share_of_pixels_computed_twice():
    assert make_grid((1024, 1024), tile_size=512, halo=0).overhead((1024, 1024)) == 0
    assert make_grid((4096, 4096), tile_size=1024, halo=32).overhead((4096, 4096)) < 0.27


def test_a_halo_that_leaves_no_core_is_refused():
    with pytest.raises(ValueError, match='under half the tile size 64, got 32'):
        make_grid((100, 100), tile_size=64, halo=32)

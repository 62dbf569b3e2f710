"""Small images read whole, from one file or from a file for each band."""

import numpy as np
import pytest
from affine import Affine

from geolearn.errors import RasterError
from geolearn.raster import read_stack


def grid(size_m, *, left=0.0):
    return {'transform': Affine(size_m, 0, left, 0, -size_m, 0)}


@pytest.fixture
def ramp(save, tmp_path):
    """Write a band whose value grows with the easting of its pixels' centers, so that every pixel size agrees."""

    def write(name, size_m, *, dtype='float32', **profile):
        side = 120 // size_m
        east = (np.arange(side) + 0.5) * size_m
        plane = np.broadcast_to(east, (side, side)).astype(dtype)
        return save(tmp_path / name, plane, **(grid(size_m) | profile))

    return write


def test_one_file_gives_all_its_bands(tmp_path, save):
    pixels = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
    found, mask, place = read_stack([save(tmp_path / 'a.tif', pixels, nodata=0)])
    np.testing.assert_array_equal(found, pixels)
    assert mask.shape == (3, 4, 5)
    assert not mask[0, 0, 0]
    assert mask.sum() == 59
    assert place.shape == (4, 5)


def test_pixels_of_10_20_and_60_m_come_to_one_grid(ramp):
    found, mask, place = read_stack([ramp('60.tif', 60), ramp('10.tif', 10), ramp('20.tif', 20)])
    assert found.shape == (3, 12, 12)
    assert mask is None
    assert place.resolution == (10, 10)
    np.testing.assert_array_equal(found[1, 0], np.arange(5, 120, 10))
    np.testing.assert_allclose(found[2, :, 1:-1], found[1, :, 1:-1], atol=1e-3)
    np.testing.assert_allclose(found[0, :, 3:-3], found[1, :, 3:-3], atol=1e-3)
    assert found[0].min() == 30
    assert found[0].max() == 90


def test_the_order_of_the_files_is_the_order_of_the_bands(ramp):
    paths = [ramp('b.tif', 10), ramp('a.tif', 20)]
    np.testing.assert_array_equal(read_stack(paths)[0], read_stack(paths[::-1])[0][::-1])


def test_nodata_of_a_coarse_band_stays_nodata_and_does_not_mix(tmp_path, save, ramp):
    coarse = np.full((6, 6), 100, np.uint16)
    coarse[2, 3] = 9999
    path = save(tmp_path / '20.tif', coarse, nodata=9999, **grid(20))
    found, mask, _ = read_stack([ramp('10.tif', 10, dtype='uint16'), path])
    assert mask.shape == (2, 12, 12)
    assert mask[0].all()
    expected = np.ones((12, 12), bool)
    expected[4:6, 6:8] = False
    np.testing.assert_array_equal(mask[1], expected)
    assert (found[1][mask[1]] == 100).all()


def test_nan_of_a_coarse_band_is_masked(tmp_path, save, ramp):
    coarse = np.full((6, 6), 1.5, np.float32)
    coarse[2, 3] = np.nan
    found, mask, _ = read_stack([ramp('10.tif', 10), save(tmp_path / '20.tif', coarse, **grid(20))])
    assert not mask[1, 4:6, 6:8].any()
    assert (found[1][mask[1]] == 1.5).all()


def test_holes_that_all_bands_share_are_kept_once(tmp_path, save):
    plane = np.ones((4, 4), np.uint8)
    plane[1, 1] = 0
    paths = [save(tmp_path / name, plane, nodata=0) for name in ('a.tif', 'b.tif')]
    mask = read_stack(paths)[1]
    assert mask.shape == (1, 4, 4)
    assert mask.sum() == 15


def test_files_of_several_types_come_in_one_that_holds_all_values(tmp_path, save):
    planes = [np.full((4, 4), 65535, np.uint16), np.full((4, 4), -5, np.int16), np.full((4, 4), 0.5, np.float32)]
    paths = [save(tmp_path / f'{index}.tif', plane) for index, plane in enumerate(planes)]
    assert read_stack(paths[:2])[0][:, 0, 0].tolist() == [65535, -5]
    assert read_stack(paths)[0][:, 0, 0].tolist() == [65535, -5, 0.5]


def test_files_that_do_not_cover_the_same_ground_are_refused(tmp_path, save):
    plane = np.ones((6, 6), np.uint8)
    here, there = (save(tmp_path / f'{x}.tif', plane, **grid(20, left=x)) for x in (0, 500))
    fine = save(tmp_path / 'fine.tif', np.ones((12, 12), np.uint8), **grid(10))
    with pytest.raises(RasterError, match=r'500\.tif covers \(500.*, but .*0\.tif covers \(0'):
        read_stack([here, there])
    with pytest.raises(RasterError, match=r'500\.tif covers \(500.*, but .*fine\.tif covers \(0'):
        read_stack([there, fine])


def test_files_in_other_crs_are_refused(tmp_path, save):
    plane = np.ones((4, 4), np.uint8)
    paths = [save(tmp_path / f'{code}.tif', plane, crs=f'EPSG:{code}') for code in (32633, 32634)]
    with pytest.raises(RasterError, match=r'32634\.tif has EPSG:32634, but .*32633\.tif EPSG:32633; warp them to one'):
        read_stack(paths)


def test_what_differs_is_said_where_a_file_is_truncated(tmp_path, save):
    plane = np.ones((4, 4), np.uint8)
    lost = save(tmp_path / 'lost.tif', plane, crs=None)
    with pytest.raises(RasterError, match=r'lost\.tif has no CRS, but .*whole\.tif EPSG:32633; .*what is truncated'):
        read_stack([save(tmp_path / 'whole.tif', np.ones((8, 8), np.uint8), **grid(5)), lost])
    near = save(tmp_path / 'near.tif', plane, **grid(10, left=6))
    with pytest.raises(RasterError, match=r'in 4x4 pixels of 10 x 10, but .*: their edges lie up to 6 map units apart'):
        read_stack([save(tmp_path / 'here.tif', plane, **grid(10)), near])


def test_one_crs_in_other_words_is_the_same(tmp_path, save):
    plane = np.ones((4, 4), np.uint8)
    proj = '+proj=utm +zone=33 +datum=WGS84 +units=m +no_defs'
    paths = [save(tmp_path / 'a.tif', plane), save(tmp_path / 'b.tif', plane, crs=proj)]
    assert read_stack(paths)[0].shape == (2, 4, 4)


def test_a_file_of_two_bands_is_no_band(tmp_path, save):
    one, two = save(tmp_path / '1.tif', np.ones((1, 4, 4))), save(tmp_path / '2.tif', np.ones((2, 4, 4)))
    with pytest.raises(RasterError, match=r'2\.tif holds 2 bands; a file for each band holds one'):
        read_stack([one, two])


def test_files_without_a_place_stack_where_their_sizes_agree(tmp_path, save):
    paths = [save(tmp_path / name, np.ones((4, 4), np.uint8), transform=None, crs=None) for name in ('a.png', 'b.png')]
    pixels, mask, place = read_stack(paths)
    assert pixels.shape == (2, 4, 4)
    assert (mask, place.crs) == (None, None)


def test_a_file_cut_short_is_named(tmp_path, save, ramp):
    path = save(tmp_path / '20.tif', np.random.default_rng(0).integers(0, 9999, (6, 6), np.uint16), **grid(20))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RasterError, match=r'20\.tif'):
        read_stack([ramp('10.tif', 10), path])

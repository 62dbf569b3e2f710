from zipfile import ZipFile

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from geolearn.errors import RasterError
from geolearn.raster import mosaic, open_raster, raster_bands, read_image

GROUND = np.random.default_rng(0).integers(1, 200, (2, 6, 8)).astype(np.uint8)


def at(row, col, *, side=10, left=500000.0, top=5400000.0):
    """The place of a tile whose upper-left pixel is (row, col) of the mosaic."""
    return {'transform': Affine(side, 0, left + side * col, 0, -side, top - side * row), 'crs': 'EPSG:32633'}


def cut(save, path, rows, cols, **profile):
    return save(path, GROUND[:, rows[0] : rows[1], cols[0] : cols[1]], **at(rows[0], cols[0]) | profile)


def assert_refused(save, tmp_path, words, *, advice='Warp them', **profile):
    """The second of two neighbors differs by `profile`; both and the difference are named."""
    first = cut(save, tmp_path / 'first.tif', (0, 6), (0, 4))
    pixels = GROUND[:, :, 4:].astype(profile.pop('dtype', 'uint8'))
    second = save(tmp_path / 'second.tif', pixels, **at(0, 4) | profile)
    with pytest.raises(
        RasterError, match=rf'first\.tif and .*second\.tif cannot be one mosaic: .*{words}.*[.] {advice}'
    ):
        mosaic([first, second])


def test_two_neighbours_are_one_array(tmp_path, save):
    tiles = [cut(save, tmp_path / f'{c}.tif', (0, 6), (c, c + 4)) for c in (0, 4)]
    pixels, mask, geobox = read_image(tiles)
    assert (pixels == GROUND).all()
    assert mask is None
    assert geobox.transform == at(0, 0)['transform']
    assert rasterio.crs.CRS.from_wkt(geobox.crs) == rasterio.crs.CRS.from_epsg(32633)


@given(st.integers(1, 5), st.integers(1, 7), st.permutations(range(4)))
def test_four_tiles_in_any_order_are_one_array(tmp_path_factory, save, row, col, order):
    folder = tmp_path_factory.getbasetemp()
    parts = [((0, row), (0, col)), ((0, row), (col, 8)), ((row, 6), (0, col)), ((row, 6), (col, 8))]
    tiles = [cut(save, folder / f'tile{i}.tif', *part) for i, part in enumerate(parts)]
    pixels, mask, _ = read_image([tiles[i] for i in order])
    assert (pixels == GROUND).all()
    assert mask is None


@pytest.mark.parametrize('nodata', [None, 0])
def test_places_that_no_file_covers_are_invalid(tmp_path, save, nodata):
    tiles = [
        cut(save, tmp_path / 'a.tif', (0, 3), (0, 4), nodata=nodata),
        cut(save, tmp_path / 'b.tif', (3, 6), (4, 8), nodata=nodata),
    ]
    pixels, mask, _ = read_image(tiles)
    covered = np.zeros((6, 8), bool)
    covered[:3, :4] = covered[3:, 4:] = True
    assert (mask == covered).all()
    assert (pixels[:, covered] == GROUND[:, covered]).all()


def test_floats_with_nan_as_nodata_make_a_mosaic(tmp_path, save):
    left, right = GROUND[:, :, :4].astype(np.float32), GROUND[:, :, 4:].astype(np.float32)
    right[0, 0, 0] = np.nan
    tiles = [
        save(tmp_path / 'a.tif', left, nodata=np.nan, **at(0, 0)),
        save(tmp_path / 'b.tif', right, nodata=np.nan, **at(0, 4)),
    ]
    _, mask, _ = read_image(tiles)
    assert np.argwhere(~mask).tolist() == [[0, 4]]


def test_later_files_lie_over_earlier_ones(tmp_path, save):
    tiles = [cut(save, tmp_path / 'a.tif', (0, 6), (0, 8))]
    tiles.append(save(tmp_path / 'b.tif', GROUND[:, :2, :2] * 0 + 7, **at(0, 0)))
    pixels, _, _ = read_image(tiles)
    assert (pixels[:, :2, :2] == 7).all()
    assert (pixels[:, 2:] == GROUND[:, 2:]).all()


def test_nodata_of_a_later_file_does_not_hide_an_earlier_one(tmp_path, save):
    holed = GROUND.copy()
    holed[:, :, :5] = 0
    tiles = [
        cut(save, tmp_path / 'a.tif', (0, 6), (0, 8), nodata=0),
        save(tmp_path / 'b.tif', holed, nodata=0, **at(0, 0)),
    ]
    pixels, mask, _ = read_image(tiles)
    assert mask is None
    assert (pixels == GROUND).all()


def test_what_the_mask_of_a_later_file_leaves_out_does_not_hide_an_earlier_one(tmp_path, save):
    tiles = [cut(save, tmp_path / 'a.tif', (0, 6), (0, 6)), cut(save, tmp_path / 'b.tif', (0, 6), (0, 8))]
    seen = np.ones((6, 8), bool)
    seen[:, :3] = seen[0, 7] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(tiles[1], 'r+') as dst:
        dst.write(GROUND // 2)
        dst.write_mask(seen)
    pixels, mask, _ = read_image(tiles)
    assert np.argwhere(~mask).tolist() == [[0, 7]]
    assert (pixels[:, :, :3] == GROUND[:, :, :3]).all()
    assert (pixels[:, 1:, 3:] == GROUND[:, 1:, 3:] // 2).all()


@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'int32', 'uint32', 'float64'])
def test_numbers_pass_through_a_mosaic_with_nodata_unchanged(tmp_path, save, dtype):
    pixels = GROUND.astype(dtype)
    pixels[0, 0, 0], pixels[0, 0, 1] = (2**24 + 1, 2**31 - 1) if np.dtype(dtype).itemsize > 2 else (0, 1)
    if dtype == 'float64':
        pixels[0, 0, 2] = 0.1
    tiles = [save(tmp_path / f'{i}.tif', pixels, nodata=5, **at(0, 0)) for i in range(2)]
    assert (read_image(tiles)[0] == pixels).all()


@pytest.mark.parametrize('dtype', ['uint8', 'int8', 'uint16', 'int16', 'uint32', 'int32', 'int64', 'uint64', 'float64'])
def test_all_types_of_numbers_make_a_mosaic(tmp_path, save, dtype):
    tiles = [save(tmp_path / f'{c}.tif', GROUND[:, :, c : c + 4].astype(dtype), **at(0, c)) for c in (0, 4)]
    pixels, _, _ = read_image(tiles)
    assert pixels.dtype == dtype
    assert (pixels == GROUND.astype(dtype)).all()


def test_complex_numbers_make_no_mosaic(tmp_path, save):
    path = save(tmp_path / 'a.tif', GROUND.astype(np.complex64))
    with pytest.raises(RasterError, match=r'a\.tif holds complex64 numbers'):
        mosaic([path])


def test_rows_that_run_northwards_make_a_mosaic(tmp_path, save):
    def up(row):
        return {'transform': Affine(10, 0, 0, 0, 10, 10 * row)}

    tiles = [save(tmp_path / 'b.tif', GROUND[:, 3:], **up(3)), save(tmp_path / 'a.tif', GROUND[:, :3], **up(0))]
    pixels, _, geobox = read_image(tiles)
    assert (pixels == GROUND).all()
    assert geobox.transform == up(0)['transform']


def test_names_wavelengths_and_sensor_of_the_first_file_are_the_mosaic_s(tmp_path, save):
    tiles = [cut(save, tmp_path / f'{c}.tif', (0, 6), (c, c + 4), names=('B4', 'x<y')) for c in (0, 4)]
    for path in tiles:
        with rasterio.open(path, 'r+') as dst:
            dst.update_tags(SATELLITE='Landsat 8')
            dst.update_tags(2, ns='IMAGERY', CENTRAL_WAVELENGTH_UM='1.23')
    with open_raster(tiles) as src, open_raster(tiles[0]) as alone:
        assert raster_bands(src) == raster_bands(alone)
        assert [band.wavelength_um for band in raster_bands(src)] == [0.655, 1.23]


def test_file_names_with_letters_that_xml_knows_are_fine(tmp_path, save):
    path = cut(save, tmp_path / 'a & <b> "c" \u00e9.tif', (0, 6), (0, 8))
    assert (read_image([path, path])[0] == GROUND).all()


def test_a_list_of_one_file_is_that_file(tmp_path, save):
    turned = save(tmp_path / 'a.tif', GROUND, transform=Affine(7, 7, 0, 7, -7, 0))
    assert read_image([turned])[2] == read_image(turned)[2]


# --- what does not fit


def test_no_file_makes_no_mosaic():
    with pytest.raises(RasterError, match='no raster was given; pass at least one file'):
        mosaic([])


def test_a_missing_file_is_named(tmp_path, save):
    with pytest.raises(RasterError, match=r'cannot open raster .*absent\.tif'):
        mosaic([cut(save, tmp_path / 'a.tif', (0, 6), (0, 4)), tmp_path / 'absent.tif'])


def test_another_type_is_named(tmp_path, save):
    assert_refused(
        save, tmp_path, r"bands \['uint8', 'uint8'\] and \['int16', 'int16'\]", dtype='int16', advice='Write the same'
    )


def test_another_number_of_bands_is_named(tmp_path, save):
    paths = [cut(save, tmp_path / 'a.tif', (0, 6), (0, 4)), save(tmp_path / 'b.tif', GROUND[:1, :, 4:], **at(0, 4))]
    with pytest.raises(RasterError, match=r"bands \['uint8', 'uint8'\] and \['uint8'\]"):
        mosaic(paths)


def test_another_crs_is_named(tmp_path, save):
    assert_refused(save, tmp_path, 'CRS EPSG:32633 and EPSG:32634', crs='EPSG:32634')


def test_another_nodata_value_is_named(tmp_path, save):
    assert_refused(save, tmp_path, 'NoData None and 255', nodata=255, advice='Declare one NoData value')


def test_another_pixel_size_is_named(tmp_path, save):
    assert_refused(save, tmp_path, r'pixel sizes \(10.0, -10.0\) and \(20.0, -20.0\)', **at(0, 2, side=20))


def test_a_grid_that_is_shifted_by_a_part_of_a_pixel_is_named(tmp_path, save):
    assert_refused(save, tmp_path, r'shifted by a part of a pixel: \(4.3', **at(0, 4.3))


def test_bands_in_another_order_are_named(tmp_path, save):
    tiles = [
        cut(save, tmp_path / 'first.tif', (0, 6), (0, 4), names=('Red', 'NIR')),
        cut(save, tmp_path / 'second.tif', (0, 6), (4, 8), names=('NIR', 'Red')),
    ]
    with pytest.raises(RasterError, match=r"band names \['Red', 'NIR'\] and \['NIR', 'Red'\]"):
        mosaic(tiles)


@pytest.mark.parametrize('count', [1, 2])
def test_a_turned_raster_makes_no_mosaic(tmp_path, save, count):
    turned = save(tmp_path / 'a.tif', GROUND, transform=Affine(7, 7, 0, 7, -7, 0))
    with pytest.raises(RasterError, match=r'a\.tif is turned or sheared.*Warp it to a north-up grid first'):
        mosaic([turned] * count)


def test_rasters_without_a_place_make_no_mosaic(tmp_path, save):
    paths = [save(tmp_path / f'{name}.png', GROUND[:1], transform=None, crs=None) for name in 'ab']
    with pytest.raises(RasterError, match=r'a\.png has no place on the ground'):
        mosaic(paths)
    assert (read_image(paths[:1])[0] == GROUND[:1]).all()


def test_archives_that_gdal_opens_make_a_mosaic(tmp_path, save):
    tiles = []
    for index in range(2):
        place = Affine(10, 0, 20 * index, 0, -10, 0)
        path = save(tmp_path / f'{index}.tif', np.full((2, 2), index + 1, np.uint8), transform=place)
        with ZipFile(tmp_path / f'{index}.zip', 'w') as archive:
            archive.write(path, path.name)
        tiles.append(f'/vsizip/{tmp_path}/{index}.zip/{index}.tif')
    assert read_image(tiles)[0].tolist() == [[[1, 1, 2, 2]] * 2]

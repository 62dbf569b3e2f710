import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.env import get_gdal_config
from rasterio.rpc import RPC
from rasterio.windows import Window

from geolearn.bands import Band, get_bands
from geolearn.errors import RasterError, UnknownNameError
from geolearn.raster import (
    common_dtype,
    find_band_indexes,
    open_raster,
    raster_bands,
    raster_geobox,
    read_image,
    read_label,
    read_window,
    require_place,
    sample_pixels,
)

RED, GREEN, NIR = get_bands('sentinel2_l2a', ['Red', 'Green', 'NIR'])
PIXELS = np.arange(1, 25, dtype=np.uint16).reshape(2, 3, 4)


def tagged(path, save, tags, *, domain=None, names=()):
    """A raster of one pixel whose bands carry these tags."""
    save(path, np.ones((len(tags), 1, 1), np.uint16), names=names)
    with rasterio.open(path, 'r+') as dst:
        for index, items in enumerate(tags, 1):
            dst.update_tags(index, ns=domain, **items)
    return path


def wavelengths(path):
    with open_raster(path) as src:
        return [band.wavelength_um for band in raster_bands(src)]


# --- pixels, place and mask


def test_a_whole_raster_comes_with_its_place_and_without_a_mask_where_all_is_valid(tmp_path, save):
    pixels, mask, geobox = read_image(save(tmp_path / 'a.tif', PIXELS))
    assert pixels.dtype == np.uint16
    assert (pixels == PIXELS).all()
    assert mask is None
    assert (geobox.shape, geobox.bounds, geobox.resolution) == ((3, 4), (0, -30, 40, 0), (10, 10))


def test_bands_come_in_the_order_asked_for(tmp_path, save):
    pixels, _, _ = read_image(save(tmp_path / 'a.tif', PIXELS), [2, 1])
    assert (pixels == PIXELS[::-1]).all()


def test_a_window_is_read_into_the_array_that_is_given(tmp_path, save):
    out = np.zeros((1, 2, 2), np.uint16)
    with open_raster(save(tmp_path / 'a.tif', PIXELS)) as src:
        pixels, _ = read_window(src, Window(1, 1, 2, 2), [2], out=out)
    assert pixels is out
    assert (out[0] == PIXELS[1, 1:3, 1:3]).all()


def test_a_pixel_is_valid_only_where_every_band_is(tmp_path, save):
    pixels = PIXELS.copy()
    pixels[0, 0, 0] = pixels[1, 2, 3] = 0
    _, mask, _ = read_image(save(tmp_path / 'a.tif', pixels, nodata=0))
    expected = np.ones((3, 4), bool)
    expected[0, 0] = expected[2, 3] = False
    assert (mask == expected).all()


def test_only_the_bands_that_are_read_decide_what_is_valid(tmp_path, save):
    pixels = PIXELS.copy()
    pixels[1, 2, 3] = 0
    _, mask, _ = read_image(save(tmp_path / 'a.tif', pixels, nodata=0), [1])
    assert mask is None


@pytest.mark.parametrize('nodata', [None, np.nan, -9999])
def test_nan_and_infinity_are_invalid_whatever_the_nodata_tag_says(tmp_path, save, nodata):
    pixels = PIXELS.astype(np.float32)
    pixels[0, 0, 0], pixels[1, 1, 1] = np.nan, np.inf
    _, mask, _ = read_image(save(tmp_path / 'a.tif', pixels, nodata=nodata))
    assert np.argwhere(~mask).tolist() == [[0, 0], [1, 1]]


def test_an_alpha_band_masks_the_colours(tmp_path, save):
    rgba = np.full((4, 2, 2), 9, np.uint8)
    rgba[3] = [[255, 0], [255, 255]]
    path = save(tmp_path / 'a.tif', rgba, alpha='yes')
    with rasterio.open(path) as src:
        assert src.colorinterp[3] == ColorInterp.alpha
    _, mask, _ = read_image(path, [1, 2, 3])
    assert np.argwhere(~mask).tolist() == [[0, 1]]


def test_an_internal_mask_says_what_is_valid(tmp_path, save):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = save(tmp_path / 'a.tif', PIXELS)
        with rasterio.open(path, 'r+') as dst:
            dst.write_mask(np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]], bool))
    _, mask, _ = read_image(path)
    assert np.argwhere(~mask).tolist() == [[1, 1]]


@given(st.data())
def test_the_mask_of_a_window_is_the_window_of_the_mask(tmp_path_factory, save, data):
    seed = data.draw(st.integers(0, 3))
    path = tmp_path_factory.getbasetemp() / f'window{seed}.tif'
    if not path.exists():
        save(path, np.random.default_rng(seed).integers(0, 3, (2, 9, 7)).astype(np.int16), nodata=0)
    row, col = data.draw(st.integers(0, 8)), data.draw(st.integers(0, 6))
    height, width = data.draw(st.integers(1, 9 - row)), data.draw(st.integers(1, 7 - col))
    whole, mask, _ = read_image(path)
    part = np.s_[row : row + height, col : col + width]
    with open_raster(path) as src:
        pixels, found = read_window(src, Window(col, row, width, height), [1, 2])
    assert (pixels == whole[(slice(None), *part)]).all()
    assert (mask[part] == (True if found is None else found)).all()


def test_samples_are_the_valid_pixels(tmp_path, save):
    pixels = np.arange(100, dtype=np.int16).reshape(1, 10, 10)
    with open_raster(save(tmp_path / 'a.tif', pixels, nodata=0)) as src:
        found = sample_pixels(src, [1], window_size=5, per_side=2)
    assert sorted(found[0].tolist()) == list(range(1, 100))


def test_a_raster_without_a_valid_pixel_gives_no_samples(tmp_path, save):
    with open_raster(save(tmp_path / 'a.tif', np.zeros((2, 3, 3), np.uint8), nodata=0)) as src:
        assert sample_pixels(src, [1, 2]).shape == (2, 0)


def test_a_raster_without_a_place_has_no_crs(tmp_path, save):
    with open_raster(save(tmp_path / 'a.png', PIXELS[:1], crs=None, transform=None)) as src:
        geobox = raster_geobox(src)
    assert geobox.crs is None
    assert geobox.transform.is_identity


# --- files that cannot be read


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RasterError, match=r'cannot open raster .*absent\.tif'), open_raster(tmp_path / 'absent.tif'):
        pass


def test_a_text_file_is_no_raster(tmp_path):
    (tmp_path / 'a.tif').write_text('these are no pixels')
    with pytest.raises(RasterError, match=r'cannot open raster .*a\.tif'), open_raster(tmp_path / 'a.tif'):
        pass


@pytest.mark.parametrize('share', [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize('compress', ['none', 'deflate', 'lzw'])
def test_a_file_that_breaks_off_is_named_by_a_raster_error(tmp_path, save, share, compress):
    noise = np.random.default_rng(0).integers(0, 60000, (3, 64, 64)).astype(np.uint16)
    path = save(tmp_path / 'broken.tif', noise, compress=compress)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(RasterError, match=r'cannot (open raster|read rows) .*broken\.tif'):
        read_image(path)


@given(st.integers(8, 500), st.integers(0, 255))
def test_a_damaged_header_gives_pixels_or_a_raster_error_and_nothing_else(tmp_path_factory, save, place, byte):
    path = tmp_path_factory.getbasetemp() / 'damaged.tif'
    path.unlink(missing_ok=True)
    damaged = bytearray(save(path, PIXELS, nodata=0).read_bytes())
    damaged[place % len(damaged)] = byte
    path.write_bytes(bytes(damaged))
    message = 'damaged.tif'
    try:
        read_image(path)
    except RasterError as error:
        message = str(error)
    assert 'damaged.tif' in message


# --- labels


def test_a_palette_label_is_read_as_indices(tmp_path, save):
    label = np.array([[0, 1], [2, 7]], np.uint8)
    colors = {0: (0, 0, 0, 255), 1: (255, 0, 0, 255), 2: (0, 255, 0, 255), 7: (9, 9, 9, 255)}
    assert (read_label(save(tmp_path / 'a.png', label, colormap=colors, crs=None, transform=None)) == label).all()


def test_a_label_of_several_bands_is_refused(tmp_path, save):
    with pytest.raises(RasterError, match=r'a\.tif holds 3 bands; a label raster has one band of class values'):
        read_label(save(tmp_path / 'a.tif', np.zeros((3, 2, 2), np.uint8)))


def test_whole_numbers_stored_as_floats_are_labels(tmp_path, save):
    label = read_label(save(tmp_path / 'a.tif', np.array([[0, 3], [255, 1]], np.float32)))
    assert np.issubdtype(label.dtype, np.integer)
    assert label.tolist() == [[0, 3], [255, 1]]


@pytest.mark.parametrize('value', [0.5, np.nan, np.inf, -np.inf])
def test_labels_that_are_no_whole_numbers_are_refused(tmp_path, save, value):
    with pytest.raises(RasterError, match=r'a\.tif holds .*; class values are whole numbers'):
        read_label(save(tmp_path / 'a.tif', np.array([[0, value]], np.float32)))


def test_complex_labels_are_refused(tmp_path, save):
    with pytest.raises(RasterError, match=r'a\.tif holds complex64.*; class values are whole numbers'):
        read_label(save(tmp_path / 'a.tif', np.ones((2, 2), np.complex64)))


# --- bands


def test_bands_take_their_names_from_the_descriptions(tmp_path, save):
    with open_raster(save(tmp_path / 'a.tif', PIXELS, names=('NIR', ''))) as src:
        first, second = raster_bands(src)
    assert (first.name, first.common_name) == ('NIR', 'nir')
    assert (second.name, second.wavelength_um) == ('band_2', None)


def test_a_sensor_tag_decides_what_b5_is(tmp_path, save):
    path = save(tmp_path / 'a.tif', PIXELS, names=('B4', 'B5'))
    with rasterio.open(path, 'r+') as dst:
        dst.update_tags(SATELLITE='Landsat 8')
    with open_raster(path) as src:
        assert [band.common_name for band in raster_bands(src)] == ['red', 'nir08']


def test_gdal_s_imagery_domain_tells_wavelengths(tmp_path, save):
    tags = [{'CENTRAL_WAVELENGTH_UM': '0.6654', 'FWHM_UM': '0.031'}, {}]
    assert wavelengths(tagged(tmp_path / 'a.tif', save, tags, domain='IMAGERY')) == [0.6654, None]


@pytest.mark.parametrize(
    ('value', 'unit', 'expected'),
    [
        ('665', 'nanometers', 0.665),
        ('665', 'Nanometers', 0.665),
        ('665.0', 'nm', 0.665),
        ('0.665', 'micrometers', 0.665),
        ('0.665', 'Micrometers', 0.665),
        ('0.665', '', 0.665),
        ('665', '', 0.665),
        ('665', 'Unknown', 0.665),
        ('12000', 'Wavenumber', None),
        ('3', 'Index', None),
        ('much', 'nanometers', None),
        ('nan', 'micrometers', None),
        ('0', 'nanometers', None),
        ('55465.76', 'micrometers', None),
    ],
)
def test_envi_tells_wavelengths_in_either_unit(tmp_path, save, value, unit, expected):
    tags = {'wavelength': value} | ({'wavelength_units': unit} if unit else {})
    assert wavelengths(tagged(tmp_path / 'a.tif', save, [tags])) == [expected]


def test_an_unusable_wavelength_does_not_keep_a_raster_from_being_read(tmp_path, save):
    tags = [{'CENTRAL_WAVELENGTH_UM': '55465.76'}, {'CENTRAL_WAVELENGTH_UM': 'n/a'}, {'CENTRAL_WAVELENGTH_UM': '0.56'}]
    path = tagged(tmp_path / 'a.tif', save, tags, domain='IMAGERY', names=('VV', 'quality', 'Green'))
    assert wavelengths(path) == [None, None, 0.56]


@given(st.permutations([0, 1, 2]))
def test_bands_are_found_by_name_in_any_order(tmp_path_factory, save, order):
    path = tmp_path_factory.getbasetemp() / f'named{order}.tif'
    if not path.exists():
        save(path, np.zeros((3, 1, 1), np.uint8), names=[('Red', 'Green', 'NIR')[i] for i in order])
    with open_raster(path) as src:
        assert find_band_indexes(src, (RED, GREEN, NIR)) == [order.index(i) + 1 for i in range(3)]


def test_bands_are_found_by_another_spelling_of_their_name(tmp_path, save):
    path = save(tmp_path / 'a.tif', np.zeros((4, 1, 1), np.uint8), names=('B08', 'B03', 'B02', 'B04'))
    with rasterio.open(path, 'r+') as dst:
        dst.update_tags(SensorName='Sentinel-2')
    with open_raster(path) as src:
        assert find_band_indexes(src, (RED, GREEN, NIR)) == [4, 2, 1]


def test_nameless_bands_are_taken_in_file_order_if_their_number_fits(tmp_path, save):
    with open_raster(save(tmp_path / 'a.tif', np.zeros((3, 1, 1), np.uint8))) as src:
        assert find_band_indexes(src, (RED, GREEN, NIR)) == [1, 2, 3]


def test_nameless_bands_of_another_number_are_refused(tmp_path, save):
    with (
        open_raster(save(tmp_path / 'a.tif', np.zeros((4, 1, 1), np.uint8))) as src,
        pytest.raises(RasterError, match=r"a\.tif holds 4 bands, which cannot be told apart.*'Red', 'Green', 'NIR'"),
    ):
        find_band_indexes(src, (RED, GREEN, NIR))


def test_names_that_do_not_cover_what_is_needed_are_refused(tmp_path, save):
    with (
        open_raster(save(tmp_path / 'a.tif', np.zeros((3, 1, 1), np.uint8), names=('Red', 'Green', 'Blue'))) as src,
        pytest.raises(RasterError, match=r"a\.tif: no bands fit 'NIR'; found 'Red'.*or pass bands="),
    ):
        find_band_indexes(src, (RED, GREEN, NIR))


def test_names_given_override_those_in_the_file(tmp_path, save):
    with open_raster(save(tmp_path / 'a.tif', np.zeros((3, 1, 1), np.uint8), names=('Red', 'Green', 'Blue'))) as src:
        assert find_band_indexes(src, (RED, GREEN, NIR), names=['NIR', 'Red', 'Green']) == [2, 3, 1]


def test_names_given_are_those_of_the_sensor(tmp_path, save):
    path, names = save(tmp_path / 'a.tif', np.zeros((3, 1, 1), np.uint8)), ['B5', 'B4', 'B3']
    with open_raster(path) as src:
        assert find_band_indexes(src, get_bands('landsat8', ['Red', 'NIR']), names=names, sensor='landsat8') == [2, 1]
        with pytest.raises(RasterError, match="no bands fit 'NIR'"):
            find_band_indexes(src, (RED, NIR), names=names, sensor='sentinel2_l2a')


def test_names_given_for_another_number_of_bands_are_refused(tmp_path, save):
    with (
        open_raster(save(tmp_path / 'a.tif', np.zeros((3, 1, 1), np.uint8))) as src,
        pytest.raises(RasterError, match=r'bands= names 2 bands but .*a\.tif holds 3'),
    ):
        find_band_indexes(src, (RED, GREEN), names=['Red', 'Green'])


def test_a_model_of_nameless_bands_takes_any_raster_of_their_number(tmp_path, save):
    path = save(tmp_path / 'a.tif', np.zeros((2, 1, 1), np.uint8), names=('Red', 'Green'))
    with open_raster(path) as src:
        assert find_band_indexes(src, (Band('band_1'), Band('band_2'))) == [1, 2]


def test_the_sensor_given_says_what_the_file_s_own_names_mean(tmp_path, save):
    wanted = get_bands('landsat8', ['Red', 'NIR'])
    with open_raster(save(tmp_path / 'a.tif', np.zeros((2, 1, 1), np.uint8), names=('B5', 'B4'))) as src:
        assert find_band_indexes(src, wanted, sensor='Landsat 8') == [2, 1]
        with pytest.raises(RasterError, match="no bands fit 'NIR'"):
            find_band_indexes(src, wanted, sensor='Sentinel-2')


@pytest.mark.parametrize('names', [None, ['NIR', 'Red']])
def test_an_unknown_sensor_is_refused(tmp_path, save, names):
    with (
        open_raster(save(tmp_path / 'a.tif', np.zeros((2, 1, 1), np.uint8), names=('B5', 'B4'))) as src,
        pytest.raises(UnknownNameError, match="unknown sensor 'Landsatt8'; did you mean 'landsat8'"),
    ):
        find_band_indexes(src, (RED, NIR), names=names, sensor='Landsatt8')


def test_bands_taken_by_count_are_told_once_with_what_they_are_taken_for(tmp_path, save, caplog):
    with open_raster(save(tmp_path / 'a.tif', np.zeros((2, 1, 1), np.uint16))) as src:
        assert find_band_indexes(src, (NIR, RED)) == [1, 2]
    (record,) = caplog.records
    assert record.message.endswith("a.tif: bands are taken in file order, as nothing names them: 1 = 'NIR', 2 = 'Red'")


def colored(path, save, *colors):
    """A raster without names whose bands are shown as these colors."""
    save(path, np.ones((len(colors), 1, 1), np.uint8))
    with rasterio.open(path, 'r+') as dst:
        dst.colorinterp = [ColorInterp[color] for color in colors]
    return path


def test_opacity_is_no_band_to_match(tmp_path, save):
    with open_raster(colored(tmp_path / 'a.tif', save, 'red', 'green', 'blue', 'alpha')) as src:
        assert find_band_indexes(src, get_bands('sentinel2_l2a', ['Red', 'Green', 'Blue'])) == [1, 2, 3]
        assert find_band_indexes(src, (NIR, RED, GREEN)) == [1, 2, 3]
        assert find_band_indexes(src, [Band('', None)] * 4) == [1, 2, 3, 4]


def test_colours_choose_bands_that_have_no_name(tmp_path, save, caplog):
    with open_raster(colored(tmp_path / 'a.tif', save, 'undefined', 'blue', 'green', 'red')) as src:
        assert find_band_indexes(src, get_bands('sentinel2_l2a', ['Red', 'Green', 'Blue'])) == [4, 3, 2]
    assert not caplog.records


# --- what is not as usual


def test_bands_of_several_types_are_read_as_one_that_holds_all(tmp_path, save):
    for name, pixels in (('a', np.array([[65535, 1]], np.uint16)), ('b', np.array([[-0.5, 2]], np.float32))):
        save(tmp_path / f'{name}.tif', pixels)
    bands = [
        f'<VRTRasterBand dataType="{kind}" band="{i}"><SimpleSource><SourceFilename>{tmp_path}/{name}.tif'
        '</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>'
        for i, (kind, name) in enumerate((('UInt16', 'a'), ('Float32', 'b')), 1)
    ]
    path = tmp_path / 'both.vrt'
    path.write_text(f'<VRTDataset rasterXSize="2" rasterYSize="1">{"".join(bands)}</VRTDataset>')
    pixels, _, _ = read_image(path)
    assert pixels.dtype == np.float32
    assert pixels.ravel().tolist() == [65535, 1, -0.5, 2]
    assert read_image(path, [1])[0].dtype == np.uint16
    out = np.zeros((2, 1, 2), np.float64)
    with open_raster(path) as src:
        assert common_dtype(src, [2, 1]) == np.float32
        assert (read_window(src, Window(0, 0, 2, 1), [2, 1], out=out)[0] == pixels[::-1]).all()
        assert sample_pixels(src, [1, 2]).shape[0] == 2


def test_points_on_the_ground_are_no_grid(tmp_path, save):
    path = save(tmp_path / 'a.tif', PIXELS, transform=None, crs=None)
    with open_raster(path) as src:
        require_place(src)
    corners = [(0, 0, 10, 50), (0, 4, 11, 50), (3, 0, 10, 49), (3, 4, 11, 48)]
    points = [GroundControlPoint(*corner) for corner in corners]
    save(path, PIXELS, transform=None, crs='EPSG:4326', gcps=points)
    words = r'a\.tif has ground control points instead of a grid; warp it first, e\.g\. gdalwarp -tps'
    with open_raster(path) as src, pytest.raises(RasterError, match=words):
        require_place(src)


def test_a_camera_model_is_no_grid(tmp_path, save):
    ones = [1.0] * 20
    model = RPC(0, 1, 0, 1, ones, ones, 0, 1, 0, 1, ones, ones, 0, 1)
    path = save(tmp_path / 'a.tif', PIXELS, transform=None, crs=None, rpcs=model)
    with open_raster(path) as src, pytest.raises(RasterError, match='has rational polynomial coefficients.*-rpc'):
        require_place(src)


def test_opening_in_threads_leaves_warnings_and_cache_as_they_were(tmp_path, save):
    path = save(tmp_path / 'a.tif', PIXELS, transform=None, crs=None)
    before, size = list(warnings.filters), get_gdal_config('GDAL_CACHEMAX')

    def visit(_):
        with open_raster(path) as src:
            assert get_gdal_config('GDAL_CACHEMAX') < size
            return src.read(1)

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(visit, range(200)))) == 200
    assert warnings.filters == before
    assert get_gdal_config('GDAL_CACHEMAX') == size


def test_the_cache_is_restored_inside_an_environment_and_after_an_error(tmp_path, save):
    with rasterio.Env():
        size = get_gdal_config('GDAL_CACHEMAX')
        with pytest.raises(RasterError):
            read_image(tmp_path / 'absent.tif')
        read_image(save(tmp_path / 'a.tif', PIXELS))
        assert get_gdal_config('GDAL_CACHEMAX') == size


def test_a_warning_of_the_caller_s_is_shown(tmp_path, save):
    path = save(tmp_path / 'a.tif', PIXELS)
    with open_raster(path), pytest.warns(UserWarning, match='mine'):
        warnings.warn('mine', UserWarning, stacklevel=1)

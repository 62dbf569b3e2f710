"""The rule of NoData: which pixels hold data."""

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from geolearn.raster import open_raster, read_image, read_window
from geolearn.raster.nodata import as_float32, compact, missing, valid_by_band, valid_in_all_bands

BYTES = np.arange(10, 34, dtype=np.uint8).reshape(4, 2, 3)


def flagged_as_alpha(path, save, pixels, *, names=(), **profile):
    """Four bytes per pixel of which GDAL takes the last for opacity."""
    save(path, pixels, names=names, alpha='yes', **profile)
    with rasterio.open(path) as src:
        assert src.colorinterp[3] == ColorInterp.alpha
    return path


def invalid(path, indexes=None):
    mask = read_image(path, indexes)[1]
    return [] if mask is None else np.argwhere(~mask).tolist()


ESRI = -3.4028234663852886e38


@pytest.mark.parametrize('value', [1e300, -1e300, ESRI, -ESRI, -1.79e308, np.inf, np.nan])
def test_what_float32_cannot_hold_is_no_data(tmp_path, save, value):
    pixels = np.arange(6, dtype=np.float64).reshape(1, 2, 3)
    pixels[0, 1, 2] = value
    assert invalid(save(tmp_path / 'a.tif', pixels)) == [[1, 2]]


@pytest.mark.parametrize('value', [ESRI, -3.40282e38, np.nan])
def test_the_nodata_of_esri_s_software_needs_no_tag(tmp_path, save, value):
    pixels = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    pixels[0, 0, 1] = value
    assert invalid(save(tmp_path / 'a.tif', pixels)) == [[0, 1]]


def test_large_measurements_are_data(tmp_path, save):
    assert invalid(save(tmp_path / 'a.tif', np.array([[[1e37, -1e38, 1e20]]]))) == []


def test_a_tag_and_opacity_hold_together(tmp_path, save):
    pixels = BYTES.copy()
    pixels[3] = [[255, 255, 0], [255, 255, 255]]
    pixels[0, 0, 0] = 7
    path = flagged_as_alpha(tmp_path / 'a.tif', save, pixels, nodata=7)
    assert invalid(path, [1, 2, 3]) == [[0, 0], [0, 2]]


def test_a_tag_and_an_internal_mask_hold_together(tmp_path, save):
    path = save(tmp_path / 'a.tif', BYTES[:1], nodata=11)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, 'r+') as dst:
        dst.write_mask(np.array([[1, 1, 1], [1, 0, 1]], bool))
    assert invalid(path) == [[0, 1], [1, 1]]


def test_a_band_of_many_values_is_data_whatever_it_is_flagged_as(tmp_path, save, caplog):
    pixels = BYTES.copy()
    pixels[3, 1, 1] = 0
    path = flagged_as_alpha(tmp_path / 'a.tif', save, pixels)
    for indexes in ([1, 2, 3, 4], [4, 1], [1, 2, 3]):
        assert invalid(path, indexes) == []
    (record,) = caplog.records
    assert 'band 4 is flagged as alpha but holds many values, so it is taken for data' in record.message


def test_opacity_masks_also_where_all_bands_are_read(tmp_path, save):
    pixels = BYTES.copy()
    pixels[3] = [[255, 255, 0], [255, 0, 255]]
    path = flagged_as_alpha(tmp_path / 'a.tif', save, pixels)
    assert invalid(path) == invalid(path, [1, 2, 3]) == [[0, 2], [1, 1]]


def test_names_that_the_user_gives_make_a_band_data(tmp_path, save):
    pixels = BYTES.copy()
    pixels[3] = [[255, 255, 0], [255, 255, 255]]
    path = flagged_as_alpha(tmp_path / 'a.tif', save, pixels)
    window = rasterio.windows.Window(0, 0, 3, 2)
    for names, valid in (
        (['Red', 'Green', 'Blue', 'NIR'], True),
        (['Red', 'Green', 'Blue', 'alpha'], False),
        (['Red', 'Green', 'Blue'], False),
    ):
        with open_raster(path, bands=names) as src:
            assert (read_window(src, window, [1, 2, 3])[1] is None) == valid


@pytest.mark.parametrize('name', ['NIR', 'B08', 'Near Infrared', 'thermal'])
def test_a_band_that_has_the_name_of_data_is_never_a_mask(tmp_path, save, name):
    pixels = BYTES.copy()
    pixels[3, 1, 1] = 0
    path = flagged_as_alpha(tmp_path / 'a.tif', save, pixels, names=('Red', 'Green', 'Blue', name))
    assert invalid(path, [1, 2, 3]) == []


@pytest.mark.parametrize('name', ['', 'alpha', 'Alpha', 'Band 4', 'Opacity'])
def test_opacity_by_any_of_its_names_is_a_mask(tmp_path, save, name):
    pixels = BYTES.copy()
    pixels[3] = [[255, 255, 255], [255, 0, 255]]
    path = flagged_as_alpha(tmp_path / 'a.tif', save, pixels, names=('Red', 'Green', 'Blue', name))
    assert invalid(path, [1, 2, 3]) == [[1, 1]]


def vrt(path, source, bands):
    """A virtual raster of bands of `source`: the number of each and what stands in its element."""
    rows = ''.join(
        f'<VRTRasterBand dataType="Byte" band="{i}">{extra}<SimpleSource><SourceFilename>{source}</SourceFilename>'
        f'<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>'
        for i, (band, extra) in enumerate(bands, 1)
    )
    path.write_text(f'<VRTDataset rasterXSize="3" rasterYSize="2">{rows}</VRTDataset>')
    return path


def test_every_band_of_a_virtual_raster_has_its_own_nodata(tmp_path, save):
    source = save(tmp_path / 'a.tif', BYTES)
    bands = [(1, '<NoDataValue>10</NoDataValue>'), (2, '<NoDataValue>18</NoDataValue>'), (3, '')]
    path = vrt(tmp_path / 'a.vrt', source, bands)
    assert invalid(path) == [[0, 0], [0, 2]]
    assert invalid(path, [2]) == [[0, 2]]
    assert invalid(path, [3]) == []
    assert invalid(path, [3, 1]) == [[0, 0]]


def test_nodata_values_of_all_bands_together_are_the_file_s_mask(tmp_path, save):
    pixels = BYTES[:3].copy()
    pixels[:, 0, 0] = 0
    pixels[0, 1, 1] = 0
    path = save(tmp_path / 'a.tif', pixels)
    with rasterio.open(path, 'r+') as dst:
        dst.update_tags(NODATA_VALUES='0 0 0')
    assert invalid(path) == [[0, 0]]


def test_masks_of_a_window_are_those_of_the_whole(tmp_path, save):
    pixels = BYTES.copy()
    pixels[3] = [[255, 255, 0], [0, 255, 255]]
    path = flagged_as_alpha(tmp_path / 'a.tif', save, pixels, nodata=21)
    whole = read_image(path, [1, 3])[1]
    with open_raster(path) as src:
        mask = read_window(src, rasterio.windows.Window(1, 0, 2, 2), [1, 3])[1]
    assert (mask == whole[:, 1:]).all()


@pytest.mark.parametrize(
    ('dtype', 'nodata', 'expected'),
    [
        ('uint8', 255, 1),
        ('uint8', -9999, 0),
        ('uint8', np.nan, 0),
        ('uint8', 254.5, 0),
        ('uint8', np.inf, 0),
        ('int16', -32768, 1),
        ('int64', -(2**63), 1),
        ('float32', 0.1, 1),
        ('float32', 1e300, 0),
        ('float64', 0.1, 1),
        ('float16', 0.1, 1),
    ],
)
def test_nodata_is_compared_in_the_type_of_the_pixels(dtype, nodata, expected):
    pixels = np.array([[[1, nodata if expected else 2]]]).astype(dtype)
    mask = valid_by_band(pixels, [(nodata,)])
    assert (0 if mask is None else int((~mask).sum())) == expected


def test_missing_in_one_of_the_used_bands_is_missing_in_all():
    mask = np.ones((3, 1, 2), bool)
    mask[1, 0, 0] = False
    assert valid_in_all_bands(mask).tolist() == [[False, True]]
    assert valid_in_all_bands(mask, [0, 2]) is None
    assert valid_in_all_bands(None) is None
    assert valid_in_all_bands(mask[1:2], [0, 2]).tolist() == [[False, True]]


def test_masks_take_their_shortest_form():
    mask = np.ones((3, 1, 2), bool)
    assert compact(mask) is None
    mask[:, 0, 0] = False
    assert compact(mask).shape == (1, 1, 2)
    mask[2, 0, 1] = False
    assert compact(mask).shape == (3, 1, 2)


def test_any_date_is_enough_unless_every_date_is_needed():
    pixels = np.zeros((2, 3, 1, 3), np.float32)
    pixels[0, :, 0, 0] = pixels[:, :, 0, 1] = np.nan
    assert missing(pixels, every_date=False).tolist() == [[False, True, False]]
    assert missing(pixels, every_date=True).tolist() == [[True, True, False]]
    assert missing(pixels[0], every_date=False).tolist() == [[True, True, False]]


def test_what_goes_to_a_network_is_missing_in_all_bands_of_a_date():
    pixels = np.ones((2, 2, 1, 3))
    pixels[0, 1, 0, 0], pixels[1, 0, 0, 1], pixels[1, 0, 0, 2] = 1e300, ESRI, np.nan
    assert np.isnan(as_float32(pixels)).tolist() == [
        [[[True, False, False]]] * 2,
        [[[False, True, True]]] * 2,
    ]

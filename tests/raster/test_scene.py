"""The bands of one scene in files of their own: lists, SAFE products, Landsat scenes, EO Browser."""

import logging
import zipfile

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.windows import Window

from geolearn.bands import get_bands
from geolearn.chips.export import export_training_data
from geolearn.errors import RasterError
from geolearn.raster import find_band_indexes, open_raster, raster_bands, raster_geobox, read_image, read_window


def band(save, path, value, *, side=8, pixel=10.0, left=500000.0, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((side, side), value, np.uint16)
    pixels[0, 0] = value + 1
    return save(path, pixels, transform=Affine(pixel, 0, left, 0, -pixel, 5400000), crs='EPSG:32633', **profile)


def names(path, **options):
    with open_raster(path, **options) as src:
        return [item.name for item in raster_bands(src)]


@pytest.mark.parametrize(
    ('files', 'expected'),
    [
        (['B02.tif', 'B03.tif', 'B8A.tif'], ['B02', 'B03', 'B8A']),
        (['T32_20200101_B04_10m.tif', 'T32_20200101_B08_10m.tif'], ['B04', 'B08']),
        (
            [
                'LC08_L2SP_190027_20200801_20200908_02_T1_SR_B4.TIF',
                'LC08_L2SP_190027_20200801_20200908_02_T1_SR_B5.TIF',
            ],
            ['SR_B4', 'SR_B5'],
        ),
        (
            ['2023-06-01-00_00_Sentinel-2_L2A_B04_(Raw).tiff', '2023-06-01-00_00_Sentinel-2_L2A_B03_(Raw).tiff'],
            ['B04', 'B03'],
        ),
        (['scene_red.tif', 'scene_nir.tif'], ['red', 'nir']),
        (['s1_vv_2020.tif', 's1_vh_2020.tif'], ['vv', 'vh']),
    ],
)
def test_files_of_bands_over_the_same_ground_are_one_scene(tmp_path, save, files, expected, caplog):
    paths = [band(save, tmp_path / name, 100 * number) for number, name in enumerate(files, 1)]
    assert names(paths) == expected
    pixels, mask, _ = read_image(paths)
    assert pixels[:, 1, 1].tolist() == [100 * number for number in range(1, len(files) + 1)]
    assert mask is None
    assert 'over the same ground are taken as the bands of one scene' in caplog.text


def test_sensors_in_file_names_say_what_the_bands_are(tmp_path, save):
    start = 'LC08_L2SP_190027_20200801_20200908_02_T1_SR_'
    paths = [band(save, tmp_path / f'{start}B{number}.TIF', number) for number in (4, 5)]
    with open_raster(paths) as src:
        assert [item.common_name for item in raster_bands(src)] == ['red', 'nir08']
        assert find_band_indexes(src, get_bands('landsat8', ['NIR', 'Red'])) == [2, 1]


def test_names_that_the_user_gives_are_those_of_the_files_in_order(tmp_path, save):
    paths = [band(save, tmp_path / name, 5) for name in ('2020.tif', '2021.tif')]
    assert names(paths, bands=['Red', 'NIR']) == ['Red', 'NIR']


@pytest.mark.parametrize('files', [['2020.tif', '2021.tif'], ['v1.tif', 'v2.tif'], ['a/B04.tif', 'b/B04.tif']])
def test_what_may_be_bands_or_dates_is_refused_with_both_ways_out(tmp_path, save, files):
    paths = [band(save, tmp_path / name, 5) for name in files]
    with pytest.raises(RasterError, match='pass bands= with a name for each file if they are the bands of one scene'):
        names(paths)


def test_bands_of_different_places_are_neither_a_scene_nor_a_mosaic(tmp_path, save):
    paths = [band(save, tmp_path / 'x_B02.tif', 1), band(save, tmp_path / 'y_B03.tif', 2, left=500080.0)]
    with pytest.raises(RasterError, match='different bands, but not of one scene'):
        names(paths)


def test_tiles_of_one_band_are_a_mosaic_as_before(tmp_path, save):
    paths = [band(save, tmp_path / f'tile{i}.tif', i, left=500000.0 + 80 * i) for i in (1, 2)]
    pixels, mask, _ = read_image(paths)
    assert pixels.shape == (1, 8, 16)
    assert pixels[0, 2, [2, 12]].tolist() == [1, 2]
    assert mask is None


def test_coarser_bands_come_to_the_finest_grid_the_same_in_every_window(tmp_path, save, caplog):
    rng = np.random.default_rng(0)
    fine, coarse = rng.integers(1, 9999, (24, 24)).astype(np.uint16), rng.integers(1, 9999, (12, 12)).astype(np.uint16)
    coarse[3, 4] = 0
    place = {'crs': 'EPSG:32633', 'nodata': 0}
    save(tmp_path / 'B04.tif', fine, transform=Affine(10, 0, 0, 0, -10, 0), **place)
    save(tmp_path / 'B11.tif', coarse, transform=Affine(20, 0, 0, 0, -20, 0), **place)
    with open_raster([tmp_path / 'B11.tif', tmp_path / 'B04.tif']) as src:
        assert raster_geobox(src).shape == (24, 24)
        whole, valid = read_window(src, Window(0, 0, 24, 24), [1, 2])
        assert (whole[1] == fine).all()
        assert np.argwhere(~valid).tolist() == [[6, 8], [6, 9], [7, 8], [7, 9]]
        inner = coarse[5:7, 5:7].astype(float)  # bilinear: nine sixteenths of the nearest pixel
        expected = (9 * inner[0, 0] + 3 * inner[0, 1] + 3 * inner[1, 0] + inner[1, 1]) / 16
        assert abs(int(whole[0, 11, 11]) - expected) <= 0.5
        for row, col, height, width in ((3, 5, 9, 11), (7, 0, 1, 24), (23, 23, 1, 1)):
            part, mask = read_window(src, Window(col, row, width, height), [1, 2])
            assert (part == whole[:, row : row + height, col : col + width]).all()
            inside = valid[row : row + height, col : col + width]
            assert (inside if mask is None else mask == inside).all()
    assert '1 of 2 bands are resampled' in caplog.text


def test_bands_whose_pixels_lie_elsewhere_come_to_one_grid(tmp_path, save):
    rows, columns = np.mgrid[:8, :8].astype(np.uint16) * 10
    first = save(tmp_path / 'B02.tif', rows + columns, transform=Affine(10, 0, 0, 0, -10, 80), crs='EPSG:32633')
    shifted = save(tmp_path / 'B03.tif', rows + columns, transform=Affine(10, 0, 5, 0, -10, 80), crs='EPSG:32633')
    upward = save(tmp_path / 'B04.tif', (rows + columns)[::-1], transform=Affine(10, 0, 0, 0, 10, 0), crs='EPSG:32633')
    pixels, _, _ = read_image([first, shifted, upward])
    assert (pixels[1, :, 1:] == pixels[0, :, 1:] - 5).all()
    assert (pixels[2] == pixels[0]).all()


def test_files_of_quality_are_no_bands(tmp_path, save):
    files = [band(save, tmp_path / f'{name}.tif', 7) for name in ('red', 'nir', 'dataMask')]
    assert names(tmp_path) == ['nir', 'red']
    with pytest.raises(RasterError, match=r'dataMask.tif holds codes of quality, .* leave it out .* or pass bands='):
        names(files)
    assert names(files[:2]) == ['red', 'nir']
    assert names(files, bands=['red', 'nir', 'clouds']) == ['red', 'nir', 'clouds']


def test_archives_and_metadata_are_answered_with_what_to_pass(tmp_path, save):
    band(save, tmp_path / 'B02.tif', 7)
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.write(tmp_path / 'B02.tif', 'B02.tif')
    with pytest.raises(
        RasterError, match='Unpack it, or pass the files in it, such as (/vsizip/.*/NAME.tif)'
    ) as caught:
        names(tmp_path / 'a.zip')
    assert read_image(str(caught.value).rpartition(' ')[2].replace('NAME', 'B02'))[0].max() == 8
    (tmp_path / 'MTD_MSIL2A.xml').write_text('<a/>')
    with pytest.raises(RasterError, match='It describes a product: pass its folder, ') as caught:
        names(tmp_path / 'MTD_MSIL2A.xml')
    assert names(str(caught.value).rpartition(' ')[2]) == ['B02']


def safe(save, folder, *, offset=None):
    image = folder / 'GRANULE' / 'L2A_T33' / 'IMG_DATA'
    for name, pixel in (('B02', 10), ('B03', 10), ('B04', 10), ('B08', 10), ('B11', 20)):
        band(
            save,
            image / f'R{pixel}m' / f'T33UXP_20220601T100559_{name}_{pixel}m.tif',
            1500,
            side=80 // pixel,
            pixel=pixel,
        )
    for name in ('B02', 'B11', 'SCL', 'TCI', 'AOT'):
        band(save, image / 'R20m' / f'T33UXP_20220601T100559_{name}_20m.tif', 7, side=4, pixel=20)
    items = ''.join(f'<BOA_ADD_OFFSET band_id="{i}">{offset}</BOA_ADD_OFFSET>' for i in range(13)) if offset else ''
    (folder / 'MTD_MSIL2A.xml').write_text(
        f'<a><BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>{items}</a>'
    )
    return folder


def test_products_before_and_after_baseline_0400_are_no_mosaic(tmp_path, save):
    folders = [
        safe(save, tmp_path / f'S2A_{year}.SAFE', offset=offset) for year, offset in ((2021, None), (2022, -1000))
    ]
    with pytest.raises(RasterError, match='values of different units, offsets 0 and -1000'), open_raster(folders):
        pass


def test_a_safe_product_is_a_scene_of_its_finest_bands_without_masks(tmp_path, save, caplog):
    folder = safe(save, tmp_path / 'S2A_MSIL2A_20220601.SAFE', offset=-1000)
    with open_raster(folder) as src:
        assert [item.name for item in raster_bands(src)] == ['B02', 'B03', 'B04', 'B08', 'B11']
        assert [item.common_name for item in raster_bands(src)][:4] == ['blue', 'green', 'red', 'nir']
        assert src.nodata == 0
        assert raster_geobox(src).resolution == (10, 10)
    assert 'scale=1, offset=-1000' in caplog.text
    assert names(folder, bands=['B8', 'B4']) == ['B8', 'B4']
    with pytest.raises(RasterError, match="holds no band 'B12'; it holds B02, B03"):
        names(folder, bands=['B12', 'B4', 'B3'])


def test_a_landsat_scene_is_its_reflective_bands_and_its_units_are_said(tmp_path, save, caplog):
    start = 'LC09_L2SP_190027_20220801_20220803_02_T1_'
    for name in ('SR_B1', 'SR_B4', 'SR_B5', 'ST_B10', 'QA_PIXEL'):
        band(save, tmp_path / f'{start}{name}.TIF', 9000, pixel=30)
    assert names(tmp_path) == ['SR_B1', 'SR_B4', 'SR_B5']
    assert 'scale=0.0000275, offset=-0.2' in caplog.text
    assert names(tmp_path, bands=['ST_B10', 'SR_B4']) == ['ST_B10', 'SR_B4']


def test_a_folder_of_two_scenes_or_of_none_is_refused(tmp_path, save):
    for date in ('20220601', '20220611'):
        band(save, tmp_path / 'two' / f'T33UXP_{date}_B04.tif', 1)
    with pytest.raises(RasterError, match='holds B04 twice.*several scenes'):
        names(tmp_path / 'two')
    band(save, tmp_path / 'odd' / 'x.tif', 1)
    with pytest.raises(RasterError, match='is a folder that holds x.tif; a folder must be a SAFE product'):
        names(tmp_path / 'odd')


def test_chips_are_cut_from_files_of_bands(tmp_path, save, caplog):
    caplog.set_level(logging.WARNING)
    paths = [band(save, tmp_path / f'B0{number}.tif', 100 * number, side=16) for number in (4, 3)]
    labels = save(
        tmp_path / 'labels.tif', np.ones((16, 16), np.uint8), transform=Affine(10, 0, 500000, 0, -10, 5400000)
    )
    out = export_training_data(paths, labels, tmp_path / 'chips', tile_size=8, sensor='Sentinel-2')
    pixels, _, _ = read_image(sorted((out / 'images').glob('*.tif'))[0])
    assert pixels[:, 1, 1].tolist() == [400, 300]
    assert caplog.text.count('taken as the bands of one scene') == 1


def test_nodata_of_one_file_never_covers_another_in_a_mosaic(tmp_path, save):
    place = {'transform': Affine(10, 0, 0, 0, -10, 0), 'crs': 'EPSG:32633'}
    one, two = np.full((2, 4, 4), 5, np.float32), np.full((2, 4, 4), 9, np.float32)
    two[:, :, 0] = 0
    two[0, 0, 1], two[0, 1, 1], two[1, 2, 1] = np.nan, np.inf, -3.4028234663852886e38
    files = [save(tmp_path / f'{name}.tif', px, **place) for name, px in (('a', one), ('b', two))]
    with open_raster(files, nodata=0) as src:
        pixels, mask = read_window(src, Window(0, 0, 4, 4), [1, 2])
    assert mask is None
    assert (pixels[:, :, 0] == 5).all()
    assert pixels[:, :3, 1].tolist() == [[5, 5, 5]] * 2
    assert (pixels[:, 3, 1:] == 9).all()


def test_nodata_may_differ_from_band_to_band(tmp_path, save):
    pixels = np.array([[[0, 1, 7]], [[7, 0, 2]]], np.uint8)
    path = save(tmp_path / 'a.tif', pixels)
    with open_raster(path, nodata=[0, 7]) as src:
        assert read_window(src, Window(0, 0, 3, 1), [1, 2])[1].tolist() == [[False, True, True]]
    with open_raster(path, nodata=[None, 0]) as src:
        assert read_window(src, Window(0, 0, 3, 1), [1, 2])[1].tolist() == [[True, False, True]]
    with pytest.raises(RasterError, match='nodata= holds 3 values but'), open_raster(path, nodata=[0, 1, 2]):
        pass


def test_equal_names_are_numbered_and_said(tmp_path, save, caplog):
    path = save(tmp_path / 'a.tif', np.ones((3, 2, 2), np.uint8), names=['bands'] * 3)
    assert names(path) == ['bands_1', 'bands_2', 'bands_3']
    assert 'gives several bands one name; they are taken as bands_1, bands_2, bands_3' in caplog.text


def test_complex_values_are_refused_with_the_recipe(tmp_path, save):
    path = save(tmp_path / 'slc.tif', np.ones((2, 4, 4), np.complex64))
    with open_raster(path) as src, pytest.raises(RasterError, match='DERIVED_SUBDATASET:AMPLITUDE'):
        find_band_indexes(src, get_bands('sentinel1', ['VV', 'VH']))


def test_safe_products_of_jpeg_2000_and_mosaics_of_them(save, tmp_path):
    with rasterio.Env() as env:
        if 'JP2OpenJPEG' not in env.drivers():
            pytest.skip('this GDAL does not know JPEG 2000')
    products = []
    for left, tile in ((500000.0, 'T33UUP'), (501200.0, 'T33UUQ')):
        product = tmp_path / f'S2A_MSIL2A_20220601T100559_N0400_R122_{tile}_20220601T150000.SAFE'
        for name, pixel in (('B02', 10), ('B03', 10), ('B05', 20), ('B01', 60)):
            path = product / f'GRANULE/L2A_{tile}/IMG_DATA/R{pixel}m/{tile}_20220601T100559_{name}_{pixel}m'
            plain = band(save, path.with_suffix('.tif'), 1000 + pixel, side=1200 // pixel, pixel=pixel, left=left)
            options = {'driver': 'JP2OpenJPEG', 'QUALITY': '100', 'REVERSIBLE': 'YES'}
            rasterio.shutil.copy(plain, path.with_suffix('.jp2'), **options)
            plain.unlink()
        products.append(product)
    with open_raster(products[0]) as src:
        assert src.shape == (120, 120)
        assert src.descriptions == ('B01', 'B02', 'B03', 'B05')
        assert src.nodatavals == (0,) * 4
        assert [src.read(number)[60, 60] for number in (1, 2, 4)] == [1060, 1010, 1020]
    with open_raster(products) as src:
        assert src.shape == (120, 240)
        assert src.read(2)[60, 200] == 1010

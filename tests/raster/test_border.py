"""A border of one value that no file declares as NoData is reported with the words to add, and nothing else is."""

import logging
from contextlib import ExitStack

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from geolearn import prepare_data
from geolearn.chips.export import export_training_data
from geolearn.cli import main
from geolearn.inference.options import ReadOptions
from geolearn.inference.reading import open_dates
from geolearn.raster import GeoBox, open_raster, read_window
from geolearn.raster.aligned import AlignedRaster
from geolearn.raster.area import CroppedRaster, PixelArea
from geolearn.raster.border import BorderCheck
from geolearn.raster.mosaic import ResampledRaster
from geolearn.raster.warp import WarpedRaster

PLACE = Affine(10, 0, 500_000, 0, -10, 5_400_000)


def scene(bands=3, *, dtype='uint16', low=50, high=250, side=128):
    return np.random.default_rng(0).integers(low, high, (bands, side, side)).astype(dtype)


def said(path, caplog, *, rows=32, nodata=None, known=()):
    """Read a raster by rows, as a mapping does; returns what is reported."""
    caplog.clear()
    with open_raster(path, nodata=nodata, quiet=True) as src:
        src.check_border(BorderCheck(str(path), known))
        for row in range(0, src.height, rows):
            read_window(src, Window(0, row, src.width, min(rows, src.height - row)), src.indexes)
    return [record.message for record in caplog.records]


@pytest.mark.parametrize(
    ('dtype', 'value', 'words'),
    [
        ('uint16', 0, 'nodata=0'),
        ('uint8', 255, 'nodata=255'),
        ('int16', -9999, 'nodata=-9999'),
        ('int16', -32768, 'nodata=-32768'),
        ('uint16', 7, 'nodata=7'),
        ('float32', -99.0, 'nodata=-99'),
        ('float64', 0.5, 'nodata=0.5'),
    ],
)
@pytest.mark.parametrize('bands', [3, 1])
def test_a_border_is_reported_once_with_the_words_to_add(tmp_path, save, caplog, dtype, value, words, bands):
    pixels = scene(bands, dtype=dtype)
    pixels[:, :, -33:] = value
    path = save(tmp_path / 'a.tif', pixels, transform=PLACE)
    found = said(path, caplog)
    if bands == 1 and value in (7, 0.5):  # of a single band only what borders are usually filled with
        assert found == []
        return
    assert len(found) == 1
    assert found[0].startswith(str(path))
    assert found[0].endswith(f'pass {words}')
    assert said(path, caplog, nodata=value) == []
    assert said(path, caplog, known=[value]) == []


def test_a_value_for_each_band_and_a_turned_border(tmp_path, save, caplog):
    pixels = scene(2, dtype='int32')
    corner = np.add.outer(np.arange(128), np.arange(128)) < 64
    pixels[0, corner], pixels[1, corner] = -9999, 0
    (found,) = said(save(tmp_path / 'a.tif', pixels, transform=PLACE), caplog)
    assert found.endswith('pass nodata=[-9999, 0]')


def test_a_border_between_the_tiles_of_a_mosaic_is_reported_once(tmp_path, save, caplog):
    paths = []
    for number in range(3):
        pixels = scene()
        pixels[:, :, :40] = 0
        paths.append(save(tmp_path / f'{number}.tif', pixels, transform=PLACE @ Affine.translation(100 * number, 0)))
    (found,) = said(paths, caplog)
    assert 'pass nodata=0' in found


def lake(pixels):
    pixels[:, 40:100, 40:100] = 0


def mask(pixels):
    pixels[:] = 0
    pixels[:, 70:, 70:] = 1


def one_band(pixels):
    pixels[1] = 0


def saturated(pixels):
    pixels[:, :10, :10] = 255


def classes(pixels):
    pixels[:] = 3
    pixels[:, 60:, :] = np.arange(128) // 16


def sea_of_several_values(pixels):
    pixels[:, :, :50] = np.array([30, 20, 10], pixels.dtype)[: len(pixels), None, None]


def everything(pixels):
    pixels[:] = 0


@pytest.mark.parametrize('bands', [3, 1])
@pytest.mark.parametrize('change', [lake, mask, one_band, saturated, classes, sea_of_several_values, everything])
def test_what_is_no_border_is_not_reported(tmp_path, save, caplog, change, bands):
    if bands == 1 and change is one_band:
        pytest.skip('there is no second band')
    pixels = scene(bands, dtype='uint8')
    change(pixels)
    assert said(save(tmp_path / 'a.tif', pixels, transform=PLACE), caplog) == []


def test_elevation_that_falls_to_the_sea_is_not_reported(tmp_path, save, caplog):
    height = np.maximum(np.random.default_rng(0).random((128, 128)) + np.linspace(-60, 60, 128), 0).astype(np.float32)
    assert said(save(tmp_path / 'a.tif', height, transform=PLACE), caplog) == []


@pytest.mark.parametrize('dtype', ['int16', 'float32'])
def test_a_thin_border_of_a_marker_is_reported_with_the_words_to_add(tmp_path, save, make_rgb_spec, caplog, dtype):
    pixels = scene(dtype=dtype)
    pixels[:, :3] = pixels[:, :, 60:62] = -9999
    path = save(tmp_path / 'a.tif', pixels, transform=PLACE, crs='EPSG:32633')
    words = 'hold the value -9999, far below all others, which looks like missing pixels'
    (message,) = said(path, caplog)
    assert words in message
    assert message.endswith('if they are, pass nodata=-9999')
    assert said(path, caplog, known=[-9999]) == []
    with ExitStack() as stack:
        open_dates(path, make_rgb_spec, ReadOptions(), stack)
    assert 'units' not in caplog.text
    labels = save(tmp_path / 'l.tif', np.tile(np.uint8([[1, 2]]), (128, 64)), transform=PLACE, crs='EPSG:32633')
    chips = export_training_data(path, labels, tmp_path / 'chips', tile_size=32)
    notes = prepare_data(chips, chip_size=32, batch_size=8).reading_notes
    assert any('7 of 16 chips hold the value -9999, far' in n and n.endswith('pass nodata=-9999') for n in notes)
    assert '-9999' not in str(prepare_data(chips, chip_size=32, batch_size=8, nodata=-9999).reading_notes)


def test_numbers_near_a_marker_are_measurements(tmp_path, save, caplog):
    depth = scene(1, dtype='int16', low=-120, high=20)
    assert -99 in depth
    assert said(save(tmp_path / 'a.tif', depth, transform=PLACE), caplog) == []


def test_declared_nodata_is_not_reported(tmp_path, save, caplog):
    pixels = scene()
    pixels[:, :, :40] = 0
    assert said(save(tmp_path / 'a.tif', pixels, transform=PLACE, nodata=0), caplog) == []


def half_size(src):
    return ResampledRaster(src, GeoBox((64, 64), PLACE @ Affine.scale(2), src.geobox.crs))


def shifted(src):
    return AlignedRaster(src, GeoBox(src.shape, PLACE @ Affine.translation(0.5, 0.5), src.geobox.crs))


def in_another_crs(src):
    return WarpedRaster(src, GeoBox((128, 128), PLACE @ Affine.translation(0.3, 0.2), CRS.from_epsg(32632)))


def cropped(src):
    return CroppedRaster(src, PixelArea(Window(0, 0, 100, 128)))


@pytest.mark.parametrize('view', [half_size, shifted, in_another_crs, cropped])
def test_a_raster_seen_on_another_grid_reports_the_border_of_its_source(tmp_path, save, caplog, view):
    pixels = scene()
    pixels[:, :, :40] = 0
    path = save(tmp_path / 'a.tif', pixels, transform=PLACE, names=['a', 'a', 'b'], crs='EPSG:32632')
    with open_raster(path, quiet=True) as src:
        seen = view(src)
        seen.check_border(BorderCheck(str(path)))
        for row in range(0, seen.height, 32):
            read_window(seen, Window(0, row, seen.width, min(32, seen.height - row)), seen.indexes)
        assert (seen.numbered, seen.stated, seen.driver) == (True, ('a', 'a', 'b'), 'GTiff')
    assert [record.message.endswith('pass nodata=0') for record in caplog.records] == [True]


@pytest.fixture
def bordered(tmp_path, save):
    pixels = scene(side=256)
    pixels[:, :, :80] = 0
    image = save(tmp_path / 'scene.tif', pixels, names=['Red', 'Green', 'Blue'], transform=PLACE)
    labels = save(tmp_path / 'labels.tif', np.tile(np.uint8([[1, 2]]), (256, 128)), transform=PLACE)
    return image, labels


def test_exports_and_chips_report_it_and_following_the_words_ends_it(bordered, tmp_path, caplog):
    export_training_data(*bordered, tmp_path / 'chips', tile_size=32)
    assert caplog.text.count('scene.tif: large areas at its edge hold the value 0 in all bands') == 1
    caplog.clear()
    options = {'chip_size': 32, 'batch_size': 8}
    data = prepare_data(tmp_path / 'chips', **options)
    wanted = '24 of 64 chips hold large blocks of the value 0 in all bands (16 of them nothing else)'
    assert sum(wanted in note and note.endswith('pass nodata=0') for note in data.reading_notes) == 1
    assert wanted in caplog.text
    caplog.clear()
    assert 'large blocks' not in str(prepare_data(tmp_path / 'chips', nodata=0, **options).reading_notes)
    export_training_data(*bordered, tmp_path / 'chips0', tile_size=32, nodata=0)
    assert 'large' not in caplog.text


def test_a_raster_that_is_opened_for_a_model_reports_it(bordered, make_rgb_spec, caplog):
    for options in (ReadOptions(), ReadOptions(nodata=0), ReadOptions(nodata=[0, 0, 0])):
        caplog.clear()
        with ExitStack() as stack:
            open_dates(bordered[0], make_rgb_spec, options, stack)
        assert caplog.text.count('pass nodata=0') == (options.nodata is None)


@pytest.fixture
def make_rgb_spec():
    from geolearn.bands import resolve_bands
    from geolearn.classes import ClassInfo
    from geolearn.networks.spec import ModelSpec
    from geolearn.normalize import Normalization
    from geolearn.statistics import BandStatistics

    return ModelSpec(
        model='Plain', backbone='none', bands=tuple(resolve_bands(['Red', 'Green', 'Blue'])),
        class_infos=(ClassInfo(1, 'one', (1, 0, 0)),), ignored_values=(), chip_size=32,
        statistics=BandStatistics((50,) * 3, (250,) * 3, (150,) * 3, (50,) * 3),
        normalization=Normalization((150,) * 3, (50,) * 3, 'the test'), dtype='uint16',
    )  # fmt: skip


def test_the_command_line_says_it_with_its_option(bordered, tmp_path, capsys):
    logging.getLogger('geolearn').setLevel(logging.WARNING)
    main(['export-chips', str(bordered[0]), str(tmp_path / 'chips'), '--labels', str(bordered[1]), '--tile-size', '64'])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if 'at its edge' in line]
    assert line.endswith('if they are, pass --nodata 0')

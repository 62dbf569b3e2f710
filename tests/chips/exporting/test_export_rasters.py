import errno
import json
import os
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geolearn.bands import Band, get_bands
from geolearn.chips.emd import STATS_NAME, WELL_KNOWN_KEY, read_metadata
from geolearn.chips.export import export_training_data
from geolearn.chips.formats.tiles import list_classified_tiles
from geolearn.classes import ClassInfo
from geolearn.errors import ChipFolderError, GeoLearnError, RasterError, UnknownNameError
from geolearn.raster import GeoBox, read_image

CLASSES = (ClassInfo(1, 'water', (0, 0, 255)), ClassInfo(2, 'land', (0, 255, 0)))
IMAGE = np.arange(1, 1 + 3 * 48, dtype=np.uint16).reshape(3, 6, 8)
LABEL = np.ones((6, 8), np.uint8)
LABEL[:, 4:] = 2


@pytest.fixture
def image(tmp_path, save):
    return save(tmp_path / 'image.tif', IMAGE, names=('Red', 'Green', 'NIR'))


@pytest.fixture
def labels(tmp_path, save):
    return save(tmp_path / 'labels.tif', LABEL)


class Chip(NamedTuple):
    pixels: np.ndarray
    mask: np.ndarray | None
    geobox: GeoBox
    label: np.ndarray


def read_chips(out):
    """Chips of a Classified_Tiles folder, in order of name."""
    found = []
    for source in list_classified_tiles(out, read_metadata(out)).chips:
        pixels, mask, geobox = read_image(source.image)
        found.append(Chip(pixels, mask, geobox, source.read_label(geobox.shape).raster))
    return found


# --- there and back


@settings(max_examples=40)
@given(st.data())
def test_what_is_exported_is_prepared_unchanged(save, data):
    dtype = data.draw(st.sampled_from(['uint8', 'uint16', 'int16', 'float32']))
    count = data.draw(st.integers(1, 5))
    numbers = {'allow_nan': False, 'allow_infinity': False} if dtype == 'float32' else {}
    image = data.draw(arrays(dtype, (count, 4, 6), elements=numbers or None))
    values = data.draw(st.lists(st.integers(1, 65535) | st.integers(1, 255), min_size=1, max_size=3, unique=True))
    label = data.draw(arrays(np.uint16, (4, 6), elements=st.sampled_from([0, *values])))
    label[::2, 0], label[1::2, 0], label[:, [2, 4]] = 0, values[0], values[0]  # 0 occurs, and each chip has a label
    place = Affine(0.5, 0, 123456.5, 0, -0.5, 654321.5)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        save(root / 'image.tif', image, transform=place, nodata=None)
        save(root / 'labels.tif', label, transform=place)
        classes = [ClassInfo(value, f'class {value}', (value % 256, 1, 2)) for value in values]
        out = export_training_data(
            root / 'image.tif', root / 'labels.tif', root / 'out', classes=classes, tile_size=2, num_workers=2
        )
        assert read_metadata(out).classes == tuple(classes)
        chips = read_chips(out)
        corners = [(row, col) for row in (0, 2) for col in (0, 2, 4)]
        assert len(chips) == 6
        for chip, (row, col) in zip(chips, corners):
            assert chip.mask is None
            assert chip.pixels.dtype == dtype
            assert (chip.pixels == image[:, row : row + 2, col : col + 2]).all()
            assert (chip.label == label[row : row + 2, col : col + 2]).all()
            assert chip.geobox.transform == Affine(0.5, 0, 123456.5 + col / 2, 0, -0.5, 654321.5 - row / 2)
            assert rasterio.crs.CRS.from_wkt(chip.geobox.crs) == rasterio.crs.CRS.from_epsg(32633)
        counts = json.loads((out / STATS_NAME).read_text())['ClassPixelStats']['NumPixelsPerClass']
        assert counts == [int((label == value).sum()) for value in values]


def test_bands_keep_names_and_wavelengths(tmp_path, image, labels):
    bands = (Band('Red', 0.64), Band('Green', 0.55), Band('NIR', 0.86))
    out = export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2, bands=bands)
    found = read_metadata(out)
    assert (found.band_names, found.wavelengths_um) == (('Red', 'Green', 'NIR'), (0.64, 0.55, 0.86))


def test_wavelengths_of_nameless_bands_are_kept(tmp_path, image, labels):
    bands = (Band('band_1', 0.64), Band('band_2', 0.55), Band('band_3', 0.86))
    out = export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2, bands=bands)
    assert read_metadata(out).wavelengths_um == (0.64, 0.55, 0.86)


def test_a_sensor_is_remembered(tmp_path, image, labels):
    bands = get_bands('landsat8', ['B4', 'B3', 'B5'])
    out = export_training_data(
        image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2, bands=bands, sensor='Landsat 8'
    )
    assert read_metadata(out).sensor == 'Landsat 8'


def test_invalid_pixels_stay_invalid_and_are_labelled_with_nothing(tmp_path, save, labels):
    holed = IMAGE.copy()
    holed[1, 0, 0] = 0
    image = save(tmp_path / 'holed.tif', holed, nodata=0)
    out = export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2)
    chip = read_chips(out)[0]
    assert chip.mask.tolist() == [[False, True], [True, True]]
    assert chip.label.tolist() == [[0, 1], [1, 1]]
    assert read_metadata(out).statistics.minimum == (2, 50, 98)


def test_pixels_that_only_a_mask_makes_invalid_are_labelled_with_nothing(tmp_path, image, labels):
    mask = np.ones((6, 8), bool)
    mask[0, 0] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(image, 'r+') as dst:
        dst.write_mask(mask)
    out = export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2)
    assert read_chips(out)[0].label.tolist() == [[0, 1], [1, 1]]


def test_what_a_mask_beside_a_nodata_value_makes_invalid_stays_invalid(tmp_path, save, labels):
    path = save(tmp_path / 'tagged.tif', IMAGE, nodata=1)
    mask = np.full((6, 8), 255, np.uint8)
    mask[:, :4] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, 'r+') as dst:
        dst.write_mask(mask)
    (chip,) = read_chips(export_training_data(path, labels, tmp_path / 'out', tile_size=6, start_index=0))
    assert not chip.mask[:, :4].any()
    assert chip.mask[:, 4:].all()


def test_chips_with_a_mask_that_their_format_cannot_hold_are_left_out(tmp_path, save, labels):
    path = save(tmp_path / 'bytes.tif', IMAGE.astype(np.uint8))
    mask = np.full((6, 8), 255, np.uint8)
    mask[:, 7] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, 'r+') as dst:
        dst.write_mask(mask)
    out = export_training_data(path, labels, tmp_path / 'png', tile_size=2, image_format='PNG')
    assert len(list((out / 'images').glob('*.png'))) == 9


def test_nodata_of_the_labels_means_unlabelled(tmp_path, save, image):
    label = LABEL.copy()
    label[0, 0] = 255
    labels = save(tmp_path / 'labels.tif', label, nodata=255)
    out = export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2)
    assert read_chips(out)[0].label.tolist() == [[0, 1], [1, 1]]


def test_several_rasters_are_exported_as_one(tmp_path, save, image, labels):
    names = ('Red', 'Green', 'NIR')
    left = save(tmp_path / 'left.tif', IMAGE[:, :, :5], names=names)
    right = save(tmp_path / 'right.tif', IMAGE[:, :, 5:], names=names, transform=Affine(10, 0, 50, 0, -10, 0))
    whole = export_training_data(image, labels, tmp_path / 'whole', classes=CLASSES, tile_size=2)
    parts = export_training_data([left, right], labels, tmp_path / 'parts', classes=CLASSES, tile_size=2)
    for one, other in zip(read_chips(whole), read_chips(parts), strict=True):
        assert (one.pixels == other.pixels).all()
        assert one.geobox.transform == other.geobox.transform


@pytest.mark.parametrize(('stride', 'count'), [(None, 12), (1, 35), (4, 4)])
def test_a_stride_sets_how_many_chips_there_are(tmp_path, image, labels, stride, count):
    out = export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2, stride=stride)
    assert len(read_chips(out)) == count


def test_chips_with_too_few_labels_are_left_out(tmp_path, save, image):
    label = np.zeros((6, 8), np.uint8)
    label[0, 0] = label[0:2, 2] = 1
    labels = save(tmp_path / 'labels.tif', label)
    found = [
        len(read_chips(export_training_data(image, labels, out, classes=CLASSES, tile_size=2, min_labelled=share)))
        for share, out in ((0, tmp_path / 'a'), (0.4, tmp_path / 'b'))
    ]
    assert found == [2, 1]


# --- the files


def test_an_export_holds_the_files_that_arcgis_writes(tmp_path, image, labels):
    out = export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=4, sensor='Sentinel-2')
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob('*')) == [
        'esri_accumulated_stats.json',
        'esri_model_definition.emd',
        'images',
        'images/000000000000.tif',
        'images/000000000001.tif',
        'labels',
        'labels/000000000000.tif',
        'labels/000000000001.tif',
        'map.txt',
        'stats.txt',
    ]
    assert (out / 'map.txt').read_bytes() == (
        b'images\\000000000000.tif  labels\\000000000000.tif \nimages\\000000000001.tif  labels\\000000000001.tif \n'
    )
    assert (out / 'stats.txt').read_text().splitlines()[:3] == [
        'images = 2 *3*4*4',
        'classes = 2',
        'classes per image = [min = 1, mean = 1.00, max = 1]',
    ]


def test_the_emd_has_arcgis_s_keys(tmp_path, image, labels):
    out = export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2, sensor='Sentinel-2')
    emd = json.loads((out / 'esri_model_definition.emd').read_text())
    assert set(emd) == {
        'ImageHeight',
        'ImageWidth',
        'MetaDataMode',
        'BlackenAroundFeature',
        'IsMultidimensional',
        'CropTileMode',
        'ImageSpaceUsed',
        'MinCellSize',
        'MaxCellSize',
        'Classes',
        'InputRastersProps',
        'AllTilesStats',
        WELL_KNOWN_KEY,
        'geolearn',
    }
    assert emd['Classes'][0] == {'Value': 1, 'Name': 'water', 'Color': [0, 0, 255]}
    assert emd['InputRastersProps'] == {
        'RasterCount': 1,
        'SensorName': 'Sentinel-2',
        'BandNames': ['Red', 'Green', 'NIR'],
    }
    assert (emd['MinCellSize']['x'], emd['MinCellSize']['y']) == (10, 10)
    red = IMAGE[0].astype(np.float64)
    assert emd['AllTilesStats'][0] == {
        'BandName': 'Red',
        'Min': 1,
        'Max': 48,
        'Mean': pytest.approx(red.mean()),
        'StdDev': pytest.approx(red.std()),
    }


def test_the_accumulated_statistics_have_arcgis_s_keys(tmp_path, image, labels):
    out = export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2)
    stats = json.loads((out / 'esri_accumulated_stats.json').read_text())
    assert set(stats) == {
        'Version',
        'NumBands',
        'TileSizeX',
        'TileSizeY',
        'NumClasses',
        'NumTiles',
        'NumTilesAsDouble',
        'NextTileIndex',
        'OutputFeatures',
        'MetaDataMode',
        'MinCellSize',
        'MaxCellSize',
        'Classes',
        'ClassPixelStats',
        'InputRastersProps',
        'BandStatsState',
    }
    assert (stats['NumBands'], stats['NumTiles'], stats['MetaDataMode']) == (3, 12, 'Classified_Tiles')
    assert stats['Classes'][1] == {'ClassValue': 2, 'ClassName': 'land', 'Color': [0, 255, 0]}
    assert stats['ClassPixelStats']['NumPixelsPerClass'] == [24, 24]
    state, red = stats['BandStatsState'][0], IMAGE[0].astype(np.float64)
    assert (state['Mean'], state['StdDev'], state['Num']) == (0, 0, 48)
    assert state['M1'] == pytest.approx(red.mean())
    assert (state['M2'] / state['Num']) ** 0.5 == pytest.approx(red.std())


def test_labels_take_one_byte_unless_a_class_needs_two(tmp_path, save, image):
    for value, dtype in ((255, 'uint8'), (256, 'uint16')):
        labels = save(tmp_path / 'labels.tif', np.full((6, 8), value, np.uint16))
        classes = [ClassInfo(value, 'x', (1, 2, 3))]
        out = export_training_data(image, labels, tmp_path / dtype, classes=classes, tile_size=2)
        assert read_chips(out)[0].label.dtype == dtype


# --- what is refused


def test_a_folder_that_holds_anything_is_refused(tmp_path, image, labels):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'a.txt').touch()
    with pytest.raises(ChipFolderError, match='out is not empty; export into a new folder'):
        export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2)


@pytest.mark.parametrize(
    'profile',
    [{'transform': Affine(10, 0, 5, 0, -10, 0)}, {'transform': Affine(20, 0, 0, 0, -20, 0)}, {'crs': 'EPSG:32634'}],
)
def test_labels_on_another_grid_are_refused(tmp_path, save, image, profile):
    labels = save(tmp_path / 'labels.tif', LABEL, **profile)
    with pytest.raises(ChipFolderError, match=r'image\.tif and labels .*labels\.tif lie on different grids.*warp the'):
        export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2)


def test_labels_of_another_size_are_refused(tmp_path, save, image):
    labels = save(tmp_path / 'labels.tif', LABEL[:5])
    with pytest.raises(ChipFolderError, match=r'different grids: \(6, 8\)'):
        export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2)


def test_labels_of_several_bands_are_refused(tmp_path, save, image):
    labels = save(tmp_path / 'labels.tif', np.stack([LABEL] * 3))
    with pytest.raises(
        ChipFolderError, match=r'labels\.tif: labels hold 3 bands; a label raster has one band of class values'
    ):
        export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2)


def test_a_raster_smaller_than_a_tile_is_refused_and_leaves_no_folder(tmp_path, image, labels):
    with pytest.raises(ChipFolderError, match='the raster is 8x6 pixels, smaller than tile_size 7'):
        export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=7)
    assert not (tmp_path / 'out').exists()


def test_a_value_that_is_no_class_is_named(tmp_path, image, labels):
    with pytest.raises(ChipFolderError, match=r'label holds \[2\], which are no class values: \[0, 1\]'):
        export_training_data(image, labels, tmp_path / 'out', classes=CLASSES[:1], tile_size=6)


def test_an_export_without_a_label_leaves_no_folder(tmp_path, save, image):
    labels = save(tmp_path / 'labels.tif', LABEL * 0)
    with pytest.raises(ChipFolderError, match='no chip was written to .*out: no tile holds both image and label'):
        export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2)
    assert not (tmp_path / 'out').exists()


def test_an_empty_folder_is_filled(tmp_path, image, labels):
    (tmp_path / 'out').mkdir()
    assert export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2) == tmp_path / 'out'
    assert not list(tmp_path.glob('.*'))
    assert len(read_chips(tmp_path / 'out')) == 12


def test_a_file_in_the_place_of_the_folder_is_refused(image, labels):
    with pytest.raises(ChipFolderError, match='image.tif is a file; export into a new folder'):
        export_training_data(image, labels, image, classes=CLASSES, tile_size=2)


@pytest.mark.parametrize('name', ['map.txt', 'stats.txt', 'esri_model_definition.emd'])
def test_a_full_disk_is_named_and_leaves_no_export(tmp_path, image, labels, monkeypatch, name):
    write = Path.write_text

    def full(path, *args, **options):
        if path.name == name:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return write(path, *args, **options)

    monkeypatch.setattr(Path, 'write_text', full)
    with pytest.raises(ChipFolderError, match=f'cannot write .*{name}: No space left on device'):
        export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['image.tif', 'labels.tif']


# --- sensors


def test_the_sensor_given_says_what_b5_is(tmp_path, save, labels):
    image = save(tmp_path / 'image.tif', IMAGE, names=('B4', 'B3', 'B5'))
    out = export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2, sensor='Landsat 8')
    wanted = [band.wavelength_um for band in get_bands('landsat8', ['B4', 'B3', 'B5'])]
    assert json.loads((out / 'esri_model_definition.emd').read_text())['geolearn']['wavelengths_um'] == wanted


def test_bands_given_stay_as_they_are_whatever_the_sensor(tmp_path, image, labels):
    bands = [Band('B4', 0.5), Band('B3', 0.6), Band('B5', 0.7)]
    options = {'classes': CLASSES, 'tile_size': 2, 'sensor': 'Landsat 8', 'bands': bands}
    out = export_training_data(image, labels, tmp_path / 'out', **options)
    stored = json.loads((out / 'esri_model_definition.emd').read_text())['geolearn']['wavelengths_um']
    assert stored == [0.5, 0.6, 0.7]


def test_an_unknown_sensor_is_refused(tmp_path, image, labels):
    with pytest.raises(UnknownNameError, match="unknown sensor 'Sentinl-2'; did you mean 'sentinel"):
        export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2, sensor='Sentinl-2')


# --- what killed exports leave, and what people should know


def test_what_a_killed_export_left_is_removed_after_an_hour(image, labels, tmp_path):
    old, young, other = (
        tmp_path / name for name in ('.out-0123abcd.part', '.out-89abcdef.part', '.out2-0123abcd.part')
    )
    for part in (old, young, other):
        (part / 'images').mkdir(parents=True)
        (part / 'images/1.tif').touch()
    for path in (old / 'images', old, young, other / 'images', other):  # somebody still writes images of `young`
        os.utime(path, (1, 1))
    export_training_data(image, labels, tmp_path / 'out', classes=CLASSES, tile_size=2)
    assert not old.exists()
    assert young.exists()
    assert other.exists()


def test_invalid_pixels_of_floats_stay_invalid(tmp_path):
    pixels, mask = np.random.default_rng(0).random((2, 8, 8), np.float32), np.ones((8, 8), bool)
    mask[:3] = False
    place = {'transform': Affine(10, 0, 0, 0, -10, 0), 'crs': 'EPSG:32633'}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        profile = {'driver': 'GTiff', 'count': 2, 'height': 8, 'width': 8, 'dtype': 'float32'} | place
        with rasterio.open(tmp_path / 'a.tif', 'w', **profile) as dst:
            dst.write(pixels)
            dst.write_mask(mask)
    out = export_training_data(tmp_path / 'a.tif', None, tmp_path / 'out', 'Export_Tiles', tile_size=8)
    with rasterio.open(out / 'images/000000000000.tif') as src:
        assert np.array_equal(src.dataset_mask() > 0, mask)


def test_a_sensor_that_does_not_know_the_bands_is_told(tmp_path, save, labels, caplog):
    image = save(tmp_path / 'unnamed.tif', IMAGE)
    export_training_data(image, labels, tmp_path / 'a', classes=CLASSES, tile_size=2, sensor='Sentinel-2')
    assert 'Sentinel-2 has no band called band_1, band_2, band_3; name the bands in' in caplog.text
    caplog.clear()
    export_training_data(image, labels, tmp_path / 'b', classes=CLASSES, tile_size=2)
    assert caplog.text == ''


@pytest.mark.parametrize(
    ('option', 'words'),
    [
        ({'rotation_angle': 1e-9}, 'rotation_angle is 1e-09; degrees from 0 to under 360 are needed'),
        ({'rotation_angle': 'x'}, "rotation_angle is 'x'; degrees"),
        ({'min_labelled': 'x'}, "min_labelled is 'x'; a share"),
        ({'stride': 0}, 'stride is 0; a whole number of at least 1'),
        ({'tile_size': True}, 'tile_size must be a whole number, got True'),
        ({'num_workers': 'x'}, "num_workers must be a whole number or None, got 'x'"),
        ({'bands': 3}, 'bands must be '),
        ({'sensor': 7}, 'sensor must be a text, got 7'),
        ({'metadata_format': 3}, 'metadata_format must be a text, got 3'),
        ({'classes': {1: 'a'}}, 'classes must be '),
        ({'nodata': 'x'}, "nodata is 'x'; pass a number"),
    ],
)
def test_absurd_values_are_answered_in_words(tmp_path, save, option, words):
    image, labels = (
        save(tmp_path / f'{name}.tif', np.resize(np.uint8([1, 2]), (16, 16)), transform=Affine(10, 0, 0, 0, -10, 0))
        for name in 'il'
    )
    with pytest.raises(GeoLearnError, match=re.escape(words)):
        export_training_data(image, labels, tmp_path / 'out', **({'tile_size': 8} | option))


def test_nan_as_nodata_of_whole_numbers_and_names_that_are_not_utf8(tmp_path, save):
    pixels = np.resize(np.uint8([1, 2]), (16, 16))
    image = save(tmp_path / 'i.tif', pixels)
    export_training_data(image, image, tmp_path / 'out', tile_size=8, nodata=np.nan)
    name = os.fsencode(tmp_path / 'i') + b'\xff.tif'
    shutil.copy(image, name)
    for raster, labels in ((os.fsdecode(name), image), (image, os.fsdecode(name)), ([image, os.fsdecode(name)], image)):
        with pytest.raises(RasterError, match='its name is not UTF-8; rename it'):
            export_training_data(raster, labels, tmp_path / 'no', tile_size=8)
    with pytest.raises(RasterError, match=r'pass os\.fsdecode'):
        export_training_data(name, image, tmp_path / 'no', tile_size=8)
    with pytest.raises(ChipFolderError, match='its name is not UTF-8; rename it'):
        export_training_data(image, os.fsdecode(name.replace(b'.tif', b'.gpkg')), tmp_path / 'no', tile_size=8)

"""Polygons over a raster get the class of the ground around them."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from affine import Affine

from geolearn.bundle import read_bundle
from geolearn.errors import ArgumentError, FileWriteError, RasterError, UnknownNameError
from geolearn.inference.classify_polygons import PolygonOptions, chip_windows, name_rows, pixel_bounds, pixel_outlines
from geolearn.inference.vectors import write_layer
from geolearn.models import load_model
from geolearn.models.feature_classifier import FeatureClassifier
from geolearn.raster import GeoBox

geopandas = pytest.importorskip('geopandas')
shapely = pytest.importorskip('shapely')

pytestmark = pytest.mark.usefixtures('one_thread')

CRS = 'EPSG:32633'
PLACE = Affine(10, 0, 500_000, 0, -10, 5_400_000)


class Brightest(torch.nn.Module):
    """A stand-in for a network: the logit of a class is the mean of its band, without pixels that have no data."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.shape)
        return x.nanmean((2, 3)) / 100


class KeepLast(torch.nn.Module):
    """A stand-in for a network that keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.chips = []

    def forward(self, x):
        self.chips.append(x.clone())
        return torch.zeros(len(x), 3)


@pytest.fixture
def model(one_folder, prepare):
    found = FeatureClassifier(prepare(one_folder), 'test_resnet', pretrained=False)
    found.network = Brightest()
    return found


@pytest.fixture
def raster(save, tmp_path):
    """Water, forest and field side by side, 100 columns each, and 60 columns without data at the right."""
    pixels = np.zeros((3, 120, 360), np.uint16)
    for band in range(3):
        pixels[:, :, 100 * band : 100 * band + 100] = 400
        pixels[band, :, 100 * band : 100 * band + 100] = 900
    return save(tmp_path / 'r.tif', pixels, transform=PLACE, crs=CRS, nodata=0, names=['Blue', 'Green', 'Red'])


def squares(*centres, side=12, crs=CRS, **columns):
    """Squares of some pixels around (column, row) of the raster."""
    shapes = [
        shapely.box(
            500_000 + 10 * (x - side / 2),
            5_400_000 - 10 * (y + side / 2),
            500_000 + 10 * (x + side / 2),
            5_400_000 - 10 * (y - side / 2),
        )
        for x, y in centres
    ]
    return geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs)


@pytest.mark.parametrize('suffix', ['.gpkg', '.geojson', '.shp'])
@pytest.mark.parametrize('crs', [CRS, 'EPSG:4326', 'EPSG:3857'])
def test_each_polygon_gets_the_class_of_its_ground(model, raster, tmp_path, suffix, crs):
    layer = squares((250, 60), (50, 20), (150, 100), (20, 60), number=[7, 8, 9, 10]).to_crs(crs)
    source = write_layer(layer, tmp_path / 'in.gpkg')
    out = geopandas.read_file(model.classify_objects(raster, source, tmp_path / f'out{suffix}', batch_size=3))
    assert out['ClassLabel'].tolist() == ['field', 'water', 'forest', 'water']
    assert out['number'].tolist() == [7, 8, 9, 10], 'in the order of the layer'
    # the logits are 9, 4 and 4
    assert np.allclose(out['Confidence'], 100 / (1 + 2 * np.exp(-5)), atol=0.1)
    assert out.crs == ('EPSG:4326' if suffix == '.geojson' else crs)
    moved = out.to_crs(CRS).geometry.centroid.distance(layer.to_crs(CRS).geometry.centroid)
    assert moved.max() < 0.1
    assert model.network.seen == [(3, 3, 32, 32), (1, 3, 32, 32)]


def test_polygons_outside_or_without_data_get_no_label_and_are_told(model, raster, tmp_path, caplog):
    layer = squares((50, 60), (-90, 60), (150, 900), (340, 60), (2, 2))
    layer.loc[len(layer), 'geometry'] = None
    layer.loc[len(layer), 'geometry'] = shapely.Polygon()
    with caplog.at_level(logging.WARNING):
        out = geopandas.read_file(model.classify_objects(raster, layer, tmp_path / 'out.gpkg'))
    assert out['ClassLabel'].fillna('').tolist() == ['water', '', '', '', 'water', '', '']
    assert out['Confidence'].isna().tolist() == [False, True, True, True, False, True, True]
    assert '5 of 7 polygons lie outside of the raster or where it has no data' in caplog.text


def test_a_layer_without_polygons_gives_one_with_the_columns(model, raster, tmp_path):
    out = geopandas.read_file(model.classify_objects(raster, squares(), tmp_path / 'out.gpkg'))
    assert len(out) == 0
    assert {'ClassLabel', 'Confidence'} <= set(out.columns)


def test_the_bounding_box_alone_is_seen_where_training_chips_were_such(model, raster, tmp_path):
    layer = squares((95, 60), side=10)  # its box is water, the chip around its middle is forest too
    model.classify_objects(raster, layer, tmp_path / 'a.gpkg')
    model.classify_objects(raster, layer, tmp_path / 'b.gpkg', crop='bounding_box')
    fixed, box = (geopandas.read_file(tmp_path / name)['Confidence'][0] for name in ('a.gpkg', 'b.gpkg'))
    assert fixed < box
    assert box == pytest.approx(100 / (1 + 2 * np.exp(-5)), abs=0.1)


def as_exported(folder, tmp_path, **keys):
    """A copy of a folder of chips whose .emd says how chips were cut."""
    copy = shutil.copytree(folder, tmp_path / 'as_exported')
    emd = copy / 'esri_model_definition.emd'
    emd.write_text(json.dumps(json.loads(emd.read_text()) | keys))
    return copy


@pytest.mark.parametrize(
    ('keys', 'crop', 'blackened'),
    [
        ({}, 'fixed', False),
        ({'CropTileMode': 'Fixed_Size', 'BlackenAroundFeature': True}, 'fixed', True),
        ({'CropTileMode': 'Variable_Size', 'BlackenAroundFeature': False}, 'bounding_box', False),
        ({'CropTileMode': 'e.g. Fixed_Size', 'BlackenAroundFeature': 'e.g. true'}, 'fixed', False),
    ],
)
def test_how_chips_were_cut_stays_with_the_model(one_folder, prepare, tmp_path, keys, crop, blackened):
    data = prepare(as_exported(one_folder, tmp_path, **keys))
    path = FeatureClassifier(data, 'test_resnet', pretrained=False).save(tmp_path / 'm.dlpk')
    options = load_model(path).spec.options
    assert (options['crop'], options['blackened']) == (crop, blackened)
    emd = read_bundle(path).emd
    assert (emd['CropSizeFixed'], emd['BlackenAroundFeature']) == (int(crop == 'fixed'), int(blackened))


def test_polygons_are_seen_as_the_training_chips_were(one_folder, prepare, raster, tmp_path):
    data = prepare(as_exported(one_folder, tmp_path, CropTileMode='Variable_Size', BlackenAroundFeature=True))
    model = FeatureClassifier(data, 'test_resnet', pretrained=False)
    model.network = network = KeepLast()
    triangle = squares((50, 60)).set_geometry([shapely.Polygon([(0, 0), (98, 0), (0, 98)])])
    layer = triangle.translate(500_400, 5_399_400).to_frame('geometry')
    for options, count in (({}, 45), ({'blacken': False}, 100), ({'crop': 'fixed', 'blacken': False}, 32 * 32)):
        model.classify_objects(raster, layer, tmp_path / 'out.gpkg', overwrite=True, **options)
        # the raster's NoData value is 0, so black is no data, as in chips of such a raster
        assert int((~network.chips[-1][0, 1].isnan()).sum()) == count, options


def test_black_is_the_value_0_where_that_is_no_nodata(one_folder, prepare, save, tmp_path):
    model = FeatureClassifier(prepare(one_folder), 'test_resnet', pretrained=False)
    model.network = network = KeepLast()
    pixels = np.full((3, 120, 120), 700, np.uint16)
    plain = save(tmp_path / 'plain.tif', pixels, transform=PLACE, crs=CRS, names=['Blue', 'Green', 'Red'])
    model.classify_objects(plain, squares((50, 60)), tmp_path / 'out.gpkg', blacken=True)
    values, counts = network.chips[-1][0].unique(return_counts=True)
    assert values.tolist() == [0, 700]
    assert counts.tolist() == [3 * (32 * 32 - 12 * 12), 3 * 12 * 12]


def test_columns_of_an_earlier_run_are_replaced_and_told(model, raster, tmp_path, caplog):
    layer = squares((50, 60), ClassLabel=['marsh'])
    with caplog.at_level(logging.WARNING):
        out = geopandas.read_file(model.classify_objects(raster, layer, tmp_path / 'out.gpkg'))
    assert out['ClassLabel'].tolist() == ['water']
    assert 'new values in the columns ClassLabel' in caplog.text


def test_features_without_area_get_no_label_where_a_chip_is_what_lies_inside(model, raster, tmp_path, caplog):
    layer = squares((50, 60), (150, 60), (150, 60))
    layer.geometry = [layer.geometry[0], layer.geometry[1].centroid, layer.geometry[2].exterior]
    for number, options in enumerate(({'crop': 'bounding_box'}, {'blacken': True}, {})):
        caplog.clear()
        out = geopandas.read_file(model.classify_objects(raster, layer, tmp_path / f'{number}.gpkg', **options))
        wanted = ['water', '', ''] if options else ['water', 'forest', 'forest']
        assert out['ClassLabel'].fillna('').tolist() == wanted
        assert ('2 of 3 features are points, lines or others without area' in caplog.text) == bool(options)


def test_what_the_layer_could_not_hold_is_refused_before_the_work(model, raster, tmp_path):
    layer = squares((50, 60), (150, 60), n=[1, 2])
    mixed = layer.set_geometry([layer.geometry[0], layer.geometry[1].centroid], crs=CRS)
    for bad, suffix in ((mixed, '.shp'), (layer.assign(c=[1j, 2j]), '.gpkg'), (layer.assign(c=[1j, 2j]), '.parquet')):
        with pytest.raises(FileWriteError, match='cannot write .*out.*; write another kind of layer, such as .gpkg'):
            model.classify_objects(raster, bad, tmp_path / f'out{suffix}')
    assert model.network.seen == []
    assert not list(tmp_path.glob('*out*'))
    out = geopandas.read_file(model.classify_objects(raster, layer.geometry, tmp_path / 'out.gpkg'))
    assert out['ClassLabel'].tolist() == ['water', 'forest']
    out = model.classify_objects(raster, layer.rename(columns={'n': 'CLASSLABEL'}), tmp_path / 'clash.gpkg')
    assert geopandas.read_file(out)['ClassLabel'].tolist() == ['water', 'forest']


def test_what_does_not_fit_is_refused_and_leaves_nothing(model, raster, save, tmp_path):
    layer = squares((50, 60))
    cases = [
        ({'dst': tmp_path / 'out.txt'}, 'has no suffix that says how to write it; pass one of .gpkg'),
        ({'dst': tmp_path}, 'has no suffix'),
        ({'dst': tmp_path / 'none' / 'out.gpkg'}, 'is no folder; make it first'),
        ({'polygons': tmp_path / 'missing.gpkg'}, 'cannot take polygons'),
        ({'polygons': {'a': layer}}, 'polygons must be a vector file or a GeoDataFrame, got a dict'),
        ({'polygons': layer.geometry[0]}, r'got a Polygon; of a geometry make geopandas.GeoSeries\('),
        ({'raster': np.ones((3, 9, 9))}, r'a raster must be a path, .* got an array of shape \(3, 9, 9\)'),
        ({'raster': {}}, 'a raster must be a path, .* got {}'),
        ({'polygons': layer.set_crs(None, allow_override=True)}, 'the layer names no CRS, but the raster does'),
        ({'scale': 1e-4}, 'in other units than the training chips'),
        ({'bands': ['Blue', 'Green']}, 'bands= names 2 bands'),
    ]
    for changes, match in cases:
        given = {'raster': raster, 'polygons': layer, 'dst': tmp_path / 'out.gpkg'} | changes
        with pytest.raises((RasterError, FileWriteError), match=match):
            model.classify_objects(**given)
    with pytest.raises(ValueError, match="crop must be one of 'fixed', 'bounding_box', got 'circle'"):
        model.classify_objects(raster, layer, tmp_path / 'out.gpkg', crop='circle')
    with pytest.raises(ValueError, match='batch_size must be at least 1'):
        model.classify_objects(raster, layer, tmp_path / 'out.gpkg', batch_size=0)
    with pytest.raises(ValueError, match='chip_size must be at least 1'):
        model.classify_objects(raster, layer, tmp_path / 'out.gpkg', chip_size=0)
    with pytest.raises(MemoryError, match=r'16 chips of 1000000 x .* pass a smaller batch_size= or chip_size='):
        model.classify_objects(raster, layer, tmp_path / 'out.gpkg', chip_size=10**6)
    with pytest.raises(ArgumentError, match='dst holds a zero byte'):
        model.classify_objects(raster, layer, str(tmp_path / 'out\0.gpkg'))
    with pytest.raises(UnknownNameError, match='unknown sensor'):
        model.classify_objects(raster, layer, tmp_path / 'out.gpkg', sensor='no-such-sensor')
    assert not list(tmp_path.glob('*out*'))


def test_a_target_that_is_there_is_replaced_and_its_neighbours_stay(tmp_path):
    (tmp_path / 'out.tif').write_text('a raster of the same name')
    for count in (3, 1):
        write_layer(squares(*[(5 * i, 5) for i in range(count)]), tmp_path / 'out.shp')
    assert len(geopandas.read_file(tmp_path / 'out.shp')) == 1
    assert (tmp_path / 'out.tif').exists()
    assert not list(tmp_path.glob('.geolearn*'))


def test_geoparquet_keeps_its_crs(tmp_path):
    pytest.importorskip('pyarrow')
    assert geopandas.read_parquet(write_layer(squares((5, 5)), tmp_path / 'out.parquet')).crs == CRS


# -- where chips lie


def options(size=10, crop='fixed'):
    return PolygonOptions(size, crop)


@pytest.mark.parametrize(
    ('bounds', 'crop', 'window'),
    [
        ((20, 30, 24, 40), 'fixed', (17, 30, 10, 10)),
        ((-5, -5, 3, 3), 'fixed', (0, 0, 10, 10)),
        ((98, 45, 99, 49), 'fixed', (90, 40, 10, 10)),
        ((20.2, 30.7, 24.1, 33), 'bounding_box', (20, 30, 5, 3)),
        ((-5, 46, 3, 80), 'bounding_box', (0, 46, 3, 4)),
        ((0, 0, 60, 40), 'bounding_box', (25, 15, 10, 10)),
        ((20.5, 30.5, 20.5, 30.5), 'bounding_box', (20, 30, 1, 1)),
    ],
)
def test_chips_lie_as_the_export_puts_them(bounds, crop, window):
    ((row, found),) = chip_windows(np.array([bounds], float), (50, 100), options(crop=crop))
    assert row == 0
    assert (found.col_off, found.row_off, found.width, found.height) == window


def test_a_chip_is_no_larger_than_the_raster():
    ((_, found),) = chip_windows(np.array([[1.0, 1, 3, 3]]), (6, 8), options())
    assert (found.col_off, found.row_off, found.width, found.height) == (0, 0, 8, 6)


def test_bounds_are_in_pixels_and_nan_where_there_is_no_place():
    frame = squares((50, 20), side=4)
    frame.loc[1, 'geometry'] = None
    found = pixel_bounds(pixel_outlines(frame, GeoBox((120, 360), PLACE, CRS)))
    assert np.allclose(found[0], [48, 18, 52, 22])
    assert np.isnan(found[1]).all()


def test_several_classes_are_joined_and_the_least_certain_decision_counts():
    logits = np.log(np.array([[9, 1 / 4, 3], [1 / 9, 1 / 4, 1 / 9], [np.nan] * 3]))
    labels, confidences = name_rows(logits, ['a', 'b', 'c'], multi_label=True, threshold=0.5)
    assert labels == ['a;c', '', None]
    assert confidences[:2] == pytest.approx([75, 80])
    assert np.isnan(confidences[2])

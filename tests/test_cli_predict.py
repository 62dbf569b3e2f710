"""`geolearn predict` with every kind of model."""

import functools
import shutil

import geopandas
import pytest
import rasterio
import shapely

from geolearn.cli import main
from geolearn.synthetic import CLASSES

pytestmark = pytest.mark.usefixtures('one_thread')


def fails(capsys, *argv):
    """Run a command that must fail on purpose; returns what it says."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in argv])
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope='module')
def make_bundle(scene_files, scene_chips, tmp_path_factory):
    """Save an untrained model of a class, on chips of the scene that fit it."""
    import geolearn

    @functools.cache
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        chips = folder / 'chips'
        if name in ('ChangeDetector', 'DeepLab'):  # of two dates
            shutil.copytree(scene_chips, chips)
            shutil.copytree(chips / 'images', chips / 'images2')
        else:
            kind = {'FeatureClassifier': 'Labeled_Tiles', 'FasterRCNN': 'PASCAL_VOC_rectangles'}[name]
            options = {'classes': CLASSES, 'tile_size': 32, 'sensor': 'Sentinel-2'}
            geolearn.export_training_data(*scene_files, chips, kind, **options)
        kind = 'MultiTemporal_Tiles' if name == 'DeepLab' else None
        data = geolearn.prepare_data(chips, chip_size=32, batch_size=4, val_split_pct=0.25, dataset_type=kind)
        model = getattr(geolearn, name)(data, 'test_resnet', pretrained=False)
        return model.save(folder / 'm.dlpk')

    return make


@pytest.fixture
def parcels(scene_files, tmp_path):
    """A layer of two squares in the scene."""
    with rasterio.open(scene_files[0]) as src:
        west, north, pixel = src.transform.c, src.transform.f, src.transform.a
        squares = [shapely.box(west + pixel * x, north - pixel * 60, west + pixel * (x + 20), north - pixel * 40)
                   for x in (30, 70)]  # fmt: skip
        frame = geopandas.GeoDataFrame({'id': [1, 2]}, geometry=squares, crs=src.crs)
    frame.to_file(tmp_path / 'parcels.gpkg')
    return tmp_path / 'parcels.gpkg'


def test_detectors_write_a_layer(make_bundle, scene_files, tmp_path, capsys):
    dst = tmp_path / 'objects.gpkg'
    argv = ['predict', make_bundle('FasterRCNN'), scene_files[0], dst, '--tile-size', 128, '--threshold', 0.9]
    main([str(word) for word in argv])
    assert capsys.readouterr().out.startswith(f'wrote {dst} in ')
    assert {'Class', 'Confidence'} <= set(geopandas.read_file(dst).columns)


def test_detectors_take_how_to_merge_and_whether_to_resume(make_bundle, scene_files, tmp_path, monkeypatch, capsys):
    bundle, dst, taken = make_bundle('FasterRCNN'), tmp_path / 'objects.gpkg', []

    def note(self, src, dst, **options):
        taken.append(options)
        return dst

    with monkeypatch.context() as patch:
        patch.setattr('geolearn.models.object_detector.ObjectDetector.detect_objects', note)
        for more in ([], ['--merge', 'soft_nms', '--nms-overlap', '0.4', '--resume']):
            main([str(word) for word in ['predict', bundle, scene_files[0], dst, *more]])
    reading = {'bands': None, 'sensor': None, 'scale': None, 'offset': 0.0, 'resolution': None, 'nodata': None}
    reading['overwrite'] = False
    assert taken == [reading, reading | {'merge': 'soft_nms', 'nms_overlap': 0.4, 'resume': True}]
    assert 'there is no' in fails(capsys, 'predict', bundle, scene_files[0], dst, '--resume')
    assert "invalid choice: 'soft'" in fails(capsys, 'predict', bundle, scene_files[0], dst, '--merge', 'soft')
    argv = ['predict', bundle, scene_files[0], dst, '--tile-size', 128, '--threshold', 0.9, '--merge', 'weighted']
    main([str(word) for word in argv])
    assert dst.exists()
    assert not list(tmp_path.glob('*.part'))


def test_feature_classifiers_classify_polygons(make_bundle, scene_files, parcels, tmp_path):
    dst = tmp_path / 'named.geojson'
    argv = ['predict', make_bundle('FeatureClassifier'), scene_files[0], dst, '--polygons', parcels]
    main([str(word) for word in argv])
    named = geopandas.read_file(dst)
    assert len(named) == 2
    assert set(named['ClassLabel']) <= {info.name for info in CLASSES}


def test_change_detectors_take_two_rasters(make_bundle, scene_files, tmp_path):
    image = scene_files[0]
    main([str(word) for word in ['predict', make_bundle('ChangeDetector'), image, image, tmp_path / 'change.tif']])
    with rasterio.open(tmp_path / 'change.tif') as found:
        assert found.shape == (128, 128)


def test_the_dates_of_a_model_of_several_are_rasters_of_their_own(make_bundle, scene_files, tmp_path, capsys):
    image, several = scene_files[0], make_bundle('DeepLab')
    main([str(word) for word in ['predict', several, image, image, tmp_path / 'map.tif', '--batch-size', 2]])
    with rasterio.open(tmp_path / 'map.tif') as found:
        assert found.shape == (128, 128)
    capsys.readouterr()
    err = fails(capsys, 'predict', several, image, tmp_path / 'other.tif')
    assert 'takes 2 dates of 10 bands, found one raster of 10 bands' in err


@pytest.mark.parametrize(
    ('name', 'count', 'rest', 'said'),
    [
        ('FasterRCNN', 1, ['map.tif'], 'a FasterRCNN detects objects; map.tif should end in one of .gpkg, .geojson'),
        ('FasterRCNN', 1, ['x.gpkg', '--halo', '8'], '--halo does not apply to a FasterRCNN, which detects objects'),
        ('FasterRCNN', 1, ['x.gpkg', '--compile'], '--compile does not apply to a FasterRCNN'),
        ('FeatureClassifier', 1, ['x.gpkg', '--resume'], '--resume does not apply to a FeatureClassifier'),
        ('FeatureClassifier', 1, ['x.gpkg'], 'a FeatureClassifier classifies polygons; pass --polygons'),
        ('FeatureClassifier', 1, ['x.tif'], 'a FeatureClassifier classifies polygons; x.tif should end in one of'),
        ('ChangeDetector', 1, ['x.tif'], 'needs two rasters, before and after, got 1'),
        ('ChangeDetector', 2, ['x.gpkg'], 'a ChangeDetector maps what changed; x.gpkg should end in one of .tif'),
    ],
)
def test_models_and_targets_that_do_not_fit_are_told(make_bundle, scene_files, capsys, name, count, rest, said):
    assert said in fails(capsys, 'predict', make_bundle(name), *[scene_files[0]] * count, *rest)


def test_options_of_objects_do_not_apply_to_maps(make_bundle, scene_files, tmp_path, capsys):
    image = scene_files[0]
    err = fails(capsys, 'predict', make_bundle('DeepLab'), image, image, tmp_path / 'map.tif', '--threshold', '0.5')
    assert '--threshold does not apply to a DeepLab, which maps pixels' in err


def test_a_part_of_a_raster_is_mapped(make_bundle, scene_files, parcels, tmp_path, capsys):
    image, several = scene_files[0], make_bundle('DeepLab')
    frame = geopandas.read_file(parcels)
    frame.to_crs('EPSG:4326').to_file(tmp_path / 'area.geojson')
    box = [str(edge) for edge in frame.total_bounds]
    for area in (['--aoi', tmp_path / 'area.geojson'], ['--bbox', *box]):
        argv = ['predict', several, image, image, tmp_path / 'map.tif', '--overwrite', *area]
        main([str(word) for word in argv])
        with rasterio.open(tmp_path / 'map.tif') as found:
            assert abs(found.shape[0] - 20) <= 1
            assert abs(found.shape[1] - 60) <= 1
    capsys.readouterr()
    said = fails(capsys, 'predict', several, image, image, tmp_path / 'other.tif', '--bbox', 0, 0, 1, 1)
    assert '--bbox covers (0, 0, 1, 1)' in said

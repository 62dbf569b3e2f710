"""Pixels are classified in ArcGIS Pro as in geolearn."""

import json

import numpy as np
import pytest
import rasterio
import torch

from geolearn.arcgis import ClassifyPixels, DetectObjects
from geolearn.errors import BundleError, RasterError
from geolearn.models import ChangeDetector, UNet
from geolearn.models.bundling import inference_file
from geolearn.prepare import prepare_data

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture
def scene(scene_files):
    """Pixels (bands, height, width) of the scene, and where it has data."""
    with rasterio.open(scene_files[0]) as src:
        return src.read(), src.dataset_mask() > 0


def undecided(model):
    """Give an untrained model a last layer that finds every class somewhere."""
    torch.manual_seed(0)
    torch.nn.init.normal_(model.network.decoder.classifier.weight)
    torch.nn.init.zeros_(model.network.decoder.classifier.bias)
    return model


@pytest.fixture
def model(scene_data):
    return undecided(UNet(scene_data, 'test_resnet', pretrained=False))


def look_at_pixels(model):
    """Let the network see single pixels only, so that it does not matter how a raster is cut."""

    class PixelByPixel(torch.nn.Module):
        def __init__(self, normalise, classes):
            super().__init__()
            self.normalize, self.head = normalise, torch.nn.Conv2d(10, classes, 1)

        def forward(self, x):
            return self.head(self.normalize(x))

    return PixelByPixel(model.network.normalize, len(model.spec.class_infos)).eval()


@pytest.mark.parametrize('as_text', [False, True])
def test_one_block_is_what_predict_raster_gives(model, scene, scene_files, open_in_pro, tmp_path, as_text):
    pro = open_in_pro(model.save(tmp_path / 'm.dlpk'), as_text=as_text, padding=0, tile_size=128)
    assert pro.emd['InferenceFunction'] == 'GeolearnClassifyPixels.py'
    found, known, info = pro.map(*scene)
    with rasterio.open(model.predict_raster(scene_files[0], tmp_path / 'map.tif', tile_size=128, halo=0)) as src:
        expected = src.read(1)
    assert np.array_equal(found, expected)
    assert np.array_equal(known, expected != src.nodata)
    assert len(np.unique(found)) > 2
    assert (info['bandCount'], info['pixelType']) == (1, 'u1')


def test_blocks_lie_side_by_side_without_their_padding(model, scene, open_in_pro, tmp_path):
    pixels, valid = scene
    pro = open_in_pro(model.save(tmp_path / 'm.dlpk'), tile_size=48, padding=8)
    assert (pro.configuration['tx'], pro.configuration['padding']) == (32, 8)
    pro.function._model.network = network = look_at_pixels(model)
    found, known, _ = pro.map(pixels[:, :100, :120], valid[:100, :120])
    stored = torch.from_numpy(pixels[:, :100, :120].astype(np.float32))
    with torch.inference_mode():
        expected = np.array([info.value for info in model.spec.class_infos])[network(stored[None])[0].argmax(0)]
    assert np.array_equal(known, valid[:100, :120])
    assert np.array_equal(found[known], expected[known])


def test_what_the_user_is_asked_has_the_usual_values(model, open_in_pro, tmp_path):
    pro = open_in_pro(model.save(tmp_path / 'm.dlpk'))
    assert list(pro.parameters)[:3] == ['raster', 'model', 'device']
    assert [pro.parameters[name]['required'] for name in ('raster', 'model', 'device')] == [True, True, False]
    assert all(row['displayName'] and row['description'] for row in pro.parameters.values())
    assert pro.configuration == {
        'extractBands': tuple(range(10)),
        'padding': 32,
        'tx': 448,
        'ty': 448,
        'fixedTileSize': 1,
        'inheritProperties': 14,
        'inputMask': True,
    }


def test_the_attribute_table_names_the_classes(model, scene, open_in_pro, tmp_path):
    pro = open_in_pro(model.save(tmp_path / 'm.dlpk'))
    table = json.loads(pro.function.updateRasterInfo(output_info={})['output_info']['rasterAttributeTable'])
    rows = [feature['attributes'] for feature in table['features']]
    assert rows[0] == {'OID': 1, 'Value': 1, 'Class': 'water', 'Red': 46, 'Green': 116, 'Blue': 196}
    assert [row['Value'] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [field['name'] for field in table['fields']] == ['OID', 'Value', 'Class', 'Red', 'Green', 'Blue']


def test_the_function_without_a_model_waits(model, open_in_pro, tmp_path):
    function = ClassifyPixels()
    function.initialize()
    assert [row['name'] for row in function.getParameterInfo()] == ['raster', 'model', 'device']
    with pytest.raises(BundleError, match='no model is loaded; call initialize'):
        function.getConfiguration()


def test_a_bundle_of_another_kind_is_refused(model, open_in_pro, tmp_path):
    pro = open_in_pro(model.save(tmp_path / 'm.dlpk'))
    (emd,) = (tmp_path / 'unpacked').glob('*.emd')
    with pytest.raises(BundleError, match='DetectObjects does not run a UNet'):
        DetectObjects().initialize(model=str(emd))
    emd.write_text(json.dumps(pro.emd | {'ExtractBands': [0, 1]}))
    pro.function.initialize(model=str(emd))
    with pytest.raises(BundleError, match=r'ExtractBands in the .emd are \[0, 1\]; the model takes 10 bands: '):
        pro.function.getConfiguration()


def test_pixels_in_other_units_are_refused_unless_the_user_says_how_to_scale(model, scene, open_in_pro, tmp_path):
    path, (pixels, valid) = model.save(tmp_path / 'm.dlpk'), scene
    fractions = pixels.astype(np.float32) / 10_000
    with pytest.raises(RasterError, match='in other units than the training chips'):
        open_in_pro(path, tile_size=128).map(fractions, valid)
    scaled, _, _ = open_in_pro(path, scale=10_000, tile_size=128).map(fractions, valid)
    assert np.mean(scaled == open_in_pro(path, tile_size=128).map(pixels, valid)[0]) > 0.999
    open_in_pro(path, scale=1, tile_size=128).map(fractions, valid)


@pytest.mark.parametrize(
    ('scalars', 'message'),
    [
        ({'padding': 64, 'tile_size': 128}, 'padding must be at least 0 and under half of tile_size 128, got 64'),
        ({'tile_size': 'big'}, "tile_size must be a number, got 'big'"),
        ({'scale': 0}, 'scale must be a finite number other than 0'),
    ],
)
def test_arguments_that_make_no_sense_are_refused(model, open_in_pro, tmp_path, scalars, message):
    with pytest.raises(ValueError, match=message):
        open_in_pro(model.save(tmp_path / 'm.dlpk'), **scalars)


@pytest.fixture
def pairs(tmp_path, write_export, save):
    """Four pairs of chips with two kinds of change."""
    rng = np.random.default_rng(0)
    images = [rng.integers(1, 200, (3, 32, 32)).astype(np.uint8) for _ in range(4)]
    labels = [rng.integers(0, 3, (32, 32)).astype(np.uint8) for _ in range(4)]
    folder = write_export(tmp_path / 'pairs', images, labels, band_names=['Red', 'Green', 'Blue'])
    (folder / 'images2').mkdir()
    for path, image in zip(sorted((folder / 'images').iterdir()), images):
        save(folder / 'images2' / path.name, image[:, ::-1])
    return prepare_data(folder, chip_size=32, batch_size=2, val_split_pct=0.5, dataset_type='ChangeDetection')


def test_change_is_told_from_the_bands_of_both_dates(pairs, open_in_pro, tmp_path):
    model = undecided(ChangeDetector(pairs, 'test_resnet', pretrained=False))
    before, after = (np.random.default_rng(i).integers(1, 200, (3, 64, 64)).astype(np.uint8) for i in (1, 2))
    valid = np.ones((64, 64), bool)
    valid[:5] = False
    pro = open_in_pro(model.save(tmp_path / 'm.dlpk'), padding=0, tile_size=64)
    found, known, _ = pro.map(np.concatenate([before, after]), valid)
    dates = [np.where(valid, image, np.nan).astype(np.float32) for image in (before, after)]
    assert np.array_equal(found, model.predict(*dates))
    assert np.array_equal(known, valid)
    assert len(np.unique(found)) > 2


def test_a_regression_has_no_file_for_arcgis():
    assert inference_file('PixelRegression') is None

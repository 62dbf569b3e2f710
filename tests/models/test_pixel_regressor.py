"""Per-pixel regression: trained, evaluated, saved, mapped."""

import json

import numpy as np
import pytest
import rasterio
import torch

from geolearn.bundle import read_bundle, write_bundle
from geolearn.errors import BundleError, ChipFolderError
from geolearn.losses import RegressionLossOptions
from geolearn.models import PixelRegressor, UNet, load_model
from geolearn.prepare import prepare_data

NAMES = ['Red', 'Green', 'NIR']


def heights(image):
    """Metres of trees: the share of near infrared in the image (3, H, W), from 0 to 40."""
    red, _, infrared = image.astype(np.float32)
    return 40 * infrared / (infrared + red)


@pytest.fixture
def folder(tmp_path, write_export):
    rng = np.random.default_rng(0)
    images = [np.kron(rng.integers(1, 255, (3, 4, 4)), np.ones((1, 8, 8))).astype(np.uint8) for _ in range(12)]
    return write_export(tmp_path / 'heights', images, [heights(i) for i in images], classes=(), band_names=NAMES)


@pytest.fixture
def data(folder):
    return prepare_data(folder, chip_size=32, batch_size=4, val_split_pct=0.25, transforms=False)


def make(data, **options):
    torch.manual_seed(0)
    return PixelRegressor(data, 'resnet18', pretrained=False, **options)


@pytest.mark.parametrize(
    'loss', ['huber', pytest.param('mse', marks=pytest.mark.slow), pytest.param('l1', marks=pytest.mark.slow)]
)
def test_heights_are_learnt_saved_and_mapped(data, tmp_path, save, one_thread, loss):
    model = make(data, loss=RegressionLossOptions(loss=loss, delta=2.0))
    model.fit(8, lr=3e-3)
    found = model.scores()
    assert found['r2'] > 0.5
    assert found['rmse'] < data.target_statistics.std
    assert model.history.epochs[-1]['rmse'] == pytest.approx(found['rmse'], rel=1e-3)
    again = load_model(model.save(tmp_path / 'm.dlpk', compute_metrics=False))
    image = next(iter(data.valid_dl))[0]
    with torch.inference_mode():
        expected = model.network.eval()(image[:1])[0, 0]
        assert torch.allclose(again.network(image[:1])[0, 0], expected, atol=1e-4)
    pixels = image[0].numpy().astype(np.uint8)
    pixels[:, :3, :3] = 0
    save(tmp_path / 'scene.tif', pixels, names=NAMES, nodata=0)
    with rasterio.open(again.predict_raster(tmp_path / 'scene.tif', tmp_path / 'map.tif')) as dst:
        values = dst.read(1)
        assert dst.dtypes == ('float32',)
        assert np.isnan(dst.nodata)
    assert np.isnan(values[:3, :3]).all()
    assert np.isnan(values).sum() == 9
    assert np.corrcoef(values[8:, 8:].ravel(), expected.numpy()[8:, 8:].ravel())[0, 1] > 0.95


def test_untrained_predictions_are_about_the_mean(data):
    model = make(data)
    with torch.inference_mode():
        found = model.network.eval()(next(iter(data.valid_dl))[0])
    statistics = data.target_statistics
    assert abs(float(found.mean()) - statistics.mean) < 3 * statistics.std


def test_the_loss_does_not_depend_on_the_units(data):
    model = make(data)
    truth = next(iter(data.valid_dl))[1]
    off = truth[:, None] + data.target_statistics.std
    assert float(model.make_loss()(off, truth)) == pytest.approx(1, rel=1e-3)


def test_figures_are_drawn(data):
    assert make(data).show_results(rows=2).axes


def test_classes_are_no_numbers_and_numbers_no_classes(data, scene_data):
    with pytest.raises(ChipFolderError, match='PixelRegressor needs one value per pixel'):
        make(scene_data)
    with pytest.raises(ChipFolderError, match='UNet needs one class per pixel, but .* holds one value per pixel'):
        UNet(data, 'resnet18', pretrained=False)


@pytest.mark.parametrize('lie', [None, {'mean': 1.0}, {'mean': 'a', 'std': 1}, {'mean': 0, 'std': 0}, [1, 2]])
def test_a_manifest_with_an_odd_target_is_refused(data, tmp_path, lie):
    bundle = read_bundle(make(data).save(tmp_path / 'm.dlpk'))
    emd = json.loads(json.dumps(bundle.emd))
    emd['geolearn']['options']['target'] = lie
    write_bundle(tmp_path / 'odd.dlpk', type(bundle)(emd, bundle.weights))
    with pytest.raises(BundleError, match='mean and std of the target'):
        load_model(tmp_path / 'odd.dlpk')

"""Chips of several dates, from the folder to a saved model."""

import numpy as np
import pytest
import torch

from geolearn.errors import RasterError
from geolearn.models import DeepLab, load_model
from geolearn.prepare import prepare_data


@pytest.fixture
def folder(tmp_path, write_export, save):
    rng = np.random.default_rng(0)
    images = [rng.integers(1, 200, (3, 32, 32)).astype(np.uint8) for _ in range(4)]
    labels = [rng.integers(1, 3, (32, 32)).astype(np.uint8) for _ in range(4)]
    dated = {'geolearn': {'dates': ['2021-05-01', '2021-07-15']}}
    found = write_export(tmp_path / 'e', images, labels, band_names=['Red', 'Green', 'Blue'], emd=dated)
    (found / 'images2').mkdir()
    for path, image in zip(sorted((found / 'images').iterdir()), images):
        save(found / 'images2' / path.name, image[:, ::-1])
    return found


@pytest.mark.parametrize('temporal', ['mean', 'ltae'])
def test_a_model_of_two_dates_is_trained_saved_and_loaded(folder, tmp_path, one_thread, temporal):
    data = prepare_data(folder, chip_size=32, batch_size=2, val_split_pct=0.5, transforms=False)
    assert [day.isoformat() for day in data.acquired] == ['2021-05-01', '2021-07-15']
    images, _ = next(iter(data.valid_dl))
    assert images.shape == (2, 2, 3, 32, 32)
    model = DeepLab(data, 'dofa_tiny', pretrained=False, temporal=temporal)
    model.fit(1, lr=1e-4)
    again = load_model(model.save(tmp_path / 'm.dlpk'))
    assert (again.spec.dates, again.spec.temporal) == (2, temporal)
    with torch.inference_mode():
        assert torch.allclose(model.network.eval()(images), again.network.eval()(images), atol=1e-5)
    with pytest.raises(RasterError, match='rasters of several dates are not mapped yet'):
        again.predict_raster(folder / 'images' / '000000000000.tif', tmp_path / 'map.tif')

"""Chips of several dates, from the folder to a saved model."""

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

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
    again = load_model(model.save(tmp_path / 'm.dlpk', compute_metrics=False))
    assert (again.spec.dates, again.spec.temporal) == (2, temporal)
    with torch.inference_mode():
        assert torch.allclose(model.network.eval()(images), again.network.eval()(images), atol=1e-5)
    with pytest.raises(RasterError, match='takes 2 dates of 3 bands, found one raster of 3 bands'):
        again.predict_raster(folder / 'images' / '000000000000.tif', tmp_path / 'map.tif')


def expected_map(model, before, after):
    """Class values of two dates (bands, height, width), computed at once."""
    pair = torch.from_numpy(np.stack([before, after])[None].astype(np.float32))
    values = np.array([info.value for info in model.spec.class_infos])
    with torch.inference_mode():
        return values[model.network.eval()(pair)[0].argmax(0).numpy()]


def test_two_dates_are_mapped_from_two_files_or_from_one(folder, tmp_path, save, one_thread):
    data = prepare_data(folder, chip_size=32, batch_size=2, val_split_pct=0.5, transforms=False)
    model = DeepLab(data, 'dofa_tiny', pretrained=False)
    rng = np.random.default_rng(1)
    before, after = (rng.integers(1, 200, (3, 64, 64)).astype(np.uint8) for _ in range(2))
    names = ['Red', 'Green', 'Blue']
    save(tmp_path / 'a.tif', before, names=names)
    save(tmp_path / 'b.tif', after[::-1], names=names[::-1])
    save(tmp_path / 'both.tif', np.concatenate([before, after]))
    for src in ([tmp_path / 'a.tif', tmp_path / 'b.tif'], tmp_path / 'both.tif'):
        with rasterio.open(
            model.predict_raster(src, tmp_path / 'map.tif', tile_size=64, halo=0, overwrite=True)
        ) as dst:
            assert np.array_equal(dst.read(1), expected_map(model, before, after))


def test_a_pixel_needs_data_at_one_date(folder, tmp_path, save, one_thread):
    data = prepare_data(folder, chip_size=32, batch_size=2, val_split_pct=0.5, transforms=False)
    model = DeepLab(data, 'dofa_tiny', pretrained=False)
    pixels = np.full((3, 64, 64), 100, np.uint8)
    first, second = pixels.copy(), pixels.copy()
    first[:, :10], second[:, 5:15] = 0, 0
    for name, image in (('a', first), ('b', second)):
        save(tmp_path / f'{name}.tif', image, names=['Red', 'Green', 'Blue'], nodata=0)
    with rasterio.open(model.predict_raster([tmp_path / 'a.tif', tmp_path / 'b.tif'], tmp_path / 'map.tif')) as dst:
        rows = np.flatnonzero((dst.read(1) == dst.nodata).all(axis=1))
    assert rows.tolist() == list(range(5, 10))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'transform': Affine(10, 0, 3, 0, -10, 0)}, r'one is \+0.30 pixels across and \+0.00 down'),
        ({'crs': 'EPSG:32634'}, 'the rasters have different CRSs'),
        ({'shape': 48}, 'the rasters are of 64x64 and 48x48 pixels'),
    ],
)
def test_dates_that_do_not_lie_on_each_other_are_refused(folder, tmp_path, save, change, message):
    data = prepare_data(folder, chip_size=32, batch_size=2, val_split_pct=0.5, transforms=False)
    model = DeepLab(data, 'dofa_tiny', pretrained=False)
    names, side = ['Red', 'Green', 'Blue'], change.pop('shape', 64)
    save(tmp_path / 'a.tif', np.full((3, 64, 64), 100, np.uint8), names=names)
    save(tmp_path / 'b.tif', np.full((3, side, side), 100, np.uint8), names=names, **change)
    with pytest.raises(RasterError, match=message):
        model.predict_raster([tmp_path / 'a.tif', tmp_path / 'b.tif'], tmp_path / 'map.tif')
    with pytest.raises(RasterError, match='takes images of 2 dates, found 1 rasters'):
        model.predict_raster([tmp_path / 'a.tif'], tmp_path / 'map.tif')

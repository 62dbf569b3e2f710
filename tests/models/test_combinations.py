"""Options that users combine: maps of mosaics with resampling, named NoData and selected bands, against one forward."""

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from geolearn import FCN, export_training_data, from_rasters, load_model, prepare_data
from geolearn.synthetic import make_scene

USED = ['B08', 'B04', 'B02']


@pytest.fixture(scope='module')
def scene():
    return make_scene(64, seed=3, cloud_fraction=0, border=False)


@pytest.fixture
def place(scene):
    return {'crs': scene.crs, 'names': scene.band_names}


def cut(save, folder, pixels, place, **profile):
    """Write an image as two tiles, one above the other."""
    half, paths = pixels.shape[1] // 2, []
    for row in (0, half):
        lower = Affine(place.a, 0, place.c, 0, place.e, place.f + row * place.e)
        paths.append(save(folder / f'{row}.tif', pixels[:, row : row + half], transform=lower, **profile))
    return paths


def class_values(model, pixels, valid):
    """Class values of an image (bands, height, width), computed at once."""
    image = torch.from_numpy(pixels.astype(np.float32))
    image[:, ~torch.from_numpy(valid)] = torch.nan
    with torch.inference_mode():
        found = model.network.eval()(image[None])[0].argmax(0).numpy()
    return np.array([info.value for info in model.spec.class_infos])[found]


def test_named_nodata_selected_bands_and_a_mosaic(scene, save, tmp_path, place, one_thread):
    """Rows of NoData that no tag declares, and some in a band that is not used, through chips, bundle and map."""
    pixels = scene.image.copy()
    pixels[:, :10], pixels[3, 20:30] = 64999, 64999  # B05 is not used
    valid = np.ones(pixels.shape[1:], bool)
    valid[:10] = False
    image = save(tmp_path / 'image.tif', pixels, transform=scene.transform, **place)
    labels = save(tmp_path / 'labels.tif', scene.label, transform=scene.transform, crs=scene.crs)
    chips = export_training_data(image, labels, tmp_path / 'chips', tile_size=16)
    data = prepare_data(chips, chip_size=16, batch_size=4, nodata=64999, extract_bands=USED)
    wanted = {value: int((scene.label[10:] == value).sum()) for value in np.unique(scene.label)}
    assert {value: data.value_counts[value] for value in wanted} == wanted
    chosen = pixels[[6, 2, 0]]
    assert data.statistics.mean == pytest.approx(chosen[:, valid].mean(axis=1))
    torch.manual_seed(0)  # not what tests before it left
    model = load_model(FCN(data, 'test_resnet', pretrained=False).save(tmp_path / 'm.dlpk', compute_metrics=False))
    tiles = cut(save, tmp_path, pixels, scene.transform, **place)
    with rasterio.open(model.predict_raster(tiles, tmp_path / 'map.tif', nodata=64999)) as src:
        found = src.read(1)
        assert src.transform == scene.transform
    assert ((found == src.nodata) == ~valid).all()
    assert (found == class_values(model, chosen, valid))[valid].mean() > 0.999


def test_resolution_of_training_and_a_mosaic_of_finer_pixels(scene, save, tmp_path, place, one_thread):
    """A model of `from_rasters` knows its pixel size: tiles of half the size give the map of the scene itself."""
    image = save(tmp_path / 'image.tif', scene.image, transform=scene.transform, **place)
    labels = save(tmp_path / 'labels.tif', scene.label, transform=scene.transform, crs=scene.crs)
    data = from_rasters(image, labels, chip_size=16, batch_size=4, split='random', working_dir=tmp_path)
    model = load_model(FCN(data, 'test_resnet', pretrained=False).save(tmp_path / 'm.dlpk', compute_metrics=False))
    coarse = scene.transform
    finer = Affine(coarse.a / 2, 0, coarse.c, 0, coarse.e / 2, coarse.f)
    tiles = cut(save, tmp_path, scene.image.repeat(2, axis=1).repeat(2, axis=2), finer, **place)
    one = model.predict_raster(image, tmp_path / 'one.tif')
    many = model.predict_raster(tiles, tmp_path / 'many.tif', resolution='training')
    with rasterio.open(one) as src, rasterio.open(many) as other:
        assert src.transform == other.transform
        assert (src.read(1) == other.read(1)).all()


def test_a_running_mean_of_weights_and_several_dates(pairs_folder, save, tmp_path, one_thread):
    """The mean of the weights goes through checkpoint, bundle and the map of two rasters."""
    from geolearn.training import Callback

    class Stop(Callback):
        def before_batch(self):
            if self.learn.epoch == 1:
                raise KeyboardInterrupt

    def make(options):
        data = prepare_data(
            pairs_folder, chip_size=32, batch_size=7, dataset_type='MultiTemporal_Tiles', working_dir=tmp_path
        )
        model = FCN(data, 'test_resnet', pretrained=False, temporal='ltae')
        for each in options:
            try:
                model.fit(2, 1e-2, ema=True, seed=0, **each)
            except KeyboardInterrupt:
                model = FCN(data, 'test_resnet', pretrained=False, temporal='ltae')
        return model

    torch.manual_seed(0)
    whole = make([{}]).network.state_dict()
    torch.manual_seed(0)
    model = make([{'callbacks': [Stop()]}, {'resume': True}])
    assert all(torch.equal(tensor, whole[name]) for name, tensor in model.network.state_dict().items())
    again = load_model(model.save(tmp_path / 'm.dlpk', compute_metrics=False))
    dates = [pairs_folder / f'{name}/000000000.tif' for name in ('images', 'images2')]
    with rasterio.open(again.predict_raster(dates, tmp_path / 'map.tif', tile_size=32, halo=0)) as src:
        found = src.read(1)
    images = [rasterio.open(path).read() for path in dates]
    stacked = torch.from_numpy(np.stack(images).astype(np.float32))[None]
    with torch.inference_mode():
        wanted = model.network.eval()(stacked)[0].argmax(0).numpy()
    assert (found == np.array([info.value for info in model.spec.class_infos])[wanted]).mean() > 0.99


def test_selected_bands_and_class_weights(save, tmp_path, one_thread):
    """Pixels that only a band that is not used lacks count in the weights of the loss."""
    labels = np.repeat([[1, 1, 1, 2]], 16, axis=0).repeat(4, axis=1).astype(np.uint8)
    for index in range(4):
        pixels = np.random.default_rng(index).normal(0.2, 0.05, (3, 16, 16)).astype(np.float32)
        pixels[2, :, 4:] = np.nan
        for name, array in (('images', pixels), ('labels', labels[None])):
            (tmp_path / 'chips' / name).mkdir(parents=True, exist_ok=True)
            save(tmp_path / f'chips/{name}/{index}.tif', array, names=('red', 'green', 'nir')[: len(array)])
    data = prepare_data(tmp_path / 'chips', chip_size=16, batch_size=2, extract_bands=['red', 'green'])
    model = FCN(data, 'test_resnet', pretrained=False, class_balancing=True)
    logits, target = torch.randn(1, 2, 16, 16), torch.from_numpy(labels[None] - 1).long()
    found = model.learner.loss_func(logits, target).item()
    wanted = torch.nn.functional.cross_entropy(logits, target, weight=torch.tensor([1.0, 3.0])).item()
    assert found == pytest.approx(wanted, rel=1e-5)

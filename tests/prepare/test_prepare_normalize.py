"""Normalisation from prepare_data to the first layer of a network, a saved model and a map."""

import math
import struct

import numpy as np
import pytest
import torch

from geolearn.bundle import read_bundle
from geolearn.errors import BackboneError, BandError, ChipFolderError, UnknownNameError
from geolearn.models import DeepLab, load_model
from geolearn.networks.spec import ModelSpec
from geolearn.normalize import SPREAD_98, Normalization
from geolearn.prepare import prepare_data

pytestmark = pytest.mark.usefixtures('one_thread')
PLAIN = {'chip_size': 16, 'batch_size': 2, 'val_split_pct': 0.34, 'transforms': False}
NAMES = ['Red', 'Green', 'Blue']


@pytest.fixture
def export(write_export, tmp_path):
    """Write six chips of 16 pixels whose bands hold (6, bands, 16, 16) of something."""

    def make(pixels, *, names=NAMES, **options):
        labels = [np.random.default_rng(index).integers(1, 3, (16, 16)).astype(np.uint8) for index in range(6)]
        silent = {'emd': {'AllTilesStats': None}, 'stats': {'BandStatsState': None}}
        with np.errstate(invalid='ignore', over='ignore'):
            return write_export(tmp_path / 'e', list(pixels), labels, band_names=names, **silent, **options)

    return make


def noise(bands=3, *, dtype=np.uint8, low=10, high=200):
    return np.random.default_rng(1).integers(low, high, (6, bands, 16, 16)).astype(dtype)


def flat(pixels):
    return pixels.swapaxes(0, 1).reshape(pixels.shape[1], -1).astype(np.float64)


GIVEN = ((100.0, 90.0, 80.0), (20.0, 30.0, 40.0))
IMAGENET = (np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255)


def expected(kind, pixels):
    values = flat(pixels)
    low, middle, high = np.percentile(values, [2, 50, 98], axis=1)
    return {
        'dataset': (values.mean(axis=1), values.std(axis=1)),
        'minmax': (values.min(axis=1), np.ptp(values, axis=1)),
        'robust': (middle, (high - low) / SPREAD_98),
        'imagenet': IMAGENET,
        'given': GIVEN,
    }[kind]


@pytest.mark.parametrize('kind', ['dataset', 'minmax', 'robust', 'imagenet', 'given'])
def test_the_first_layer_does_it_through_saving_and_loading(export, tmp_path, kind):
    pixels = noise()
    data = prepare_data(export(pixels), **PLAIN, normalize=GIVEN if kind == 'given' else kind)
    mean, std = expected(kind, pixels)
    assert data.normalization.mean == pytest.approx(tuple(mean))
    assert data.normalization.std == pytest.approx(tuple(std))
    model = DeepLab(data, 'test_resnet', pretrained=False)
    assert model.spec.normalization == data.normalization
    image = next(iter(data.valid_dl))[0]
    wanted = (image - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(model.network.normalize(image), wanted.float(), atol=1e-4, rtol=1e-4)
    path = model.save(tmp_path / 'm.dlpk')
    assert read_bundle(path).manifest['normalization']['source'] == data.normalization.source
    loaded = load_model(path)
    assert loaded.spec.normalization == data.normalization
    torch.testing.assert_close(loaded.network.normalize(image), model.network.normalize(image))


@pytest.mark.parametrize('kind', ['minmax', 'robust'])
def test_a_map_is_what_the_network_says_of_stored_values(export, save, tmp_path, kind):
    from rasterio import open as open_plainly

    data = prepare_data(export(noise()), **PLAIN, normalize=kind)
    model = DeepLab(data, 'test_resnet', pretrained=False)
    scene = noise()[0]
    path = model.predict_raster(
        save(tmp_path / 'scene.tif', scene, names=NAMES), tmp_path / 'map.tif', tile_size=64, halo=8, device='cpu'
    )
    with torch.inference_mode(), open_plainly(path) as src:
        own = model.network.eval()(torch.tensor(scene[None]).float()).argmax(1)[0].numpy()
        assert (src.read(1) == np.array([1, 2])[own]).mean() > 0.9, 'only the margins of tiles may differ'


def test_a_manifest_of_before_means_mean_and_std_of_the_chips(export, tmp_path):
    model = DeepLab(prepare_data(export(noise()), **PLAIN), 'test_resnet', pretrained=False)
    manifest = model.spec.to_manifest()
    del manifest['normalization']
    assert ModelSpec.from_manifest(manifest) == model.spec
    manifest['statistics'] = manifest['statistics'] | {'std': (0.0, 1.0, 2.0)}
    found = ModelSpec.from_manifest(manifest).normalization
    assert found == Normalization(model.spec.statistics.mean, (1.0, 1.0, 2.0), 'mean and std of the chips')


def test_pretraining_is_left_to_the_backbone_and_refused_where_it_states_nothing(export):
    data = prepare_data(export(noise(4), names=[*NAMES, 'NIR']), **PLAIN, normalize='pretraining')
    assert data.normalization is None
    with pytest.raises(BackboneError, match="normalize='dataset'"):
        DeepLab(data, 'test_resnet', pretrained=False)


@pytest.mark.parametrize(
    ('kind', 'error', 'words'),
    [
        ('datset', UnknownNameError, "unknown normalization 'datset'; did you mean 'dataset'"),
        (((1, 2), (1, 1)), BandError, 'normalize has 2 means and 2 stds, but there are 3 bands'),
        (((1, 2, 3), (1, 1, 0)), BandError, 'stds over 0'),
        (((1, 2, math.nan), (1, 1, 1)), BandError, 'needed are finite numbers'),
        (None, TypeError, 'normalize must be one of'),
        (5, TypeError, r'or a pair \(means, stds\), got 5'),
    ],
)
def test_what_cannot_normalise_is_refused(export, kind, error, words):
    with pytest.raises(error, match=words):
        prepare_data(export(noise()), **PLAIN, normalize=kind)


def test_an_unknown_word_is_refused_before_chips_are_read(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown normalization 'min-max'"):
        prepare_data(tmp_path / 'nothing', normalize='min-max')


def test_imagenet_needs_colours_and_white(export):
    folder = export(noise(4, dtype=np.uint16), names=[*NAMES, 'NearInfrared'])
    with pytest.raises(BandError, match="'imagenet' needs the bands red, green and blue"):
        prepare_data(folder, **PLAIN, normalize='imagenet')
    with pytest.raises(BandError, match='needs to know which stored value is white, and uint16 does not tell'):
        prepare_data(folder, **PLAIN, normalize='imagenet', extract_bands=NAMES)


# --- bands of one value


@pytest.mark.parametrize('given', ['dataset', 'minmax', 'robust', ((1, 2, 3), (4, 5, 6)), ((1, 3), (4, 6))])
def test_a_band_of_one_value_is_dropped_with_a_word(export, caplog, given):
    pixels = noise()
    pixels[:, 1] = 7
    data = prepare_data(export(pixels), **PLAIN, normalize=given)
    note = "band 'Green' (7) holds one value in all chips; left out"
    assert note in data.notes
    assert note in caplog.text
    assert [band.name for band in data.bands] == ['Red', 'Blue']
    assert data.band_indexes == (0, 2)
    assert len(data.normalization.mean) == len(data.statistics.mean) == 2
    if not isinstance(given, str):
        assert (data.normalization.mean, data.normalization.std) == ((1, 3), (4, 6))
    for position, (image, _) in zip(data.split.valid, data.valid_ds):
        assert (image.numpy() == pixels[position][[0, 2]]).all()


def test_bands_of_one_value_alone_are_refused(export):
    pixels = noise()
    pixels[:, 1] = 7
    with pytest.raises(
        ChipFolderError, match=r"band 'Green' \(7\) holds one value .* nothing can be learned from .*/e"
    ):
        prepare_data(export(pixels), **PLAIN, extract_bands=['Green'])


# --- what is no data


@pytest.mark.parametrize('hole', [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_count_for_nothing(export, hole):
    pixels = noise(dtype=np.float32) / 1000
    holed = pixels.copy()
    holed[:, 0, :3, :3] = hole
    pixels = np.where(np.isfinite(holed).all(axis=1, keepdims=True), pixels, np.nan)
    data = prepare_data(export(holed), **PLAIN)
    assert data.statistics.mean == pytest.approx(tuple(np.nanmean(flat(pixels), axis=1)), rel=1e-5)
    assert data.normalization.std == pytest.approx(tuple(np.nanstd(flat(pixels), axis=1)), rel=1e-4)
    assert sum(data.value_counts.values()) == 6 * (256 - 9)
    image, mask = data.valid_ds[0]
    assert image[:, :3, :3].isnan().all()
    assert (mask[:3, :3] == 255).all()
    model = DeepLab(data, 'test_resnet', pretrained=False)
    assert (model.network.normalize(image[None])[:, :, :3, :3] == 0).all()


def test_nodata_counts_for_nothing_whatever_the_normalization(export):
    pixels = noise(dtype=np.int16)
    pixels[:, :, :2] = -9999
    folder = export(pixels, image_profile={'nodata': -9999})
    for kind in ('dataset', 'minmax', 'robust'):
        found = prepare_data(folder, **PLAIN, normalize=kind).normalization
        assert min(found.mean) >= 10
        assert max(found.std) < 200


def test_a_band_without_any_data_is_left_out_and_noted(export):
    pixels = noise(dtype=np.float32)
    pixels[:, 1] = np.nan
    folder = export(pixels)
    data = prepare_data(folder, **PLAIN)
    assert [band.name for band in data.bands] == ['Red', 'Blue']
    assert "band 'Green' is NoData in all chips and is left out" in data.notes
    assert len(prepare_data(folder, **PLAIN, extract_bands=['Red', 'Blue']).bands) == 2


# --- radar


@pytest.mark.parametrize(
    ('low', 'high', 'words'),
    [(-2500, -200, 'bands VV, VH are in dB'), (1, 50, 'bands VV, VH are linear')],
)
def test_radar_says_its_scale(export, low, high, words):
    pixels = noise(2, dtype=np.float32, low=low, high=high) / 100
    data = prepare_data(export(pixels, names=['VV', 'VH']), **PLAIN)
    assert all(band.is_radar for band in data.bands)
    assert any(note.startswith(words) for note in data.notes)


@pytest.mark.parametrize(
    ('scale', 'words'), [(3e-3, 'optical bands look like reflectance 0..1'), (20, 'look like reflectance x 10000')]
)
def test_reflectance_says_its_scale(export, scale, words):
    pixels = (noise(dtype=np.float32) * scale).astype(np.float32 if scale < 1 else np.uint16)
    assert any(words in note for note in prepare_data(export(pixels), **PLAIN).notes)


def test_huge_values_are_data(export):
    pixels = noise(dtype=np.float32)
    pixels[0, 0, 0, 0] = struct.unpack('<f', struct.pack('<f', 1e30))[0]
    data = prepare_data(export(pixels), **PLAIN, normalize='robust')
    assert data.normalization.std[0] < 200
    assert np.isfinite(data.statistics.std).all()

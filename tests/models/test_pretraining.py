"""normalize='pretraining': the statistics of a backbone's weights, in the units of the chips."""

import logging

import numpy as np
import pytest

from geolearn.backbones.catalog import get_record
from geolearn.bands import Band, get_bands
from geolearn.errors import BackboneError
from geolearn.models import DeepLab
from geolearn.models.new_spec import pretraining_normalization
from geolearn.prepare import prepare_data

PRITHVI = ('B02', 'B03', 'B04', 'B8A', 'B11', 'B12')
LAND = {'B02': 0.05, 'B03': 0.08, 'B04': 0.09, 'B05': 0.12, 'B08': 0.3, 'B8A': 0.32, 'B11': 0.25, 'B12': 0.15}
"""Reflectance of some green land."""


@pytest.fixture
def prepare(write_export, tmp_path):
    """Prepare chips of given pixel values, normalized as in pretraining."""

    def make(pixels, bands):
        label = np.resize(np.array([[1, 2]], np.uint8), pixels[0].shape[1:])
        folder = write_export(
            tmp_path / f'export{len(list(tmp_path.iterdir()))}',
            pixels,
            [label] * len(pixels),
            emd={'AllTilesStats': None},
        )
        options = {'chip_size': 16, 'batch_size': 2, 'val_split_pct': 0.34, 'transforms': False}
        return prepare_data(folder, **options, bands=list(bands), normalize='pretraining')

    return make


def land(bands, scale, dtype, seed=0):
    """Six chips of land, with bright spots that tell reflectance, in stored units."""
    rng = np.random.default_rng(seed)
    level = np.array([LAND[band.name] for band in bands])[:, None, None]
    chips = []
    for _ in range(6):
        chip = level * rng.uniform(0.5, 1.5, (len(bands), 16, 16))
        chip[:, :2, :3] = 0.6
        chips.append((chip * scale).astype(dtype))
    return chips


def decibels(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(-15, 3, (count, 16, 16)).astype(np.float32) for _ in range(6)]


@pytest.mark.parametrize(
    ('scale', 'dtype'), [(1, 'float32'), (1000, 'uint16'), (10_000, 'uint16'), (10_000, 'float32')]
)
@pytest.mark.parametrize('name', ['prithvi_v2_300M', 'prithvi'])
def test_prithvi_takes_reflectance_in_any_of_its_forms(prepare, scale, dtype, name):
    bands = get_bands('sentinel2_l2a', PRITHVI)
    found = pretraining_normalization(prepare(land(bands, scale, dtype), bands), bands, name)
    mean, std = {
        'prithvi_v2_300M': ([1087, 1342, 1433, 2734, 1958, 1363], [2248, 2179, 2178, 1850, 1242, 1049]),
        'prithvi': ([775, 1081, 1229, 2497, 2204, 1611], [1282, 1270, 1399, 1368, 1292, 1155]),
    }[name]
    assert found.mean == pytest.approx([value * scale / 10_000 for value in mean])
    assert found.std == pytest.approx([value * scale / 10_000 for value in std])
    assert found.source.startswith(f"sentinel2_l2a's mean and std of the pretraining of {name}")


def test_bands_are_matched_by_what_they_are_whatever_their_order(prepare):
    bands = get_bands('sentinel2_l2a', PRITHVI[::-1])
    found = pretraining_normalization(prepare(land(bands, 10_000, 'uint16'), bands), bands, 'prithvi_v2_300M')
    assert found.mean == (1363, 1958, 2734, 1433, 1342, 1087)


@pytest.mark.parametrize(('scale', 'dtype'), [(1, 'float32'), (1000, 'int16'), (10_000, 'uint16')])
def test_dofa_takes_reflectance_as_if_255_were_1_and_says_so(prepare, caplog, scale, dtype):
    bands = get_bands('sentinel2_l2a', ['B04', 'B03', 'B02', 'B08'])
    data = prepare(land(bands, scale, dtype), bands)
    with caplog.at_level(logging.WARNING, 'geolearn'):
        found = pretraining_normalization(data, bands, 'dofa_base')
    mean = [114.1099739, 114.81779093, 126.63977424, 101.435633]
    assert found.mean == pytest.approx([value * scale / 255 for value in mean])
    assert 'taken as if 255 were reflectance 1' in found.source
    assert 'taken as if 255 were reflectance 1' in caplog.text


def test_dofa_takes_8_bit_images_as_they_are(prepare, caplog):
    bands = get_bands('sentinel2_l2a', ['B04', 'B03', 'B02'])
    data = prepare(land(bands, 255, 'uint8'), bands)
    found = pretraining_normalization(data, bands, 'dofa_base')
    assert found.mean == (114.1099739, 114.81779093, 126.63977424)
    aerial = get_bands('naip', ['Red', 'Green', 'Blue'])
    assert pretraining_normalization(data, aerial, 'dofa_base').mean == (123.675, 116.28, 103.53)
    assert 'if 255' not in caplog.text


def test_the_network_gets_them(prepare, small_dofa):
    bands = get_bands('sentinel2_l2a', ['B04', 'B03', 'B02', 'B08'])
    data = prepare(land(bands, 10_000, 'uint16'), bands)
    model = DeepLab(data, 'dofa_tiny', pretrained=False)
    assert model.network.normalize.mean.flatten().tolist() == pytest.approx(list(model.spec.normalization.mean))
    assert model.spec.normalization.mean[0] == pytest.approx(114.1099739 * 10_000 / 255)


def test_terramind_embeds_colours_alone_as_a_picture(prepare):
    rgb = get_bands('sentinel2_l2a', ['B04', 'B03', 'B02'])
    more = get_bands('sentinel2_l2a', ['B04', 'B03', 'B02', 'B08'])
    record = get_record('terramind_base')
    found = pretraining_normalization(prepare(land(rgb, 255, 'uint8'), rgb), rgb, 'terramind_base')
    assert found.mean == (87.271, 80.931, 66.667)
    found = pretraining_normalization(prepare(land(more, 10_000, 'uint16'), more), more, 'terramind_base')
    assert found.mean == tuple(record.inputs[0].mean[i] for i in (3, 2, 1, 7))


@pytest.mark.parametrize(
    ('names', 'mean'), [(('VV', 'VH'), (-12.599, -20.293)), (('Gamma0_VH', 'Gamma0_VV'), (-17.329, -10.93))]
)
def test_radar_in_decibels_takes_statistics_in_decibels(prepare, names, mean):
    bands = [Band(name, None, name[-2:].lower(), True) for name in names]
    found = pretraining_normalization(prepare(decibels(2), bands), bands, 'terramind_base')
    assert found.mean == mean


def test_optical_and_radar_bands_are_served_apart(prepare):
    bands = [*get_bands('sentinel1', ['VV']), *get_bands('sentinel2_l2a', ['B04', 'B03', 'B02', 'B08'])]
    optical = land(bands[1:], 1, 'float32')
    pixels = [np.concatenate(pair) for pair in zip(decibels(1), optical)]
    found = pretraining_normalization(prepare(pixels, bands), bands, 'terramind_base')
    assert found.mean[0] == -12.599
    assert found.mean[1] == pytest.approx(0.185391)
    assert found.source.count('mean and std') == 2


@pytest.mark.parametrize(
    ('backbone', 'mean'),
    [('resnet18', 0.485), ('torchvision:resnet18', 0.485), ('vit_small_patch16_224', 0.5), ('vit_base', 0.5)],
)
@pytest.mark.parametrize(('scale', 'dtype'), [(255, 'uint8'), (10_000, 'uint16')])
def test_networks_of_photographs_serve_red_green_and_blue(prepare, backbone, mean, scale, dtype):
    bands = get_bands('sentinel2_l2a', ['B02', 'B04', 'B03'])
    found = pretraining_normalization(prepare(land(bands, scale, dtype), bands), bands, backbone)
    assert found.mean[1] == pytest.approx(mean * scale)


def test_what_cannot_be_matched_is_refused_with_the_way_out(prepare):
    six, four = get_bands('sentinel2_l2a', PRITHVI), get_bands('sentinel2_l2a', ['B04', 'B03', 'B02', 'B08'])
    odd = get_bands('sentinel2_l2a', ['B04', 'B05'])
    radar = get_bands('sentinel1', ['VV', 'VH'])
    linear = [10 ** (chip / 10) for chip in decibels(2)]
    unknown = [np.full((4, 16, 16), 30_000, np.uint16) + i * np.eye(16, dtype=np.uint16) for i in range(6)]
    for pixels, bands, backbone, words in (
        (land(four, 1e4, 'uint16'), four, 'resnet18', "the weights of resnet18 state no mean and std for 'B04', 'B03'"),
        (
            land(odd, 1e4, 'uint16'),
            odd,
            'prithvi',
            "the weights of prithvi state no mean and std for 'B04', 'B05' together",
        ),
        (land(six, 255, 'uint8'), six, 'prithvi', 'state them in reflectance x 10000, and .* are 8-bit images'),
        (unknown, four, 'dofa_base', 'are in units that were not recognized'),
        (land(four, 1e4, 'uint16'), four, 'panopticon', 'panopticon state no mean and std'),
        (
            land(four, 1e4, 'uint16'),
            four,
            'satlas_tiny',
            'state them in 0-255 .B04, B03, B02, of the true color image',
        ),
        (decibels(2), radar, 'dofa_base', "state them in 0-255, and 'VV', 'VH' are dB"),
        (linear, radar, 'terramind_base', r"state them in dB, ground range \(GRD\) or .* 'VV', 'VH' are linear"),
    ):
        data = prepare(pixels, bands)
        with pytest.raises(BackboneError, match=words) as caught:
            pretraining_normalization(data, bands, backbone)
        assert str(caught.value).startswith("normalize='pretraining' was asked for, but ")
        assert str(caught.value).endswith("pass normalize='dataset' to prepare_data")


def test_weights_of_another_model_have_statistics_of_their_own(prepare):
    bands = get_bands('sentinel2_l2a', PRITHVI)
    with pytest.raises(
        BackboneError, match='lc.dlpk is a model of geolearn, which was not trained with the statistics'
    ):
        DeepLab(prepare(land(bands, 1e4, 'uint16'), bands), 'prithvi', weights='lc.dlpk')

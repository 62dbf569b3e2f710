"""Arguments of `create_backbone`: bands by sensor and by name, and words for what is not valid."""

from datetime import date

import numpy as np
import pytest
import torch

from geolearn.backbones import create_backbone
from geolearn.bands import Band, get_bands
from geolearn.errors import BackboneError, BandError, UnknownNameError

pytestmark = pytest.mark.usefixtures('small_dofa')


def waves(bands, **options):
    return create_backbone('dofa_base', bands, pretrained=False, **options).trunk.patch_embed.wavelengths_um


def test_a_sensor_stands_for_all_its_bands():
    assert waves('sentinel2_l2a') == tuple(band.wavelength_um for band in get_bands('sentinel2_l2a'))
    assert waves('Sentinel-2') == waves('sentinel2_l2a')


def test_names_are_those_of_a_sensor_or_of_any():
    expected = tuple(band.wavelength_um for band in get_bands('landsat8', ['B4', 'B2']))
    assert waves(['B4', 'B2'], sensor='landsat8') == waves(('B4', 'B2'), sensor='Landsat 8') == expected
    assert waves('B4', sensor='landsat8') == expected[:1]
    assert waves(Band('x', 0.7)) == (0.7,)
    red, nir, own = waves(['red', 'nir', Band('mine', 1.2)])
    assert 0.6 < red < 0.7 < nir < 0.9 < own == 1.2


@pytest.mark.parametrize(
    ('bands', 'options', 'error', 'message'),
    [
        (4, {}, BandError, r"bands must be a sensor such as 'sentinel2_l2a', a list of band names.*, got 4"),
        (None, {}, BandError, 'bands must be a sensor .*, got None'),
        ([0.665, 0.56], {}, BandError, 'bands must be a sensor .*, got list'),
        (torch.zeros(3), {}, BandError, 'bands must be a sensor .*, got Tensor'),
        ([], {}, BandError, 'dofa_base needs at least one band, got none'),
        ('sentinel2_l2', {}, UnknownNameError, "sensor 'sentinel2_l2'.*sentinel2_l2a"),
        (['B4', 'B99'], {'sensor': 'landsat8'}, UnknownNameError, "'B99'"),
        (['B4', 'B2'], {}, BandError, r"the names \['B4', 'B2'\] do not say which bands they are; pass sensor= "),
        ([Band('x', 0.7)], {'sensor': 'landsat8'}, BandError, 'sensor goes with the names of bands'),
        ('landsat8', {'weights': {}}, ValueError, 'weights must be a path to a file or folder, got dict'),
        ('landsat8', {'window': '14'}, ValueError, "window must be None, 0 .*, got '14'"),
        ('landsat8', {'drop_path': '0.1'}, ValueError, "drop_path must lie in 0..1, got '0.1'"),
        ('landsat8', {'strides': 4}, ValueError, 'strides must be None or a list of whole numbers, got 4'),
        ('landsat8', {'layers': [1.5]}, ValueError, 'layers must be None or a list of whole numbers'),
        ('landsat8', {'form': 3}, ValueError, 'form must be .*, got 3'),
        ('landsat8', {'pretrained': 'yes'}, ValueError, "pretrained must be True or False, got 'yes'"),
        ('landsat8', {'dates': 'two'}, ValueError, "dates must be a number of at least 1, .*, got 'two'"),
        ('landsat8', {'dates': 1.5}, ValueError, 'dates must be a number of at least 1'),
        ('landsat8', {'dates': []}, ValueError, 'dates must be a number of at least 1'),
        ('landsat8', {'resolution_m': '10'}, ValueError, "resolution_m must be above 0 meters per pixel, got '10'"),
    ],
)
def test_wrong_types_and_values_are_answered_in_words(bands, options, error, message):
    with pytest.raises(error, match=message):
        create_backbone('dofa_base', bands, **{'pretrained': False, **options})


@pytest.mark.parametrize('name', [None, 3, torch.nn.Identity()])
def test_a_name_of_another_type_too(name):
    with pytest.raises(BackboneError, match="name must be that of a backbone, such as 'dofa_base'"):
        create_backbone(name, 'landsat8')


def test_numbers_of_numpy_are_numbers():
    net = create_backbone(
        'dofa_base', 'landsat8', pretrained=False, strides=np.array([4, 16]).tolist(), window=np.int64(0)
    )
    assert net.strides == (4, 16)
    assert create_backbone('dofa_base', 'landsat8', pretrained=False, dates=[date(2024, 5, 1)]).name == 'dofa_base'

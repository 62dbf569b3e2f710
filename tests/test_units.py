import numpy as np
import pytest

from geolearn.bands import Band, get_bands
from geolearn.errors import ChipFolderError
from geolearn.raster import read_image
from geolearn.statistics import find_percentiles
from geolearn.units import (
    check_radar_scales,
    compare_units,
    radar_note,
    radar_scale,
    reflectance_note,
    reflectance_scale,
    typical_values,
)

REFLECTANCE = ([0.08, 0.1, 0.25], [0.03, 0.04, 0.1])
NAMES = ['Blue', 'Red', 'NIR']


def judge(values, statistics=REFLECTANCE):
    return compare_units(values, *statistics, NAMES)


@pytest.mark.parametrize('factor', [1e4, 255, 1e-4, 1 / 255])
def test_reflectance_in_other_units_is_far_in_both_directions(factor):
    assert judge(np.multiply(REFLECTANCE[0], factor)).far


def test_another_season_is_neither_far_nor_odd():
    verdict = judge([0.05, 0.06, 0.4])
    assert (verdict.far, verdict.odd) == (False, False)


def test_a_tenth_in_every_band_is_odd_but_may_be_so():
    verdict = judge(np.multiply(REFLECTANCE[0], 0.1))
    assert (verdict.far, verdict.odd) == (False, True)


def test_one_band_of_three_may_differ():
    assert not judge([0.08, 0.1, 250.0]).far


def test_open_sea_is_not_taken_for_other_units():
    assert not judge([0.04, 0.015, 0.008]).far


def test_decibels_around_zero_are_judged_by_distance_alone():
    statistics = ([-0.2, -12.0, 0.1], [5.0, 5.0, 5.0])
    assert not judge([-4.0, -20.0, 0.0], statistics).odd
    assert judge([900.0, 900.0, 900.0], statistics).far


def test_constant_training_bands_do_not_divide_by_zero():
    assert not judge([0.0, 0.0, 0.0], ([0.0] * 3, [0.0] * 3)).far


def test_the_table_names_each_band_with_both_values():
    assert judge([1, 2, 3]).table.startswith('Blue 1 (trained on 0.08 ± 0.03), Red 2')


def test_an_untagged_border_of_zeros_does_not_count():
    sample = np.array([[0, 0, 0, 5, 7], [0, 0, 0, 0, 9]])
    assert typical_values(sample).tolist() == [6.0, 4.5]
    assert typical_values(np.zeros((2, 4))) is None
    assert typical_values(np.empty((2, 0))) is None


# --- radar

VV_VH = (Band('VV', None, 'vv', is_radar=True), Band('VH', None, 'vh', is_radar=True))


def percentiles_of(pixels):
    return find_percentiles(pixels.reshape(len(pixels), -1))


def backscatter(seed=0):
    """Power of two bands, speckled, with a few bright towers."""
    rng = np.random.default_rng(seed)
    power = rng.gamma(4, 1 / 4, (2, 60, 60)) * np.array([0.08, 0.015])[:, None, None]
    power[:, 0, :5] = 30
    return power


@pytest.mark.parametrize('seed', range(4))
def test_radar_is_recognized_in_dB_linear_and_digital_numbers(seed):
    power = backscatter(seed)
    stored = {
        'dB': (10 * np.log10(power), 'float32'),
        'linear': (power, 'float32'),
        'amplitude': ((np.sqrt(power) * 800).astype(np.uint16), 'uint16'),
    }
    for scale, (pixels, dtype) in stored.items():
        assert radar_scale(percentiles_of(pixels), VV_VH, dtype=dtype) == scale
    assert radar_scale(percentiles_of(np.sqrt(power)), VV_VH, dtype='float32') == 'linear'


def test_radar_in_other_units_is_not_guessed():
    decibels = 10 * np.log10(backscatter())
    hundredths = (decibels * 100).astype(np.int16)
    assert radar_scale(percentiles_of(hundredths), VV_VH, dtype='int16') is None
    assert radar_scale(percentiles_of(np.zeros((2, 4, 4))), VV_VH, dtype='float32') is None
    standardised = (decibels - decibels.mean()) / decibels.std()
    assert radar_scale(percentiles_of(standardised), VV_VH, dtype='float32') is None
    mixed = np.stack([decibels[0], backscatter()[1]])
    assert radar_scale(percentiles_of(mixed), VV_VH, dtype='float32') is None


def test_optical_bands_beside_radar_do_not_count():
    pixels = np.concatenate([10 * np.log10(backscatter()), np.full((1, 60, 60), 3000.0)])
    bands = (*VV_VH, Band('NIR', 0.84, 'nir'))
    assert radar_scale(percentiles_of(pixels), bands, dtype='float32') == 'dB'
    assert radar_scale(percentiles_of(pixels[2:]), bands[2:], dtype='float32') is None


def test_what_radar_bands_are_in_is_said():
    assert radar_note('dB', (*VV_VH, Band('NIR', 0.84))) == 'bands VV, VH are in dB'
    assert radar_note('linear', VV_VH[:1]) == 'band VV is linear (power or amplitude around 0..1)'
    assert 'not recognized' in radar_note(None, VV_VH)
    assert radar_note(None, (Band('NIR', 0.84),)) is None


def test_folders_in_dB_and_linear_are_not_mixed():
    check_radar_scales({'a': 'dB', 'b': 'dB', 'c': None})
    check_radar_scales({})
    words = (
        r'different units: a is in dB; c is linear \(power .*\). Convert them to one, e.g. dB = 10 \* log10\(power\)'
    )
    with pytest.raises(ChipFolderError, match=words):
        check_radar_scales({'a': 'dB', 'b': None, 'c': 'linear'})


# --- reflectance

LAND = {'blue': 0.05, 'green': 0.08, 'red': 0.07, 'nir': 0.3}
BANDS = tuple(Band(name, wave, name) for name, wave in zip(LAND, (0.49, 0.56, 0.665, 0.84)))


def land(seed=0):
    return np.random.default_rng(seed).gamma(6, 1 / 6, (4, 50, 50)) * np.array(list(LAND.values()))[:, None, None]


@pytest.mark.parametrize(
    ('factor', 'dtype', 'scale'),
    [(1, 'float32', 1), (1000, 'uint16', 1000), (1e4, 'int16', 10000), (255, 'uint8', 255)],
)
def test_what_stands_for_full_reflectance_is_recognized(factor, dtype, scale):
    pixels = np.clip(land() * factor, 0, 255 if dtype == 'uint8' else None).astype(dtype)
    assert reflectance_scale(percentiles_of(pixels), BANDS, dtype=dtype) == scale


def test_reflectance_is_not_guessed_over_water_or_in_digital_numbers():
    water = np.random.default_rng(0).gamma(6, 1 / 6, (4, 50, 50)) * np.array([[0.06, 0.04, 0.02, 0.01]]).T[:, :, None]
    assert reflectance_scale(percentiles_of(water * 1e4), BANDS, dtype='uint16') is None
    landsat = (land() + 0.2) / 2.75e-5
    assert reflectance_scale(percentiles_of(landsat), BANDS, dtype='uint16') is None
    assert reflectance_scale(percentiles_of(land()), [Band(name) for name in LAND], dtype='float32') is None


def test_what_was_recognized_is_said_as_a_likeness():
    assert reflectance_note(1) == 'optical bands look like reflectance 0..1'
    assert reflectance_note(10000) == 'optical bands look like reflectance x 10000'
    assert reflectance_note(255) == 'optical bands hold 8-bit values, 0..255'
    assert reflectance_note(None) is None


# --- real images


def real_percentiles(*paths):
    pixels = [read_image(path) for path in paths]
    masks = [mask for _, mask, _ in pixels if mask is not None]
    block = np.concatenate([image for image, _, _ in pixels])
    valid = np.isfinite(block).all(axis=0) & np.logical_and.reduce([np.ones(block.shape[1:], bool), *masks])
    return find_percentiles(block[:, valid]), str(block.dtype)


@pytest.mark.real_data
def test_sentinel_1_of_terramesh_and_bigearthnet_is_in_dB(shared):
    for path in sorted((shared / 'data/terramesh/S1RTC').glob('*.tif')):
        found, dtype = real_percentiles(path)
        assert radar_scale(found, VV_VH, dtype=dtype) == 'dB'
    vv, vh = (next((shared / 'data/bigearthnet/v2/BigEarthNet-S1').rglob(f'*_{name}.tif')) for name in ('VV', 'VH'))
    found, dtype = real_percentiles(vv, vh)
    assert radar_scale(found, VV_VH, dtype=dtype) == 'dB'


@pytest.mark.real_data
def test_sentinel_2_of_two_providers_is_told_apart(shared):
    names = 'B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B11 B12'.split()
    for path in sorted((shared / 'data/terramesh/S2L2A').glob('*.tif')):
        found, dtype = real_percentiles(path)
        assert reflectance_scale(found, get_bands('sentinel2_l2a', names), dtype=dtype) == 10000
    found, dtype = real_percentiles(shared / 'data/aberystwyth_s2/sen2_20210527_aber_subset.tif')
    ten = get_bands('sentinel2_l2a', [name for name in names if name not in ('B1', 'B9')])
    assert reflectance_scale(found, ten, dtype=dtype) == 1000

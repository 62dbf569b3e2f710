import functools
import itertools

import numpy as np
import pytest

from geolearn.bands import Band, get_bands
from geolearn.errors import ChipFolderError
from geolearn.raster import read_image
from geolearn.statistics import BandStatistics, Percentiles, find_percentiles
from geolearn.units import (
    check_radar_scales,
    compare_units,
    radar_note,
    radar_scale,
    reflectance_note,
    reflectance_scale,
    to_decibels,
    typical_values,
)

REFLECTANCE = ([0.08, 0.1, 0.25], [0.03, 0.04, 0.1])
VISIBLE_NIR = (Band('Blue', 0.49), Band('Red', 0.665), Band('NIR', 0.84))


def check(values, statistics=REFLECTANCE, bands=VISIBLE_NIR):
    """Compare single values with means and stds of training chips."""
    mean, std = (np.array(column) for column in statistics)
    trained = BandStatistics(*(tuple(column.tolist()) for column in (mean - 3 * std, mean + 4 * std, mean, std)))
    return compare_units(Percentiles(*[tuple(map(float, values))] * 3), trained, bands)


@pytest.mark.parametrize('factor', [1e4, 255, 1e-4, 1 / 255])
def test_reflectance_in_other_units_is_far_in_both_directions(factor):
    assert check(np.multiply(REFLECTANCE[0], factor)).far


def test_another_season_is_neither_far_nor_odd():
    verdict = check([0.05, 0.06, 0.4])
    assert (verdict.far, verdict.odd) == (False, False)


def test_a_tenth_in_every_band_is_odd_but_may_be_so():
    verdict = check(np.multiply(REFLECTANCE[0], 0.1))
    assert (verdict.far, verdict.odd) == (False, True)


def test_one_band_of_three_may_differ():
    assert not check([0.08, 0.1, 250.0]).far


def test_open_sea_is_not_taken_for_other_units():
    assert not check([0.04, 0.015, 0.008]).far


def test_decibels_around_zero_are_judged_by_distance_alone():
    statistics, bands = ([-0.2, -12.0, 0.1], [5.0, 5.0, 5.0]), [Band('a'), Band('b'), Band('c')]
    assert not check([-4.0, -20.0, 0.0], statistics, bands).odd
    assert check([900.0, 900.0, 900.0], statistics, bands).far


def test_constant_training_bands_do_not_divide_by_zero():
    assert not check([0.0, 0.0, 0.0], ([0.0] * 3, [0.0] * 3)).far


def test_the_table_names_each_band_with_both_values():
    assert check([1, 2, 3]).table.startswith('Blue 1 (trained on 0.08 ± 0.03), Red 2')


def test_an_untagged_border_of_zeros_does_not_count():
    sample = np.array([[0, 0, 0, 5, 7], [0, 0, 0, 0, 9]])
    assert typical_values(sample).median == (6.0, 4.5)
    assert typical_values(np.zeros((2, 4))) is None
    assert typical_values(np.empty((2, 0))) is None


VV_VH = (Band('VV', None, 'vv', is_radar=True), Band('VH', None, 'vh', is_radar=True))

# --- distributions

SIX = tuple(
    Band(name, wave, name)
    for name, wave in zip(['blue', 'green', 'red', 'nir', 'swir16', 'swir22'], [0.49, 0.56, 0.665, 0.84, 1.61, 2.2])
)
SUBSETS = {'six': [0, 1, 2, 3, 4, 5], 'rgb': [2, 1, 0], 'rgbn': [2, 1, 0, 3], 'false color': [3, 2, 1], 'nir': [3]}
SPECTRA = {
    'plants': [0.035, 0.06, 0.045, 0.35, 0.2, 0.1],
    'soil': [0.08, 0.11, 0.14, 0.22, 0.3, 0.25],
    'roofs': [0.12, 0.14, 0.15, 0.2, 0.22, 0.2],
    'water': [0.05, 0.045, 0.03, 0.01, 0.005, 0.003],
    'clouds': [0.62, 0.6, 0.6, 0.65, 0.45, 0.35],
    'snow': [0.85, 0.85, 0.84, 0.75, 0.08, 0.06],
    'sea': [0.04, 0.03, 0.012, 0.006, 0.003, 0.002],
}
MIXES = {
    'mixed': {'plants': 0.5, 'soil': 0.25, 'roofs': 0.15, 'water': 0.1},
    'forest': {'plants': 0.96, 'soil': 0.02, 'water': 0.02},
    'farms': {'plants': 0.5, 'soil': 0.5},
    'city': {'plants': 0.2, 'soil': 0.2, 'roofs': 0.55, 'water': 0.05},
    'desert': {'soil': 1.0},
}
OTHER_SCENES = {
    'clouds': {'clouds': 1.0},
    'snow': {'snow': 1.0},
    'sea': {'sea': 1.0},
    'half clouds': {'plants': 0.3, 'soil': 0.2, 'clouds': 0.5},
    'half sea': {'plants': 0.3, 'soil': 0.2, 'sea': 0.5},
}


@functools.cache
def scene_of(name, seed, count=3000):
    """Reflectances (6, n) of pixels of a mixture, lit and noisy."""
    mix, rng = (MIXES | OTHER_SCENES)[name], np.random.default_rng(seed)
    spectra = np.array([SPECTRA[part] for part in mix])[rng.choice(len(mix), count, p=list(mix.values()))].T
    return np.maximum(spectra * rng.gamma(16, 1 / 16, count) * (1 + 0.1 * rng.standard_normal((6, count))), 1e-4)


def statistics_of(pixels):
    columns = (pixels.min(1), pixels.max(1), pixels.mean(1), pixels.std(1))
    return BandStatistics(*(tuple(column.tolist()) for column in columns))


def compare(pixels, trained, bands):
    return compare_units(typical_values(pixels), statistics_of(trained), bands)


@pytest.mark.parametrize('subset', SUBSETS)
@pytest.mark.parametrize('white', [1, 1000, 10_000])
def test_seasons_clouds_snow_water_and_dead_bands_are_no_other_units(subset, white):
    rows = SUBSETS[subset]
    bands = tuple(SIX[row] for row in rows)
    wrong = []
    for name in MIXES:
        trained = scene_of(name, 3)[rows] * white
        scenes = {f'{other} x {light}': scene_of(other, 7) * light for other in MIXES for light in (0.5, 1, 1.6)}
        scenes |= {other: scene_of(other, 8) for other in OTHER_SCENES}
        if len(rows) > 2:
            scenes['a dead band'] = scene_of(name, 9).copy()
            scenes['a dead band'][rows[1]] = 0
        wrong += [
            (name, other) for other, pixels in scenes.items() if compare(pixels[rows] * white, trained, bands).far
        ]
    assert not wrong


@pytest.mark.parametrize('subset', ['six', 'rgb', 'rgbn', 'false color'])
@pytest.mark.parametrize('white', [1, 1000, 10_000])
@pytest.mark.parametrize('factor', [1e-4, 1e-3, 1e-2, 0.1, 10, 100, 1000, 10_000])
def test_the_same_land_in_other_units_is_refused_with_the_scale_to_pass(subset, white, factor):
    rows = SUBSETS[subset]
    bands = tuple(SIX[row] for row in rows)
    for name in MIXES:
        trained, pixels = scene_of(name, 3)[rows] * white, scene_of(name, 7)[rows] * white
        found = compare(pixels * factor, trained, bands)
        assert found.far
        assert found.scale == pytest.approx(1 / factor)
        assert f'pass scale={1 / factor:.6g}' in found.hint
        assert not compare(pixels * factor * found.scale, trained, bands).far


@pytest.mark.parametrize('factor', [1e-4, 0.1, 10, 1e4])
@pytest.mark.parametrize('name', MIXES)
def test_one_band_in_other_units_is_odd_and_named(name, factor):
    trained, pixels = scene_of(name, 3)[:3], scene_of(name, 7)[:3].copy()
    pixels[1] *= factor
    verdict = compare(pixels, trained, SIX[:3])
    assert verdict.odd
    assert verdict.far or f'differs in {SIX[1].name} as' in verdict.hint


def test_negative_reflectance_is_far_and_a_negative_band_is_odd():
    pixels = scene_of('mixed', 7)[:3]
    assert compare(-pixels, scene_of('mixed', 3)[:3], SIX[:3]).far
    verdict = compare(pixels * [[1], [-1], [1]], scene_of('mixed', 3)[:3], SIX[:3])
    assert (verdict.far, verdict.odd) == (False, True)
    assert SIX[1].name in verdict.hint


@pytest.mark.parametrize('factor', [0.01, 0.1, 10, 100])
def test_other_land_in_other_units_never_goes_unnoticed(factor):
    for rows in SUBSETS.values():
        for name in MIXES:
            pixels, trained = scene_of(name, 7)[rows] * factor, scene_of('mixed', 3)[rows]
            assert compare(pixels, trained, tuple(SIX[row] for row in rows)).odd


@pytest.mark.parametrize(
    ('trained', 'stored', 'words'),
    [
        (1, lambda land: land * 1e4, 'looks like reflectance x 10000; pass scale=0.0001'),
        (1e4, lambda land: land, 'looks like reflectance 0..1; pass scale=10000'),
        (1e4, lambda land: land * 1000, 'looks like reflectance x 1000; pass scale=10'),
        (1, lambda land: land * 255, 'looks like 8-bit values; pass scale=0.00392157'),
        (1, lambda land: (land + 0.2) / 2.75e-5, 'Collection 2 digital numbers; pass scale=2.75e-05, offset=-0.2'),
        (1e4, lambda land: (land + 0.2) / 2.75e-5, 'Collection 2 digital numbers; pass scale=0.275, offset=-2000'),
    ],
)
def test_units_are_named(trained, stored, words):
    found = compare(stored(scene_of('mixed', 7)), scene_of('mixed', 3) * trained, SIX)
    assert found.far
    assert words in found.hint


RADAR_SCENES = {'land': [0.1, 0.02], 'sea': [0.004, 0.0006], 'calm sea': [0.001, 0.0003], 'city': [0.5, 0.1]}


@pytest.mark.parametrize('scene', RADAR_SCENES)
@pytest.mark.parametrize('count', [1, 2])
def test_radar_in_dB_and_linear_power_are_told_apart_whatever_they_show(scene, count):
    power = [np.random.default_rng(k).gamma(4, 0.25, (2, 4000)) for k in range(2)]
    trained, pixels = power[0] * [[0.08], [0.015]], power[1] * np.array(RADAR_SCENES[scene])[:, None]
    trained, pixels, bands = trained[:count], pixels[:count], VV_VH[:count]
    assert not compare(pixels, trained, bands).far
    assert not compare(to_decibels(pixels), to_decibels(trained), bands).far
    found = compare(pixels, to_decibels(trained), bands)
    assert (found.far, found.scale) == (True, 'db')
    assert "look like linear power, the training chips like dB; pass scale='db'" in found.hint
    reverse = compare(to_decibels(pixels), trained, bands)
    assert reverse.far
    assert 'are in dB, the training chips linear' in reverse.hint
    assert compare(np.sqrt(pixels) * 800, to_decibels(trained), bands).far


def test_optical_bands_beside_radar_are_compared_by_themselves():
    bands, radar = (*SIX[:4], *VV_VH), np.random.default_rng(0).gamma(4, 0.25, (2, 3000)) * [[0.08], [0.015]]
    trained = np.concatenate([scene_of('mixed', 3)[:4], to_decibels(radar)])
    for name in ('clouds', 'sea', 'half clouds'):
        optical = scene_of(name, 8)[:4]
        assert not compare(np.concatenate([optical, to_decibels(radar)]), trained, bands).far
        assert compare(np.concatenate([optical, radar]), trained, bands).scale == 'db'
    assert compare(np.concatenate([scene_of('mixed', 8)[:4] * 1e4, to_decibels(radar)]), trained, bands).far


def test_nearly_empty_scenes_are_compared_by_what_is_there():
    trained, pixels = scene_of('mixed', 3), np.zeros((6, 4000))
    pixels[:, :5] = scene_of('farms', 4)[:, :5]
    assert not compare(pixels, trained, SIX).far
    assert typical_values(np.zeros((6, 100))) is None


# --- radar


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


@pytest.mark.real_data
def test_real_scenes_are_no_other_units_for_one_another_and_factors_are_noticed(shared):
    names = 'B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B11 B12'.split()
    optical = [read_image(path)[0].reshape(12, -1) for path in sorted((shared / 'data/terramesh/S2L2A').glob('*.tif'))]
    radar = [read_image(path)[0].reshape(2, -1) for path in sorted((shared / 'data/terramesh/S1RTC').glob('*.tif'))]
    bands = get_bands('sentinel2_l2a', names)
    assert optical
    assert radar
    for trained, pixels in itertools.product(optical, optical):
        assert not compare(pixels, trained, bands).far
        assert all(compare(pixels * factor, trained, bands).odd for factor in (1e-4, 1e-3, 0.1, 10))
    for trained, pixels in itertools.product(radar, radar):
        assert not compare(pixels, trained, VV_VH).far
        assert compare(10 ** (pixels / 10), trained, VV_VH).scale == 'db'


def test_typical_values_of_large_samples_are_those_of_a_part_of_each_column():
    columns = np.tile(np.arange(1, 129, dtype=np.float32), 4096)
    found = typical_values(np.stack([columns, 2 * columns]))
    whole = np.percentile(columns, [2, 50, 98])
    assert np.allclose(found.median, [whole[1], 2 * whole[1]], rtol=0.02)
    assert np.allclose(found.high, [whole[2], 2 * whole[2]], rtol=0.02)

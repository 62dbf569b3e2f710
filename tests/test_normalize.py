import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.bands import Band, get_bands
from geolearn.errors import BandError, UnknownNameError
from geolearn.normalize import (
    KINDS,
    Normalization,
    check_normalize,
    choose_normalization,
    match_pretraining,
    zero_range_bands,
    zero_range_note,
)
from geolearn.statistics import BandStatistics, Percentiles, RunningStatistics, find_percentiles

RGB = (Band('Red', 0.665, 'red'), Band('Green', 0.56, 'green'), Band('Blue', 0.49, 'blue'))


def gathered(pixels):
    running = RunningStatistics()
    running.add(pixels)
    return running.result(), find_percentiles(pixels.reshape(len(pixels), -1))


def applied(pixels, norm):
    return (pixels - np.array(norm.mean)[:, None, None]) / np.array(norm.std)[:, None, None]


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([0.0, -20.0, 3000.0]), st.floats(0.01, 500))
def test_data_have_mean_0_and_std_1_by_dataset_and_lie_in_0_to_1_by_minmax(seed, level, spread):
    pixels = np.random.default_rng(seed).normal(level, spread, (3, 20, 20))
    statistics, percentiles = gathered(pixels)
    options = {'dtype': 'float64', 'bands': RGB, 'percentiles': percentiles}
    scaled = applied(pixels, choose_normalization('dataset', statistics, **options))
    assert scaled.mean(axis=(1, 2)) == pytest.approx([0] * 3, abs=1e-6)
    assert scaled.std(axis=(1, 2)) == pytest.approx([1] * 3)
    scaled = applied(pixels, choose_normalization('minmax', statistics, **options))
    assert scaled.min(axis=(1, 2)) == pytest.approx([0] * 3, abs=1e-9)
    assert scaled.max(axis=(1, 2)) == pytest.approx([1] * 3)


def test_a_hot_pixel_does_not_change_robust_normalization():
    pixels = np.random.default_rng(0).normal(1000, 100, (3, 100, 100))
    hot = pixels.copy()
    hot[0, 0, 0] = 1e6
    cool_norm, hot_norm = (
        choose_normalization('robust', statistics, dtype='float64', bands=RGB, percentiles=percentiles)
        for statistics, percentiles in (gathered(pixels), gathered(hot))
    )
    assert hot_norm.mean == pytest.approx(cool_norm.mean, rel=1e-3)
    assert hot_norm.std == pytest.approx([100] * 3, rel=0.05)
    assert applied(pixels, hot_norm).std() == pytest.approx(1, abs=0.05)
    assert choose_normalization('dataset', gathered(hot)[0], dtype='float64', bands=RGB).std[0] > 1000


def test_a_band_of_rare_values_falls_back_to_its_mean_and_std_and_says_so():
    pixels = np.random.default_rng(0).normal(0, 1, (3, 50, 50))
    pixels[1] = 0
    pixels[1, 0, :10] = 5
    statistics, percentiles = gathered(pixels)
    norm = choose_normalization('robust', statistics, dtype='float64', bands=RGB, percentiles=percentiles)
    assert (norm.mean[1], norm.std[1]) == (statistics.mean[1], statistics.std[1])
    assert norm.source.endswith("(mean and std for 'Green', whose percentiles are equal)")


def test_robust_needs_percentiles():
    with pytest.raises(BandError, match="normalize='robust' needs percentiles of the chips"):
        choose_normalization('robust', STATISTICS, dtype='uint8', bands=RGB)


# --- ImageNet

STATISTICS = BandStatistics((0,) * 3, (255,) * 3, (100,) * 3, (30,) * 3)


def test_imagenet_follows_the_colors_and_not_their_positions():
    norm = choose_normalization('imagenet', STATISTICS, dtype='uint8', bands=RGB[::-1])
    assert norm.mean == pytest.approx([0.406 * 255, 0.456 * 255, 0.485 * 255])
    assert norm.std == pytest.approx([0.225 * 255, 0.224 * 255, 0.229 * 255])
    by_wavelength = (Band('a', 0.482), Band('b', 0.561), Band('c', 0.654))
    assert choose_normalization('imagenet', STATISTICS, dtype='uint8', bands=by_wavelength) == norm


@pytest.mark.parametrize(
    'bands',
    [
        RGB[:2],
        (*RGB, Band('NIR', 0.84, 'nir')),
        (Band('NIR', 0.84, 'nir'), *RGB[:2]),
        (RGB[0], RGB[0], RGB[2]),
        (Band('1'), Band('2'), Band('3')),
        (Band('VV', is_radar=True), *RGB[1:]),
        (Band('Red edge', 0.69, 'rededge'), *RGB[1:]),
    ],
)
def test_imagenet_is_refused_for_other_bands(bands):
    statistics = BandStatistics(*((value,) * len(bands) for value in (0, 255, 100, 30)))
    with pytest.raises(
        BandError, match=r'needs the bands red, green and blue, found \[.*select them with extract_bands'
    ):
        choose_normalization('imagenet', statistics, dtype='uint8', bands=bands)


def test_imagenet_needs_to_know_what_is_white():
    words = r'uint16 does not tell; pass normalize=\(\(0.485 \* s, 0.456 \* s, 0.406 \* s\), \(0.229 \* s'
    with pytest.raises(BandError, match=words):
        choose_normalization('imagenet', STATISTICS, dtype='uint16', bands=RGB)
    norm = choose_normalization('imagenet', STATISTICS, dtype='uint16', bands=RGB, full_scale=10000)
    assert norm.mean == pytest.approx([4850, 4560, 4060])
    assert norm.source == 'ImageNet, where 10000 is white'


# --- bands of one value


def test_bands_of_one_value_are_found_told_and_never_divided_by():
    statistics = BandStatistics((0, 7, float('nan')), (255, 7, float('nan')), (100, 7, float('nan')), (30, 0, 0))
    assert zero_range_bands(statistics) == (1, 2)
    assert (
        zero_range_note(statistics.select([0, 1]), RGB[:2]) == "band 'Green' (7) holds one value in all chips; left out"
    )
    assert zero_range_note(statistics, RGB).startswith("bands 'Green' (7), 'Blue' (nan) hold one value")
    assert zero_range_note(STATISTICS, RGB) is None
    for kind in ('dataset', 'minmax', 'robust'):
        with pytest.raises(BandError, match=r"bands \['Green', 'Blue'\] hold one value in all chips"):
            choose_normalization(kind, statistics, dtype='uint8', bands=RGB)


# --- given by the user, or by the weights


def test_means_and_stds_are_taken_as_given():
    norm = choose_normalization(([1, 2, 3], np.array([4, 5, 6])), STATISTICS, dtype='uint8', bands=RGB)
    assert (norm.mean, norm.std) == ((1, 2, 3), (4, 5, 6))


@pytest.mark.parametrize(
    ('pair', 'words'),
    [
        (([1, 2], [1, 2]), 'has 2 means and 2 stds, but there are 3 bands'),
        (([1, 2, 3], [1, 2]), 'has 3 means and 2 stds, but there are 3 bands'),
        (([1, 2, 3], [1, 0, 2]), 'needed are finite numbers, and stds over 0'),
        (([1, 2, 3], [1, -1, 2]), 'needed are finite numbers, and stds over 0'),
        (([1, 2, float('nan')], [1, 1, 2]), 'needed are finite numbers, and stds over 0'),
        (([1, 2, 3], [1, 1, float('inf')]), 'needed are finite numbers, and stds over 0'),
    ],
)
def test_means_and_stds_that_cannot_be_used_are_refused(pair, words):
    with pytest.raises(BandError, match=words):
        check_normalize(pair, 3)


@pytest.mark.parametrize('kind', [None, 5, ([1],), 'ab,cd'.split(','), ([1, 2, 'x'], [1, 1, 1])])
def test_what_is_no_normalization_is_a_type_error(kind):
    with pytest.raises(TypeError, match=r'normalize must be one of .* or a pair \(means, stds\)'):
        check_normalize(kind, 3)


def test_words_are_checked_before_chips_are_read():
    for kind in KINDS:
        check_normalize(kind, 3)
    with pytest.raises(UnknownNameError, match="unknown normalization 'datset'; did you mean 'dataset'"):
        check_normalize('datset', 3)


def test_pretraining_takes_what_the_weights_state():
    with pytest.raises(BandError, match="normalize='pretraining' needs weights that state the mean and std"):
        choose_normalization('pretraining', STATISTICS, dtype='uint8', bands=RGB)
    trained = get_bands('sentinel2_l2a', ['B2', 'B3', 'B4'])
    norm = match_pretraining(
        RGB, trained_bands=trained, mean=[51, 102, 153], std=[5.1, 10.2, 15.3], trained_scale=255, full_scale=10000
    )
    assert norm.mean == pytest.approx([6000, 4000, 2000])
    assert norm.std == pytest.approx([600, 400, 200])
    assert choose_normalization('pretraining', STATISTICS, dtype='uint16', bands=RGB, pretraining=norm) is norm


def test_a_band_that_pretraining_never_saw_is_refused():
    options = {'trained_bands': RGB[:2], 'mean': [1, 2], 'std': [1, 2], 'trained_scale': 1}
    with pytest.raises(BandError, match="no bands fit 'Blue'"):
        match_pretraining(RGB, full_scale=1, **options)
    with pytest.raises(BandError, match='scales must be over 0, got 1 and 0'):
        match_pretraining(RGB[:2], full_scale=0, **options)
    with pytest.raises(BandError, match='found 2 means and 2 stds of 3 trained bands'):
        match_pretraining(RGB, full_scale=1, **options | {'trained_bands': RGB})


def test_a_normalization_without_bands_is_none():
    with pytest.raises(BandError, match='has 0 means and 0 stds'):
        Normalization((), (), 'nothing')


def test_percentiles_are_selected_with_their_bands():
    assert Percentiles((1, 2), (3, 4), (5, 6)).select([1]) == Percentiles((2,), (4,), (6,))

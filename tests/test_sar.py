from datetime import date

import numpy as np
import pytest

from geolearn.errors import BandError
from geolearn.sar import log_ratio, seasonal_stack, to_decibels, to_linear

YEAR = [date(2020, month, 15) for month in (1, 4, 7, 10, 12)]


def test_decibels_and_power_are_inverse():
    power = np.array([1, 10, 0.001, 0], np.float32)
    assert np.allclose(to_decibels(power)[:3], [0, 10, -30])
    assert np.isnan(to_decibels(power)[3])
    assert np.allclose(to_linear(to_decibels(power[:3])), power[:3])


def test_the_ratio_of_polarizations_is_the_same_in_both_units():
    vv, vh = np.array([0.2, 0.05]), np.array([0.02, np.nan])
    assert np.allclose(log_ratio(vv, vh, decibels=False), [10, np.nan], equal_nan=True)
    both = log_ratio(to_decibels(vv), to_decibels(vh), decibels=True)
    assert np.allclose(both, [10, np.nan], atol=1e-5, equal_nan=True)
    with pytest.raises(ValueError, match='must be of one grid'):
        log_ratio(vv, vh[:1], decibels=False)


def test_a_year_becomes_twelve_channels():
    power = [np.full((2, 3, 3), 0.1 * (number + 1), np.float32) for number in range(5)]
    for image in power:
        image[1] /= 10
    power[4][0, 0, 0] = np.nan  # of December, which January stands in for
    power[2][:, 1, 1] = np.nan  # of the only summer image
    stack, names = seasonal_stack(power, YEAR, decibels=False)
    assert (stack.shape, names[:4]) == ((12, 3, 3), ('VV winter', 'VH winter', 'VV/VH winter', 'VV spring'))
    assert np.allclose(stack[:3, 1, 1], [10 * np.log10(0.3), 10 * np.log10(0.03), 10], atol=1e-4)
    assert np.allclose(stack[0, 0, 0], 10 * np.log10(0.1), atol=1e-4)
    assert np.isnan(stack[6:9, 1, 1]).all()
    again, _ = seasonal_stack([to_decibels(image) for image in power], YEAR, decibels=True)
    assert np.allclose(again, stack, atol=1e-4, equal_nan=True)


def test_what_makes_no_stack_is_refused():
    images = [np.ones((2, 3, 3), np.float32)] * 4
    with pytest.raises(ValueError, match='no image was taken in winter'):
        seasonal_stack(images[:3], YEAR[1:4], decibels=False)
    with pytest.raises(BandError, match='VV before VH'):
        seasonal_stack([np.ones((3, 3, 3))] * 4, YEAR[:4], decibels=False)
    with pytest.raises(ValueError, match='4 images and 5 dates'):
        seasonal_stack(images, YEAR, decibels=False)

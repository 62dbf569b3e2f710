import numpy as np
import pytest

from geolearn.units import compare_units, typical_values

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

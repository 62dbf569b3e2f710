"""First convolutions carried over to other bands."""

import pytest
import torch

from geolearn.backbones.building import RGB, adapt_input_kernel
from geolearn.bands import Band, get_bands
from geolearn.errors import BandError

WEIGHT = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)


def adapted(*bands):
    kernel, report = adapt_input_kernel(WEIGHT, RGB, bands)
    return kernel.flatten().tolist(), report


def test_the_same_bands_keep_their_kernels_bit_for_bit():
    weight = torch.randn(8, 3, 7, 7)
    assert torch.equal(adapt_input_kernel(weight, RGB, RGB)[0], weight)


def test_bands_are_matched_by_what_they_are_and_never_by_position():
    blue, green, red = get_bands('sentinel2', ['B02', 'B03', 'B04'])
    kernel, report = adapted(blue, green, red)
    assert kernel == [3, 2, 1]
    assert report.exact == ('B02', 'B03', 'B04')
    assert report.unused == ()


def test_absent_bands_are_left_out_and_the_rest_scaled():
    kernel, report = adapted(Band('red'), Band('blue'))
    assert kernel == [1.5, 4.5]
    assert report.unused == ('green',)
    assert report.scale == 1.5


def test_extra_bands_take_the_nearest_wavelength():
    kernel, report = adapted(*RGB, Band('nir', 0.842, 'nir'))
    assert kernel == [0.75, 1.5, 2.25, 0.75]
    assert str(report) == 'red <- red, green <- green, blue <- blue, nir <- red (nearest wavelength); kernels x 0.75'


@pytest.mark.parametrize('band', [Band('slope'), Band('VV', is_radar=True)])
def test_bands_of_unknown_wavelength_take_the_mean(band):
    kernel, report = adapted(band)
    assert kernel == [6]
    assert f'{band.name} <- mean of all (wavelength unknown)' in str(report)


def test_the_response_to_a_flat_image_keeps_its_scale():
    torch.manual_seed(0)
    weight = torch.randn(512, 3, 7, 7)
    kernel, _ = adapt_input_kernel(weight, RGB, get_bands('sentinel2'))
    assert float(kernel.sum(1).std()) == pytest.approx(float(weight.sum(1).std()), rel=0.6)
    flat, _ = adapt_input_kernel(torch.ones(4, 3, 7, 7), RGB, get_bands('sentinel2'))
    torch.testing.assert_close(flat.sum((1, 2, 3)), torch.full((4,), 147.0))


def test_kernels_of_another_depth_are_refused():
    with pytest.raises(BandError, match='does not fit 3 source bands'):
        adapt_input_kernel(torch.ones(1, 4, 1, 1), RGB, RGB)
    with pytest.raises(BandError, match='at least one band'):
        adapt_input_kernel(WEIGHT, RGB, [])

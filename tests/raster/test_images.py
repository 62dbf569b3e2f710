import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.raster import GeoBox
from geolearn.raster.images import find_template, write_image

PLACES = {
    'north-up': Affine(10, 0, 400000, 0, -10, 5400000),
    'turned': Affine(8, 6, 400000, 6, -8, 5400000),
    'south-up': Affine(10, 0, 400000, 0, 10, 5400000),
}


@pytest.mark.parametrize('place', [*PLACES, None])
@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'uint16', 'float32', 'float64'])
@settings(max_examples=6)
@given(data=st.data())
def test_a_file_made_from_a_template_is_what_gdal_would_read_back(tmp_path_factory, place, dtype, data):
    bands, height, width = (data.draw(st.integers(1, most)) for most in (5, 40, 40))
    nodata = data.draw(st.sampled_from([None, 0, 7]))
    folder = tmp_path_factory.mktemp('template')
    names = [f'band {index}' for index in range(bands)]
    for number in range(2):  # the second comes from the template of the first
        pixels = np.random.default_rng(number).integers(0, 100, (bands, height, width)).astype(dtype)
        shift = Affine.translation(1000 * number, 5 * number)
        transform = None if place is None else Affine(*(shift @ PLACES[place])[:6])
        box = None if transform is None else GeoBox((height, width), transform, 'EPSG:32633')
        path = folder / f'{number}.tif'
        write_image(path, pixels, box, nodata=nodata, band_names=names)
        with rasterio.open(path) if box else _placeless(path) as src:
            assert (src.read() == pixels).all()
            assert src.nodata == nodata
            assert list(src.descriptions) == names
            assert src.dtypes == (dtype,) * bands
            if box:
                assert src.transform.almost_equals(transform, 1e-9)
                assert src.crs.to_epsg() == 32633


def _placeless(path):
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        return rasterio.open(path)


def test_chips_of_usual_size_have_a_template_so_that_speed_is_not_lost_unseen():
    pixels = np.zeros((6, 64, 64), np.uint16)
    box = GeoBox((64, 64), PLACES['north-up'], 'EPSG:32633')
    assert find_template(pixels, box, nodata=None, band_names=['a'] * 6, options=(('interleave', 'band'),)) is not None

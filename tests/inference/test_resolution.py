"""Pixel sizes are compared with those of the training chips, and rasters resampled while they are read."""

from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.warp import Resampling, reproject
from rasterio.windows import Window

from geolearn.errors import RasterError
from geolearn.inference.options import ReadOptions
from geolearn.inference.reading import choose_geobox
from geolearn.inference.source import Source
from geolearn.models import DeepLab
from geolearn.raster import GeoBox, open_raster
from geolearn.raster.acquisition import middle_of
from geolearn.raster.ground import center_of, latitude_of, other_resolution, pixel_side_m

pytestmark = pytest.mark.usefixtures('one_thread')

UTM = {'wkid': 32633}
TEN_METERS = {'x': 10, 'y': 10, 'spatialReference': UTM}


@pytest.fixture
def spec(make_spec):
    return replace(make_spec(), cell_size=TEN_METERS)


def box(side, crs='EPSG:32633', *, shape=(400, 300), x=500_000, y=5_400_000):
    return GeoBox(shape, Affine(side, 0, x, 0, -side, y), crs)


@pytest.mark.parametrize('side', [10, 7, 14.9])
def test_sizes_near_that_of_training_are_read_as_they_are(spec, side):
    assert choose_geobox(box(side), spec, None, shown='a.tif') is None


@pytest.mark.parametrize(
    ('place', 'said'),
    [
        (box(0.5), r'measure 0\.5 m, those of the training chips 10 m: 20 times smaller.*resolution=0\.5 to read'),
        (box(16), r'measure 16 m, those of the training chips 10 m: 1\.6 times larger'),
        (
            box(10, 'EPSG:2263', x=980_000, y=200_000),
            r'measure 10 US survey foot, .* 32\.8 US survey foot: 3\.28 times',
        ),
        (box(1e-3, 'EPSG:4326', x=15, y=60), r'measure 0\.001 degrees \(about 79 m\), .* \(about 10 m\): 7\.9 times'),
        (
            box(30, 'EPSG:3857', x=0, y=8_400_000),
            r'measure 30 m, those of the training chips 20 m: 1\.5\d? times larger',
        ),
    ],
)
def test_other_sizes_are_refused_with_both_named(spec, place, said):
    with pytest.raises(RasterError, match=said):
        choose_geobox(place, spec, None, shown='a.tif')


@pytest.mark.parametrize(
    'place',
    [
        box(8.983e-5, 'EPSG:4326', x=15, y=0.02),
        box(20, 'EPSG:3857', x=0, y=8_400_000),
        box(32.8, 'EPSG:2263', x=980_000, y=200_000),
    ],
)
def test_sizes_are_compared_on_the_ground(spec, place):
    assert choose_geobox(place, spec, None, shown='a.tif') is None


def test_chips_in_degrees_meet_rasters_in_degrees(spec):
    degrees = replace(spec, cell_size={'x': 1e-4, 'y': 1e-4, 'spatialReference': {'latestWkid': 4326}})
    assert choose_geobox(box(1e-4, 'EPSG:4326', x=15, y=65), degrees, None, shown='a.tif') is None
    with pytest.raises(RasterError, match=r'0\.0001 degrees.*: 10 times larger'):
        choose_geobox(box(1e-3, 'EPSG:4326', x=15, y=65), degrees, None, shown='a.tif')


@pytest.mark.parametrize(
    'cell', [None, {}, {'x': 'wide', 'y': 3}, {'x': 0, 'y': 0}, {'x': float('nan'), 'y': 1, 'spatialReference': UTM}]
)
def test_without_a_size_of_the_chips_nothing_is_compared(spec, cell):
    assert choose_geobox(box(0.1), replace(spec, cell_size=cell), None, shown='a.tif') is None
    with pytest.raises(RasterError, match=r"resolution='training' needs the pixel size of the training chips"):
        choose_geobox(box(0.1), replace(spec, cell_size=cell), 'training', shown='a.tif')


def test_that_sizes_are_not_compared_is_said_once(spec, caplog):
    unknown = replace(spec, model='OfUnknownPixels', cell_size=None)
    for _ in range(2):
        choose_geobox(box(0.1), unknown, None, shown='a.tif')
    assert caplog.text.count('pixel size of the training chips of this OfUnknownPixels is not known') == 1


def test_the_grid_of_training_covers_the_raster(spec):
    found = choose_geobox(box(2.5, shape=(401, 300)), spec, 'training', shown='a.tif')
    assert found == GeoBox((101, 75), Affine(10, 0, 500_000, 0, -10, 5_400_000), 'EPSG:32633')
    assert choose_geobox(box(10), spec, 'training', shown='a.tif') is None
    assert choose_geobox(box(2.5), spec, 5, shown='a.tif').resolution == (5, 5)


def test_a_size_that_is_asked_for_is_taken_with_a_warning(spec, caplog):
    assert choose_geobox(box(0.5), spec, 0.5, shown='a.tif') is None
    assert '20 times off those of the training chips, 10 m' in caplog.text


@pytest.mark.parametrize('bad', [0, -1, float('nan'), 'fine', True])
def test_sizes_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="resolution must be a number above 0 or 'training'"):
        ReadOptions(resolution=bad)


def test_meters_for_a_raster_in_degrees_are_refused(spec):
    with pytest.raises(ValueError, match=r'larger than the whole raster .* 10 m are about 8\.98e-05 degrees'):
        choose_geobox(box(1e-4, 'EPSG:4326', x=15, y=50), spec, 10, shown='a.tif')


# -- resampling


def open_source(dataset, side, **options):
    own = dataset.transform.a
    shape = tuple(-(-int(length * own) // side) for length in dataset.shape)
    place = Affine(side, 0, dataset.transform.c, 0, -side, dataset.transform.f)
    return Source(dataset, (1, 2), GeoBox(shape, place, 'EPSG:32633'), **options)


def whole(source):
    height, width = source.shape
    pixels, valid = source.read(Window(0, 0, width, height))
    return pixels, np.ones(source.shape, bool) if valid is None else valid


@pytest.mark.parametrize(
    ('side', 'method'), [(30, Resampling.average), (25, Resampling.average), (5, Resampling.bilinear)]
)
def test_resampled_pixels_are_those_of_gdal(tmp_path, save, side, method):
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 1000, (2, 60, 90)).astype(np.uint16)
    with open_raster(save(tmp_path / 'a.tif', stored)) as dataset:
        source = open_source(dataset, side)
        pixels, _ = whole(source)
        expected = np.zeros_like(pixels)
        places = {'src_transform': dataset.transform, 'dst_transform': source.box.transform}
        crs = {'src_crs': dataset.crs, 'dst_crs': dataset.crs}
        reproject(stored.astype(np.float32), expected, **places, **crs, resampling=method)
    inner = np.s_[:, 2:-2, 2:-2]  # at the edges GDAL leaves out what lies outside
    assert np.allclose(pixels[inner], expected[inner], atol=0.01)


def test_pixels_without_data_take_no_part(tmp_path, save):
    stored = np.full((2, 40, 40), 100, np.int16)
    stored[:, :20, :20] = -999
    stored[:, 20, 20] = -999
    with open_raster(save(tmp_path / 'a.tif', stored, nodata=-999)) as dataset:
        pixels, valid = whole(open_source(dataset, 40))
        finer, known = whole(open_source(dataset, 5))
    assert not valid[:5, :5].any()
    assert valid.sum() == 75
    assert (pixels[:, valid] == 100).all()
    assert (finer[:, known] == 100).all()
    assert not known[:38, :38].any()


def test_windows_make_the_whole(tmp_path, save):
    stored = np.random.default_rng(1).integers(0, 1000, (2, 70, 50)).astype(np.uint16)
    with open_raster(save(tmp_path / 'a.tif', stored)) as dataset:
        for side in (23, 4):
            source = open_source(dataset, side)
            expected, _ = whole(source)
            height, width = source.shape
            part, _ = source.read(Window(3, 5, width - 4, height - 7))
            assert np.allclose(part, expected[:, 5 : height - 2, 3 : width - 1])


def test_a_fine_raster_is_mapped_at_the_size_of_training(tmp_path, save, spec):
    class Brighter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = type('B', (), {'has_position_grid': False, 'strides': (1,)})
            self.context, self.finer = None, 1
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.cat([x[:, :1], x[:, 1:]], 1).nan_to_num(0)

    model = DeepLab.of(spec, Brighter())
    coarse = np.random.default_rng(2).integers(1, 40, (2, 40, 50)).astype(np.int16)
    fine = coarse.repeat(4, axis=1).repeat(4, axis=2)
    fine[:, :8, :8] = -1
    place = Affine(2.5, 0, 500_000, 0, -2.5, 5_400_000)
    path = save(tmp_path / 'fine.tif', fine, nodata=-1, names=['Red', 'Green'], transform=place)
    with pytest.raises(RasterError, match=r"4 times smaller\. Pass resolution='training'"):
        model.predict_raster(path, tmp_path / 'map.tif')
    with rasterio.open(model.predict_raster(path, tmp_path / 'map.tif', resolution='training')) as src:
        assert (src.shape, src.res) == ((40, 50), (10, 10))
        expected = np.where(coarse[1] > coarse[0], 2, 1)
        expected[:2, :2] = 0
        assert np.array_equal(src.read(1), expected)


@pytest.mark.parametrize(
    ('place', 'side'),
    [
        (box(10), 10),
        (box(20, 'EPSG:3857', x=0, y=8_400_000), 10),
        (box(32.8, 'EPSG:2263', x=980_000, y=200_000), 10),
        (box(1e-4, 'EPSG:4326', x=15, y=60), 11.132 * 0.5**0.5),
    ],
)
def test_pixels_are_measured_on_the_ground(place, side):
    assert pixel_side_m(place) == pytest.approx(side, rel=0.02)
    assert other_resolution(place, side) is None
    assert other_resolution(place, 2 * side) == pytest.approx(side, rel=0.02)
    assert pixel_side_m(replace(place, crs=None)) is None


def test_the_center_of_a_raster_is_one_place_or_none():
    place = GeoBox((100, 200), Affine(10, 0, 500_000, 0, -10, 5_300_000), 'EPSG:32633')
    (lat, lon), away_km = middle_of(place)
    assert center_of(place) == (lat, lon)
    assert latitude_of(place) == lat == pytest.approx(47.849, abs=0.01)
    assert (lon, away_km) == pytest.approx((15.013, 1.118), abs=0.01)
    for crs in (None, 'LOCAL_CS["site",UNIT["metre",1]]'):
        nowhere = replace(place, crs=crs)
        assert (center_of(nowhere), middle_of(nowhere), latitude_of(nowhere)) == (None, None, 0.0)
    assert latitude_of(GeoBox((2, 2), Affine(1, 0, 0, 0, -1, 90), 'EPSG:4326')) == 89.0

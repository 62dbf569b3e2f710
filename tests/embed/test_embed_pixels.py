"""PixelTimeSeries from tables and images, and what networks over time series make of them."""

from datetime import date

import numpy as np
import pandas as pd
import pytest
import torch

from geolearn import PixelTimeSeries, create_backbone, embed_pixels
from geolearn.backbones.calendar import Calendar
from geolearn.bands import Band, get_bands
from geolearn.errors import ArgumentError, BackboneError, RasterError

BANDS = ['B2', 'B3', 'B4', 'B8']
DAYS = [date(2021, 4, 5), date(2021, 5, 5), date(2021, 7, 4)]


@pytest.fixture
def table():
    """Three pixels, three dates, of which the second pixel lacks one."""
    rng = np.random.default_rng(0)
    rows = [
        {'pixel': name, 'date': day, 'latitude': 48.0 + k, 'longitude': 16.0}
        | {band: rng.uniform(300, 2500) for band in BANDS}
        for k, name in enumerate('abc')
        for day in DAYS
    ]
    return pd.DataFrame(rows).drop(index=4)


@pytest.fixture(scope='module')
def weights(shared):
    return shared / 'weights' / 'presto' / 'default_model.pt'


def read(table, **options):
    return PixelTimeSeries.from_table(table, BANDS, **({'sensor': 'sentinel2_l2a'} | options))


def test_a_table_becomes_series_and_these_vectors(table, weights):
    series = read(table.sample(frac=1, random_state=1).sort_values('pixel'))
    assert (series.values.shape, series.names, series.calendar.days) == ((3, 3, 4), ('a', 'b', 'c'), tuple(DAYS))
    assert np.isnan(series.values).sum() == 4
    assert np.isnan(series.values[1, 1]).all()
    np.testing.assert_array_equal(series.locations, [[48, 16], [49, 16], [50, 16]])
    found = embed_pixels(series, weights=weights, normalize=([0] * 4, [10_000] * 4))
    assert (found.values.shape, found.names) == ((3, 128), ('a', 'b', 'c'))
    net = create_backbone('presto', series.bands, weights=weights, strides=None, dates=DAYS, location=(50, 16)).eval()
    with torch.no_grad():
        expected = net(torch.from_numpy(series.values[2:] / 10_000)[..., None, None])[0][0, :, 0, 0]
    np.testing.assert_allclose(found.values[2], expected, atol=1e-5)


def test_images_become_series_row_by_row(weights):
    images = np.random.default_rng(0).uniform(300, 4000, (3, 4, 5, 6))
    series = PixelTimeSeries.from_images(images, BANDS, sensor='sentinel2_l2a', dates=DAYS, location=(48, 16))
    np.testing.assert_array_equal(series.values[7], images[:, :, 1, 1].astype(np.float32))
    assert embed_pixels(series, weights=weights).values.shape == (30, 128)


def test_months_are_counted_from_one_and_rows_come_once(table):
    table['month'] = [day.month for day in table['date']]
    assert read(table, when='month').calendar.months == (4, 5, 7)
    table['month'] -= 4
    with pytest.raises(ValueError, match='counted from 0 here: add 1 to each'):
        read(table, when='month')
    with pytest.raises(ValueError, match="pixel 'a' has several rows of date 2021-05-05; take their mean"):
        read(pd.concat([table, table.iloc[1:2]]))
    with pytest.raises(ValueError, match="has no column 'lat'"):
        read(table, latitude='lat')
    table.loc[0, 'latitude'] = 10.0
    with pytest.raises(ValueError, match="pixel 'a' has several places"):
        read(table)


def test_places_are_asked_for_and_other_backbones_refused(table, weights):
    series = read(table, latitude=None, longitude=None)
    with pytest.raises(BackboneError, match='has to know where pixels lie'):
        embed_pixels(series, weights=weights)
    with pytest.raises(BackboneError, match='sees more than one pixel'):
        embed_pixels(series, 'plain_unet', pretrained=False)
    with pytest.raises(ValueError, match='are they swapped'):
        PixelTimeSeries(series.values, series.bands, series.calendar, np.array([[100.0, 3.0]] * 3))


def test_sensors_need_share_no_day(weights):
    optical = get_bands('sentinel2_l2a', ['B4', 'B2', 'B3', 'B8', 'B8A', 'B5', 'B6', 'B7', 'B11', 'B12'])
    radar = (Band('VV_ascending', None, 'vv', True), Band('VH_ascending', None, 'vh', True))
    rng = np.random.default_rng(0)
    values = np.full((5, 4, 12), np.nan, np.float32)
    values[:, ::2, :10] = rng.uniform(300, 4000, (5, 2, 10))
    values[:, 1::2, 10:] = rng.uniform(-20, -8, (5, 2, 2))
    days = Calendar.of([date(2021, 5, day) for day in (1, 3, 6, 8)])
    series = PixelTimeSeries(values, (*optical, *radar), days)
    found = embed_pixels(series, 'tessera_v2', pretrained=False)
    assert np.isfinite(found.values).all()
    assert found.source.mean[10] == pytest.approx(-20.453039)
    values[..., 3] = np.nan
    with pytest.raises(RasterError, match='B8: no pixel holds data at any date'):
        embed_pixels(PixelTimeSeries(values, series.bands, days), 'tessera_v2', pretrained=False)


def test_quantities_are_known_by_their_names(table, weights):
    table['B8'] += 2000
    table['elevation'], table['slope'], table['NDVI'] = 300.0, 2.0, 0.4
    series = read(table)
    more = PixelTimeSeries.from_table(table, [*BANDS, 'elevation', 'slope', 'NDVI'], sensor='sentinel2_l2a')
    a, b = (embed_pixels(one, weights=weights) for one in (series, more))
    assert (more.bands[4], np.isfinite(b.values).all()) == (Band('elevation'), True)
    assert not np.allclose(a.values, b.values, atol=1e-3)
    index = PixelTimeSeries.from_table(table, ['NDVI'])
    assert np.isfinite(embed_pixels(index, weights=weights).values).all()
    assert create_backbone('copernicus_fm_base', ['elevation'], pretrained=False).trunk is not None
    for normalize in ('dataset', 'minmax', 'robust'):
        with pytest.raises(ArgumentError, match='units of its pretraining'):
            embed_pixels(series, weights=weights, normalize=normalize)

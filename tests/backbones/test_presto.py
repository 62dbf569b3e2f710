"""Presto: the published numbers, months and missing values, and what it refuses."""

from datetime import date
from functools import partial

import pytest
import torch

from geolearn.backbones import create_backbone
from geolearn.backbones.calendar import Calendar
from geolearn.backbones.presto import GROUPS, assign_groups
from geolearn.bands import Band, get_bands
from geolearn.errors import BackboneError, BandError, WeightsError

ALL = tuple(band for group in GROUPS.values() for band in group)
S2 = get_bands('sentinel2_l2a', ['B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B11', 'B12'])
S1 = get_bands('sentinel1', ['VV', 'VH'])
YEAR = tuple(date(2021, month, 10) for month in range(1, 13))
HERE = (48.2, 16.4)

build = partial(create_backbone, 'presto', strides=None, location=HERE)


@pytest.fixture(scope='module')
def file(shared):
    return shared / 'weights' / 'presto' / 'default_model.pt'


def months(first, count):
    return Calendar(tuple((first + t) % 12 + 1 for t in range(count)))


def test_the_published_weights_load_strictly_and_give_the_published_vectors(shared, file):
    oracle = torch.load(shared / 'oracles' / 'presto.pt', weights_only=True)
    net = build(ALL, weights=file, dates=YEAR).eval()
    report = net.load_report
    assert (report.missing, len(report.matched)) == ((), 50)
    assert all(name.startswith('decoder.') for name in report.unexpected)
    assert sum(p.numel() for p in net.trunk.parameters()) + net.trunk.pos_embed.numel() == 404_160
    names = oracle['meta']['bands'].split()
    for case in oracle['cases'].values():
        x = torch.where(case['mask'] > 0, float('nan'), case['x'])
        cover = case['dynamic_world'].float()
        x = torch.cat([x, torch.where(cover == 9, float('nan'), cover)[..., None]], dim=2)
        x = x[..., [(*names, 'dynamic_world').index(band.name) for band in ALL]]
        firsts = case['month'].expand(len(x)).tolist()
        with torch.no_grad():
            found = [
                net.trunk.encode(x[i : i + 1], months(first, x.shape[1]), case['latlons'][i : i + 1])
                for i, first in enumerate(firsts)
            ]
        torch.testing.assert_close(torch.cat(found), case['pooled'], atol=1e-4, rtol=0)


def test_a_map_is_the_vectors_of_its_pixels_and_ndvi_is_computed(file):
    series = torch.rand(2, 3, 10, 5, 4) / 2
    near, red = series[:, :, 6], series[:, :, 2]
    with torch.no_grad():
        net = build(S2, weights=file, dates=YEAR[:3]).eval()
        (found,) = net(series)
        vectors = net.trunk.encode(series[1, :, :, 4, 3][None], net.calendar, torch.tensor([HERE]))
        torch.testing.assert_close(found[1, :, 4, 3], vectors[0], atol=1e-5, rtol=1e-5)
        given = build((*S2, Band('NDVI')), weights=file, dates=YEAR[:3]).eval()
        (same,) = given(torch.cat([series, ((near - red) / (near + red))[:, :, None]], dim=2))
    assert found.shape == (2, 128, 5, 4)
    torch.testing.assert_close(same, found, atol=1e-5, rtol=1e-5)


def test_a_date_without_data_is_the_same_as_none(file):
    series = torch.rand(4, 3, 10)
    place = torch.tensor([HERE])
    with torch.no_grad():
        trunk = build(S2, weights=file, dates=YEAR).trunk.eval()
        gap = trunk.encode(series[:, [0, 2]], Calendar((3, 5)), place)
        series[:, 1] = float('nan')
        masked = trunk.encode(series, Calendar((3, 4, 5)), place)
    torch.testing.assert_close(masked, gap, atol=1e-5, rtol=1e-5)


def test_pixels_of_a_batch_do_not_mix_where_values_are_missing(file):
    series = torch.rand(3, 2, 12)
    series[1, 0, 10] = series[2] = float('nan')
    trunk, calendar, place = build((*S2, *S1), weights=file, dates=YEAR).trunk.eval(), Calendar((12, 1)), [HERE]
    with torch.no_grad():
        together = trunk.encode(series, calendar, torch.tensor(place))
        alone = [trunk.encode(one[None], calendar, torch.tensor(place)) for one in series]
    assert together.isfinite().all()
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('missing', [False, True])
def test_gradients_reach_every_parameter(missing):
    torch.manual_seed(0)
    net = build((*S2, *S1), pretrained=False, dates=YEAR[:2]).train()
    x = torch.randn(1, 2, 12, 3, 2)
    x[0, 0, 0, 0, 0] = float('nan') if missing else 0.0
    (net(x)[0] * torch.randn(1, 128, 3, 2)).sum().backward()
    lost = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert lost == []


def test_half_a_group_an_unknown_band_and_a_double_one_are_refused():
    with pytest.raises(BandError, match=r'reads B11, B12 together; add B12, or leave out B11'):
        assign_groups(S2[:9])
    with pytest.raises(BandError, match="knows no band 'B9'"):
        assign_groups(get_bands('sentinel2_l2a', ['B9']))
    with pytest.raises(BandError, match='are both B8'):
        assign_groups((S2[6], Band('near', 0.842, 'nir')))


def test_months_and_dates_that_cannot_be_are_refused_with_advice():
    for months, message in (
        ((0, 1, 2), 'counted from 0 here: add 1'),
        ((12, 13), 'must lie in 1'),
        ((5, 5, 6), 'month 5 comes twice in a row'),
        ((), 'must be a list'),
    ):
        with pytest.raises(ValueError, match=message):
            Calendar(months)
    with pytest.raises(ValueError, match='2021-02-10 is repeated'):
        Calendar.of((YEAR[1], YEAR[1]))
    with pytest.raises(ValueError, match='2021-01-10 comes after 2021-02-10'):
        Calendar.of((YEAR[1], YEAR[0]))
    assert Calendar.of((date(2020, 11, 1), date(2021, 2, 1))).steps == Calendar((11, 2)).steps == (0, 3)


def test_what_it_has_to_know_is_asked_for():
    x = torch.rand(1, 2, 10, 2, 2)
    with pytest.raises(BackboneError, match=r'pass dates=\[date'):
        build(S2, pretrained=False, dates=2)(x)
    with pytest.raises(BackboneError, match='pass location='):
        create_backbone('presto', S2, pretrained=False, strides=None, dates=YEAR[:2])(x)
    with pytest.raises(ValueError, match='location must be'):
        build(S2, pretrained=False, location=(100, 0))
    with pytest.raises(BackboneError, match='one date a month, found several in month 1'):
        build(S2, pretrained=False, dates=(date(2021, 1, 1), date(2021, 1, 9)))
    with pytest.raises(BackboneError, match='up to 24 months, these dates span 27'):
        build(S2, pretrained=False, dates=(date(2020, 1, 1), date(2022, 3, 1)))
    with pytest.raises(BackboneError, match='knows no places'):
        create_backbone('vit_nano', S2, pretrained=False, location=HERE)
    with pytest.raises(BackboneError, match='strides must be some of'):
        create_backbone('presto', S2, pretrained=False)
    with pytest.raises(BackboneError, match='reads single pixels'):
        build(S2, pretrained=False, form='tokens')


def test_a_file_that_lacks_a_tensor_is_refused(file, tmp_path):
    state = torch.load(file, map_location='cpu', weights_only=True)
    del state['encoder.blocks.1.norm1.bias']
    torch.save(state, tmp_path / 'default_model.pt')
    with pytest.raises(WeightsError, match=r'blocks.1.norm1.bias'):
        build(S2, weights=tmp_path / 'default_model.pt', dates=YEAR)

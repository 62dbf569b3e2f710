"""TESSERA: the published numbers of each version, which dates are taken, orbits, and what is refused."""

from dataclasses import replace
from datetime import date

import pytest
import torch

from geolearn.backbones import catalog, create_backbone
from geolearn.backbones.calendar import Calendar
from geolearn.backbones.tessera import Tessera, choose_dates, find_bands, shape_of, version_of
from geolearn.bands import Band, get_bands
from geolearn.errors import BackboneError, BandError, WeightsError

S2 = get_bands('sentinel2_l2a', ['B4', 'B2', 'B3', 'B8', 'B8A', 'B5', 'B6', 'B7', 'B11', 'B12'])
S1 = get_bands('sentinel1', ['VV', 'VH'])
UP = (Band('VV_ascending', None, 'vv', True), Band('VH_ascending', None, 'vh', True))
DOWN = (Band('VV_descending', None, 'vv', True), Band('VH_descending', None, 'vh', True))
DAYS = [date(2022, month, 9) for month in range(1, 9)]
HEADS = {'v1': 4, 'v1.1': 4, 'v2': 4, 'v2_qk_norm': 4}


@pytest.fixture(scope='module')
def oracle(shared):
    return torch.load(shared / 'oracles' / 'tessera.pt', weights_only=True)['models']


def make(state, name, bands=(*S2, *S1)):
    version = version_of(state)
    assert version == name.partition('_')[0].removeprefix('v')
    record = catalog.get_record(f'tessera_v{version.replace(".", "_")}')
    trunk = Tessera(version, shape_of(state, HEADS[name]), *find_bands(bands, record, version))
    trunk.load_state_dict(state)
    return trunk.eval()


@pytest.mark.parametrize('name', list(HEADS))
def test_the_published_network_is_met(oracle, name):
    trunk = make(oracle[name]['state_dict'], name, (*S2, *(S1 if name == 'v1' else UP)))
    for case in oracle[name]['cases'].values():
        s2, s1 = case['s2'], case['s1']
        with torch.no_grad():
            optical = trunk.s2_backbone(s2[..., :-1], s2[..., -1])
            radar = trunk.s1_backbone(s1[..., :-1], s1[..., -1])
            found = trunk.join(optical, radar)
        torch.testing.assert_close(optical, case['s2_feature'], atol=1e-4, rtol=0)
        torch.testing.assert_close(radar, case['s1_feature'], atol=1e-4, rtol=0)
        torch.testing.assert_close(found, case['out'][:, :128], atol=1e-4, rtol=0)


def test_dates_without_data_are_left_out_pixel_by_pixel(oracle):
    trunk = make(oracle['v2']['state_dict'], 'v2', (*S2, *UP))
    series = torch.randn(3, 8, 12)
    series[1, 2:5, 3] = float('nan')
    series[2, :, 10:] = float('nan')
    with torch.no_grad():
        found = trunk.encode(series, Calendar.of(DAYS), None)
        kept = [0, 1, 5, 6, 7]
        optical = series[1, kept, :10][choose_dates(5, '2')][None]
        days = torch.tensor([DAYS[i].timetuple().tm_yday for i in kept])[choose_dates(5, '2')][None]
        every = torch.tensor([day.timetuple().tm_yday for day in DAYS])[None]
        one = trunk.join(trunk.s2_backbone(optical, days), trunk.s1_backbone(series[1, None, :, 10:], every))
        nothing = torch.zeros(1, 1, 2)
        none = trunk.join(
            trunk.s2_backbone(series[2, None, :, :10], every), trunk.s1_backbone(nothing, nothing[..., 0])
        )
    torch.testing.assert_close(found[1:2], one, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[2:], none, atol=1e-5, rtol=1e-5)


def test_a_network_is_rebuilt_in_the_shape_of_its_weights(oracle):
    state = oracle['v2_qk_norm']['state_dict']
    trunk = make(oracle['v2']['state_dict'], 'v2', (*S2, *UP)).like(state)
    trunk.load_state_dict(state)
    assert trunk.shape.norm_keys


def test_numbers_of_dates_are_multiples_of_eight():
    assert choose_dates(5, '2') == [0, 1, 2, 3, 4, 0, 2, 4]
    assert choose_dates(3, '2') == [0, 1, 2, 0, 1, 2, 0, 1]
    assert choose_dates(16, '2') == choose_dates(16, '1.1') == list(range(16))
    assert choose_dates(6, '1.1') == [0, 1, 2, 3, 4, 5, 2, 3]
    assert len(choose_dates(300, '2')) == len(choose_dates(300, '1.1')) == 256
    assert choose_dates(80, '1') == list(range(0, 80, 2))


def test_radar_of_the_other_orbit_has_statistics_of_its_own():
    record = catalog.get_record('tessera_v2')
    _, radar = find_bands((*S2, *UP, *DOWN), record, '2')
    up, down = record.inputs[1:]
    assert [one.at for one in radar] == [(10, 11), (12, 13)]
    stored = -12.0
    standard = (stored - up.mean[0]) / up.std[0]
    assert standard * radar[1].scale[0] + radar[1].shift[0] == pytest.approx((stored - down.mean[0]) / down.std[0])


def test_what_it_has_to_know_is_asked_for(oracle, tmp_path, use_record):
    for name, bands, message in (
        ('tessera_v2', (*S2, *S1), "has to know the orbit of 'VV'"),
        ('tessera_v1', S2, 'needs the bands of both sensors, found none of Sentinel-1'),
        ('tessera_v2', S2[:9], 'no bands fit'),
    ):
        with pytest.raises(BandError, match=message):
            find_bands(bands, catalog.get_record(name), name[-1])
    use_record(replace(catalog.get_record('tessera_v2'), dim=8, depth=1))
    torch.save(oracle['v1']['state_dict'], tmp_path / 'file.pth')
    with pytest.raises(WeightsError, match='are of TESSERA v1, needed v2'):
        create_backbone('tessera_v2', S2, weights=tmp_path / 'file.pth', strides=None)
    for options, message in (
        ({'patch': 4}, 'leave patch and temporal out'),
        ({'temporal': 'ltae'}, 'leave patch and temporal out'),
        ({'location': (48, 16)}, 'knows no places'),
    ):
        with pytest.raises(BackboneError, match=message):
            create_backbone('tessera_v2', S2, pretrained=False, strides=None, dates=DAYS, **options)
    use_record(replace(catalog.get_record('tessera_v1_1'), dim=8, depth=1))
    torch.save(oracle['v1.1']['state_dict'], tmp_path / 'tessera_v1_1_aws_encoder.pt')
    with pytest.raises(WeightsError, match="pass backbone='tessera_v1_1_aws'"):
        create_backbone('tessera_v1_1', (*S2, *UP), weights=tmp_path / 'tessera_v1_1_aws_encoder.pt', strides=None)
    trunk = make(oracle['v2']['state_dict'], 'v2', S2)
    with pytest.raises(BackboneError, match='takes the day of the year'):
        trunk.encode(torch.randn(1, 1, 10), Calendar((5,)), None)

"""Copernicus-FM: the published numbers, bands and variables, and what it knows of place, area and time."""

import zlib
from dataclasses import replace
from datetime import date, timedelta
from functools import partial

import pytest
import torch

from geolearn.backbones import catalog, create_backbone
from geolearn.backbones.copernicusfm import LANGUAGE_FILE, OLCI, VARIABLES, find_spectra
from geolearn.bands import Band, get_bands
from geolearn.errors import BackboneError, BandError, WeightsError

S2 = get_bands('sentinel2_l1c')
S1 = get_bands('sentinel1', ['VV', 'VH'])
BANDS = {
    's2_13_unknown_meta': S2,
    's2_4_full_meta': get_bands('sentinel2_l1c', ['B2', 'B3', 'B4', 'B8']),
    's1': S1,
    's3_kernel8': tuple(Band(name, nm / 1000) for name, (nm, _) in OLCI.items()),
    's5p_variable_kernel4': (Band('NO2'),),
    'native_224': get_bands('sentinel2_l1c', ['B4', 'B3', 'B2']),
}


@pytest.fixture(scope='module')
def oracle(shared):
    return torch.load(shared / 'oracles' / 'copernicusfm.pt', weights_only=True)


@pytest.fixture(scope='module')
def state(oracle):
    """The weights of the published class at a width of 48, those that are not stored drawn again."""
    found = dict(oracle['state_dict'])
    for name, facts in oracle['drawn'].items():
        shape = facts['shape']
        random = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        value = torch.randn(shape, generator=random) / shape[1] ** 0.5
        torch.testing.assert_close(value.flatten()[:4], facts['first4'])
        found[name] = value
    return found


@pytest.fixture
def build(state, tmp_path, use_record, oracle):
    use_record(replace(catalog.get_record('copernicus_fm_base'), dim=48, depth=3, heads=3, sources=()))
    torch.save(state, tmp_path / 'copernicus.pth')
    vector = oracle['cases']['s5p_variable_kernel4']['language_embed']
    torch.save({VARIABLES['NO2']: vector}, tmp_path / LANGUAGE_FILE)

    def make(bands, **options):
        return create_backbone(
            'copernicus_fm_base', bands, weights=tmp_path / 'copernicus.pth', **({'form': 'tokens'} | options)
        ).eval()

    make.folder = tmp_path
    return make


@pytest.mark.parametrize('name', list(BANDS))
def test_the_published_network_is_met(build, oracle, name):
    case = oracle['cases'][name]
    k, (lon, lat, days, area) = int(case['kernel_size']), case['meta'][0].tolist()
    known = {'location': (lat, lon)} if lon == lon else {}
    known |= {'dates': [date(1970, 1, 1) + timedelta(days)]} if days == days else {}
    known |= {'resolution_m': area**0.5 / k * 1000} if area == area else {}
    net = build(BANDS[name], patch=k, **known)
    x = case.get('x')
    if x is None:
        x = torch.rand((1, 3, 224, 224), generator=torch.Generator().manual_seed(7)) * 4 - 2
    count = 1 if name == 's2_4_full_meta' else len(x)  # the other image is of another place
    with torch.no_grad():
        states = net.trunk.hidden_states(x[:count])
        pooled = torch.nn.functional.layer_norm(
            states[-1][:, 1:].mean(dim=1),
            (48,),
            oracle['state_dict']['fc_norm.weight'],
            oracle['state_dict']['fc_norm.bias'],
            1e-6,
        )
    torch.testing.assert_close(pooled, case['pooled_fc_norm'][:count], atol=1e-4, rtol=0)
    for layer, expected in case.get('hidden', {}).items():
        torch.testing.assert_close(states[int(layer)], expected[:count], atol=1e-4, rtol=0)


def test_the_file_loads_strictly_and_what_bands_do_not_use_is_reported(build, state, tmp_path):
    report = build(S2).load_report
    assert report.missing == ()
    assert {'patch_embed_variable.language_proj.weight', 'fc_norm.weight'} <= set(report.unexpected)
    torch.save({name: value for name, value in state.items() if name != 'coord_fc.bias'}, tmp_path / 'copernicus.pth')
    with pytest.raises(WeightsError, match=r'coord_fc.bias'):
        build(S2)


def test_place_date_and_resolution_matter_each(build):
    x = torch.rand(1, 13, 32, 32)
    given = [{}, {'location': (52.5, 13.4)}, {'dates': [date(2021, 5, 1)]}, {'resolution_m': 10}]
    with torch.no_grad():
        found = [build(S2, **options)(x) for options in given]
    for i, one in enumerate(found):
        assert not any(torch.allclose(one, other, atol=1e-3) for other in found[:i])


def test_bands_of_unknown_width_and_mixed_variables_are_refused(build):
    with pytest.raises(BandError, match="bandwidth of 'far' is not known"):
        find_spectra([Band('far', 9.0)])
    with pytest.raises(BandError, match="takes the variable 'elevation' alone"):
        build((*S1, Band('elevation')))
    with pytest.raises(BackboneError, match='patch=32'):
        build(S2, form='pyramid', patch=32)
    (build.folder / LANGUAGE_FILE).unlink()
    with pytest.raises(WeightsError, match='put that file beside .*copernicus.pth'):
        build((Band('NO2'),))


def test_bands_of_another_sensor_are_not_taken_for_those_of_sentinel_2():
    landsat, naip = get_bands('landsat8', ['B4', 'B5']), get_bands('naip')
    for band in (*landsat, naip[0], Band('nir', 0.86, 'nir')):
        with pytest.raises(BandError, match='bandwidth of .* is not known'):
            find_spectra([band])
    assert find_spectra([Band('B12', 2.2024, 'swir22'), Band('red', 0.6646, 'red')]) == [(2190, 180), (665, 30)]


def test_every_date_has_a_time_of_its_own(build):
    days, x = [date(2021, 1, 5), date(2021, 7, 5)], torch.rand(2, 2, 13, 16, 16)
    net = build(S2, form='pyramid', dates=days)
    alone = [build(S2, form='pyramid', dates=[day]) for day in days]
    for one in alone:
        one.load_state_dict(net.state_dict(), strict=False)
    with torch.no_grad():
        found = net(x)
        each = [one(x[:, t]) for t, one in enumerate(alone)]
        swapped = net(x.flip(1))
    for together, *dates in zip(found, *each):
        torch.testing.assert_close(together, torch.stack(dates).mean(dim=0))
    assert not torch.allclose(found[0], swapped[0], atol=1e-3)


@pytest.mark.parametrize('known', [True, False])
def test_features_equal_those_of_torchgeos_class(use_record, tmp_path, known):
    models = pytest.importorskip('torchgeo.models', reason='torchgeo is not installed')
    torch.manual_seed(0)
    norm = partial(torch.nn.LayerNorm, eps=1e-6)  # as published; its default is 1e-5
    reference = models.CopernicusFM(embed_dim=48, depth=3, num_heads=3, img_size=64, norm_layer=norm).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(reference.state_dict(), tmp_path / 'weights.pth')
    use_record(replace(catalog.get_record('copernicus_fm_base'), dim=48, depth=3, heads=3, grid=4, sources=()))
    bands = get_bands('sentinel2_l1c', ['B2', 'B3', 'B4', 'B8'])
    options = {'location': (48.1, 11.6), 'dates': [date(2024, 5, 1)], 'resolution_m': 10.0} if known else {}
    net = create_backbone('copernicus_fm_base', bands, weights=tmp_path / 'weights.pth', form='tokens', **options)
    area = (16 * 0.01) ** 2
    days = (date(2024, 5, 1) - date(1970, 1, 1)).days
    facts = [11.6, 48.1, days, area] if known else [float('nan')] * 4
    for size in ((64, 64), (96, 96)):
        x = torch.randn(1, 4, *size)
        with torch.no_grad():
            expected = reference.forward_features(
                x,
                torch.tensor([facts]),
                wavelengths=[490, 560, 665, 842],
                bandwidths=[65, 35, 30, 115],
                input_mode='spectral',
                kernel_size=16,
            )
            pooled = net.eval().trunk.hidden_states(x)[-1][:, 1:].mean(dim=1)
            found = torch.nn.functional.layer_norm(
                pooled, (48,), reference.fc_norm.weight, reference.fc_norm.bias, 1e-6
            )
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

"""Prithvi against reference numbers of its published code, and what must hold over dates, places, sizes and bands."""

from dataclasses import replace

import pytest
import torch

from geolearn.backbones import catalog, create_backbone
from geolearn.backbones.prithvi import Coordinates
from geolearn.backbones.vit import embed_numbers
from geolearn.bands import Band, get_bands
from geolearn.errors import BackboneError, BandError, WeightsError

BANDS = get_bands('sentinel2_l2a', ['B02', 'B03', 'B04', 'B8A', 'B11', 'B12'])
NAMES = {'prithvi_eo_v1_100': 'prithvi_v1_100M', 'prithvi_eo_v2_300_tl': 'prithvi_v2_300M_TL'}
CASES = [
    ('prithvi_eo_v1_100', 'mae', ('native', 'T1', 'T1_big')),
    ('prithvi_eo_v1_100', 'v1_legacy', ('native', 'T1', 'T1_big')),
    (
        'prithvi_eo_v2_300_tl',
        'mae',
        ('native', 'native_coords', 'T1', 'T1_coords', 'T1_big', 'T1_big_coords'),
    ),
]


@pytest.fixture
def small(use_record):
    """A function that lets a name stand for a small variant of the same kind."""

    def use(name):
        return use_record(replace(catalog.read_catalog()[name], dim=48, depth=4, heads=3))

    return use


@pytest.fixture
def build(small):
    """A function that builds a small variant."""

    def make(name='prithvi_v2_300M_TL', bands=BANDS, pretrained=False, **options):
        small(name)
        torch.manual_seed(0)
        return create_backbone(name, bands, pretrained=pretrained, **options).eval()

    return make


@pytest.fixture
def published(build, tmp_path):
    """A function that writes a checkpoint in the published layout, at random values; returns its path and tensors."""

    def write(name='prithvi_v2_300M_TL', **changes):
        encoder = build(name, form='tokens').trunk.state_dict()
        width = encoder['cls_token'].shape[-1]
        state = {f'encoder.{key}': value for key, value in encoder.items()}
        state |= {'encoder.pos_embed': torch.zeros(1, 785, width), 'decoder.mask_token': torch.zeros(1, 1, 32)}
        if name.endswith('_TL'):
            state['decoder.temporal_embed_dec.scale'] = torch.ones(1)
        torch.save(state | changes, tmp_path / 'w.pt')
        return tmp_path / 'w.pt', state

    return write


@pytest.mark.parametrize(('model', 'layout', 'cases'), CASES)
def test_every_block_matches_the_published_code(shared, build, tmp_path, model, layout, cases):
    oracle = torch.load(shared / 'oracles' / 'prithvi.pt', weights_only=True)['models'][model]
    torch.save(oracle[layout], tmp_path / 'w.pt')
    net = build(NAMES[model], weights=tmp_path / 'w.pt', form='tokens')
    assert not net.load_report.missing
    assert set(oracle['cases']) == set(cases)
    for case in oracle['cases'].values():
        given = case['temporal_coords'], case['location_coords']
        where = None if given == (None, None) else Coordinates(*given)
        x = case['x'].transpose(1, 2)
        with torch.no_grad():
            states = net.trunk.hidden_states(x, where)
            found = {**dict(enumerate(states[:-1])), 'last': net.trunk.tokens(x, where)}
        for key, value in {**case['hidden'], 'last': case['last']}.items():
            torch.testing.assert_close(found[key], value, atol=1e-4, rtol=0)


def test_positions_match_the_published_code(shared, build):
    oracle = torch.load(shared / 'oracles' / 'prithvi.pt', weights_only=True)
    oracle = oracle['models']['prithvi_eo_v1_100']['pos_embed']
    trunk = build('prithvi_v1_100M').trunk
    for grid, key in (((14, 14), 'sincos_1x14x14'), ((20, 20), 'terratorch_14_to_20')):
        torch.testing.assert_close(trunk._positions(1, grid).flatten(0, 2), oracle[key][1:], atol=1e-5, rtol=0)


def test_one_date_may_come_with_or_without_its_axis(build):
    net, x = build(form='tokens'), torch.randn(2, 6, 32, 48)
    with torch.no_grad():
        assert torch.equal(net(x), net(x[:, None]))


@pytest.mark.parametrize('size', [(64, 96), (65, 97)])
@pytest.mark.parametrize('dates', [1, 3, 5])
def test_maps_of_several_dates_have_one_map_per_stride(build, size, dates):
    net, x = build(), torch.randn(1, dates, 6, *size)
    with torch.no_grad():
        shapes = [tuple(m.shape[2:]) for m in net(x)]
        frames = net.trunk.frame_maps(x, [1, 3])
        mean = net.trunk.maps(x, [1, 3])
    assert shapes == [(-(-size[0] // s), -(-size[1] // s)) for s in (4, 8, 16, 32)]
    assert [f.shape[:3] for f in frames] == [(1, dates, 48)] * 2
    torch.testing.assert_close(frames[1].mean(1), mean[1])


def test_dates_see_each_other_in_global_blocks(build):
    trunk, x = build().trunk, torch.randn(1, 3, 6, 64, 64)
    other = x.clone()
    other[:, 2] += 1
    with torch.no_grad():
        (before,), (after,) = (trunk.frame_maps(y, [0], window=0) for y in (x, other))
        assert not torch.equal(before[:, 0], after[:, 0])


def test_window_of_the_grids_size_differs_from_global_by_the_other_dates_alone(build, monkeypatch):
    trunk, x = build().trunk, torch.randn(1, 1, 6, 64, 64)
    with torch.no_grad():
        windowed = trunk.frame_maps(x, [3], window=4)[0]
        torch.testing.assert_close(windowed, trunk.frame_maps(x, [3], window=0)[0])
        monkeypatch.setattr(type(trunk), 'global_at', ())
        pair = trunk.frame_maps(torch.cat([x, x + 1], dim=1), [3], window=4)[0]
    torch.testing.assert_close(pair[:, :1], windowed, atol=1e-5, rtol=1e-5)


def test_dates_and_places_change_the_tokens_and_may_be_left_out(build):
    trunk, x = build(form='tokens').trunk, torch.randn(2, 3, 6, 32, 32)
    time = torch.tensor([[[2019.0, 100], [2020, 200], [2021, 300]]]).expand(2, -1, -1)
    place = torch.tensor([[52.5, -3.8], [-1.0, 35.0]])
    with torch.no_grad():
        plain = trunk.place(x)
        both = trunk.place(x, Coordinates(time, place))
        parts = [trunk.place(x, Coordinates(time=time)), trunk.place(x, Coordinates(location=place))]
    torch.testing.assert_close(both - plain, parts[0] + parts[1] - 2 * plain, atol=1e-5, rtol=0)
    expected = 0.1 * torch.cat([embed_numbers(torch.tensor(n), 24) for n in (52.5, -3.8)])
    torch.testing.assert_close((parts[1] - plain)[0, 1, 1, 0], expected, atol=1e-5, rtol=0)


def test_coordinates_that_do_not_fit_are_refused(build):
    x = torch.randn(2, 3, 6, 32, 32)
    with pytest.raises(BackboneError, match='know no dates and places; take a backbone whose name ends in TL'):
        build('prithvi_v2_300M').trunk.place(x, Coordinates(location=torch.zeros(2, 2)))
    with pytest.raises(ValueError, match=r'time of 2 images of 3 dates needs shape \(2, 3, 2\), got \(2, 1, 2\)'):
        build().trunk.place(x, Coordinates(time=torch.zeros(2, 1, 2)))
    with pytest.raises(ValueError, match=r'location of 2 images .* needs shape \(2, 2\), got \(1, 2\)'):
        build().trunk.place(x, Coordinates(location=torch.zeros(1, 2)))


@pytest.mark.parametrize('name', [n for n in catalog.read_catalog() if n.startswith('prithvi')])
def test_published_layouts_load(published, build, name):
    path, state = published(name)
    for form in ('tokens', 'pyramid', 'layers'):
        net = build(name, weights=path, form=form)
        assert 'decoder.mask_token' in net.load_report.unexpected
        assert not net.load_report.missing
        assert net.load_report.resized == (
            () if '600' not in name or form == 'tokens' else ('patch_embed.proj.weight',)
        )
    assert torch.equal(net.trunk.norm.weight, state['encoder.norm.weight'])


@pytest.mark.parametrize(
    ('name', 'other'), [('prithvi_v2_300M', 'prithvi_v2_300M_TL'), ('prithvi_v2_300M_TL', 'prithvi_v2_300M')]
)
def test_a_checkpoint_of_another_version_does_not_load(published, build, name, other):
    path, _ = published(other)
    with pytest.raises(WeightsError, match=r'do not fit the network; 2 (missing|unexpected): temporal_embed_enc.scale'):
        build(name, weights=path)


def test_a_checkpoint_of_another_model_does_not_load(build, tmp_path):
    torch.save({'cls_token': torch.zeros(1, 1, 48)}, tmp_path / 'w.pt')
    with pytest.raises(WeightsError, match=r'do not fit prithvi_v2_300M_TL; they hold no patch_embed.proj.weight'):
        build(weights=tmp_path / 'w.pt')


def test_kernels_follow_the_bands_whatever_their_order(published, build):
    path, state = published()
    kernel = state['encoder.patch_embed.proj.weight']
    net = build(weights=path, bands=get_bands('sentinel2_l2a', ['B04', 'B03', 'B02']), form='tokens')
    assert torch.equal(net.trunk.patch_embed.proj.weight, kernel[:, [2, 1, 0]] * 2)
    assert 'unused: B8A, B11, B12; kernels x 2' in net.load_report.source
    same = build(weights=path, bands=BANDS[::-1], form='tokens')
    assert torch.equal(same.trunk.patch_embed.proj.weight, kernel.flip(1))


def test_landsat_and_reordered_bands_give_the_same_features(published, build):
    path, _ = published()
    x = torch.randn(1, 6, 32, 32)
    landsat = get_bands('landsat8', ['B2', 'B3', 'B4', 'B5', 'B6', 'B7'])
    with torch.no_grad():
        expected = build(weights=path, form='tokens')(x)
        assert torch.equal(build(weights=path, form='tokens', bands=landsat)(x), expected)
        swapped = build(weights=path, form='tokens', bands=landsat[::-1])(x.flip(1))
    torch.testing.assert_close(swapped, expected, atol=1e-5, rtol=0)


def test_extra_bands_take_the_nearest_wavelength(published, build):
    path, _ = published()
    net = build(weights=path, bands=(*BANDS, Band('B05', 0.705)))
    assert 'B05 <- B04 (nearest wavelength)' in str(net.load_report)


def test_bands_of_unknown_wavelength_take_the_mean_and_that_is_told(published, build, caplog):
    path, state = published()
    net = build(weights=path, bands=(*BANDS, Band('slope')), form='tokens')
    kernel = state['encoder.patch_embed.proj.weight']
    torch.testing.assert_close(net.trunk.patch_embed.proj.weight[:, 6], kernel.mean(1) * 6 / 7)
    assert 'slope <- mean of all (wavelength unknown)' in caplog.text


@pytest.mark.parametrize('pretrained', [True, False])
def test_radar_is_refused_with_what_to_do(build, published, pretrained):
    path, _ = published()
    with pytest.raises(BandError) as error:
        build(bands=(*BANDS, Band('VV', is_radar=True)), weights=path if pretrained else None)
    assert str(error.value) == (
        "prithvi_v2_300M_TL was trained on optical bands only; found radar: 'VV'. Leave them out, or take a backbone "
        'that was trained on radar bands, such as dofa_base'
    )


def test_patch_14_becomes_16_in_the_maps_and_stays_in_the_tokens(build):
    assert build('prithvi_v2_600M', form='tokens').strides == (14,)
    net = build('prithvi_v2_600M')
    assert net.trunk.patch == 16
    assert net.trunk.space.shape[1] == 256

"""Every promise that a backbone of geolearn's own makes, over small variants of each family."""

import math
from dataclasses import replace
from datetime import date

import pytest
import torch

from geolearn.backbones import catalog, create_backbone
from geolearn.backbones.catalog import WeightsSource
from geolearn.bands import Band, get_bands

S2 = get_bands('sentinel2_l2a', ['B04', 'B03', 'B02', 'B08'])
S1 = get_bands('sentinel1', ['VV', 'VH'])
TEN = get_bands('sentinel2_l2a', ['B4', 'B2', 'B3', 'B8', 'B8A', 'B5', 'B6', 'B7', 'B11', 'B12'])
UP = tuple(Band(f'{name}_ascending', None, name.lower(), True) for name in ('VV', 'VH'))
SMALL = {'dim': 48, 'depth': 4, 'heads': 3}

# Name, changes that make it small, bands: of every family of the catalog.
TRANSFORMERS = [
    pytest.param(('dofa_base', SMALL, S2), id='dofa'),
    pytest.param(('dofa_v2_base', SMALL, S2), id='dofa-v2-patch-14'),
    pytest.param(('prithvi_v1_100M', SMALL, S2), id='prithvi'),
    pytest.param(('prithvi_v2_600M_TL', SMALL, S2), id='prithvi-patch-14-coordinates'),
    pytest.param(('anysat_base', SMALL | {'dim': 64, 'heads': 4}, S2), id='anysat'),
    pytest.param(('anysat_base', SMALL | {'dim': 64, 'heads': 4}, TEN[5:6] + S1), id='anysat-two-sensors'),
    pytest.param(('clay_large', SMALL, S2), id='clay'),
    pytest.param(('copernicus_fm_base', SMALL, S2), id='copernicus-fm'),
    pytest.param(('croma_base', SMALL | {'heads': 4}, S2), id='croma'),
    pytest.param(('croma_base', SMALL | {'heads': 4, 'depth': 8}, S1), id='croma-radar'),
    pytest.param(('galileo_nano', {'depth': 4}, S2), id='galileo'),
    pytest.param(('olmoearth_v1_base', SMALL, S2), id='olmoearth-v1'),
    pytest.param(('olmoearth_v1_2_base', SMALL, S2 + S1), id='olmoearth-v1.2-two-sensors'),
    pytest.param(('panopticon', SMALL, S2), id='panopticon'),
    pytest.param(('panopticon', SMALL, S1), id='panopticon-radar'),
    pytest.param(('scalemae_large', SMALL, S2), id='scalemae'),
    pytest.param(('spectralgpt', SMALL, S2), id='spectralgpt'),
    pytest.param(('ssl4eo_dino', SMALL, S2), id='ssl4eo'),
    pytest.param(('terrafm_base', SMALL, S2), id='terrafm'),
    pytest.param(('terrafm_base_l1c', SMALL, S1), id='terrafm-radar'),
    pytest.param(('terramind_tiny', SMALL, S2), id='terramind'),
    pytest.param(('terramind_base', SMALL, S2 + S1), id='terramind-gated-two-sensors'),
    pytest.param(('thor_tiny', SMALL, S2 + TEN[5:6] + S1), id='thor-two-resolutions'),
    pytest.param(('vit_nano', {}, S2), id='plain-vit'),
    pytest.param(('vit_tiny', {'sources': (WeightsSource('timm/test_vit', 'main', ''),)}, S2), id='timm'),
]
NETWORKS = [
    pytest.param(('plain_unet', {}, S2), id='plain-cnn'),
    pytest.param(('satlas_tiny', {'dim': 24, 'depth': 8, 'heads': 3}, S2), id='satlas'),
    pytest.param(('swin_tiny', {'sources': (WeightsSource('timm/test_convnext', 'main', ''),)}, S2), id='timm-network'),
]
# Networks over the time series of single pixels, which have one map of stride 1 and no tokens.
SERIES = [
    pytest.param(('presto', {}, get_bands('sentinel2_l2a', ['B2', 'B3', 'B4', 'B8']) + S1), id='presto'),
    pytest.param(('tessera_v1', {'dim': 32, 'depth': 2, 'heads': 4}, TEN + S1), id='tessera-v1'),
    pytest.param(('tessera_v2', {'dim': 32, 'depth': 2, 'heads': 4}, TEN + UP), id='tessera-v2'),
]
DATES = (date(2023, 5, 3), date(2023, 6, 2), date(2023, 8, 1))
MAPS = ['pyramid', 'layers']


def small(request, use_record):
    name, changes, bands = request.param
    use_record(replace(catalog.read_catalog()[name], **changes))

    def make(**options):
        torch.manual_seed(0)
        return create_backbone(name, bands, pretrained=False, **({'strides': None} | options))

    make.name, make.count = name, len(bands)
    return make


@pytest.fixture(params=TRANSFORMERS)
def build(request, use_record):
    """A function that builds a small transformer at random values, with all maps that it has."""
    return small(request, use_record)


@pytest.fixture(params=[*TRANSFORMERS, *NETWORKS])
def build_any(request, use_record):
    """The same of all networks, those of several resolutions too, which have no tokens."""
    return small(request, use_record)


@pytest.fixture(params=SERIES)
def build_series(request, use_record):
    """The same of networks over time series."""
    make = small(request, use_record)

    def dated(**options):
        # only some know places, and the others refuse them
        place = {'location': (48.0, 16.0)} if request.param[0] == 'presto' else {}
        return make(**({'dates': DATES} | place | options))

    dated.name, dated.count = make.name, make.count
    return dated


@pytest.fixture(params=NETWORKS)
def build_network(request, use_record):
    """The same of networks of several resolutions alone."""
    return small(request, use_record)


def test_every_family_is_here():
    tested = {catalog.get_record(variant.values[0][0]).family for variant in (*TRANSFORMERS, *NETWORKS, *SERIES)}
    assert tested == {record.family for record in catalog.read_catalog().values()}


@pytest.mark.parametrize('form', MAPS)
@pytest.mark.parametrize('size', [(64, 96), (33, 49)])
def test_maps_have_the_declared_channels_and_strides(build_any, form, size):
    net = build_any(form=form).eval()
    with torch.no_grad():
        shapes = [tuple(m.shape) for m in net(torch.randn(2, build_any.count, *size))]
    expected = [(2, c, math.ceil(size[0] / s), math.ceil(size[1] / s)) for c, s in zip(net.channels, net.strides)]
    assert shapes == expected
    assert net.strides == ((1, 2, 4, 8) if build_any.name == 'plain_unet' else (4, 8, 16, 32))


def test_a_network_over_time_series_has_one_map_of_the_pixels(build_series):
    net = build_series().eval()
    x = torch.rand(2, len(DATES), build_series.count, 5, 7)
    x[0, 1, :, 2:, 3] = float('nan')
    with torch.no_grad():
        (found,) = net(x)
        (one,) = net(x[:, ..., 2:3, 3:4])
    assert found.shape == (2, net.channels[0], 5, 7)
    assert (net.strides, net.coarsest_stride, net.takes_missing) == ((1,), 1, True)
    assert found.isfinite().all()
    torch.testing.assert_close(found[..., 2:3, 3:4], one, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match='needs images'):
        net(x[:, :2])


def test_a_network_over_time_series_is_trained_saved_and_loaded(build_series):
    net = build_series().train()
    x = torch.rand(1, len(DATES), build_series.count, 2, 3)
    (net(x)[0] * torch.randn(1, net.channels[0], 2, 3)).sum().backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
    other = build_series()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(net.eval()(x)[0], other.eval()(x)[0])


@pytest.mark.parametrize('size', [(64, 96), (65, 97)])
def test_tokens_cover_an_image_of_any_size(build, size):
    net = build(form='tokens').eval()
    patch = net.strides[0]
    with torch.no_grad():
        tokens = net(torch.randn(2, build.count, *size))
    places = math.ceil(size[0] / patch) * math.ceil(size[1] / patch)
    assert (tokens.shape[0], tokens.shape[2]) == (2, net.channels[0])
    assert (tokens.shape[1] - net.prefix) % places == 0  # SpectralGPT has a token for each group of bands
    assert tokens.shape[1] > net.prefix


@pytest.mark.parametrize(
    ('options', 'checkpointing'),
    [
        ({}, False),
        ({}, True),
        ({'form': 'layers', 'strides': (4, 16)}, False),
        ({'form': 'layers'}, True),
        ({'form': 'tokens'}, False),
    ],
)
def test_gradients_reach_every_trainable_parameter_and_no_other(build, options, checkpointing):
    net = build(**options, checkpointing=checkpointing).train()
    out = net(torch.randn(2, build.count, 64, 48))
    # weights that differ: the sum of normed features is constant
    sum((m * torch.randn_like(m)).sum() for m in (out if isinstance(out, list) else [out])).backward()
    named = list(net.named_parameters())
    assert [n for n, p in named if p.requires_grad != (p.grad is not None)] == []
    assert any(n.startswith('trunk.') for n, p in named if p.requires_grad)


@pytest.mark.parametrize(('strides', 'checkpointing'), [(None, False), ((4, 8), True), ((8,), False)])
def test_gradients_reach_every_parameter_of_a_network_of_several_resolutions(build_network, strides, checkpointing):
    if checkpointing and build_network.name == 'plain_unet':
        pytest.skip('keeps its activations')
    net = build_network(strides=strides, checkpointing=checkpointing).train()
    maps = net(torch.randn(2, build_network.count, 64, 48))
    sum((m * torch.randn_like(m)).sum() for m in maps).backward()
    assert [n for n, p in net.named_parameters() if not p.requires_grad or p.grad is None] == []


@pytest.mark.parametrize('form', [*MAPS, 'tokens'])
def test_evaluation_repeats_itself_bit_for_bit(build, form):
    net, x = build(form=form, drop_path=0.3).eval(), torch.randn(2, build.count, 48, 64)
    with torch.no_grad():
        first, second = net(x), net(x)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize('form', MAPS)
def test_a_state_dict_round_trip_gives_equal_maps(build_any, form):
    check_round_trip(build_any, form)


def test_a_state_dict_round_trip_gives_equal_tokens(build):
    check_round_trip(build, 'tokens')


def check_round_trip(build, form):
    net, other, x = build(form=form).eval(), build(form=form).eval(), torch.randn(1, build.count, 48, 64)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(net(x), other(x)))


@pytest.mark.parametrize('form', MAPS)
def test_images_of_a_batch_do_not_mix(build_any, form):
    net, x = build_any(form=form).eval(), torch.randn(2, build_any.count, 64, 64)
    with torch.no_grad():
        for both, one in zip(net(x), net(x[1:])):
            torch.testing.assert_close(both[1:], one, atol=1e-4, rtol=1e-4)


def test_a_window_over_the_whole_grid_is_global_attention(build):
    trunk, x = build().trunk.eval(), torch.randn(1, build.count, 96, 96)
    with torch.no_grad():
        windowed, everywhere = (trunk.maps(x, range(trunk.depth), window) for window in (6, 0))
    for a, b in zip(windowed, everywhere):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_windowed_and_native_agree_where_nothing_attends(build):
    """Without attention and class token every token goes its own way, in whatever order and window."""
    trunk, x = build(form='tokens').trunk.eval(), torch.randn(1, build.count, 112, 70)
    for stage in trunk.stages:
        for parameter in stage.attn.proj.parameters():
            torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        native = trunk.hidden_states(x)[-1][:, trunk.prefix :]
        for window in (None, 0, 2, 3):
            last = trunk.maps(x, [trunk.depth - 1], window)[0].flatten(2).transpose(1, 2)
            groups = native.unflatten(1, (-1, last.shape[1]))
            torch.testing.assert_close(last, groups.mean(dim=1), atol=1e-5, rtol=1e-5)


def test_random_weights_are_sensible(build):
    net = build(form='tokens').eval()
    with torch.no_grad():
        tokens = net(torch.randn(2, build.count, 64, 64))
    assert tokens.isfinite().all()
    assert 0.3 < tokens.std() < 3
    assert tokens[:, net.prefix :].std(dim=1).mean() > 0.1  # places differ


def test_the_trunk_says_what_it_is(build):
    net = build()
    trunk = net.trunk
    assert net.name == build.name
    assert net.load_report is None
    assert trunk.depth == len(trunk.stages)
    assert trunk.prefix in (0, 1)
    own = {id(p) for p in trunk.parameters()}
    assert all(id(p) in own and not p.requires_grad for p in trunk.native_parameters())

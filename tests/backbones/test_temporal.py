"""Backbones of several dates: their maps, what the order of the dates changes, and when they were taken."""

import copy
import math
import re
from dataclasses import replace
from datetime import date
from itertools import pairwise

import pytest
import torch

from geolearn.backbones import TemporalBackbone, catalog, create_backbone
from geolearn.backbones.building import join_qkv
from geolearn.backbones.scene import in_scene, scene_of
from geolearn.backbones.temporal import LightTemporalAttention, _warn_of_dates, days_of, embed_days
from geolearn.bands import get_bands
from geolearn.errors import BackboneError, WeightsError

S2 = get_bands('sentinel2_l2a', ['B04', 'B03', 'B02', 'B08'])
RADAR = get_bands('sentinel1', ['VV', 'VH'])
RGB = S2[:3]
SMALL = {'dim': 48, 'depth': 4, 'heads': 3}
HEADS = ['mean', 'concat', 'ltae']
MAY, JUNE, JANUARY = date(2021, 5, 1), date(2021, 6, 10), date(2022, 1, 3)

VARIANTS = [
    pytest.param(('dofa_base', SMALL, {}), id='dofa'),
    pytest.param(('prithvi_v2_600M_TL', SMALL, {}), id='prithvi'),
    pytest.param(('prithvi_v1_100M', SMALL, {'form': 'layers'}), id='prithvi-layers'),
    pytest.param(('galileo_nano', {'depth': 4}, {'form': 'layers', 'strides': (4, 16)}), id='galileo-layers'),
    pytest.param(('timm:resnet10t', None, {}), id='resnet'),
]


@pytest.fixture(params=VARIANTS)
def build(request, monkeypatch):
    name, changes, form = request.param
    if changes is not None:
        record = replace(catalog.read_catalog()[name], **changes)
        monkeypatch.setattr(catalog, 'get_record', lambda _: record)

    def make(**options):
        torch.manual_seed(0)
        return create_backbone(name, S2, pretrained=False, **form, **options)

    return make


@pytest.fixture
def small(use_record):
    def use(name, **changes):
        use_record(replace(catalog.read_catalog()[name], **(SMALL | changes)))

    return use


def randomise(net):
    """Give every parameter of the heads a value of its own, so that no start hides what they do."""
    for parameter in net.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return net


# --- every head, over several families


@pytest.mark.parametrize('temporal', HEADS)
@pytest.mark.parametrize('size', [(64, 96), (65, 97)])
def test_maps_are_like_those_of_one_date(build, temporal, size):
    net = build(dates=3, temporal=temporal).eval()
    with torch.no_grad():
        shapes = [tuple(m.shape) for m in net(torch.randn(2, 3, 4, *size))]
    assert shapes == [(2, c, math.ceil(size[0] / s), math.ceil(size[1] / s)) for c, s in zip(net.channels, net.strides)]


@pytest.mark.parametrize('temporal', HEADS)
def test_gradients_reach_every_trainable_parameter_and_no_other(build, temporal):
    net = build(dates=2, temporal=temporal, checkpointing=False).train()
    sum((m * torch.randn_like(m)).sum() for m in net(torch.randn(2, 2, 4, 64, 48))).backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad != (p.grad is not None)] == []


def test_the_mean_of_one_date_is_the_backbone_of_one_date(build):
    single, x = build().eval(), torch.randn(2, 4, 64, 48)
    net = TemporalBackbone(build(), 1).eval()
    with torch.no_grad():
        for a, b in zip(single(x), net(x[:, None])):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_one_date_changes_nothing(build):
    assert type(build(dates=1)) is type(build(dates=[MAY])) is type(build())


def test_weights_have_the_names_that_they_have_for_one_date(build):
    one, several = build().state_dict(), build(dates=2, temporal='ltae').state_dict()
    assert [name for name in several if not name.startswith('heads.')] == list(one)
    other = build(dates=2)
    other.load_state_dict(one)


def test_a_copy_learns_by_itself(build):
    net, x = build(dates=2, temporal='ltae').eval(), torch.randn(1, 2, 4, 32, 32)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        before = net(x)
        assert not any(torch.equal(a, b) for a, b in zip(before, other(x)))
        net.load_state_dict(other.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(net(x), other(x)))


def test_images_of_a_batch_do_not_mix(build):
    net, x = randomise(build(dates=2, temporal='ltae')).eval(), torch.randn(2, 2, 4, 64, 64)
    with torch.no_grad():
        for both, alone in zip(net(x), net(x[1:])):
            torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)


# --- the order of the dates


@pytest.mark.parametrize(('temporal', 'matters'), [('mean', False), ('concat', True), ('ltae', True)])
def test_the_order_of_the_dates_matters_to_all_but_the_mean(small, temporal, matters):
    small('dofa_base')
    net = randomise(create_backbone('dofa_base', S2, pretrained=False, dates=3, temporal=temporal)).eval()
    x = torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        pairs = list(zip(net(x), net(x[:, [2, 0, 1]])))
    assert all(torch.allclose(a, b, atol=1e-5) != matters for a, b in pairs)


def test_prithvi_sees_all_dates_at_once_and_others_each_alone(small):
    x, y = torch.randn(1, 2, 4, 64, 64), torch.randn(1, 4, 64, 64)
    other = torch.stack([x[:, 0], y], dim=1)
    moved = {}
    for name in ('prithvi_v1_100M', 'dofa_base'):
        small(name)
        net = create_backbone(name, S2, pretrained=False, dates=2, temporal='concat').eval()
        for head in net.heads:  # look at the first date alone
            head.proj.weight.data[:, head.proj.out_channels :] = 0
        with torch.no_grad():
            moved[name] = float((net(x)[1] - net(other)[1]).abs().max())
    assert moved['dofa_base'] < 1e-5 < moved['prithvi_v1_100M']


def test_a_projection_of_dates_starts_as_their_mean(small):
    small('dofa_base')
    x = torch.randn(1, 3, 4, 32, 32)
    nets = [create_backbone('dofa_base', S2, pretrained=False, dates=3, temporal=t).eval() for t in ('mean', 'concat')]
    nets[1].load_state_dict(nets[0].state_dict(), strict=False)
    with torch.no_grad():
        for a, b in zip(nets[0](x), nets[1](x)):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


# --- L-TAE


def test_attention_is_a_share_of_each_date():
    head = LightTemporalAttention(32, torch.arange(5))
    shares = head.attention(torch.randn(2, 5, 32, 3, 4))
    assert shares.shape == (2, 3, 4, 5, 16)
    torch.testing.assert_close(shares.sum(dim=3), torch.ones(2, 3, 4, 16))


@pytest.mark.parametrize('channels', [7, 24, 40, 256])
def test_attention_takes_any_number_of_channels(channels):
    head = LightTemporalAttention(channels, torch.arange(3))
    assert head(torch.randn(1, 3, channels, 2, 5)).shape == (1, channels, 2, 5)


def test_a_head_takes_its_own_channels_from_the_date_that_it_looks_at():
    torch.manual_seed(0)
    head = LightTemporalAttention(32, torch.arange(4))
    head.mlp, head.out, head.norm = (torch.nn.Identity() for _ in range(3))
    maps = torch.randn(1, 4, 32, 2, 2)
    weights, values = head.attention(maps), (maps.permute(0, 3, 4, 1, 2) + head.positions).unflatten(-1, (16, 2))
    expected = (weights[..., None] * values).sum(dim=3).flatten(-2).permute(0, 3, 1, 2)
    torch.testing.assert_close(head(maps), expected)


def test_pixels_do_not_see_each_other():
    head = LightTemporalAttention(16, torch.arange(3)).eval()
    maps = torch.randn(1, 3, 16, 4, 4)
    changed = maps.clone()
    changed[..., 2, 1] += 1
    differs = (head(maps) != head(changed)).any(dim=1)[0]
    assert differs.nonzero().tolist() == [[2, 1]]


def test_days_are_counted_on_over_the_turn_of_the_year():
    assert days_of([MAY, JUNE, JANUARY]).tolist() == [121, 161, 368]
    assert days_of([JANUARY]).tolist() == [3]


def test_no_two_days_of_a_year_are_embedded_alike():
    waves = embed_days(torch.arange(366), 4)
    assert torch.pdist(waves).min() > 1e-4


def test_when_the_dates_were_moves_attention(small):
    small('dofa_base')
    x, maps = torch.randn(1, 2, 4, 32, 32), []
    for dates in (2, [MAY, JUNE], [MAY, JANUARY]):
        torch.manual_seed(0)
        net = create_backbone('dofa_base', S2, pretrained=False, dates=dates, temporal='ltae').eval()
        with torch.no_grad():
            maps.append(net(x)[0])
    assert not any(torch.allclose(a, b, atol=1e-4) for a, b in pairwise(maps))


def test_prithvi_is_told_year_and_day(small):
    x, moved = torch.randn(1, 2, 4, 32, 32), {}
    for name in ('prithvi_v2_300M_TL', 'prithvi_v2_300M'):
        small(name)
        maps = []
        for dates in (2, [MAY, JUNE]):
            torch.manual_seed(0)
            with torch.no_grad():
                maps.append(create_backbone(name, S2, pretrained=False, dates=dates).eval()(x)[0])
        moved[name] = float((maps[0] - maps[1]).abs().max())
    assert moved['prithvi_v2_300M'] == 0
    assert moved['prithvi_v2_300M_TL'] > 1e-4


# --- refusals


def test_other_numbers_of_dates_and_tokens_are_refused(small):
    small('dofa_base')
    net = create_backbone('dofa_base', S2, pretrained=False, dates=2)
    for shape in ((1, 3, 4, 32, 32), (1, 4, 32, 32)):
        with pytest.raises(ValueError, match=r'dofa_base needs images \(N, 2, bands, H, W\), got'):
            net(torch.zeros(shape))
    with pytest.raises(BackboneError, match="dofa_base of several dates makes maps; pass form='pyramid'"):
        create_backbone('dofa_base', S2, pretrained=False, dates=2, form='tokens')
    for dates in (0, []):
        with pytest.raises(ValueError, match='dates must be a number of at least 1'):
            create_backbone('dofa_base', S2, pretrained=False, dates=dates)
    with pytest.raises(ValueError, match="temporal must be one of 'mean', 'concat', 'ltae', got 'lstm'"):
        create_backbone('dofa_base', S2, pretrained=False, dates=2, temporal='lstm')


# --- small things beside: resolution, and what stays without gradient


@pytest.mark.parametrize(('name', 'bands'), [('scalemae_large', RGB), ('clay_large', S2), ('galileo_nano', S2)])
def test_the_ground_resolution_moves_positions(small, name, bands):
    small(name, **({'dim': 128, 'heads': 8} if name == 'galileo_nano' else {}))
    x, maps = torch.randn(1, len(bands), 64, 64), []
    for resolution in (None, 3.0):
        torch.manual_seed(0)
        net = create_backbone(name, bands, pretrained=False, resolution_m=resolution).eval()
        with torch.no_grad():
            maps.append(net(x)[0])
    assert net.trunk.ground_resolution_m == 3.0
    assert not torch.allclose(*maps, atol=1e-5)


def test_a_resolution_that_cannot_be_or_is_not_asked_for_is_refused(small):
    small('dofa_base')
    with pytest.raises(BackboneError, match='dofa_base knows no ground resolution; leave resolution_m out'):
        create_backbone('dofa_base', S2, pretrained=False, resolution_m=10)
    with pytest.raises(ValueError, match='resolution_m must be above 0 meters per pixel, got 0'):
        create_backbone('dofa_base', S2, pretrained=False, resolution_m=0)


@pytest.mark.parametrize('layers', [[0], [1, 2], [3], [5]])
@pytest.mark.parametrize(
    ('name', 'bands', 'changes'),
    [('dofa_base', S2, {'depth': 6}), ('croma_base', S2 + RADAR, {'heads': 4}), ('terramind_tiny', S2, {'depth': 6})],
)
def test_what_layers_do_without_is_frozen(small, name, bands, changes, layers):
    small(name, **changes)
    net = create_backbone(name, bands, pretrained=False, form='tokens', layers=layers)
    sum((m * torch.randn_like(m)).sum() for m in net(torch.randn(1, len(bands), 32, 32))).backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad != (p.grad is not None)] == []


@pytest.mark.parametrize('layers', [(0, 1, 2, 3), (0, 1, 2, 4), (2, 3, 4, 5)])
def test_cromas_norms_learn_only_where_radar_and_optical_meet(small, layers):
    small('croma_base', heads=4)
    net = create_backbone('croma_base', S2 + RADAR, pretrained=False, form='layers', layers=layers)
    sum((m * torch.randn_like(m)).sum() for m in net(torch.randn(1, 6, 32, 32))).backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad != (p.grad is not None)] == []
    assert net.trunk.optical.norm.weight.requires_grad == (max(layers) > 3)


@pytest.mark.parametrize('missing', ['k', 'v'])
def test_a_missing_projection_is_named(missing):
    state = {f'blocks.0.attn.{part}.weight': torch.zeros(2, 2) for part in 'qkv' if part != missing}
    with pytest.raises(WeightsError, match=rf'no blocks\.0\.attn\.{missing}\.weight; take the whole file'):
        join_qkv(state)


@torch.inference_mode()
def test_dates_are_those_of_other_images_for_a_while(small):
    images, others = torch.randn(1, 2, 4, 32, 32), (date(2023, 1, 1), date(2023, 12, 1))
    for name, temporal, reads in (
        ('dofa_base', 'ltae', True),
        ('dofa_base', 'mean', False),
        ('prithvi_v2_600M_TL', 'mean', True),
        ('olmoearth_v1_nano', 'mean', True),
    ):
        small(name)
        options = {'pretrained': False, 'strides': (16,), 'temporal': temporal}
        net = create_backbone(name, S2, dates=[MAY, JUNE], **options).eval()
        again = create_backbone(name, S2, dates=others, **options).eval()
        again.load_state_dict(net.state_dict())
        trained = scene_of(net)
        assert trained.dates == ((MAY, JUNE) if reads else ())
        before = net(images)[0]
        with in_scene(net, replace(trained, dates=others if reads else ())):
            assert torch.allclose(net(images)[0], again(images)[0], atol=1e-6)
            assert torch.equal(net(images)[0], before) is not reads
        assert torch.equal(net(images)[0], before)
        assert scene_of(net) == trained


# --- dates that pretraining never had


JULY = date(2021, 7, 4)
REPEATED = r'found images of the same day \(2021-05-01\), needed one image for each date'
LATE = r'found 2021-05-01 after 2021-06-10, needed dates from first to last'
GAP = r'found no image in 1 of the months from 2021-05 to 2021-07, needed a place for each month'


@pytest.mark.parametrize(
    ('name', 'dates', 'notes'),
    [
        (name, dates, notes)
        for name, ordered, gaps in (
            ('dofa_base', False, False),
            ('copernicus_fm_base', False, False),
            ('prithvi_v1_100M', True, False),
            ('prithvi_v2_600M_TL', True, False),
            ('olmoearth_v1_nano', True, True),
            ('olmoearth_v1_1_nano', True, True),
            ('olmoearth_v1_2_nano', False, False),
        )
        for dates, notes in (
            ((MAY, MAY, JUNE), [REPEATED]),
            ((JUNE, MAY, JULY), [LATE] if ordered else []),
            ((MAY, JULY), [GAP] if gaps else []),
            ((MAY, JUNE, JULY), []),
            (3, []),
        )
    ],
)
def test_dates_that_pretraining_never_had_are_named_once(small, caplog, name, dates, notes):
    _warn_of_dates.cache_clear()
    small(name)
    for _ in range(2):
        net = create_backbone(name, S2, pretrained=False, dates=dates, strides=(16,))
    found = [message for message in caplog.messages if f'{name} of several dates' in message]
    assert len(found) == len(notes)
    assert all(re.search(note, message) for note, message in zip(notes, found))
    if not notes and not isinstance(dates, int):  # what other images say is read in the same way
        net.set_dates((MAY,) * len(dates))
        assert re.search(REPEATED, caplog.messages[-1])


@pytest.mark.parametrize(('name', 'numbered'), [('olmoearth_v1_nano', True), ('olmoearth_v1_2_nano', False)])
@torch.inference_mode()
def test_an_image_of_nan_keeps_the_place_of_a_missing_month_and_says_nothing(small, caplog, name, numbered):
    _warn_of_dates.cache_clear()
    small(name)
    images = torch.randn(1, 2, 4, 16, 16)
    gap = torch.full_like(images[:, :1], torch.nan)
    maps = []
    for dates, x in (((MAY, JULY), images), ((MAY, JUNE, JULY), torch.cat([images[:, :1], gap, images[:, 1:]], dim=1))):
        torch.manual_seed(0)
        net = create_backbone(name, S2, pretrained=False, dates=dates, strides=(8,)).eval()
        (found,) = net.trunk.date_maps(x, [3], None, net.acquired)
        maps.append(found.mean(dim=1))
    # July is the third place, not the second, for those that number the dates; the empty place changes nothing else
    assert torch.allclose(*maps, atol=1e-6) is not numbered
    assert bool(maps[1].isfinite().all())
    assert sum('of several dates' in message for message in caplog.messages) == numbered  # of the first

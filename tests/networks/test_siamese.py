"""One encoder for both dates, and maps that tell what differs."""

import pytest
import torch

from geolearn.backbones import create_backbone
from geolearn.bands import get_bands
from geolearn.errors import BackboneError
from geolearn.networks.segmentation import AttentionDifference, RegionAttention, SiameseBackbone

pytestmark = pytest.mark.usefixtures('one_thread', 'small_dofa')

BANDS = get_bands('naip')


def build(name='test_resnet', fusion='difference', **options):
    torch.manual_seed(0)
    return SiameseBackbone(create_backbone(name, BANDS, pretrained=False, **options), fusion).eval()


@pytest.mark.parametrize('name', ['test_resnet', 'dofa_tiny'])
@pytest.mark.parametrize('fusion', ['difference', 'concat', 'attention'])
@pytest.mark.parametrize('size', [(64, 64), (96, 40)])
def test_maps_have_the_declared_channels_and_strides(name, fusion, size):
    net = build(name, fusion)
    with torch.inference_mode():
        maps = net(torch.rand(2, 2, 4, *size))
    expected = [(2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(net.channels, net.strides)]
    assert [tuple(m.shape) for m in maps] == expected


@pytest.mark.parametrize('fusion', ['difference', 'attention'])
def test_what_did_not_change_is_zero_and_the_order_of_dates_does_not_count(fusion):
    net, x = build(fusion=fusion), torch.rand(2, 2, 4, 64, 64)
    with torch.inference_mode():
        assert all(m.abs().max() < 1e-4 for m in net(x[:, :1].expand(-1, 2, -1, -1, -1)))
        for there, back in zip(net(x), net(x.flip(1))):
            assert torch.allclose(there, back, atol=1e-4)


def test_side_by_side_the_order_counts():
    net, x = build(fusion='concat'), torch.rand(1, 2, 4, 64, 64)
    with torch.inference_mode():
        forth, back = net(x)[-1], net(x.flip(1))[-1]
    assert torch.allclose(forth, torch.cat(back.chunk(2, dim=1)[::-1], dim=1), atol=1e-5)


def test_both_dates_share_the_encoder_under_its_own_names():
    single = create_backbone('test_resnet', BANDS, pretrained=False)
    names = set(single.state_dict())
    assert set(SiameseBackbone(single, 'difference').state_dict()) == names


def test_places_attend_within_their_region_alone():
    torch.manual_seed(0)
    layer, grid = RegionAttention(16, 4).eval(), torch.rand(1, 8, 8, 2, 16)
    changed = grid.clone()
    changed[:, 6, 6] += 1
    with torch.inference_mode():
        moved = (layer(grid) - layer(changed)).abs().amax((0, 3, 4)) > 1e-6
    assert moved[4:, 4:].all()
    assert not moved[:4].any()
    assert not moved[:, :4].any()


def test_each_date_sees_the_other():
    torch.manual_seed(0)
    layer, grid = RegionAttention(16, 4).eval(), torch.rand(1, 4, 4, 2, 16)
    changed = grid.clone()
    changed[..., 1, :] += 1
    with torch.inference_mode():
        assert (layer(grid)[..., 0, :] - layer(changed)[..., 0, :]).abs().max() > 1e-4


def test_attention_learns_in_all_its_parts():
    layer = AttentionDifference(16)
    layer(torch.rand(1, 2, 16, 20, 12)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_what_is_no_pair_or_no_fusion_is_refused():
    with pytest.raises(ValueError, match=r'needs pairs of images \(N, 2, bands, H, W\), got \(1, 4, 64, 64\)'):
        build()(torch.rand(1, 4, 64, 64))
    with pytest.raises(ValueError, match="fusion must be one of 'difference', 'concat', 'attention', got 'sum'"):
        build(fusion='sum')
    with pytest.raises(BackboneError, match='makes maps'):
        build('dofa_tiny', form='tokens')

"""timm's networks as backbones: windows of their own, plain transformers in windows, short names and refusals."""

import logging
from types import SimpleNamespace

import pytest
import timm
import torch

from geolearn.backbones import building, catalog, create_backbone
from geolearn.backbones import timm as own
from geolearn.backbones.building import RGB
from geolearn.backbones.timm import TimmTransformer
from geolearn.bands import Band, get_bands
from geolearn.errors import BackboneError, WeightsError

BANDS = (*RGB, Band('nir', 0.842, 'nir'))
STRIDES = (4, 8, 16, 32)


def sides(maps):
    return [tuple(m.shape[2:]) for m in maps]


@pytest.mark.parametrize(
    ('name', 'step'),
    [
        ('mobilenetv3_small_050', 32),
        ('efficientnet_b0', 32),
        ('swin_tiny_patch4_window7_224', 32),
        ('mambaout_femto', 32),
        ('mobilevitv2_050', 64),
    ],
)
def test_networks_of_several_resolutions_take_any_size(name, step):
    net = create_backbone(name, BANDS, pretrained=False).eval()
    with torch.no_grad():
        maps = net(torch.rand(1, 4, 65, 97))
    assert [m.shape[1] for m in maps] == list(net.channels)
    assert (sides(maps), net.step) == ([(17, 25), (9, 13), (5, 7), (3, 4)], step)


def test_windows_that_must_fill_the_image_pad_it():
    net = create_backbone('maxvit_pico_rw_256', BANDS, pretrained=False).eval()
    with torch.no_grad():
        maps = net(torch.rand(1, 4, 64, 96))
    assert (sides(maps), net.step) == ([(16, 24), (8, 12), (4, 6), (2, 3)], 256)


def test_swin_equals_timms_own_at_its_own_size():
    torch.manual_seed(0)
    net = create_backbone('swin_tiny_patch4_window7_224', RGB, pretrained=False).eval()
    reference = timm.create_model('swin_tiny_patch4_window7_224', features_only=True).eval()
    reference.load_state_dict(net.trunk.state_dict())
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        for found, expected in zip(net(x), reference(x)):
            torch.testing.assert_close(found, expected.permute(0, 3, 1, 2), atol=1e-4, rtol=1e-4)


def published_names(state):
    """timm's names of an EfficientNet-B0 as EfficientNet-PyTorch has them."""
    blocks = sorted({tuple(map(int, name.split('.')[1:3])) for name in state if name.startswith('blocks.')})
    outside = {'conv_stem': '_conv_stem', 'bn1': '_bn0', 'conv_head': '_conv_head', 'bn2': '_bn1', 'classifier': '_fc'}
    inside = {'conv_pw': '_expand_conv', 'conv_dw': '_depthwise_conv', 'conv_pwl': '_project_conv'}
    inside |= {f'bn{n}': f'_bn{n - 1}' for n in (1, 2, 3)}
    plain = inside | {'conv_pw': '_project_conv', 'bn1': '_bn1', 'bn2': '_bn2'}
    found = {}
    for name, value in state.items():
        parts = name.split('.')
        if parts[0] != 'blocks':
            found['.'.join([outside[parts[0]], *parts[1:]])] = value
            continue
        place = tuple(map(int, parts[1:3]))
        if parts[3] == 'se':
            layer = {'conv_reduce': '_se_reduce', 'conv_expand': '_se_expand'}[parts[4]]
        else:
            layer = (inside if place[0] else plain)[parts[3]]
        found[f'_blocks.{blocks.index(place)}.{layer}.{parts[-1]}'] = value
    return found


def test_weights_under_the_names_of_efficientnet_pytorch_load_strictly(tmp_path):
    torch.manual_seed(0)
    donor = timm.create_model('tf_efficientnet_b0').eval()
    state = published_names(donor.state_dict())
    assert {'_blocks.0._bn1.weight', '_blocks.15._bn2.bias', '_blocks.3._se_reduce.weight', '_fc.bias'} < set(state)
    torch.save(state, tmp_path / 'b0.pth')
    net = create_backbone('tf_efficientnet_b0', RGB, weights=tmp_path / 'b0.pth').eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for found, expected in zip(net(x), donor.forward_intermediates(x, intermediates_only=True)[1:]):
            assert torch.equal(found, expected)
    gone = dict(state)
    gone['_blocks.2._unknown.weight'] = gone.pop('_blocks.2._bn1.weight')
    torch.save(gone, tmp_path / 'odd.pth')
    with pytest.raises(WeightsError, match=r'missing: blocks\.1\.1\.bn2\.weight; 1 unexpected: _blocks\.2\._unknown'):
        create_backbone('tf_efficientnet_b0', RGB, weights=tmp_path / 'odd.pth')
    # the same kernels, but padded and normed in another way
    with pytest.raises(WeightsError, match='which efficientnet_b0 does not; take the backbone tf_efficientnet_b0'):
        create_backbone('efficientnet_b0', RGB, weights=tmp_path / 'b0.pth')


class TestPlainTransformers:
    @pytest.mark.parametrize(
        ('name', 'form'),
        [
            ('test_vit', 'pyramid'),
            ('test_vit', 'layers'),
            ('test_vit2', 'pyramid'),
            ('vit_tiny_patch16_dinov3_qkvb', 'layers'),
        ],
    )
    def test_maps_have_any_size_and_every_parameter_learns(self, name, form):
        net = create_backbone(
            name, BANDS, pretrained=False, form=form, layers=(0, 1, 2, 3) if form == 'layers' else None
        )
        maps = net(torch.rand(2, 4, 65, 97))
        assert (net.strides, sides(maps)) == (STRIDES, [(17, 25), (9, 13), (5, 7), (3, 4)])
        sum((m * torch.randn_like(m)).sum() for m in maps).backward()
        assert [n for n, p in net.named_parameters() if p.requires_grad != (p.grad is not None)] == []

    def test_tokens_are_timms_own(self):
        torch.manual_seed(0)
        net = create_backbone('vit_tiny_patch16_dinov3_qkvb', RGB, pretrained=False, form='tokens').eval()
        x = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(net(x), net.trunk.net.forward_features(x), atol=1e-5, rtol=1e-5)
        assert (net.prefix, net(x).shape) == (5, (1, 5 + 16, 192))

    def test_one_window_over_the_whole_grid_is_global_attention(self):
        trunk = create_backbone('test_vit', RGB, pretrained=False).trunk.eval()
        x = torch.rand(2, 3, 96, 64)
        with torch.no_grad():
            everywhere, windowed, cut = (trunk.maps(x, [5, 2], w) for w in (0, None, 2))
        torch.testing.assert_close(windowed, everywhere)
        assert not torch.allclose(cut[0], everywhere[0])
        assert trunk.global_at == (1, 2, 4, 5)

    def test_windowed_blocks_do_not_see_other_windows(self):
        trunk = create_backbone('test_vit', RGB, pretrained=False).trunk.eval()
        x = torch.rand(1, 3, 64, 96)
        changed = x.clone()
        changed[..., 64:] = 0
        with torch.no_grad():
            before, after = (trunk.maps(image, [0], 2)[0] for image in (x, changed))
        assert torch.equal(before[..., :4], after[..., :4])
        assert not torch.equal(before[..., 4:], after[..., 4:])

    def test_checkpointing_changes_no_gradient(self):
        net = create_backbone('test_vit', RGB, pretrained=False).train()
        x, gradients = torch.rand(1, 3, 64, 64), []
        for enable in (False, True):
            net.trunk.set_grad_checkpointing(enable)
            net.zero_grad()
            net(x)[0].square().sum().backward()
            gradients.append(net.trunk.net.blocks[0].attn.qkv.weight.grad.clone())
        torch.testing.assert_close(*gradients)

    def test_patches_of_14_pixels_are_resampled_to_16_from_a_file(self, tmp_path):
        donor = timm.create_model('vit_small_patch14_dinov2', num_classes=0)
        torch.save(donor.state_dict(), tmp_path / 'w.pth')
        net = create_backbone('vit_small_patch14_dinov2', (RGB[2],), weights=tmp_path / 'w.pth')
        assert net.trunk.net.patch_embed.proj.weight.shape == (384, 1, 16, 16)
        assert torch.equal(net.trunk.net.blocks[3].attn.qkv.weight, donor.blocks[3].attn.qkv.weight)
        assert 'blue <- blue; unused: red, green; kernels x 3' in net.load_report.source


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        ('coatnet_nano_rw_224', {}, r'cannot take images of any size \(.*dimension'),
        ('inception_v3', {}, r'cannot take images of any size \(.*padded input size'),
        ('pit_ti_224', {}, r'offers maps at strides \[8, 16, 32\], needed 4 to 32'),
        ('cait_xxs24_224', {}, r'cannot take images of any size \(Input height'),
        ('resnet18', {'form': 'tokens'}, 'without tokens'),
        ('resnet18', {'window': 14}, 'layers, window and relative_positions do not apply'),
        ('vit_tiny_patch16_dinov3_qkvb', {'window': 14}, 'cannot attend within windows; pass window=None or 0'),
        ('test_vit', {'relative_positions': True}, 'relative_positions cannot be added'),
    ],
)
def test_models_that_cannot_serve_say_why(name, arguments, message):
    with pytest.raises(BackboneError, match=message):
        create_backbone(name, BANDS, pretrained=False, **arguments)


class TestShortNames:
    def test_they_stand_for_models_of_timm(self):
        records = [record for record in catalog.read_catalog().values() if record.family == 'timm']
        assert {'vit_base', 'swin_tiny', 'dinov3_sat_large'} <= {record.name for record in records}
        for record in records:
            assert timm.is_model(record.sources[0].repo.partition('/')[2]), record.name

    def test_a_short_name_builds_and_keeps_its_name(self):
        net = create_backbone('vit_tiny', get_bands('naip'), pretrained=False)
        assert (net.name, type(net.trunk), net.trunk.dim) == ('vit_tiny', TimmTransformer, 192)

    def test_a_gated_license_is_said(self, monkeypatch, caplog):
        building.announce_license.cache_clear()
        monkeypatch.setattr(own, '_build', lambda *arguments: SimpleNamespace(trunk=None))
        with caplog.at_level(logging.WARNING, 'geolearn'):
            create_backbone('dinov3_sat', RGB)
        assert 'dinov3_sat_large are gated' in caplog.text

    def test_statistics_are_timms(self):
        record = catalog.get_record('dinov3_sat_large')
        pretrained = timm.get_pretrained_cfg(record.sources[0].repo.partition('/')[2])
        assert [m / 255 for m in record.inputs[0].mean] == pytest.approx(pretrained.mean)
        assert [s / 255 for s in record.inputs[0].std] == pytest.approx(pretrained.std)


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'vit_medium_patch16_reg4_gap_256'])
def test_the_attention_of_plain_transformers_is_what_their_blocks_attend_to(name):
    torch.manual_seed(0)
    net = create_backbone(name, BANDS, pretrained=False, form='tokens').eval()
    trunk, x = net.trunk, torch.rand(2, 4, 40, 64)
    assert trunk.offers_attention
    with torch.inference_mode():
        tokens = trunk.first_tokens(x)
        for block in trunk.stages:
            shares = trunk.attention_in(block, tokens)
            qkv = block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, trunk.heads, -1))
            mixed = (shares @ qkv[:, :, 2].transpose(1, 2)).transpose(1, 2).flatten(2)
            torch.testing.assert_close(block.attn.proj(mixed), block.attn(block.norm1(tokens)), atol=1e-5, rtol=1e-4)
            last, tokens = shares, block(tokens)
        torch.testing.assert_close(tokens, trunk.hidden_states(x)[-1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(net.attention_maps(x), last)
    assert last.shape == (2, trunk.heads, net.prefix + 12, net.prefix + 12)
    torch.testing.assert_close(last.sum(-1), torch.ones(last.shape[:-1]))


def test_transformers_with_positions_in_their_attention_do_not_offer_it():
    net = create_backbone('vit_small_patch16_dinov3', BANDS, pretrained=False, form='tokens')
    assert not net.trunk.offers_attention

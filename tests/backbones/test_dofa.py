"""DOFA against reference numbers of its published code, and what must hold around its generated kernels."""

import copy
import dataclasses
import warnings

import pytest
import torch
import torch.nn.functional as F

from geolearn.backbones import catalog, create_backbone
from geolearn.backbones.dofa import (
    RADAR_WAVELENGTH_UM,
    RADAR_WAVELENGTH_UM_V2,
    DynamicPatchEmbed,
    dofa_wavelengths,
    embed_wavelengths,
)
from geolearn.bands import Band
from geolearn.errors import BandError, WeightsError

RGB = (Band('red', 0.665), Band('green', 0.56), Band('blue', 0.49))
CASES = ['s2_9', 'hls_6', 's1_v1']


@pytest.fixture(scope='module')
def oracle(shared):
    return torch.load(shared / 'oracles' / 'dofa.pt', weights_only=True)


def bands_of(case):
    return tuple(
        Band(f'b{i}', is_radar=True) if w == RADAR_WAVELENGTH_UM else Band(f'b{i}', w)
        for i, w in enumerate(case['wavelengths'].tolist())
    )


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('layout', ['official', 'torchgeo'])
def test_every_stage_matches_the_published_code(oracle, small_dofa, tmp_path, name, layout):
    state, case = dict(oracle['official']), oracle['cases'][name]
    if layout == 'torchgeo':
        state = {k: v for k, v in state.items() if k.split('.')[0] not in ('mask_token', 'norm', 'projector')}
    torch.save(state, tmp_path / 'dofa.pth')
    net = create_backbone('dofa_base', bands_of(case), weights=tmp_path / 'dofa.pth', form='tokens').eval()
    vit = net.trunk
    with torch.no_grad():
        kernel, bias = vit.patch_embed.kernel()
        hidden = vit.hidden_states(case['x'])
        found = {
            'kernel': kernel,
            'bias': bias,
            'tokens': vit.embed(case['x']).flatten(2).transpose(1, 2),
            **{f'hidden_{i}': h for i, h in enumerate(hidden)},
            'pooled': F.layer_norm(
                hidden[-1][:, 1:].mean(1), (48,), *(oracle['extra'][f'fc_norm.{k}'] for k in ('weight', 'bias')), 1e-6
            ),
        }
        tokens = net(case['x'])
    for key, value in found.items():
        torch.testing.assert_close(value, case[key], atol=1e-4, rtol=0, msg=lambda m, key=key: f'{key}: {m}')
    if layout == 'official':
        torch.testing.assert_close(tokens[:, 0], case['cls_norm'], atol=1e-4, rtol=0)
        assert net.load_report.unexpected == ('mask_token', 'projector.weight', 'projector.bias')
    else:
        assert torch.equal(tokens, hidden[-1])
    assert not net.load_report.missing
    assert len(net.load_report.matched) == (74 if layout == 'official' else 72)


def test_a_random_network_of_torchgeos_gives_the_same_tokens(small_dofa, use_record, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        models = pytest.importorskip('torchgeo.models', reason='torchgeo is not installed')
    torch.manual_seed(0)
    peer = models.DOFA(img_size=96, embed_dim=48, depth=4, num_heads=3, num_classes=0, global_pool=True).eval()
    torch.nn.init.normal_(peer.pos_embed)
    torch.save(peer.state_dict(), tmp_path / 'w.pth')
    use_record(dataclasses.replace(small_dofa, grid=6))
    x = torch.randn(2, 3, 96, 96)
    net = create_backbone('dofa_base', RGB, weights=tmp_path / 'w.pth', form='tokens').eval()
    with torch.no_grad():
        expected = peer.forward_features(x, wavelengths=[b.wavelength_um for b in RGB])
        pooled = peer.fc_norm(net(x)[:, 1:].mean(dim=1))
    torch.testing.assert_close(pooled, expected, atol=1e-4, rtol=0)


@pytest.fixture
def small_dofa_v2(use_record):
    """Let 'dofa_v2_base' stand for the oracle's size."""
    return use_record(dataclasses.replace(catalog.get_record('dofa_v2_base'), dim=48, depth=4, heads=3))


class TestSecondVersion:
    def test_every_stage_matches_the_published_code(self, oracle, small_dofa_v2, tmp_path):
        case = oracle['v2']['cases']['rgb']
        torch.save(oracle['v2']['state_dict'], tmp_path / 'dofa.pth')
        net = create_backbone('dofa_v2_base', bands_of(case), weights=tmp_path / 'dofa.pth', form='tokens').eval()
        with torch.no_grad():
            kernel, bias = net.trunk.patch_embed.kernel()
            hidden = net.trunk.hidden_states(case['x'])
            found = {'kernel': kernel, 'bias': bias, 'final_norm': net(case['x'])}
        found |= {i: hidden[i] for i in case['hidden']}
        for key, value in found.items():
            torch.testing.assert_close(value, {**case, **case['hidden']}[key], atol=1e-4, rtol=0)
        assert not net.load_report.missing
        assert net.load_report.unexpected == ('norm.weight', 'norm.bias')  # the outer one

    @pytest.mark.parametrize('prefix', ['module.', 'model.', 'net.encoder.'])
    def test_names_may_have_a_prefix_besides_their_own(self, oracle, small_dofa_v2, tmp_path, prefix):
        state = {prefix + name: value for name, value in oracle['v2']['state_dict'].items()}
        flat = create_backbone('dofa_v2_base', RGB, pretrained=False, form='tokens').trunk.state_dict()
        for given in (state, {prefix + name: value for name, value in flat.items()}):
            torch.save({**given, f'{prefix}head.weight': torch.zeros(2)}, tmp_path / 'dofa.pth')
            net = create_backbone('dofa_v2_base', RGB, weights=tmp_path / 'dofa.pth', form='tokens')
            assert not net.load_report.missing
            assert set(net.load_report.matched) == set(flat)

    def test_kernels_of_14_pixels_are_resampled_to_16_in_the_maps(self, oracle, small_dofa_v2, tmp_path):
        case = oracle['v2']['cases']['rgb']
        torch.save(oracle['v2']['state_dict'], tmp_path / 'dofa.pth')
        net = create_backbone('dofa_v2_base', bands_of(case), weights=tmp_path / 'dofa.pth').eval()
        with torch.no_grad():
            kernel, _ = net.trunk.patch_embed.kernel()
            shapes = [tuple(m.shape[2:]) for m in net(torch.randn(1, 3, 64, 96))]
        expected = F.interpolate(case['kernel'], size=(16, 16), mode='bicubic', align_corners=False)
        torch.testing.assert_close(kernel, expected, atol=1e-6, rtol=1e-4)
        assert shapes == [(16, 24), (8, 12), (4, 6), (2, 3)]

    def test_radar_has_its_own_placeholder(self, small_dofa_v2):
        net = create_backbone('dofa_v2_base', (Band('VV', is_radar=True), *RGB), pretrained=False)
        assert net.trunk.patch_embed.wavelengths_um == (RADAR_WAVELENGTH_UM_V2, 0.665, 0.56, 0.49)
        assert RADAR_WAVELENGTH_UM_V2 == 5.405

    @pytest.mark.parametrize(('name', 'version'), [('dofa_base', 'v2'), ('dofa_v2_base', 'official')])
    def test_the_other_versions_weights_do_not_load(self, oracle, use_record, tmp_path, name, version):
        use_record(dataclasses.replace(catalog.get_record(name), dim=48, depth=4, heads=3))
        state = oracle['v2']['state_dict'] if version == 'v2' else oracle['official']
        torch.save(state, tmp_path / 'dofa.pth')
        with pytest.raises(WeightsError, match='do not fit the network'):
            create_backbone(name, RGB, weights=tmp_path / 'dofa.pth')


@pytest.mark.parametrize('case', ['s2_9'])
def test_kernel_is_tight_to_the_oracle_at_its_own_scale(oracle, small_dofa, tmp_path, case):
    torch.save(oracle['official'], tmp_path / 'dofa.pth')
    net = create_backbone('dofa_base', bands_of(oracle['cases'][case]), weights=tmp_path / 'dofa.pth')
    kernel, _ = net.trunk.patch_embed.kernel()
    torch.testing.assert_close(kernel, oracle['cases'][case]['kernel'], atol=1e-7, rtol=1e-4)


def test_pyramid_and_tokens_share_one_set_of_weights(small_dofa):
    pyramid = create_backbone('dofa_base', RGB, pretrained=False)
    tokens = create_backbone('dofa_base', RGB, pretrained=False, form='tokens')
    tokens.trunk.load_state_dict(pyramid.trunk.state_dict())
    assert tokens.trunk.state_dict().keys() == pyramid.trunk.state_dict().keys()


def test_positions_are_filled_in_from_scratch(small_dofa):
    assert create_backbone('dofa_base', RGB, pretrained=False).trunk.pos_embed[0, 1:].abs().sum(1).min() > 1


def test_bands_may_be_reordered(small_dofa):
    embed = DynamicPatchEmbed([0.49, 0.56, 0.665], 48)
    other = DynamicPatchEmbed([0.665, 0.49, 0.56], 48)
    other.load_state_dict(embed.state_dict())
    torch.testing.assert_close(other.kernel()[0], embed.kernel()[0][:, [2, 0, 1]], atol=1e-6, rtol=0)


def test_vv_and_vh_share_one_kernel():
    bands = (Band('VV', is_radar=True), Band('VH', is_radar=True))
    assert dofa_wavelengths(bands) == (3.75, 3.75)
    kernel, _ = DynamicPatchEmbed(dofa_wavelengths(bands), 48).kernel()
    assert torch.equal(kernel[:, 0], kernel[:, 1])


def test_bands_without_wavelength_are_refused(small_dofa):
    with pytest.raises(BandError, match="dofa_base needs a wavelength for every band; unresolved: 'ndvi'"):
        create_backbone('dofa_base', (*RGB, Band('ndvi')), pretrained=False)


def test_nanometers_are_refused():
    with pytest.raises(BandError, match=r'micrometers, between 0.2 and 20'):
        DynamicPatchEmbed([665.0], 48)


class TestKernelCache:
    def embed(self):
        return DynamicPatchEmbed([0.49, 0.56], 16, kernel=4)

    def test_kernel_is_computed_once_without_gradients(self):
        embed = self.embed()
        with torch.no_grad():
            assert embed.kernel()[0] is embed.kernel()[0]

    def test_kernel_is_computed_once_in_training_with_a_frozen_generator(self):
        embed = self.embed().requires_grad_(False).train()
        assert embed.kernel()[0] is embed.kernel()[0]

    @pytest.mark.parametrize('training', [True, False])
    def test_gradients_reach_a_trainable_generator(self, training):
        embed = self.embed().train(training)
        with torch.no_grad():
            embed(torch.randn(1, 2, 8, 8))
        embed(torch.randn(1, 2, 8, 8)).sum().backward()
        assert all(p.grad is not None for p in embed.parameters())

    @pytest.mark.parametrize('change', ['load_state_dict', 'optimizer', 'to', 'assign'])
    def test_any_change_of_weights_renews_the_kernel(self, change):
        embed, other = self.embed(), self.embed()
        with torch.no_grad():
            before = embed.kernel()[0].clone()
        if change == 'load_state_dict':
            embed.load_state_dict(other.state_dict())
        elif change == 'assign':
            embed.load_state_dict(other.state_dict(), assign=True)
        elif change == 'optimizer':
            optimizer = torch.optim.SGD(embed.parameters(), lr=1.0)
            embed(torch.randn(1, 2, 8, 8)).sum().backward()
            optimizer.step()
        else:
            embed.to(torch.bfloat16).to(torch.float32)
        with torch.no_grad():
            after = embed.kernel()[0]
            embed._cached = None
            assert torch.equal(after, embed.kernel()[0])
            assert not torch.equal(after, before)

    def test_a_copy_never_keeps_the_kernel(self):
        embed = self.embed()
        with torch.no_grad():
            embed.kernel()
            assert copy.deepcopy(embed)._cached is None

    def test_a_kernel_made_in_inference_mode_serves_training(self):
        embed = self.embed().requires_grad_(False)
        with torch.inference_mode():
            embed(torch.randn(1, 2, 8, 8))
        x = torch.randn(1, 2, 8, 8, requires_grad=True)
        embed(x).sum().backward()
        assert x.grad is not None

    def test_kernel_is_float32_whatever_autocast_or_weights(self):
        embed = self.embed()
        with torch.no_grad():
            exact = embed.kernel()[0].clone()
            with torch.autocast('cpu', torch.bfloat16):
                embed._cached = None
                assert torch.equal(embed.kernel()[0], exact)
            half = embed.to(torch.bfloat16)
            assert half.kernel()[0].dtype == torch.float32
            assert (half.kernel()[0] - exact).norm() < 0.02 * exact.norm()  # of rounded weights
            assert half(torch.randn(1, 2, 8, 8).bfloat16()).dtype == torch.bfloat16

    def test_exporting_leaves_no_trace_in_the_cache(self):
        embed, x = self.embed(), torch.randn(1, 2, 8, 12)
        with torch.no_grad():
            exported = torch.export.export(embed, (x,)).module()
            assert embed._cached is None
            torch.testing.assert_close(exported(x), embed(x))

    def test_folding_gives_the_same_tokens(self):
        embed, x = self.embed(), torch.randn(1, 2, 8, 12)
        with torch.no_grad():
            torch.testing.assert_close(embed.folded()(x), embed(x))  # a convolution and a matrix product


def test_wavelengths_are_embedded_in_nanometers_sines_first():
    e = embed_wavelengths(torch.tensor([0.665]))
    assert e.shape == (1, 128)
    torch.testing.assert_close(e[0, [0, 64]], torch.tensor([665.0, 665.0 + torch.pi / 2]).sin(), atol=1e-4, rtol=0)


@pytest.mark.parametrize('size', [(224, 224), (65, 97), (30, 16)])
def test_tokens_cover_an_image_of_any_size(small_dofa, size):
    net = create_backbone('dofa_base', RGB, pretrained=False, form='tokens')
    patches = -(-size[0] // 16) * -(-size[1] // 16)
    assert net(torch.randn(1, 3, *size)).shape == (1, 1 + patches, 48)


def test_patch_14_keeps_strides_4_to_32_in_the_pyramid(use_record):
    record = catalog.get_record('dofa_huge')
    assert (record.patch, record.grid) == (14, 16)
    use_record(dataclasses.replace(record, dim=48, depth=4, heads=3))
    net = create_backbone('dofa_huge', RGB, pretrained=False)
    assert net.trunk.pos_embed.shape == (1, 257, 48)
    assert [tuple(m.shape[2:]) for m in net(torch.randn(1, 3, 96, 64))] == [(24, 16), (12, 8), (6, 4), (3, 2)]
    assert create_backbone('dofa_huge', RGB, pretrained=False, form='tokens').strides == (14,)


def test_window_0_is_global_attention(small_dofa):
    x = torch.randn(1, 3, 320, 320)
    nets = {w: create_backbone('dofa_base', RGB, pretrained=False, window=w).eval() for w in (None, 0, 20, 4)}
    for net in nets.values():
        net.load_state_dict(nets[0].state_dict())
        net.trunk.config = dataclasses.replace(net.trunk.config, depth=16)  # global at 3, 7 ...: blocks 0 to 2 windowed
    with torch.no_grad():
        maps = {w: net(x)[2] for w, net in nets.items()}
    assert torch.equal(maps[20], maps[0])
    assert not torch.equal(maps[4], maps[0])
    assert not torch.equal(maps[None], maps[0])


@pytest.mark.parametrize('name', ['dofa_tiny', 'dofa_small', 'dofa_huge'])
def test_variants_without_weights_say_which_have_them(name):
    with pytest.raises(WeightsError, match=f'published for {name}; take dofa_base or dofa_large, or pass pretrained=F'):
        create_backbone(name, RGB)


def test_sizes_of_the_variants_are_the_published_ones():
    with torch.device('meta'):
        net = create_backbone('dofa_base', RGB, pretrained=False)
    core = {k: v for k, v in net.trunk.state_dict().items() if not k.startswith('norm.')}
    assert sum(v.numel() for v in core.values()) == 111_310_592

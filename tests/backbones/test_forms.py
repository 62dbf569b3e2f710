"""What can be asked of a transformer's forms: layers, attention, relative positions, less memory."""

import copy

import pytest
import torch

from geolearn.backbones import create_backbone
from geolearn.backbones.backbone import LayerPyramid
from geolearn.backbones.trunk import Trunk
from geolearn.backbones.vit import Stage
from geolearn.bands import Band
from geolearn.errors import BackboneError

RGB = (Band('red', 0.665), Band('green', 0.56), Band('blue', 0.49))


@pytest.fixture
def build(small_dofa):
    """A function that builds the small DOFA."""

    def make(**options):
        torch.manual_seed(0)
        return create_backbone('dofa_base', RGB, pretrained=False, **options).eval()

    return make


class TestLayers:
    def test_tokens_of_chosen_layers_are_those_of_the_blocks(self, build):
        net, x = build(form='tokens', layers=(0, 3)), torch.randn(2, 3, 48, 32)
        with torch.no_grad():
            first, last = net(x)
            assert torch.equal(net.trunk.norm(last), build(form='tokens')(x))
        assert first.shape == (2, 7, 48)
        assert (net.channels, net.strides) == ((48, 48), (16, 16))

    def test_four_layers_are_spaced_evenly(self, build):
        assert build(form='layers').layers == (0, 1, 2, 3)
        assert build(form='layers', strides=(8, 32)).layers == (1, 3)
        assert build(form='layers', layers=(0, 0, 2, 2)).layers == (0, 0, 2, 2)

    def test_one_map_comes_from_the_last_layer(self, build):
        assert build(form='layers', strides=(16,)).layers == (3,)
        assert build(form='layers', strides=(8,), layers=(0, 1, 2, 3)).layers == (1,)

    def test_blocks_after_the_last_layer_do_not_run_and_do_not_learn(self, build):
        net = build(form='layers', layers=(0, 0, 1, 1))
        assert [any(p.requires_grad for p in s.parameters()) for s in net.trunk.stages] == [True, True, False, False]

    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            ({'form': 'tokens', 'layers': (4,)}, r'layers of dofa_base must lie in 0..3, got \(4,\)'),
            ({'form': 'tokens', 'layers': ()}, 'must lie in 0..3'),
            ({'form': 'layers', 'layers': (0, 1)}, r"the form 'layers' of dofa_base needs four layers, got \(0, 1\)"),
        ],
    )
    def test_layers_that_are_not_there_are_refused(self, build, options, message):
        with pytest.raises(BackboneError, match=message):
            build(**options)

    @pytest.mark.parametrize('patch', [8, 16])
    def test_maps_of_one_stride_come_out_at_four(self, patch):
        maps = LayerPyramid(16, patch)([torch.randn(1, 16, 96 // patch, 160 // patch)] * 4)
        assert [tuple(m.shape) for m in maps] == [(1, 16, 96 // s, 160 // s) for s in (4, 8, 16, 32)]

    def test_patch_14_is_refused(self):
        with pytest.raises(ValueError, match='resample the patch kernel to 16'):
            LayerPyramid(16, 14)


class TestAttention:
    def test_rows_sum_to_one_over_class_token_and_patches(self, build):
        maps = build(form='tokens').attention_maps(torch.randn(2, 3, 48, 32))
        assert maps.shape == (2, 3, 7, 7)
        torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 7))

    def test_they_are_what_the_last_block_attends_with(self, build):
        trunk = build(form='tokens').trunk
        x = torch.randn(1, 3, 48, 32)
        with torch.no_grad():
            before = trunk.hidden_states(x)[-2]
            last = trunk.stages[-1]
            _, _, v = last.attn._split(last.norm1(before))
            mixed = (trunk.attention_maps(x) @ v).transpose(1, 2).reshape(before.shape)
            torch.testing.assert_close(last.attn.proj(mixed), last.attn(last.norm1(before)), atol=1e-5, rtol=1e-4)

    def test_trunks_without_them_say_so(self, build):
        net = build(form='tokens')
        net.trunk = Trunk()
        with pytest.raises(BackboneError, match='dofa_base does not offer attention maps'):
            net.attention_maps(torch.randn(1, 3, 16, 16))


class TestRelativePositions:
    def test_they_change_nothing_until_they_are_trained(self, build):
        plain, relative, x = build(), build(relative_positions=True), torch.randn(1, 3, 96, 64)
        missing, unexpected = relative.load_state_dict(plain.state_dict(), strict=False)
        assert len(missing) == 8
        assert not unexpected
        with torch.no_grad():
            for a, b in zip(plain(x), relative(x)):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
            torch.nn.init.normal_(relative.trunk.blocks[0].attn.rel_pos_h)
            assert not torch.allclose(plain(x)[0], relative(x)[0], atol=1e-3)

    def test_checkpoints_need_not_have_them(self, small_dofa, official_state, tmp_path):
        torch.save(official_state, tmp_path / 'w.pth')
        net = create_backbone('dofa_base', RGB, weights=tmp_path / 'w.pth', relative_positions=True)
        assert set(net.load_report.missing) == {f'blocks.{i}.attn.rel_pos_{axis}' for i in range(4) for axis in 'hw'}


class TestCheckpointing:
    def test_gradients_are_the_same(self, build):
        nets = [build(checkpointing=on).train() for on in (False, True)]
        x = torch.randn(1, 3, 64, 64)
        for net in nets:
            sum(m.square().mean() for m in net(x)).backward()
        for a, b in zip(*(net.parameters() for net in nets)):
            torch.testing.assert_close(a.grad, b.grad)

    def test_less_is_kept_for_the_way_back(self, build):
        def kept(trunk):
            trunk.train().patch_embed.requires_grad_(False)
            seen = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.numel()) or t, lambda t: t):
                trunk.maps(torch.randn(1, 3, 256, 256), [3])
            return sum(seen)

        assert kept(build(checkpointing=True).trunk) < 0.1 * kept(build().trunk)

    def test_copies_keep_the_switch(self, build):
        net = copy.deepcopy(build(checkpointing=True))
        assert all(m.checkpointing for m in net.modules() if isinstance(m, Stage))

    def test_networks_that_cannot_say_so(self):
        with pytest.raises(BackboneError, match='mobilenet_v3_small cannot recompute activations'):
            create_backbone('mobilenet_v3_small', RGB, pretrained=False, checkpointing=True)

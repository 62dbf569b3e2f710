"""Satlas's Swin transformers, against torchgeo's class at random values, over any bands and sizes."""

import dataclasses

import pytest
import torch
from torchvision.models import swin_transformer

from geolearn.backbones import catalog, create_backbone
from geolearn.backbones.satlas import SwinMaps
from geolearn.bands import get_bands
from geolearn.errors import BackboneError, BandError

S2 = get_bands('sentinel2_l1c', catalog.get_record('satlas_tiny').inputs[0].bands)


@pytest.fixture
def small(monkeypatch):
    """Make every record of the catalog small."""
    get = catalog.get_record
    monkeypatch.setattr(catalog, 'get_record', lambda name: dataclasses.replace(get(name), dim=24, depth=8, heads=3))


@pytest.fixture(scope='module')
def reference():
    """The class that torchgeo's `swin_v2_t` returns, small."""
    torch.manual_seed(0)
    net = swin_transformer.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=24,
        depths=[2, 2, 2, 2],
        num_heads=[3, 6, 12, 24],
        window_size=[8, 8],
        block=swin_transformer.SwinTransformerBlockV2,
        downsample_layer=swin_transformer.PatchMergingV2,
    ).eval()
    net.features[0][0] = torch.nn.Conv2d(9, 24, 4, stride=4)
    return net


@pytest.fixture(scope='module')
def weights(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp('satlas') / 'w.pth'
    torch.save(reference.state_dict(), path)
    return path


def test_torchgeos_network_is_this_one_with_a_head():
    models = pytest.importorskip('torchgeo.models', reason='torchgeo is not installed')
    record = catalog.get_record('satlas_tiny_rgb')
    with torch.device('meta'):
        reference, own = models.swin_v2_t(), SwinMaps(3, record.dim, (2, 2, record.depth - 6, 2), record.heads)
    assert type(reference) is swin_transformer.SwinTransformer
    shapes = {name: value.shape for name, value in reference.state_dict().items() if name.startswith('features.')}
    assert {name: value.shape for name, value in own.state_dict().items()} == shapes


@pytest.mark.usefixtures('small')
class TestSatlas:
    def test_stages_equal_torchgeos(self, reference, weights):
        net = create_backbone('satlas_tiny', S2, weights=weights).eval()
        x = torch.rand(1, 9, 64, 96)
        with torch.no_grad():
            for end, found in zip((2, 4, 6, 8), net(x)):
                expected = reference.features[:end](x).permute(0, 3, 1, 2)
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert set(net.load_report.unexpected) == {'norm.weight', 'norm.bias', 'head.weight', 'head.bias'}

    def test_the_authors_prefixes_come_off_once_or_twice(self, reference, tmp_path):
        for prefix in ('backbone.', 'backbone.backbone.'):
            state = {prefix + name: value for name, value in reference.state_dict().items()}
            torch.save({**state, 'fpn.inner_blocks.0.weight': torch.zeros(2)}, tmp_path / 'w.pth')
            net = create_backbone('satlas_tiny', S2, weights=tmp_path / 'w.pth')
            assert torch.equal(net.trunk.features[1][0].attn.qkv.weight, reference.features[1][0].attn.qkv.weight)

    def test_red_comes_first_in_the_weights_whatever_the_images_order(self, reference, weights):
        net = create_backbone('satlas_tiny', get_bands('sentinel2_l2a', ['B02', 'B03', 'B04']), weights=weights)
        expected = reference.features[0][0].weight[:, [2, 1, 0]] * 3
        torch.testing.assert_close(net.trunk.features[0][0].weight, expected)
        assert 'B02 <- B02, B03 <- B03, B04 <- B04; unused: B05' in net.load_report.source

    def test_stages_that_nobody_asked_for_are_left_out(self, weights):
        net = create_backbone('satlas_tiny', S2, weights=weights, strides=(4, 8))
        assert (net.channels, net.strides, len(net.trunk.features)) == ((24, 48), (4, 8), 4)
        assert 'features.7.0.attn.qkv.weight' in net.load_report.unexpected

    def test_the_coarsest_map_is_the_last_stage(self):
        net = create_backbone('satlas_tiny', S2, pretrained=False, strides=(4, 16))
        assert (net.channels, net.strides) == ((24, 192), (4, 32))

    def test_radar_is_refused_by_optical_weights(self):
        with pytest.raises(BandError, match='satlas_tiny was trained on optical bands only'):
            create_backbone('satlas_tiny', get_bands('sentinel1', ['VV', 'VH']), pretrained=False)

    @pytest.mark.parametrize('arguments', [{'form': 'tokens'}, {'window': 14}, {'relative_positions': True}])
    def test_what_swin_has_of_its_own_cannot_be_chosen(self, arguments):
        with pytest.raises(BackboneError, match='satlas_tiny is a Swin transformer, with windows'):
            create_backbone('satlas_tiny', S2, pretrained=False, **arguments)


class TestCheckpointing:
    def test_gradients_are_the_same(self):
        x, gradients = torch.rand(2, 2, 64, 48), []
        for enable in (False, True):
            torch.manual_seed(0)
            net = SwinMaps(2, 24, (2, 2, 2, 2), 3, drop_path=0.3).train()
            net.set_grad_checkpointing(enable)
            sum(m.square().mean() for m in net(x)).backward()
            gradients.append([p.grad for p in net.parameters()])
        for kept, made_again in zip(*gradients):
            torch.testing.assert_close(kept, made_again)

    def test_little_of_any_block_is_kept_for_the_way_back(self):
        def kept(enable):
            net = SwinMaps(2, 24, (2, 2, 2, 2), 3).train()
            net.set_grad_checkpointing(enable)
            seen = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.numel()) or t, lambda t: t):
                net(torch.randn(1, 2, 128, 128))
            return sum(seen)

        assert kept(True) < 0.2 * kept(False)

    def test_the_backbone_takes_the_switch(self):
        net = create_backbone('satlas_tiny', S2, pretrained=False, checkpointing=True, strides=(4,))
        assert net.trunk.checkpointing


def test_odd_sizes_and_all_parameters_learn():
    net = SwinMaps(2, 16, (1, 1, 1, 1), 1)
    maps = net(torch.rand(1, 2, 68, 100))
    assert [tuple(m.shape) for m in maps] == [(1, 16, 17, 25), (1, 32, 9, 13), (1, 64, 5, 7), (1, 128, 3, 4)]
    sum(m.square().mean() for m in maps).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(('name', 'count'), [('satlas_tiny', 9), ('satlas_base', 9), ('satlas_sentinel1', 2)])
def test_the_catalog_counts_parameters_rightly(name, count):
    record = catalog.get_record(name)
    with torch.device('meta'):
        net = SwinMaps(count, record.dim, (2, 2, record.depth - 6, 2), record.heads)
    assert sum(p.numel() for p in net.parameters()) == record.parameters

"""SSL4EO-S12's transformers, in the authors' layouts and torchgeo's, over any bands."""

import dataclasses

import pytest
import torch

from geolearn.backbones import catalog, create_backbone
from geolearn.bands import get_bands
from geolearn.errors import BandError, WeightsError

timm = pytest.importorskip('timm')
S2 = get_bands('sentinel2_l1c')
S1 = get_bands('sentinel1', ['VV', 'VH'])


@pytest.fixture
def small(monkeypatch):
    """Make every record of the catalog small."""
    get = catalog.get_record
    monkeypatch.setattr(
        catalog, 'get_record', lambda name: dataclasses.replace(get(name), dim=48, depth=4, heads=3, grid=4)
    )


@pytest.fixture(scope='module')
def reference():
    """The class whose names torchgeo's files carry, at a small width."""
    torch.manual_seed(0)
    net = timm.models.vision_transformer.VisionTransformer(
        img_size=64, patch_size=16, in_chans=13, embed_dim=48, depth=4, num_heads=3, num_classes=0
    ).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


def save(state, path):
    torch.save(state, path)
    return path


def encoder(state):
    """Leave the norm out, as MAE's encoder files and torchgeo's do."""
    return {name: value for name, value in state.items() if not name.startswith('norm.')}


LAYOUTS = {
    'ssl4eo_dino': lambda state: {
        'teacher': {**{f'backbone.{k}': v for k, v in state.items()}, 'head.mlp.0.weight': torch.zeros(2)}
    },
    'ssl4eo_moco': lambda state: {
        'state_dict': {
            **{f'module.base_encoder.{k}': v for k, v in state.items()},
            **{f'module.momentum_encoder.{k}': v for k, v in state.items()},
            'module.base_encoder.head.0.weight': torch.zeros(2),
            'module.predictor.0.weight': torch.zeros(2),
        }
    },
    'ssl4eo_mae': lambda state: {
        'model': {**state, 'mask_token': torch.zeros(1), 'decoder_blocks.0.norm1.bias': torch.zeros(2)}
    },
}


@pytest.mark.usefixtures('small')
class TestSsl4eo:
    @pytest.mark.parametrize('name', LAYOUTS)
    def test_tokens_equal_timms_from_the_authors_layout(self, name, reference, tmp_path):
        path = save(LAYOUTS[name](reference.state_dict()), tmp_path / 'w.pth')
        net = create_backbone(name, S2, weights=path, form='tokens').eval()
        x = torch.rand(2, 13, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(net(x), reference.forward_features(x), atol=1e-4, rtol=1e-4)
        assert net.load_report.missing == ()

    def test_files_without_a_norm_give_the_last_block(self, reference, tmp_path):
        path = save(encoder(reference.state_dict()), tmp_path / 'w.pth')
        net = create_backbone('ssl4eo_mae', S2, weights=path, form='tokens').eval()
        x = torch.rand(1, 13, 64, 64)
        with torch.no_grad():
            native = reference.forward_intermediates(x, indices=1, return_prefix_tokens=True, intermediates_only=True)
            last, prefix = native[0]
            expected = torch.cat([prefix, last.flatten(2).transpose(1, 2)], dim=1)
            torch.testing.assert_close(net(x), expected, atol=1e-4, rtol=1e-4)

    def test_kernels_follow_bands_by_name(self, reference, tmp_path):
        path = save(encoder(reference.state_dict()), tmp_path / 'w.pth')
        net = create_backbone('ssl4eo_dino', get_bands('landsat8', ['B4', 'B2']), weights=path)
        expected = reference.patch_embed.proj.weight[:, [3, 1]] * 6.5
        torch.testing.assert_close(net.trunk.patch_embed.proj.weight, expected)
        assert [tuple(m.shape) for m in net(torch.rand(1, 2, 65, 97))] == [
            (1, 256, 17, 25),
            (1, 256, 9, 13),
            (1, 256, 5, 7),
            (1, 256, 3, 4),
        ]

    def test_radar_and_optical_weights_do_not_mix(self):
        with pytest.raises(BandError, match="trained on optical bands only; found radar: 'VV', 'VH'"):
            create_backbone('ssl4eo_dino', S1, pretrained=False)
        with pytest.raises(BandError, match='trained on radar bands only; found optical'):
            create_backbone('ssl4eo_mae_s1', S2, pretrained=False)
        assert len(create_backbone('ssl4eo_mae_s1', S1, pretrained=False).channels) == 4

    def test_weights_of_another_depth_do_not_load(self, reference, tmp_path):
        state = {name: value for name, value in reference.state_dict().items() if not name.startswith('blocks.3')}
        with pytest.raises(WeightsError, match=r'12 missing: blocks.3.norm1'):
            create_backbone('ssl4eo_mae', S2, weights=save(state, tmp_path / 'w.pth'))

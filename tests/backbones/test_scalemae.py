"""ScaleMAE's positions on the ground, against torchgeo's class at random values."""

import dataclasses
import logging

import pytest
import torch

from geolearn.backbones import building, catalog, create_backbone
from geolearn.backbones.scalemae import ScaleMaeViT, ground_positions
from geolearn.backbones.trunk import ViTConfig
from geolearn.bands import get_bands
from geolearn.errors import BandError

RGB = get_bands('naip', ['Red', 'Green', 'Blue'])


@pytest.fixture
def small(use_record):
    return use_record(dataclasses.replace(catalog.get_record('scalemae_large'), dim=48, depth=4, heads=3, grid=4))


def random_reference(res, **shape):
    models = pytest.importorskip('torchgeo.models', reason='torchgeo is not installed')
    torch.manual_seed(0)
    net = models.ScaleMAE(res=res, patch_size=16, embed_dim=48, depth=4, num_heads=3, num_classes=0, **shape).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


@pytest.mark.usefixtures('small')
class TestScaleMae:
    @pytest.mark.parametrize('res', [1.0, 0.3, 10.0])
    def test_tokens_equal_torchgeos(self, res, tmp_path):
        reference = random_reference(res, img_size=64)
        torch.save({'model': reference.state_dict()}, tmp_path / 'w.pth')
        net = create_backbone('scalemae_large', RGB, weights=tmp_path / 'w.pth', form='tokens').eval()
        net.trunk.ground_resolution_m = res
        x = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(net(x), reference.forward_features(x), atol=1e-4, rtol=1e-4)
        assert net.load_report.missing == ()

    def test_images_of_twice_the_size_equal_torchgeos(self, tmp_path):
        reference = random_reference(2.0, img_size=128)
        torch.save(reference.state_dict(), tmp_path / 'w.pth')
        net = create_backbone('scalemae_large', RGB, weights=tmp_path / 'w.pth', form='tokens').eval()
        net.trunk.ground_resolution_m = 2.0
        x = torch.rand(1, 3, 128, 128)
        with torch.no_grad():
            torch.testing.assert_close(net(x), reference.forward_features(x), atol=1e-4, rtol=1e-4)

    def test_maps_have_any_size_and_every_parameter_learns(self):
        net = create_backbone('scalemae_large', RGB, pretrained=False)
        maps = net(torch.rand(1, 3, 65, 97))
        assert [tuple(m.shape[2:]) for m in maps] == [(17, 25), (9, 13), (5, 7), (3, 4)]
        sum(m.square().mean() for m in maps).backward()
        assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []

    def test_the_resolution_starts_at_the_catalogs_and_matters(self):
        net = create_backbone('scalemae_large', RGB, pretrained=False, form='tokens').eval()
        assert net.trunk.ground_resolution_m == 1.0
        x = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            before = net(x)
            net.trunk.ground_resolution_m = 0.3
            assert not torch.allclose(net(x), before)

    def test_radar_is_refused(self):
        with pytest.raises(BandError, match='trained on optical bands only'):
            create_backbone('scalemae_large', get_bands('sentinel1', ['VV', 'VH']), pretrained=False)

    def test_the_license_is_said_at_load(self, small, tmp_path, caplog):
        building.announce_license.cache_clear()
        trunk = create_backbone('scalemae_large', RGB, pretrained=False).trunk
        torch.save(trunk.state_dict(), tmp_path / 'w.pth')
        with caplog.at_level(logging.WARNING, 'geolearn'):
            create_backbone('scalemae_large', RGB, weights=tmp_path / 'w.pth')
        assert 'CC-BY-NC-4.0: no commercial use' in caplog.text


def test_distances_on_the_ground_decide_positions():
    fine, coarse = ground_positions(48, (8, 8), 1.0), ground_positions(48, (4, 4), 2.0)
    torch.testing.assert_close(fine[:, ::2, ::2], coarse)


def test_a_resolution_of_zero_is_refused():
    with pytest.raises(ValueError, match='ground_resolution_m must be above 0 meters, got 0'):
        ScaleMaeViT(ViTConfig(48, 1, 3), torch.nn.Identity(), 16, ground_resolution_m=0)

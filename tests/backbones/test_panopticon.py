"""Panopticon against torchgeo's class at random values, over optical and radar bands of any size."""

import dataclasses

import pytest
import timm
import torch

from geolearn.backbones import catalog, create_backbone
from geolearn.backbones.panopticon import embed_nanometers
from geolearn.bands import Band, get_bands
from geolearn.errors import BandError

DIM, DEPTH, HEADS, GRID = 48, 4, 3, 4
BANDS = (*get_bands('sentinel2_l2a', ['B04', 'B02', 'B12']), *get_bands('sentinel1'))
CHANNELS = [665.0, 490.0, 2190.0, -1.0, -2.0, -3.0, -4.0]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    get = catalog.get_record
    monkeypatch.setattr(
        catalog,
        'get_record',
        lambda name: dataclasses.replace(get(name), dim=DIM, depth=DEPTH, heads=HEADS, grid=GRID),
    )


@pytest.fixture
def reference(monkeypatch):
    models = pytest.importorskip('torchgeo.models', reason='torchgeo is not installed')
    create = timm.create_model
    shape = {'embed_dim': DIM, 'depth': DEPTH, 'num_heads': HEADS}
    monkeypatch.setattr(timm, 'create_model', lambda name: create(name, num_classes=0, **shape))
    torch.manual_seed(0)
    net = models.Panopticon(attn_dim=3 * DIM, embed_dim=DIM, img_size=14 * GRID).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net.model


def test_tokens_equal_torchgeos(reference, tmp_path):
    torch.save({**reference.state_dict(), 'mask_token': torch.zeros(1, DIM)}, tmp_path / 'w.pth')
    net = create_backbone('panopticon', BANDS, weights=tmp_path / 'w.pth', form='tokens').eval()
    x = torch.rand(2, len(BANDS), 14 * GRID, 14 * GRID)
    with torch.no_grad():
        expected = reference.forward_features({'imgs': x, 'chn_ids': torch.tensor([CHANNELS, CHANNELS])})
        torch.testing.assert_close(net(x), expected, atol=1e-4, rtol=1e-4)
    assert net.load_report.missing == ()


def test_bands_may_come_in_any_order_and_number(reference, tmp_path):
    torch.save(reference.state_dict(), tmp_path / 'w.pth')
    x = torch.rand(1, 3, 56, 56)
    red, blue, swir = BANDS[:3]
    with torch.no_grad():
        first, second = (
            create_backbone('panopticon', bands, weights=tmp_path / 'w.pth', form='tokens').eval()(image)
            for bands, image in (((red, blue, swir), x), ((swir, blue, red), x.flip(1)))
        )
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_maps_have_patches_of_16_and_every_parameter_learns(reference, tmp_path):
    torch.save(reference.state_dict(), tmp_path / 'w.pth')
    for arguments in ({'weights': tmp_path / 'w.pth'}, {'pretrained': False}):
        net = create_backbone('panopticon', BANDS, **arguments)
        maps = net(torch.rand(1, len(BANDS), 65, 97))
        assert [tuple(m.shape[2:]) for m in maps] == [(17, 25), (9, 13), (5, 7), (3, 4)]
        sum(m.square().mean() for m in maps).backward()
        assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_radar_tables_do_not_train_without_radar():
    net = create_backbone('panopticon', BANDS[:3], pretrained=False)
    sum(m.square().mean() for m in net(torch.rand(1, 3, 32, 32))).backward()
    assert not net.trunk.patch_embed.transmit.requires_grad
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_wavelengths_are_whole_nanometers():
    rows = embed_nanometers((Band('a', 0.5601), Band('b', 0.56), Band('VV', None, 'vv', is_radar=True)), 8)
    assert torch.equal(rows[0], rows[1])
    assert not rows[2].any()


def test_bands_that_cannot_be_told_apart_are_refused():
    with pytest.raises(BandError, match="panopticon needs a wavelength for every band; unresolved: 'x'"):
        create_backbone('panopticon', (Band('x'),), pretrained=False)
    with pytest.raises(BandError, match=r"needs the polarization of every radar band; unknown: \['HHVV'\]"):
        create_backbone('panopticon', (Band('HHVV', None, None, is_radar=True),), pretrained=False)

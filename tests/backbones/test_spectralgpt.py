"""SpectralGPT from its published layout, against the published arithmetic written out; bands in triples."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from geolearn.backbones import catalog, create_backbone
from geolearn.backbones.spectralgpt import SpectralGpt, place_bands
from geolearn.backbones.trunk import ViTConfig
from geolearn.bands import Band, get_bands
from geolearn.errors import BandError, WeightsError

DIM, DEPTH, HEADS, GRID = 48, 4, 3, 4
S2 = get_bands('sentinel2_l2a')


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    get = catalog.get_record
    monkeypatch.setattr(
        catalog,
        'get_record',
        lambda name: dataclasses.replace(get(name), dim=DIM, depth=DEPTH, heads=HEADS, grid=GRID),
    )


@pytest.fixture
def state():
    """A random state dict with the names of the official file, at a small size."""
    torch.manual_seed(0)
    tensors = {
        'patch_embed.proj.weight': torch.randn(DIM, 1, 3, 8, 8) / 14,
        'patch_embed.proj.bias': torch.randn(DIM),
        'pos_embed_spatial': torch.randn(1, GRID * GRID, DIM),
        'pos_embed_temporal': torch.randn(1, 4, DIM),
        'norm.weight': torch.rand(DIM) + 0.5,
        'norm.bias': torch.randn(DIM),
    }
    shapes = {
        **{f'attn.{n}': (DIM, DIM) for n in ('q', 'k', 'v', 'proj')},
        'mlp.fc1': (4 * DIM, DIM),
        'mlp.fc2': (DIM, 4 * DIM),
    }
    for i in range(DEPTH):
        for name, shape in shapes.items():
            tensors[f'blocks.{i}.{name}.weight'] = torch.randn(shape) / shape[1] ** 0.5
            tensors[f'blocks.{i}.{name}.bias'] = torch.randn(shape[0])
        for name in ('norm1', 'norm2'):
            tensors |= {f'blocks.{i}.{name}.weight': torch.rand(DIM), f'blocks.{i}.{name}.bias': torch.randn(DIM)}
    return tensors


@pytest.fixture
def weights(state, tmp_path):
    unused = {
        'mask_token': torch.zeros(2),
        'decoder_pos_embed_spatial': torch.zeros(2),
        'decoder_norm.bias': torch.zeros(2),
    }
    torch.save({'model': state | unused}, tmp_path / 'w.pth')
    return tmp_path / 'w.pth'


def reference(state, x):
    """Compute the tokens of all twelve bands from the published tensors alone."""
    x = F.conv3d(x[:, None], state['patch_embed.proj.weight'], state['patch_embed.proj.bias'], stride=(3, 8, 8))
    x = x.flatten(3).permute(0, 2, 3, 1)
    x = (x + state['pos_embed_spatial'][:, None] + state['pos_embed_temporal'][:, :, None]).flatten(1, 2)

    def linear(y, name):
        return F.linear(y, state[f'{name}.weight'], state[f'{name}.bias'])

    def norm(y, name):
        return F.layer_norm(y, (DIM,), state[f'{name}.weight'], state[f'{name}.bias'], eps=1e-6)

    for i in range(DEPTH):
        y = norm(x, f'blocks.{i}.norm1')
        q, k, v = (
            linear(y, f'blocks.{i}.attn.{n}').reshape(*x.shape[:2], HEADS, -1).transpose(1, 2) for n in ('q', 'k', 'v')
        )
        y = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
        x = x + linear(y.transpose(1, 2).reshape(x.shape), f'blocks.{i}.attn.proj')
        x = x + linear(F.gelu(linear(norm(x, f'blocks.{i}.norm2'), f'blocks.{i}.mlp.fc1')), f'blocks.{i}.mlp.fc2')
    return norm(x, 'norm')


def test_tokens_equal_the_published_arithmetic(state, weights):
    net = create_backbone('spectralgpt_plus', S2, weights=weights, form='tokens').eval()
    x = torch.randn(2, 12, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), reference(state, x), atol=1e-4, rtol=1e-4)
    assert net.load_report.missing == ()


def test_bands_go_to_their_places_whatever_their_order(state, weights):
    net = create_backbone('spectralgpt', S2[::-1], weights=weights, form='tokens').eval()
    x = torch.randn(1, 12, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x.flip(1)), reference(state, x), atol=1e-4, rtol=1e-4)


def test_triples_without_bands_have_no_tokens(weights):
    net = create_backbone('spectralgpt', get_bands('sentinel2', ['B11', 'B04']), weights=weights, form='tokens')
    assert net.trunk.triples == [1, 3]
    assert net(torch.rand(1, 2, 32, 32)).shape == (1, 2 * 16, DIM)
    assert 'B11 <- B11, B04 <- B04; unused: B01' in net.load_report.source


def test_places_keep_the_response_to_a_flat_image():
    places, _ = place_bands(S2, get_bands('sentinel2', ['B04', 'B05', 'B11']))
    assert places[3:6].sum(dim=1).tolist() == [1.5, 1.5, 0]
    assert places[9:].sum(dim=1).tolist() == [0, 3, 0]
    doubled, how = place_bands(S2, (S2[3], Band('deep red', 0.66)))
    assert doubled[3].tolist() == [1.5, 1.5]
    assert 'deep red <- B04 (nearest wavelength)' in how


def test_maps_have_any_size_and_every_parameter_learns():
    net = create_backbone('spectralgpt', S2, pretrained=False)
    maps = net(torch.rand(1, 12, 36, 50))
    assert [tuple(m.shape[2:]) for m in maps] == [(9, 13), (5, 7), (3, 4), (2, 2)]
    sum(m.square().mean() for m in maps).backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_bands_that_cannot_be_placed_are_refused():
    with pytest.raises(BandError, match="spectralgpt needs a wavelength for every band; unresolved: 'mystery'"):
        create_backbone('spectralgpt', (Band('mystery'),), pretrained=False)
    with pytest.raises(BandError, match='trained on optical bands only'):
        create_backbone('spectralgpt', get_bands('sentinel1', ['VV']), pretrained=False)


def test_where_to_find_the_weights_is_said(monkeypatch):
    monkeypatch.delenv('GEOLEARN_WEIGHTS_DIR', raising=False)
    with pytest.raises(WeightsError, match=r'download SpectralGPT\+.pth from zenodo.org/records/8412455'):
        create_backbone('spectralgpt_plus', S2)


def test_the_catalog_counts_parameters_rightly():
    with torch.device('meta'):
        net = SpectralGpt(ViTConfig(768, 12, 12, grid=16), place_bands(S2, S2)[0], 8)
    assert sum(p.numel() for p in net.parameters()) == catalog.get_record('spectralgpt').parameters

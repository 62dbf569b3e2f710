"""TerraMind from its published layout, against the published arithmetic written out, over sensors and sizes."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from geolearn.backbones import catalog, create_backbone
from geolearn.backbones.terramind import KEYS, TerraMind, assign_sensors
from geolearn.backbones.trunk import ViTConfig
from geolearn.bands import Band, get_bands
from geolearn.errors import WeightsError

DIM, DEPTH, HEADS, GRID = 48, 4, 3, 4
L2A, L1C, RADAR = get_bands('sentinel2_l2a'), get_bands('sentinel2_l1c'), get_bands('sentinel1', ['VV', 'VH'])
DEM = Band('DEM')
COUNTS = dict(zip(KEYS, (12, 13, 2, 2, 3))) | {'untok_dem@224': 1}


def published(gated):
    """A random state dict with the names of the official file, at a small size."""
    torch.manual_seed(0)
    hidden = int(2 * 4 * DIM / 3) if gated else 4 * DIM
    state = {}
    for key, bands in COUNTS.items():
        state |= {
            f'encoder_embeddings.{key}.mod_emb': torch.randn(1, 1, DIM),
            f'encoder_embeddings.{key}.pos_emb': torch.randn(1, GRID * GRID, DIM),
            f'encoder_embeddings.{key}.proj.weight': torch.randn(DIM, bands * 256) / 16,
        }
    for i in range(DEPTH):
        shapes = {
            'attn.qkv': (3 * DIM, DIM),
            'attn.proj': (DIM, DIM),
            'mlp.fc1': (hidden, DIM),
            'mlp.fc2': (DIM, hidden),
        }
        for name, shape in (shapes | ({'mlp.fc3': (hidden, DIM)} if gated else {})).items():
            state[f'encoder.{i}.{name}.weight'] = torch.randn(shape) / shape[1] ** 0.5
            if not gated:
                state[f'encoder.{i}.{name}.bias'] = torch.randn(shape[0])
        for norm in ('norm1', 'norm2'):
            state |= {f'encoder.{i}.{norm}.weight': torch.rand(DIM) + 0.5, f'encoder.{i}.{norm}.bias': torch.zeros(DIM)}
    state |= {'encoder_norm.weight': torch.rand(DIM) + 0.5, 'encoder_norm.bias': torch.zeros(DIM)}
    unused = ('mask_token', 'decoder.0.norm1.weight', 'decoder_norm.weight', 'encoder_embeddings.tok_lulc@224.mod_emb')
    return state | {name: torch.zeros(2) for name in unused}


def reference(state, images):
    """Compute the tokens of images by sensor, as the paper's code does, from the published tensors alone."""
    parts = []
    for key, x in images.items():
        s = {name.rpartition(f'{key}.')[2]: value for name, value in state.items() if f'.{key}.' in name}
        b, c, h, w = x.shape
        patches = x.reshape(b, c, h // 16, 16, w // 16, 16).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, 256 * c)
        parts.append(patches @ s['proj.weight'].T + s['pos_emb'] + s['mod_emb'])
    x = torch.cat(parts, dim=1)
    for i in range(DEPTH):
        s = {name.removeprefix(f'encoder.{i}.'): v for name, v in state.items() if name.startswith(f'encoder.{i}.')}
        y = F.layer_norm(x, (DIM,), s['norm1.weight'], eps=1e-6)
        qkv = F.linear(y, s['attn.qkv.weight'], s.get('attn.qkv.bias'))
        q, k, v = qkv.reshape(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(-1) @ v
        x = x + F.linear(y.transpose(1, 2).reshape(x.shape), s['attn.proj.weight'], s.get('attn.proj.bias'))
        y = F.layer_norm(x, (DIM,), s['norm2.weight'], eps=1e-6)
        inner = F.linear(y, s['mlp.fc1.weight'], s.get('mlp.fc1.bias'))
        inner = F.silu(inner) * (y @ s['mlp.fc3.weight'].T) if 'mlp.fc3.weight' in s else F.gelu(inner)
        x = x + F.linear(inner, s['mlp.fc2.weight'], s.get('mlp.fc2.bias'))
    return F.layer_norm(x, (DIM,), state['encoder_norm.weight'], eps=1e-6)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    get = catalog.get_record
    monkeypatch.setattr(
        catalog,
        'get_record',
        lambda name: dataclasses.replace(get(name), dim=DIM, depth=DEPTH, heads=HEADS, grid=GRID),
    )


def load(name, bands, state, tmp_path, **arguments):
    torch.save(state, tmp_path / 'w.pt')
    return create_backbone(name, bands, weights=tmp_path / 'w.pt', **arguments).eval()


@pytest.mark.parametrize(('name', 'gated'), [('terramind_tiny', False), ('terramind_base', True)])
def test_tokens_equal_the_published_arithmetic(name, gated, tmp_path):
    state, x = published(gated), torch.randn(2, 12, 64, 64)
    net = load(name, L2A, state, tmp_path, form='tokens')
    with torch.no_grad():
        torch.testing.assert_close(net(x), reference(state, {KEYS[0]: x}), atol=1e-4, rtol=1e-4)
    assert net.prefix == 0
    assert net.load_report.missing == ()


def test_sensors_share_the_transformer_and_maps_average_them(tmp_path):
    state, x = published(True), torch.randn(1, 15, 64, 64)
    bands = (RADAR[1], *L2A, DEM, RADAR[0])
    images = {KEYS[0]: x[:, 1:13], KEYS[2]: x[:, [14, 0]], 'untok_dem@224': x[:, 13:14]}
    tokens = load('terramind_base', bands, state, tmp_path, form='tokens')
    layers = load('terramind_base', bands, state, tmp_path, form='layers', window=0)
    with torch.no_grad():
        expected = reference(state, images)
        torch.testing.assert_close(tokens(x), expected, atol=1e-4, rtol=1e-4)
        found = layers.trunk.encoder_norm(layers.trunk.maps(x, [DEPTH - 1], 0)[0].permute(0, 2, 3, 1))
        last = tokens.trunk.hidden_states(x)[-1].reshape(1, 3, GRID, GRID, DIM).mean(dim=1)
        torch.testing.assert_close(found, tokens.trunk.encoder_norm(last), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ('bands', 'expected'),
    [
        (L2A, {KEYS[0]: list(range(12))}),
        (L1C, {KEYS[1]: list(range(13))}),
        (L2A[1:4], {KEYS[4]: [0, 1, 2]}),
        (L2A[1:5], {KEYS[0]: [0, 1, 2, 3]}),
        (RADAR, {KEYS[2]: [0, 1]}),
        ((Band('Gamma0_VH_dB', None, 'vh', is_radar=True),), {KEYS[3]: [0]}),
        ((Band('Elevation (m)'), *RADAR), {KEYS[2]: [1, 2], 'untok_dem@224': [0]}),
    ],
)
def test_bands_choose_the_sensors(bands, expected):
    assert assign_sensors(bands) == expected


def test_kernels_follow_bands_by_name(tmp_path):
    state = published(True)
    net = load('terramind_base', (L2A[7], L2A[3]), state, tmp_path)
    kernel = state[f'encoder_embeddings.{KEYS[0]}.proj.weight'].reshape(DIM, 16, 16, 12).permute(0, 3, 1, 2)
    torch.testing.assert_close(net.trunk.encoder_embeddings[KEYS[0]].proj.weight, kernel[:, [7, 3]] * 6)
    assert 'sen2l2a: B08 <- B08, B04 <- B04; unused: B01' in net.load_report.source


def test_maps_have_any_size_and_every_parameter_learns():
    net = create_backbone('terramind_tiny', (*L2A, *RADAR), pretrained=False)
    maps = net(torch.rand(1, 14, 65, 97))
    assert [tuple(m.shape[2:]) for m in maps] == [(17, 25), (9, 13), (5, 7), (3, 4)]
    sum(m.square().mean() for m in maps).backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_positions_from_scratch_tell_rows_and_columns_apart():
    trunk = TerraMind(ViTConfig(DIM, 1, HEADS, grid=GRID), {KEYS[0]: range(12)})
    positions = trunk.encoder_embeddings[KEYS[0]].pos_emb.reshape(GRID, GRID, DIM)
    assert torch.equal(positions[2, 0, : DIM // 2], positions[2, 3, : DIM // 2])
    assert torch.equal(positions[0, 2, DIM // 2 :], positions[3, 2, DIM // 2 :])
    assert len(positions.reshape(-1, DIM).unique(dim=0)) == GRID * GRID


def test_a_bias_that_is_not_zero_is_refused(tmp_path):
    state = published(True)
    state['encoder.1.norm2.bias'] = torch.ones(DIM)
    with pytest.raises(WeightsError, match=r'encoder.1.norm2.bias .* is not zero'):
        load('terramind_base', L2A, state, tmp_path)


def test_small_weights_do_not_load_into_base(tmp_path):
    with pytest.raises(WeightsError, match='do not fit the network'):
        load('terramind_base', L2A, published(False), tmp_path)

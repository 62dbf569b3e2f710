"""TerraFM: its stems by sensor and level, its own way to resize positions, and weights in the published layout."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from geolearn import UNet, prepare_data
from geolearn.backbones import catalog, create_backbone
from geolearn.bands import get_bands
from geolearn.errors import BackboneError, BandError

D, GRID = 48, 4
S2 = get_bands('sentinel2_l2a', ['B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B9', 'B11', 'B12'])
S1 = get_bands('sentinel1', ['VV', 'VH'])


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """A file of random values with the published names and shapes, four blocks of width 48."""
    random = torch.Generator().manual_seed(0)
    wide, stem = 3 * D, 'patch_embed.'
    shapes = {'cls_token': (1, 1, D), 'pos_embed': (1, 1 + GRID**2, D), 'norm.weight': (D,), 'norm.bias': (D,)}
    for name, bands in (('s2_l2a', 12), ('s2_l1c', 12), ('s1', 2)):
        shapes[f'{stem}conv2d_{name}.weight'] = (wide, bands, 16, 16)
        shapes[f'{stem}conv2d_{name}.bias'] = (wide,)
        shapes[f'{stem}{name}_embed'] = (1, wide)
    shapes |= {f'{stem}projection.{n}.weight': (wide, wide) for n in ('proj1', 'proj2')}
    shapes |= {f'{stem}projection.proj3.weight': (D, wide), f'{stem}projection.proj3.bias': (D,)}
    shapes |= {f'{stem}projection.proj2.bias': (wide,)}
    shapes |= {f'{stem}projection.norm_input.{n}': (wide,) for n in ('weight', 'bias')}
    for i in range(4):
        block = {'norm1': (D,), 'norm2': (D,), 'attn.qkv': (3 * D, D), 'attn.proj': (D, D)}
        for name, shape in {**block, 'mlp.fc1': (4 * D, D), 'mlp.fc2': (D, 4 * D)}.items():
            shapes |= {f'blocks.{i}.{name}.weight': shape, f'blocks.{i}.{name}.bias': shape[:1]}
    state = {name: torch.randn(shape, generator=random) * 0.1 for name, shape in shapes.items()}
    torch.save(state, path := tmp_path_factory.mktemp('terrafm') / 'TerraFM-B.pth')
    return state, path


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    own = catalog.get_record
    shape = {'dim': D, 'depth': 4, 'heads': 3, 'grid': GRID}
    monkeypatch.setattr(catalog, 'get_record', lambda name: dataclasses.replace(own(name), **shape))


def compute(state, x, stem):
    """The published forward pass, written down from its description alone."""
    p = {name.removeprefix('patch_embed.'): value for name, value in state.items() if name.startswith('patch_embed.')}
    y = F.conv2d(x, p[f'conv2d_{stem}.weight'], p[f'conv2d_{stem}.bias'], stride=16)
    h, w = y.shape[2:]
    y = y.flatten(2).transpose(1, 2) + p[f'{stem}_embed']
    y = F.linear(y, p['projection.proj1.weight'])
    y = F.layer_norm(y, (3 * D,), p['projection.norm_input.weight'], p['projection.norm_input.bias'], 1e-5)
    y = F.linear(y, p['projection.proj2.weight'], p['projection.proj2.bias'])
    y = F.linear(y, p['projection.proj3.weight'], p['projection.proj3.bias'])
    table = state['pos_embed'][:, 1:].reshape(1, GRID, GRID, D).permute(0, 3, 1, 2)
    if (h, w) != (GRID, GRID):
        table = F.interpolate(table, scale_factor=((h + 0.1) / GRID, (w + 0.1) / GRID), mode='bicubic')
    y = torch.cat([state['cls_token'].expand(len(x), -1, -1), y], dim=1)
    y = y + torch.cat([state['pos_embed'][:, :1], table.flatten(2).transpose(1, 2)], dim=1)
    for i in range(4):
        b = {n.removeprefix(f'blocks.{i}.'): v for n, v in state.items() if n.startswith(f'blocks.{i}.')}
        z = F.layer_norm(y, (D,), b['norm1.weight'], b['norm1.bias'], 1e-6)
        q, k, v = (z @ b['attn.qkv.weight'].T + b['attn.qkv.bias']).reshape(len(x), -1, 3, 3, 16).permute(2, 0, 3, 1, 4)
        a = (q @ k.transpose(-2, -1) / 4).softmax(-1) @ v
        y = y + F.linear(a.transpose(1, 2).flatten(2), b['attn.proj.weight'], b['attn.proj.bias'])
        z = F.layer_norm(y, (D,), b['norm2.weight'], b['norm2.bias'], 1e-6)
        z = F.gelu(F.linear(z, b['mlp.fc1.weight'], b['mlp.fc1.bias']))
        y = y + F.linear(z, b['mlp.fc2.weight'], b['mlp.fc2.bias'])
    return F.layer_norm(y, (D,), state['norm.weight'], state['norm.bias'], 1e-6)


@pytest.mark.parametrize(
    ('name', 'bands', 'stem', 'size'),
    [
        ('terrafm_base', S2, 's2_l2a', (64, 64)),
        ('terrafm_base_l1c', S2, 's2_l1c', (64, 96)),
        ('terrafm_base', S1, 's1', (128, 80)),
    ],
)
def test_the_stem_is_that_of_sensor_and_level(published, name, bands, stem, size):
    state, path = published
    net = create_backbone(name, bands, weights=path, form='tokens').eval()
    x = torch.randn(2, len(bands), *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(net(x), compute(state, x, stem), atol=1e-4, rtol=1e-4)
    assert net.load_report.missing == ()
    assert len(net.load_report.matched) + len(net.load_report.unexpected) == len(state)
    assert len(net.load_report.unexpected) == 6  # two other stems


def test_bands_take_their_own_kernels(published):
    _, path = published
    few = get_bands('sentinel2_l2a', ['B8', 'B4', 'B3'])
    net = create_backbone('terrafm_base', few, weights=path)
    assert net.load_report.resized == ('patch_embed.proj.weight',)
    assert [tuple(m.shape) for m in net(torch.rand(1, 3, 70, 40))][1] == (1, 256, 9, 5)


def test_radar_and_optical_bands_do_not_go_together():
    with pytest.raises(BandError, match='one sensor at a time, found radar and optical bands'):
        create_backbone('terrafm_base', S2 + S1, pretrained=False)


def test_a_model_asks_for_the_scaling_that_is_not_published(published, write_export, tmp_path):
    rng = torch.Generator().manual_seed(2)
    images = [torch.randint(1, 3000, (3, 32, 32), generator=rng).numpy().astype('uint16') for _ in range(4)]
    labels = [(image[0] > 1500).astype('uint8') for image in images]
    names = ['B8', 'B4', 'B3']
    folder = write_export(tmp_path / 'e', images, labels, band_names=names, sensor='Sentinel-2 L2A')
    options = {'chip_size': 32, 'batch_size': 2, 'val_split_pct': 0.5}
    with pytest.raises(BackboneError, match=r'pass prepare_data\(normalize=\(means, stds\)\), one of each per band'):
        UNet(prepare_data(folder, **options), 'terrafm_base', weights=published[1])
    data = prepare_data(folder, normalize=((0, 0, 0), (1e4, 1e4, 1e4)), **options)
    assert UNet(data, 'terrafm_base', weights=published[1]).spec.normalization.std == (1e4, 1e4, 1e4)

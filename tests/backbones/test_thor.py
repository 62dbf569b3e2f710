"""THOR: groups of bands at their own resolutions, distances on the ground, and weights in the published layout."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from geolearn.backbones import catalog, create_backbone
from geolearn.bands import Band, get_bands
from geolearn.errors import BackboneError, BandError, WeightsError

D, HEADS, CODE = 48, 3, 8
S1 = get_bands('sentinel1', ['VV', 'VH'])
SOME = get_bands('sentinel2_l2a', ['B8', 'B4', 'B5', 'B12', 'B1']) + S1
# Groups in the published order: number, resolution in meters, and their bands in it, by place in SOME.
FILLED = ((0, 10, {'Red': 1, 'NIR': 0}), (1, 20, {'RE1': 2, 'SWIR2': 3}), (2, 60, {'CoastAerosal': 4}))
RADAR = (3, 10, {'VH': 6, 'VV': 5})
PUBLISHED = (
    *('S2:Red S2:Green S2:Blue S2:NIR S2:RE1 S2:RE2 S2:RE3 S2:RE4 S2:SWIR1 S2:SWIR2 S2:CoastAerosal').split(),
    *('S2:WaterVapor S1:VH S1:VV S1:HV S1:HH').split(),
    *(f'S3:Oa{n:02}_reflectance' for n in range(1, 22)),
    *(f'S3:S{n}_reflectance_an' for n in range(1, 7)),
    *(f'S3:S{n}_BT_in' for n in range(7, 10)),
)


def sines(number, dim):
    angle = number / 10000 ** (torch.arange(dim // 2) / (dim // 2))
    return torch.cat([angle.sin(), angle.cos()])


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """A file of random values with the published names and shapes, two blocks of width 48."""
    random = torch.Generator().manual_seed(0)
    shapes = {'norm.weight': (D,), 'norm.bias': (D,)}
    for band in PUBLISHED:
        shapes[f'ind_patch_embed.patch_embed.{band}.weight'] = (D, 1, 16, 16)
        shapes[f'ind_patch_embed.patch_embed.{band}.bias'] = (D,)
    for i in range(2):
        block = {'norm1': (D,), 'norm2': (D,), 'attn.qkv': (3 * D, D), 'attn.proj': (D, D)}
        for name, shape in {**block, 'mlp.fc1': (4 * D, D), 'mlp.fc2': (D, 4 * D)}.items():
            shapes |= {f'blocks.{i}.{name}.weight': shape, f'blocks.{i}.{name}.bias': shape[:1]}
    state = {name: torch.randn(shape, generator=random) * 0.1 for name, shape in shapes.items()}
    state |= {f'band_embed.group{i}': sines(torch.tensor(float(i)), CODE) for i in range(10)}
    state['encoder_slopes'] = torch.tensor([2.0**-4, 2.0**-8, 2.0**-2])  # of three heads
    torch.save({f'encoder.{n}': v for n, v in state.items()}, path := tmp_path_factory.mktemp('thor') / 'thor.pt')
    return state, path


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    own = catalog.get_record
    shape = {'dim': D, 'depth': 2, 'heads': HEADS}
    monkeypatch.setattr(catalog, 'get_record', lambda name: dataclasses.replace(own(name), **shape))


def compute(p, x, groups, patch, normed):
    """The published forward pass, written down from its description alone; averaged maps (N, h*w, D)."""
    units = torch.eye(256).reshape(256, 1, 16, 16)
    resize = F.interpolate(units, (patch, patch), mode='bicubic', antialias=True).flatten(1)
    inverse = torch.linalg.pinv(resize) if patch != 16 else torch.eye(256)
    tokens, points, grids = [], [], []
    for number, meters, bands in groups:
        product = 'S1' if number == 3 else 'S2'
        parts = []
        for band, at in bands.items():
            one = F.interpolate(x[:, [at]], (x.shape[2] * 10 // meters,) * 2, mode='bilinear')
            name = f'ind_patch_embed.patch_embed.{product}:{band}'
            kernel = (p[f'{name}.weight'].flatten(1) @ inverse.T).reshape(D, 1, patch, patch)
            parts.append(F.conv2d(one, kernel, p[f'{name}.bias'], stride=patch))
        grid = torch.stack(parts).mean(dim=0)
        code = torch.cat([sines(torch.tensor(patch * meters / 40), D - CODE), p[f'band_embed.group{number}']])
        tokens.append(grid.flatten(2).transpose(1, 2) + code)
        line = (torch.arange(grid.shape[2]) + 0.5) * patch * meters
        points.append(torch.cartesian_prod(line, line))
        grids.append(grid.shape[2])
    y, place = torch.cat(tokens, dim=1), torch.cat(points) / (patch * max(meters for _, meters, _ in groups))
    distance = (place[:, None] - place).square().sum(dim=-1).sqrt()
    for i in range(2):
        b = {n.removeprefix(f'blocks.{i}.'): v for n, v in p.items() if n.startswith(f'blocks.{i}.')}
        z = F.layer_norm(y, (D,), b['norm1.weight'], b['norm1.bias'], 1e-6)
        qkv = (z @ b['attn.qkv.weight'].T + b['attn.qkv.bias']).reshape(len(x), -1, 3, HEADS, D // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-2, -1) / (D // HEADS) ** 0.5 - p['encoder_slopes'][:, None, None] * distance
        a = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
        y = y + F.linear(a, b['attn.proj.weight'], b['attn.proj.bias'])
        z = F.layer_norm(y, (D,), b['norm2.weight'], b['norm2.bias'], 1e-6)
        y = y + F.linear(
            F.gelu(F.linear(z, b['mlp.fc1.weight'], b['mlp.fc1.bias'])), b['mlp.fc2.weight'], b['mlp.fc2.bias']
        )
    if normed:
        y = F.layer_norm(y, (D,), p['norm.weight'], p['norm.bias'], 1e-6)
    maps = [
        F.interpolate(part.transpose(1, 2).unflatten(2, (n, n)), (max(grids),) * 2, mode='bilinear')
        for part, n in zip(y.split([n * n for n in grids], dim=1), grids)
    ]
    return torch.stack(maps).mean(dim=0).flatten(2).transpose(1, 2)


@pytest.mark.parametrize(
    ('bands', 'groups', 'patch'),
    [(SOME, (*FILLED, RADAR), 8), (SOME[:5], FILLED, 4), (SOME[:2], FILLED[:1], 16)],
)
def test_outputs_are_those_of_the_description(published, bands, groups, patch):
    state, path = published
    net = create_backbone('thor_tiny', bands, weights=path, form='tokens', patch=patch).eval()
    x = torch.randn(2, len(bands), 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(net(x), compute(state, x, groups, patch, True), atol=1e-4, rtol=1e-4)
        (last,) = net.trunk.maps(x, [1], 0)
        expected = compute(state, x, groups, patch, False)
        torch.testing.assert_close(last.flatten(2).transpose(1, 2), expected, atol=1e-4, rtol=1e-4)
    assert net.load_report.missing == ()
    used = 2 * len(bands) + len(groups) + 1 + 26
    assert len(net.load_report.unexpected) == len(state) - used
    assert all('S3' in n or 'S1:' in n or 'S2:' in n or 'band_embed' in n for n in net.load_report.unexpected)


def test_slopes_and_codes_without_weights_are_those_of_the_published_files(published):
    state, _ = published
    trunk = create_backbone('thor_tiny', SOME, pretrained=False).trunk
    torch.testing.assert_close(trunk.slopes, state['encoder_slopes'])
    torch.testing.assert_close(trunk.group_embed, torch.stack([state[f'band_embed.group{i}'] for i in range(4)]))


def test_a_window_sees_no_pixel_of_another_and_whole_cells_only(monkeypatch):
    small = dataclasses.replace(catalog.read_catalog()['thor_tiny'], dim=D, depth=8, heads=HEADS)
    monkeypatch.setattr(catalog, 'get_record', lambda name: small)
    trunk = create_backbone('thor_tiny', SOME[:4], pretrained=False).trunk.eval()
    assert (trunk.cell, trunk.step) == (2, 16)
    x = torch.randn(1, 4, 64, 96)
    other = x.clone()
    other[..., 32:, 48:] += 1
    with torch.inference_mode():
        # windows of 3 places are 2 cells, 4 places, 32 px
        (one,), (two,) = (trunk.maps(image, [0], 3) for image in (x, other))
    changed = (one != two).any(dim=1)[0]
    # the maps of the coarser group are resized, which reaches one place further
    assert not changed[:3].any()
    assert not changed[:, :3].any()
    assert changed[4:, 4:].all()


def test_what_a_map_says_of_a_place_hangs_on_the_cells_only():
    net = create_backbone('thor_tiny', SOME, pretrained=False, strides=(8,))
    assert net.coarsest_stride == 48
    (found,) = net(torch.rand(1, 7, 50, 70))
    assert found.shape[2:] == (7, 9)
    whole = create_backbone('thor_tiny', SOME[:2] + S1, pretrained=False, strides=(8, 16))
    assert whole.coarsest_stride == 16


def test_bands_at_twenty_meters_alone_are_the_pixels():
    trunk = create_backbone('thor_tiny', SOME[2:4], pretrained=False, patch=4).trunk
    assert (trunk.ground_resolution_m, trunk.cell) == (20.0, 1)
    (found,) = trunk.maps(torch.rand(1, 2, 16, 16), [1], 0)
    assert found.shape[2:] == (4, 4)


@pytest.mark.parametrize(
    ('bands', 'message'),
    [
        (
            (Band('B10', 1.375, 'cirrus'),),
            "THOR knows bands of Sentinel-2 Level-2A and Sentinel-1 only: no bands fit 'B10'",
        ),
        ((Band('mine', 0.7),), "no bands fit 'mine'"),
        (SOME[:2] + SOME[:1], 'would both be the one band'),
    ],
)
def test_bands_that_the_weights_do_not_know_are_refused(bands, message):
    with pytest.raises(BandError, match=message):
        create_backbone('thor_tiny', bands, pretrained=False)


def test_patches_and_files_that_cannot_be_are_refused(published, tmp_path):
    for patch, message in ((2, 'takes patches of 4 to 32 pixels'), (12, "or form='tokens'")):
        with pytest.raises(BackboneError, match=message):
            create_backbone('thor_tiny', SOME, pretrained=False, patch=patch)
    state = {name: value for name, value in published[0].items() if name != 'band_embed.group1'}
    torch.save(state, tmp_path / 'thor.pt')
    with pytest.raises(WeightsError, match=r'holds no band_embed\.group1, so it is no encoder of THOR'):
        create_backbone('thor_tiny', SOME, weights=tmp_path / 'thor.pt')

"""AnySat: dates, pixels and patches as described, weights in the published layout, and what is asked of users."""

import dataclasses
import math
from datetime import date
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from geolearn import UNet, prepare_data
from geolearn.backbones import catalog, create_backbone
from geolearn.backbones.anysat import AnySat, find_rows
from geolearn.backbones.temporal import _warn_of_dates
from geolearn.bands import get_bands
from geolearn.errors import BackboneError, BandError, WeightsError

D, DEPTH, HEADS = 64, 3, 4  # two blocks in each transformer, and the one that reads
KINDS = {'s2': 10, 's1-asc': 2, 'l8': 11, 's1': 3}
S2 = get_bands('sentinel2_l2a', ['B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B11', 'B12'])
S1 = get_bands('sentinel1', ['VV', 'VH'])
L8 = get_bands('landsat8', ['B8', 'B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B9', 'B10', 'B11'])
DAYS = (date(2021, 1, 1), date(2021, 3, 9), date(2021, 12, 31))


def block_shapes(stem, attention):
    shapes = {f'{stem}.{n}.{p}': (D,) for n in ('norm1', 'norm2') for p in ('weight', 'bias')}
    for name, shape in {**attention, 'mlp.fc1': (4 * D, D), 'mlp.fc2': (D, 4 * D)}.items():
        shapes |= {f'{stem}.{name}.weight': shape, f'{stem}.{name}.bias': shape[:1]}
    return shapes


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """A file of random values with the published names and shapes, of width 64."""
    random, qkv = torch.Generator().manual_seed(0), {'attn.qkv': (3 * D, D), 'attn.proj': (D, D)}
    shapes = {'cls_token': (1, 1, D), 'spatial_encoder.cls_token': (1, 1, D)}
    shapes |= {f'spatial_encoder.predictor_norm.{p}': (D,) for p in ('weight', 'bias')}
    for kind, bands in KINDS.items():
        stem = f'projector_{kind}'
        shapes[f'{stem}.pad_parameter'] = ()
        stem += '.patch_embed'
        widths = [bands, D // 8, D // 2, D, 2 * D, D]
        linear = {f'inconv.{4 * i}': (b, a) for i, (a, b) in enumerate(pairwise(widths))}
        linear |= {'attention_heads.fc1_k': (128, D), 'mlp.0': (D, D)}
        norms = {f'inconv.{4 * i + 1}': b for i, b in enumerate(widths[1:])} | {'mlp.1': D, 'out_norm': D}
        norms |= {'in_norm': D} if kind == 's2' else {}
        for name, shape in linear.items():
            shapes |= {f'{stem}.{name}.weight': shape, f'{stem}.{name}.bias': shape[:1]}
        shapes |= {f'{stem}.{name}.{p}': (n,) for name, n in norms.items() for p in ('weight', 'bias')}
        shapes[f'{stem}.attention_heads.Q'] = (16, 8)
    shapes |= {'projector_aerial.patch_embed.weight': (D, 4, 10, 10), 'projector_aerial.mlp.0.weight': (2 * D, D)}
    table = (1, D // HEADS, 8)
    for i in range(DEPTH - 1):
        stem = f'spatial_encoder.predictor_blocks.{i}'
        shapes |= block_shapes(stem, qkv) | {f'{stem}.attn.rpe_k.lookup_table_weight': table}
        shapes |= block_shapes(f'blocks.{i}', qkv)
    last = f'blocks.{DEPTH - 1}'
    shapes |= block_shapes(last, {f'attn.{n}': (D, D) for n in ('wk', 'wv', 'proj')})
    shapes |= {f'{last}.attn.q_learned': (1, 1, D), f'{last}.attn.rpe_k.lookup_table_weight': table}
    state = {name: torch.randn(shape, generator=random) * 0.2 for name, shape in shapes.items()}
    torch.save({'state_dict': state}, path := tmp_path_factory.mktemp('anysat') / 'AnySat.pth')
    return state, path


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    own = catalog.get_record
    shape = {'dim': D, 'depth': DEPTH, 'heads': HEADS}
    monkeypatch.setattr(catalog, 'get_record', lambda name: dataclasses.replace(own(name), **shape))


# -- the published forward pass, written down from its description alone, place by place


def sincos(values, dim):
    angle = torch.tensor([[v / 10000 ** (2 * i / dim) for i in range(dim // 2)] for v in values])
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def positions(side, step):
    rows = [r * step for r in range(side) for _ in range(side)]
    columns = [c * step for _ in range(side) for c in range(side)]
    return torch.cat([sincos(columns, D // 2), sincos(rows, D // 2)], dim=1)


def bucket(a, b):
    """Which row of the table two places take, None being the class token."""
    if a is None or b is None:
        return 7
    d = round(math.dist(a, b))
    far = round(1.9 + math.log(d / 1.9) / math.log(8) * 1.9) if d > 1.9 else d
    return 3 + min(far, 3)


def part(state, stem):
    return {name.removeprefix(stem): value for name, value in state.items() if name.startswith(stem)}


def linear(x, p, name):
    return F.linear(x, p[f'{name}.weight'], p[f'{name}.bias'])


def norm(x, p, name, eps=1e-5):
    return F.layer_norm(x, (D,), p[f'{name}.weight'], p[f'{name}.bias'], eps)


def summarize_dates(p, series, days, period):
    """The dates of one pixel (T, bands)."""
    x = series
    for i in range(0, 20, 4):
        x = linear(x, p, f'inconv.{i}')
        x = F.relu(F.group_norm(x, 4, p[f'inconv.{i + 1}.weight'], p[f'inconv.{i + 1}.bias']))
    if 'in_norm.weight' in p:
        x = F.group_norm(x.T[None], 16, p['in_norm.weight'], p['in_norm.bias'])[0].T
    width = D // 16
    for t, day in enumerate(days):
        code = [day / period ** (2 * (i // 2) / width) for i in range(width)]
        x[t] = x[t] + torch.tensor([math.cos(v) if i % 2 else math.sin(v) for i, v in enumerate(code)]).repeat(16)
    keys = linear(x, p, 'attention_heads.fc1_k')
    heads = []
    for h in range(16):
        share = (keys[:, 8 * h : 8 * h + 8] @ p['attention_heads.Q'][h] / math.sqrt(8)).softmax(0)
        heads.append(share @ x[:, width * h : width * (h + 1)])
    y = linear(torch.cat(heads)[None], p, 'mlp.0')
    y = F.relu(F.group_norm(y, 4, p['mlp.1.weight'], p['mlp.1.bias']))
    return F.group_norm(y, 16, p['out_norm.weight'], p['out_norm.bias'])[0]


def attend(q, k, v, scale, added=0.0):
    """Tokens (N, D), heads side by side."""
    found, w = [], D // HEADS
    for h in range(HEADS):
        part = slice(w * h, w * (h + 1))
        extra = added(q[:, :w]) if callable(added) else added  # the first head's query, for all heads
        found.append((q[:, part] @ k[:, part].T * scale + extra).softmax(1) @ v[:, part])
    return torch.cat(found, dim=1)


def by_distance(p, queries, keys, scale):
    rows = torch.tensor([[bucket(a, b) for b in keys] for a in queries])
    return lambda q: (q * scale @ p['attn.rpe_k.lookup_table_weight'][0]).gather(1, rows)


def feed(x, p, eps):
    return x + linear(F.gelu(linear(norm(x, p, 'norm2', eps), p, 'mlp.fc1')), p, 'mlp.fc2')


def compute(state, images, days, patch):
    """Tokens (1 + h*w, D) of images {kind: (T, bands, side, side)}."""
    scale, side = (D // HEADS) ** -0.5, next(iter(images.values())).shape[-1] // patch
    tokens = []
    for kind, image in images.items():
        p = part(state, f'projector_{kind}.patch_embed.')
        inside = [None, *((r, c) for r in range(patch) for c in range(patch))]
        for row in range(side):
            for column in range(side):
                block = image[..., row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                pixels = [
                    summarize_dates(p, block[..., r, c], days, 366 if kind == 'l8' else 367) for r, c in inside[1:]
                ]
                x = torch.cat(
                    [state['spatial_encoder.cls_token'][0], torch.stack(pixels) + positions(patch, 10)], dim=0
                )
                for i in range(DEPTH - 1):
                    b = part(state, f'spatial_encoder.predictor_blocks.{i}.')
                    q, k, v = linear(norm(x, b, 'norm1'), b, 'attn.qkv').chunk(3, dim=1)
                    y = attend(q, k, v, scale, by_distance(b, inside, inside, scale))
                    x = feed(x + linear(y, b, 'attn.proj'), b, 1e-5)
                tokens.append(norm(x, part(state, 'spatial_encoder.'), 'predictor_norm')[0])
    code = positions(side, patch)
    x = torch.cat([state['cls_token'][0], torch.stack(tokens) + code.repeat(len(images), 1)])
    for i in range(DEPTH - 1):
        b = part(state, f'blocks.{i}.')
        q, k, v = linear(norm(x, b, 'norm1', 1e-6), b, 'attn.qkv').chunk(3, dim=1)
        x = feed(x + linear(attend(q, k, v, scale), b, 'attn.proj'), b, 1e-6)
    b = part(state, f'blocks.{DEPTH - 1}.')
    places = [None, *((r, c) for r in range(side) for c in range(side))]
    seen = [None, *(places[1:] * len(images))]
    x = norm(x, b, 'norm1', 1e-6)
    q = b['attn.q_learned'][0] + torch.cat([torch.zeros(1, D), code])
    y = attend(q, linear(x, b, 'attn.wk'), linear(x, b, 'attn.wv'), scale, by_distance(b, places, seen, 1.0))
    return feed(linear(y, b, 'attn.proj'), b, 1e-6)


@pytest.mark.parametrize(
    ('name', 'bands', 'kinds', 'patch', 'dates', 'side'),
    [
        ('anysat_base', S2, ['s2'], 2, 3, 8),
        ('anysat_base', S2 + S1, ['s2', 's1-asc'], 3, 2, 9),
        ('anysat_base', S1, ['s1-asc'], 1, 1, 4),
        ('anysat_base_landsat', L8, ['l8'], 4, 3, 8),
    ],
)
@torch.inference_mode()
def test_outputs_are_those_of_the_description(published, name, bands, kinds, patch, dates, side):
    state, path = published
    net = create_backbone(name, bands, weights=path, form='tokens', patch=patch, dates=DAYS[:1]).eval()
    net.trunk.acquired = DAYS[:dates]
    x = torch.randn(2, dates, len(bands), side, side, generator=torch.Generator().manual_seed(1))
    images = dict(zip(kinds, x[1].split([KINDS[kind] for kind in kinds], dim=1)))
    expected = compute(state, images, [0, 67, 364][:dates], patch)
    torch.testing.assert_close(net(x)[1], expected, atol=1e-4, rtol=1e-4)
    assert net.load_report.missing == ()
    unused = [n for n in state if (n.startswith('projector_') and n.split('.')[0][10:] not in kinds) or 'pad_par' in n]
    assert sorted(net.load_report.unexpected) == sorted(unused)


def test_rows_of_the_table_follow_the_distance():
    places = torch.cartesian_prod(torch.arange(5), torch.arange(7))
    places = torch.cat([places, places.new_full((1, 2), -1)])
    named = [None if row < 0 else (row, column) for row, column in places.tolist()]
    assert find_rows(places, places).tolist() == [[bucket(a, b) for b in named] for a in named]


def test_weights_of_other_sensors_are_left_out_and_what_is_missing_is_named(published, tmp_path):
    state, _ = published
    for lost, message in (
        ('projector_s2.patch_embed.inconv.0.weight', r'holds no projector_s2\.patch_embed\.inconv\.0\.weight'),
        ('blocks.1.attn.qkv.weight', r'blocks\.1\.attn\.qkv\.weight'),
        ('blocks.2.attn.rpe_k.lookup_table_weight', r'blocks\.2\.attn\.rpe_k\.lookup_table_weight'),
    ):
        torch.save({n: v for n, v in state.items() if n != lost}, path := tmp_path / 'AnySat.pth')
        with pytest.raises(WeightsError, match=message):
            create_backbone('anysat_base', S2, weights=path)
    torch.save(state | {'blocks.0.attn.extra': torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r'blocks\.0\.attn\.extra'):
        create_backbone('anysat_base', S2, weights=path)


def test_bands_take_their_own_kernels(published):
    state, path = published
    net = create_backbone('anysat_base', [S2[6], S2[2]], weights=path, patch=2)
    kernel = state['projector_s2.patch_embed.inconv.0.weight'][:, [6, 2]] * 5
    torch.testing.assert_close(net.trunk.projectors['s2'].inconv[0].weight.data, kernel)
    assert net.load_report.resized == ('projectors.s2.inconv.0.weight',)
    with pytest.raises(BandError, match='anysat_base_landsat was trained on optical bands only; found radar'):
        create_backbone('anysat_base_landsat', L8 + S1, pretrained=False)


# -- dates


@torch.inference_mode()
def test_all_dates_become_one_map_whatever_their_order(published, caplog):
    _warn_of_dates.cache_clear()
    options = {'weights': published[1], 'patch': 4, 'strides': (4, 16)}
    x, order = torch.randn(2, 3, 10, 30, 22, generator=torch.Generator().manual_seed(1)), [2, 0, 1]
    torch.manual_seed(0)
    net = create_backbone('anysat_base', S2, dates=DAYS, **options).eval()
    torch.manual_seed(0)
    other = create_backbone('anysat_base', S2, dates=[DAYS[i] for i in order], **options).eval()
    found = net(x)
    assert [tuple(m.shape) for m in found] == [(2, 256, 8, 6), (2, 256, 2, 2)]
    for a, b in zip(found, other(x[:, order])):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert not any('of several dates' in message for message in caplog.messages)
    net.set_dates((DAYS[0], date(2021, 8, 1), DAYS[2]))
    assert not torch.allclose(net(x)[0], found[0], atol=1e-3)
    (one,) = create_backbone('anysat_base', S2, dates=DAYS[:1], weights=published[1], strides=(4,)).eval()(x[:, 0])
    assert one.shape == (2, 256, 8, 6)


def test_heads_over_dates_and_dates_that_are_not_told_are_refused():
    for temporal in ('concat', 'ltae'):
        with pytest.raises(BackboneError, match=f"joins the dates itself; leave temporal out, got '{temporal}'"):
            create_backbone('anysat_base', S2, pretrained=False, dates=DAYS, temporal=temporal)
    net = create_backbone('anysat_base', S2, pretrained=False, dates=2, strides=(4,))
    with pytest.raises(BackboneError, match=r'has to know when each of 2 dates was: pass dates=\[date'):
        net(torch.zeros(1, 2, 10, 8, 8))


# -- windows and pieces


@torch.inference_mode()
def test_a_window_sees_no_place_of_another_until_the_last_block_reads_all(monkeypatch):
    options = {'pretrained': False, 'patch': 2, 'dates': DAYS[:1], 'strides': (4,)}
    with_more = dataclasses.replace(catalog.get_record('anysat_base'), depth=9)
    monkeypatch.setattr(catalog, 'get_record', lambda name: with_more)
    trunk = create_backbone('anysat_base', S2[:2] + S1, **options).trunk.eval()
    assert isinstance(trunk, AnySat)
    x = torch.randn(1, 4, 12, 16)
    other = x.clone()
    other[..., 6:, 8:] += 1
    pairs = list(zip(*(trunk.maps(image, [0, 8], 2) for image in (x, other))))
    changed = [(a - b).abs().amax(dim=1)[0] > 1e-6 for a, b in pairs]
    assert not changed[0][:2].any()
    assert not changed[0][:, :4].any()
    assert changed[0][4:, 4:].all()
    assert changed[1].all()


@torch.inference_mode()
def test_pieces_change_nothing(published, monkeypatch):
    net = create_backbone('anysat_base', S2, weights=published[1], form='tokens', patch=2, dates=DAYS[:1]).eval()
    x = torch.randn(1, 10, 12, 14)
    whole = net(x)
    monkeypatch.setattr('geolearn.backbones.anysat.CHUNK', 12)
    monkeypatch.setattr('geolearn.backbones.anysat.QUERIES', 5)
    torch.testing.assert_close(net(x), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(('patch', 'message'), [(9, 'patches of 1 to 8 pixels'), (3, 'patches of 1, 2, 4 or 8')])
def test_patches_that_cannot_be_are_refused(patch, message):
    with pytest.raises(BackboneError, match=message):
        create_backbone('anysat_base', S2, pretrained=False, patch=patch)
    with pytest.raises(BackboneError, match='relative positions of its own'):
        create_backbone('anysat_base', S2, pretrained=False, relative_positions=True)


def test_a_model_asks_for_the_statistics_that_are_not_published(published, write_export, tmp_path):
    rng = torch.Generator().manual_seed(2)
    images = [torch.randint(1, 3000, (3, 32, 32), generator=rng).numpy().astype('uint16') for _ in range(4)]
    labels = [(image[0] > 1500).astype('uint8') for image in images]
    names = ['B8', 'B4', 'B3']
    folder = write_export(tmp_path / 'e', images, labels, band_names=names, sensor='Sentinel-2 L2A')
    options = {'chip_size': 32, 'batch_size': 2, 'val_split_pct': 0.5}
    with pytest.raises(BackboneError, match=r'pass prepare_data\(normalize=\(means, stds\)\), one of each per band'):
        UNet(prepare_data(folder, **options), 'anysat_base', weights=published[1])
    data = prepare_data(folder, normalize=((900, 900, 900), (500, 500, 500)), **options)
    assert UNet(data, 'anysat_base', weights=published[1]).spec.normalization.mean == (900, 900, 900)

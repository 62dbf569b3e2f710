"""Galileo: the published layout, channel groups chosen by bands, and what pretraining brings on real images."""

import dataclasses

import numpy as np
import pytest
import torch

from geolearn.backbones import catalog, create_backbone
from geolearn.backbones.backbone import BackboneOptions
from geolearn.backbones.building import load_checkpoint, read_checkpoint
from geolearn.backbones.galileo import GROUPS, Galileo, assign_groups, convert_galileo, resample_patch_kernel
from geolearn.backbones.trunk import ViTConfig
from geolearn.bands import Band, get_bands
from geolearn.errors import BackboneError, BandError, WeightsError
from geolearn.raster import read_image

TEN = get_bands('sentinel2_l2a', ['B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B11', 'B12'])
RADAR = get_bands('sentinel1', ['VV', 'VH'])
SIZES = {'S1': 2, 'S2_RGB': 3, 'S2_Red_Edge': 3, 'S2_NIR_10m': 1, 'S2_NIR_20m': 1, 'S2_SWIR': 2, 'NDVI': 1}
SPACE = {'SRTM': 2, 'DW': 9, 'WC': 5}
FLAT = {'time_embed.ERA5': 2, 'time_embed.TC': 3, 'time_embed.VIIRS': 1, 'static_embed.LS': 1}
FLAT |= {'static_embed.location': 3, 'static_embed.DW_static': 9, 'static_embed.WC_static': 5}


def published(dim=32, depth=4):
    """A random state dict with every name of the published encoder."""
    shapes = {'pos_embed': (24, dim // 4), 'month_embed.weight': (12, dim // 4), 'norm.weight': (dim,)}
    shapes |= {f'{table}_channel_embed': (n, dim // 4) for table, n in zip(('s_t', 'sp', 't', 'st'), (7, 3, 3, 4))}
    shapes |= {'norm.bias': (dim,)}
    for kind, groups in (('space_time', SIZES), ('space', SPACE)):
        for group, bands in groups.items():
            shapes |= {f'{kind}_embed.{group}.proj.weight': (dim, bands, 8, 8)}
            shapes |= {f'{kind}_embed.{group}.proj.bias': (dim,)}
    for name, inputs in FLAT.items():
        shapes |= {f'{name}.weight': (dim, inputs), f'{name}.bias': (dim,)}
    layers = {f'attn.{part}': (dim, dim) for part in ('q', 'k', 'v', 'proj')}
    layers |= {'mlp.fc1': (4 * dim, dim), 'mlp.fc2': (dim, 4 * dim), 'norm1': (dim,), 'norm2': (dim,)}
    for i in range(depth):
        for name, shape in layers.items():
            shapes |= {f'blocks.{i}.{name}.weight': shape, f'blocks.{i}.{name}.bias': shape[:1]}
    torch.manual_seed(0)
    return {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}


@pytest.fixture
def small(use_record):
    """Let every name stand for a network 32 wide."""
    return use_record(dataclasses.replace(catalog.get_record('galileo_nano'), dim=32, heads=4, sources=()))


@pytest.fixture
def weights(small, tmp_path):
    torch.save(published(), tmp_path / 'encoder.pt')
    return tmp_path / 'encoder.pt'


def build(bands, weights, **options):
    return create_backbone('galileo_nano', bands, weights=weights, **options).eval()


def test_the_published_layout_loads_strictly_and_what_bands_do_not_use_is_reported(weights):
    report = build(TEN, weights).load_report
    assert report.missing == ()
    assert {'space_time_embed.S1.proj.weight', 'space_embed.DW.proj.bias', 'time_embed.TC.weight'} <= set(
        report.unexpected
    )
    assert not any(name.startswith('blocks') for name in report.unexpected)


@pytest.mark.parametrize('lost', ['space_time_embed.S2_RGB.proj.weight', 'blocks.2.norm1.bias', 'month_embed.weight'])
def test_a_file_that_lacks_a_tensor_is_refused(weights, lost):
    state = published()
    del state[lost]
    torch.save(state, weights)
    with pytest.raises(WeightsError, match=lost.split('.proj')[0].removesuffix('.weight')):
        build(TEN, weights)


def test_another_size_is_refused(weights):
    torch.save(published(dim=64), weights)
    with pytest.raises(WeightsError, match='do not fit the network'):
        build(TEN, weights)


def test_bands_are_known_by_name_so_their_order_does_not_matter(weights):
    x, order = torch.rand(1, 12, 24, 32), torch.randperm(12)
    bands = (*TEN, *RADAR)
    shuffled = [bands[i] for i in order]
    with torch.no_grad():
        one = build(bands, weights, form='tokens')(x)
        other = build(shuffled, weights, form='tokens')(x[:, order])
    assert one.shape == (1, 12, 32)
    torch.testing.assert_close(one, other)


def test_bands_choose_their_groups():
    names = ['B1', 'B2', 'B9', 'B8A']
    bands = (*get_bands('sentinel2_l2a', names), RADAR[1], Band('HH', None, 'hh', True), Band('ndvi'), Band('Slope'))
    found = {'S1': (4, 5), 'S2_RGB': (0, 1), 'S2_NIR_20m': (2, 3), 'NDVI': (6,), 'SRTM': (7,)}
    assert assign_groups(bands) == found
    assert list(assign_groups(bands)) == [group for group in GROUPS if group in found]
    assert assign_groups([Band('nir', 0.842, 'nir'), Band('swir', 1.6)]) == {'S2_NIR_10m': (0,), 'S2_SWIR': (1,)}


def test_a_band_without_wavelength_or_known_name_is_refused():
    with pytest.raises(BandError, match=r"cannot place band 'chlorophyll'.*wavelength"):
        assign_groups([Band('chlorophyll')])


def test_missing_and_extra_bands_of_a_group_are_said(weights):
    report = build((TEN[2], Band('coastal', 0.443, 'coastal')), weights).load_report
    assert report.resized == ('embeds.S2_RGB.weight',)
    assert 'S2_RGB' in report.source
    assert 'nearest wavelength' in report.source


def test_relative_positions_are_refused(small):
    with pytest.raises(BackboneError, match='relative_positions=False'):
        create_backbone('galileo_nano', TEN, pretrained=False, relative_positions=True)


def test_global_maps_hold_the_native_tokens_before_the_final_norm(weights):
    trunk, x = build(TEN[:4], weights).trunk, torch.rand(2, 4, 32, 48)
    with torch.no_grad():
        states, maps = trunk.hidden_states(x), trunk.maps(x, [0, 3], 0)
    torch.testing.assert_close(maps[0].flatten(2).transpose(1, 2), states[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(maps[1].flatten(2).transpose(1, 2), states[3], atol=1e-5, rtol=1e-5)


def test_windows_keep_the_groups_of_a_place_together(use_record):
    record = dataclasses.replace(catalog.get_record('galileo_nano'), dim=32, heads=4, depth=5, sources=())
    use_record(record)
    trunk = create_backbone('galileo_nano', TEN, pretrained=False).trunk.eval()
    x, edited = torch.rand(1, 10, 32, 64), None
    edited = x.clone()
    edited[..., 32:] += 1
    with torch.no_grad():
        one, other = (trunk.maps(image, [0], 4)[0] for image in (x, edited))
    assert torch.equal(one[..., :4], other[..., :4])
    assert not torch.allclose(one[..., 4:], other[..., 4:])


def test_the_month_and_the_resolution_change_tokens(weights):
    net, x = build(TEN, weights, form='tokens'), torch.rand(1, 10, 16, 16)
    with torch.no_grad():
        june = net(x)
        net.trunk.month = 12
        december = net(x)
        net.trunk.ground_resolution_m = 30.0
        coarse = net(x)
    assert not torch.allclose(june, december)
    assert not torch.allclose(december, coarse)
    net.trunk.month = 13
    with pytest.raises(ValueError, match=r'1\.\.12, got 13'):
        net(x)


@pytest.mark.parametrize('form', ['pyramid', 'layers'])
def test_maps_of_odd_images_have_strides_4_to_32_and_every_parameter_learns(small, form):
    net = create_backbone('galileo_nano', TEN, pretrained=False, form=form)
    maps = net(torch.rand(2, 10, 65, 41))
    assert [tuple(m.shape[2:]) for m in maps] == [(17, 11), (9, 6), (5, 3), (3, 2)]
    sum(m.square().mean() for m in maps).backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_resampled_kernel_sees_an_enlarged_patch_as_the_old_one_saw_the_patch():
    kernel, patch = torch.randn(5, 2, 8, 8), torch.randn(1, 2, 8, 8)
    large = torch.nn.functional.interpolate(patch, size=(12, 12), mode='bicubic', antialias=True)
    new = torch.nn.functional.conv2d(large, resample_patch_kernel(kernel, 12))
    torch.testing.assert_close(new, torch.nn.functional.conv2d(patch, kernel), atol=1e-3, rtol=1e-3)


# Made with the authors' own encoder and averaging (rslearn 0.1.19): the first four features of tokens 0, 1 and 8.
REFERENCE = {
    8: [
        [-0.01738, -0.0197, 0.24649, 0.04519],
        [-0.02151, -0.04239, 0.24016, 0.07636],
        [-0.01728, -0.03043, 0.21309, 0.06122],
    ],
    4: [
        [-0.09745, 0.01515, 0.2382, 0.06397],
        [-0.08694, 0.04213, 0.21541, 0.08584],
        [-0.03629, -0.02553, 0.24963, 0.07385],
    ],
}


def nano(shared, bands, patch=8, seed=None):
    """Galileo nano with its real weights, or at random."""
    torch.manual_seed(seed or 0)
    trunk = Galileo(ViTConfig(128, 4, 8, eps=1e-5), assign_groups(bands), patch=patch).eval()
    if seed is None:
        options = BackboneOptions(weights=shared / 'weights/galileo_nano/encoder.pt')
        checkpoint = read_checkpoint(catalog.get_record('galileo_nano'), bands, options)
        assert load_checkpoint(trunk, convert_galileo(checkpoint, bands, patch=patch), options).missing == ()
    return trunk


@pytest.mark.real_data
@pytest.mark.parametrize('patch', [8, 4])
def test_the_real_weights_give_the_authors_tokens(shared, patch):
    x = torch.sin(torch.arange(12 * 24 * 24, dtype=torch.float64) * 0.11).float().reshape(1, 12, 24, 24)
    with torch.no_grad():
        tokens = nano(shared, (*RADAR, *TEN), patch).tokens(x)
    torch.testing.assert_close(tokens[0, [0, 1, 8], :4], torch.tensor(REFERENCE[patch]), atol=1e-4, rtol=0)


@pytest.mark.real_data
def test_the_real_weights_are_the_published_file_and_fill_every_form(shared):
    for form in ('pyramid', 'layers', 'tokens'):
        net = create_backbone('galileo_nano', TEN, weights=shared / 'weights/galileo_nano', form=form)
        assert net.load_report.missing == ()


def place_chips(shared, side=28):
    """Chips of the TerraMesh places that one class covers to 70 %, their classes, and their rows of blocks."""
    statistics = catalog.get_record('galileo_nano').inputs[0]
    mean, std = (np.float32(values)[:, None, None] for values in (statistics.mean, statistics.std))
    chips, classes, rows = [], [], []
    for path in sorted((shared / 'data/terramesh/LULC').glob('*.tif')):
        label = read_image(path)[0][0]
        image = read_image(path.parents[1] / 'S2L2A' / path.name, [2, 3, 4, 5, 6, 7, 8, 9, 11, 12])[0]
        for row in range(0, 224, side):
            for col in range(0, 224, side):
                values, counts = np.unique(label[row : row + side, col : col + side], return_counts=True)
                if counts.max() >= 0.7 * side**2:
                    chips.append((image[:, row : row + side, col : col + side] - mean) / std)
                    classes.append(int(values[counts.argmax()]))
                    rows.append(row // (2 * side) + col // (2 * side))
    return torch.from_numpy(np.stack(chips)).float(), torch.tensor(classes), torch.tensor(rows)


def linear_probe(features, classes, train):
    """Share of test chips whose class a ridge regression on the training chips finds."""
    scaled = (features - features[train].mean(0)) / (features[train].std(0) + 1e-6)
    scaled = torch.cat([scaled, torch.ones(len(scaled), 1)], dim=1).double()
    targets = (classes[:, None] == classes.unique()).double()
    gram = scaled[train].T @ scaled[train] + 10 * torch.eye(scaled.shape[1], dtype=torch.float64)
    chosen = (scaled @ torch.linalg.solve(gram, scaled[train].T @ targets[train])).argmax(1)
    return (classes.unique()[chosen] == classes)[~train].float().mean().item()


@pytest.mark.real_data
def test_pretrained_features_beat_random_ones_on_real_images(shared):
    chips, classes, blocks = place_chips(shared)
    scores = {}
    for kind, seeds in (('pretrained', [None]), ('random', [1, 2, 3])):
        with torch.no_grad():
            features = [nano(shared, TEN, 7, seed).tokens(chips).mean(dim=1) for seed in seeds]
        splits = [(blocks % 2 == rest) for rest in (0, 1)]  # a checkerboard, so that no block is on both sides
        scores[kind] = np.mean([linear_probe(f, classes, train) for f in features for train in splits])
    assert scores['pretrained'] > scores['random'] + 0.03, scores

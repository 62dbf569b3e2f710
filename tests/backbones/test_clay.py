"""Clay v1.5: the authors' own numbers for given weights, the checkpoint's layout, and bands by wavelength."""

import dataclasses
from datetime import datetime

import pytest
import torch

from geolearn.backbones import catalog, create_backbone
from geolearn.backbones.clay import clay_positions, clay_wavelengths, encode_context
from geolearn.bands import Band, get_bands
from geolearn.errors import BandError, WeightsError

BANDS = (Band('red', 0.665, 'red'), Band('green', 0.56, 'green'), get_bands('sentinel1', ['VV'])[0])

# Made with the Encoder of claymodel 1.5.0: dim 40, depth 2, 4 heads, `fill` for weights, context linspace(-1, 1, 8),
# 10 m, wavelengths 0.665, 0.56, 3.5: the first four features of the class token and of tokens 4, 8 (from 0) and 0.
REFERENCE = {
    0: [-0.24592, 0.68763, 0.65884, -0.88208],
    1: [-0.13679, -0.61092, 0.5247, -1.24351],
    5: [-0.31708, -0.15282, 1.24577, -0.33265],
    9: [0.76508, -0.64163, 0.03762, -0.86588],
}


def published(dim=40, depth=2):
    """Shapes of the encoder's tensors, by their names in the checkpoint."""
    generator = {'weight_tokens': (128, 128), 'bias_token': (1, 128)}
    layer = {'self_attn.in_proj_weight': (384, 128), 'self_attn.in_proj_bias': (384,), 'linear1.weight': (2048, 128)}
    layer |= {'self_attn.out_proj.weight': (128, 128), 'self_attn.out_proj.bias': (128,), 'linear1.bias': (2048,)}
    layer |= {'linear2.weight': (128, 2048), 'linear2.bias': (128,), 'norm1.weight': (128,), 'norm1.bias': (128,)}
    layer |= {'norm2.weight': (128,), 'norm2.bias': (128,)}
    generator |= {f'encoder.layers.0.{name}': shape for name, shape in layer.items()}
    generator |= {'fc_weight.weight': (64 * dim, 128), 'fc_weight.bias': (64 * dim,)}
    generator |= {'fc_bias.weight': (dim, 128), 'fc_bias.bias': (dim,)}
    shapes = {'cls_token': (1, 1, dim), 'transformer.norm.weight': (dim,), 'transformer.norm.bias': (dim,)}
    shapes |= {f'patch_embedding.weight_generator.{name}': shape for name, shape in generator.items()}
    for part in ('l1', 'l2'):
        shapes |= {f'patch_embedding.fclayer.{part}.weight': (128, 128), f'patch_embedding.fclayer.{part}.bias': (128,)}
    block = {'0.norm.weight': (dim,), '0.norm.bias': (dim,), '0.to_qkv.weight': (3 * dim, dim)}
    block |= {'0.to_out.weight': (dim, dim), '1.net.0.weight': (dim,), '1.net.0.bias': (dim,)}
    block |= {'1.net.1.weight': (4 * dim, dim), '1.net.1.bias': (4 * dim,)}
    block |= {'1.net.3.weight': (dim, 4 * dim), '1.net.3.bias': (dim,)}
    return shapes | {f'transformer.layers.{i}.{name}': shape for i in range(depth) for name, shape in block.items()}


def fill(name, shape):
    """Values that need no random numbers: a sine of the position and of the length of the name."""
    count = torch.Size(shape).numel()
    values = torch.sin(torch.arange(count, dtype=torch.float64) * 0.37 + len(name)) * 0.05
    is_norm = ('norm' in name and name.endswith('weight')) or name.endswith('net.0.weight')
    return (values + is_norm).float().reshape(shape)


def checkpoint(**changes):
    """A Lightning checkpoint as the authors publish it, with a decoder, a teacher and a projection beside."""
    state = {f'model.encoder.{name}': fill(name, shape) for name, shape in published(**changes).items()}
    rest = {'model.decoder.mask_patch': 8, 'model.teacher.norm.weight': 8, 'model.proj.weight': 8}
    return {'state_dict': state | {name: torch.zeros(n) for name, n in rest.items()}, 'epoch': 1}


@pytest.fixture
def small(use_record):
    return use_record(dataclasses.replace(catalog.get_record('clay_large'), dim=40, depth=2, heads=4, sources=()))


@pytest.fixture
def weights(small, tmp_path):
    torch.save(checkpoint(), tmp_path / 'clay.ckpt')
    return tmp_path / 'clay.ckpt'


def test_tokens_are_the_authors(weights):
    net = create_backbone('clay_large', BANDS, weights=weights, form='tokens').eval()
    net.trunk.context.copy_(torch.linspace(-1, 1, 8))
    x = torch.sin(torch.arange(3 * 24 * 24, dtype=torch.float64) * 0.11).float().reshape(1, 3, 24, 24)
    with torch.no_grad():
        tokens = net(x)
    assert tokens.shape == (1, 10, 40)
    for place, values in REFERENCE.items():
        torch.testing.assert_close(tokens[0, place, :4], torch.tensor(values), atol=1e-4, rtol=0)


def test_only_the_encoder_of_the_checkpoint_is_taken(weights):
    report = create_backbone('clay_large', BANDS, weights=weights).load_report
    assert report.missing == ()
    assert set(report.unexpected) == {'model.decoder.mask_patch', 'model.teacher.norm.weight', 'model.proj.weight'}
    assert len(report.matched) == len(published())


def test_an_incomplete_or_larger_checkpoint_is_refused(weights):
    content = checkpoint()
    del content['state_dict']['model.encoder.transformer.layers.1.1.net.3.bias']
    torch.save(content, weights)
    with pytest.raises(WeightsError, match=r'1 missing: blocks.1.mlp.fc2.bias'):
        create_backbone('clay_large', BANDS, weights=weights)
    torch.save(checkpoint(dim=72), weights)
    with pytest.raises(WeightsError, match='of another shape'):
        create_backbone('clay_large', BANDS, weights=weights)


def test_its_own_state_loads_again(small, tmp_path):
    net = create_backbone('clay_large', BANDS, pretrained=False)
    torch.save(net.trunk.state_dict(), tmp_path / 'own.pt')
    other = create_backbone('clay_large', BANDS, weights=tmp_path / 'own.pt')
    assert all(torch.equal(a, b) for a, b in zip(net.trunk.parameters(), other.trunk.parameters()))


def test_the_large_one_has_the_published_number_of_parameters():
    with torch.device('meta'):
        net = create_backbone('clay_large', get_bands('sentinel2_l2a', ['B4']), pretrained=False, form='tokens')
    assert sum(p.numel() for p in net.trunk.parameters()) == catalog.get_record('clay_large').parameters


@pytest.mark.parametrize('form', ['pyramid', 'layers'])
def test_maps_of_odd_images_have_strides_4_to_32_and_every_parameter_learns(use_record, form):
    use_record(dataclasses.replace(catalog.get_record('clay_large'), dim=40, depth=4, heads=4, sources=()))
    net = create_backbone('clay_large', BANDS, pretrained=False, form=form)
    maps = net(torch.rand(2, 3, 65, 41))
    assert [tuple(m.shape[2:]) for m in maps] == [(17, 11), (9, 6), (5, 3), (3, 2)]
    sum(m.square().mean() for m in maps).backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_folded_kernel_computes_the_same(small):
    embed = create_backbone('clay_large', BANDS, pretrained=False).trunk.patch_embed
    x = torch.rand(1, 3, 24, 16)
    torch.testing.assert_close(embed.folded()(x), embed(x))


def test_time_place_and_resolution_change_tokens(weights):
    net, x = create_backbone('clay_large', BANDS, weights=weights, form='tokens').eval(), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        first = net(x)
        net.trunk.context.copy_(encode_context(datetime(2021, 5, 27, 12), 52.4, -4.1))
        second = net(x)
        net.trunk.ground_resolution_m = 0.5
        third = net(x)
    assert not torch.allclose(first, second)
    assert not torch.allclose(second, third)


def test_a_time_and_place_are_angles():
    context = encode_context(datetime(2021, 4, 1, 6), 90.0, -90.0)  # week 13 of 52
    torch.testing.assert_close(context, torch.tensor([1.0, 0, 1, 0, 1, 0, -1, 0]), atol=1e-6, rtol=0)


def test_positions_differ_by_row_and_column_on_any_grid():
    positions = clay_positions(32, (3, 5), 10.0)
    assert positions.shape == (3, 5, 32)
    assert torch.equal(positions[0, :, :16], positions[2, :, :16])
    assert torch.equal(positions[:, 0, 16:], positions[:, 4, 16:])


def test_radar_bands_have_placeholders_and_others_are_refused():
    assert clay_wavelengths((*BANDS, get_bands('sentinel1', ['VH'])[0])) == (0.665, 0.56, 3.5, 4.0)
    with pytest.raises(BandError, match='VV and VH only, found HH'):
        clay_wavelengths(get_bands('sentinel1', ['HH']))
    with pytest.raises(BandError, match="unresolved: 'x'"):
        clay_wavelengths([Band('x')])

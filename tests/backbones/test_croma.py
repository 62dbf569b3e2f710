"""CROMA against torchgeo's class at random values, in both published layouts, for any bands and grids."""

import dataclasses

import pytest
import torch

from geolearn.backbones import catalog, create_backbone
from geolearn.backbones import croma as alibi
from geolearn.backbones.croma import AlibiAttention, alibi_bias
from geolearn.bands import get_bands
from geolearn.errors import BackboneError, WeightsError

OPTICAL = get_bands('sentinel2_l2a')
RADAR = get_bands('sentinel1', ['VV', 'VH'])
BANDS = {'optical': OPTICAL, 'sar': RADAR, 'joint': (*OPTICAL, *RADAR)}


@pytest.fixture
def small(use_record):
    """Let every name stand for a network 64 wide: optical encoder 4 deep, the others 2."""
    return use_record(dataclasses.replace(catalog.get_record('croma_base'), dim=64, depth=4, sources=()))


@pytest.fixture(scope='module')
def reference():
    models = pytest.importorskip('torchgeo.models', reason='torchgeo is not installed')
    torch.manual_seed(0)
    return models.CROMA(encoder_dim=64, encoder_depth=4, image_size=40).eval()


@pytest.fixture(scope='module')
def expected(reference):
    x = torch.rand(2, 14, 40, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, reference(x[:, 12:], x[:, :12])


def official(reference):
    """The layout of the official file: five state dicts."""
    parts = ('s1_encoder', 's1_GAP_FFN', 's2_encoder', 's2_GAP_FFN', 'joint_encoder')
    return {part: getattr(reference, part).state_dict() for part in parts}


@pytest.fixture(params=['official', 'flat'])
def weights(request, small, reference, tmp_path):
    torch.save(official(reference) if request.param == 'official' else reference.state_dict(), tmp_path / 'croma.pt')
    return tmp_path / 'croma.pt'


@pytest.mark.parametrize('kind', list(BANDS))
def test_tokens_are_torchgeos(weights, expected, kind):
    x, wanted = expected
    x = {'optical': x[:, :12], 'sar': x[:, 12:], 'joint': x}[kind]
    net = create_backbone('croma_base', BANDS[kind], weights=weights, form='tokens').eval()
    with torch.no_grad():
        tokens = net(x)
    torch.testing.assert_close(tokens, wanted[f'{kind}_encodings'], atol=1e-4, rtol=1e-4)
    assert net.load_report.missing == net.load_report.resized == ()
    assert any('GAP_FFN' in name for name in net.load_report.unexpected)


def test_bands_are_known_by_name_so_their_order_does_not_matter(weights, expected):
    x, wanted = expected
    order = torch.randperm(14)
    bands = [BANDS['joint'][i] for i in order]
    net = create_backbone('croma_base', bands, weights=weights, form='tokens').eval()
    with torch.no_grad():
        torch.testing.assert_close(net(x[:, order]), wanted['joint_encodings'], atol=1e-4, rtol=1e-4)


def test_absent_and_extra_bands_are_said(weights):
    bands = (*get_bands('sentinel2_l2a', ['B4', 'B3', 'B2']), *get_bands('sentinel2_l1c', ['B10']))
    report = create_backbone('croma_base', bands, weights=weights).load_report
    assert report.resized == ('optical.patch_embed.weight',)
    assert 'B10 <- B11 (nearest wavelength)' in report.source
    assert {'radar.patch_embed.weight', 'joint.0.cross.q.weight'} <= set(report.unexpected)


def test_a_file_of_another_model_or_size_is_refused(small, reference, tmp_path):
    torch.save({'patch_embed.proj.weight': torch.zeros(3)}, tmp_path / 'dofa.pth')
    with pytest.raises(WeightsError, match='no patch embedding for 12 optical bands'):
        create_backbone('croma_base', OPTICAL, weights=tmp_path / 'dofa.pth')
    state = official(reference)
    del state['s2_encoder']['transformer.layers.3.1.net.0.bias']
    torch.save(state, tmp_path / 'croma.pt')
    with pytest.raises(WeightsError, match=r'1 missing: optical.blocks.3.mlp.fc1.bias'):
        create_backbone('croma_base', OPTICAL, weights=tmp_path / 'croma.pt')


def test_its_own_state_loads_again(small, tmp_path):
    net = create_backbone('croma_base', BANDS['joint'], pretrained=False)
    torch.save(net.trunk.state_dict(), tmp_path / 'own.pt')
    other = create_backbone('croma_base', BANDS['joint'], weights=tmp_path / 'own.pt')
    assert all(torch.equal(a, b) for a, b in zip(net.trunk.parameters(), other.trunk.parameters()))


def test_relative_positions_are_refused(small):
    with pytest.raises(BackboneError, match='relative_positions=False'):
        create_backbone('croma_base', OPTICAL, pretrained=False, relative_positions=True)


@pytest.mark.parametrize('kind', list(BANDS))
@pytest.mark.parametrize('form', ['pyramid', 'layers'])
def test_maps_of_odd_images_have_strides_4_to_32_and_every_parameter_learns(use_record, kind, form):
    use_record(dataclasses.replace(catalog.get_record('croma_base'), dim=32, depth=8, sources=()))
    net = create_backbone('croma_base', BANDS[kind], pretrained=False, form=form)
    maps = net(torch.rand(2, len(BANDS[kind]), 65, 41))
    assert [tuple(m.shape[2:]) for m in maps] == [(17, 11), (9, 6), (5, 3), (3, 2)]
    sum(m.square().mean() for m in maps).backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
    depth = {'optical': 8, 'sar': 4, 'joint': 12}[kind]
    assert net.trunk.depth == len(net.trunk.stages) == depth
    # what the joint blocks look through is part of the first of them
    parts = ('blocks', 'joint', *(('optical.norm', 'radar.norm') if kind == 'joint' else ()))
    blocks = {id(p) for name, p in net.trunk.named_parameters() if any(part in name for part in parts)}
    assert {id(p) for p in net.trunk.stages.parameters()} == blocks


@pytest.mark.parametrize('kind', list(BANDS))
def test_global_maps_hold_the_native_tokens_before_the_final_norm(small, kind):
    trunk = create_backbone('croma_base', BANDS[kind], pretrained=False).trunk.eval()
    x, last = torch.rand(1, len(BANDS[kind]), 32, 48), trunk.depth - 1
    with torch.no_grad():
        for window in (0, 6):
            y = trunk.maps(x[..., :48], [0, last], window)
            states = trunk.hidden_states(x)
            torch.testing.assert_close(y[1].flatten(2).transpose(1, 2), states[last])


@pytest.mark.parametrize('kind', list(BANDS))
def test_a_window_attends_by_distances_within_it(use_record, kind):
    use_record(dataclasses.replace(catalog.get_record('croma_base'), dim=32, depth=16, sources=()))
    trunk = create_backbone('croma_base', BANDS[kind], pretrained=False).trunk.eval()
    x = torch.rand(1, len(BANDS[kind]), 32, 64)
    with torch.no_grad():
        whole = trunk.maps(x, [0], 4)[0]
        halves = [trunk.maps(part, [0], 4)[0] for part in x.split(32, dim=3)]
    torch.testing.assert_close(whole, torch.cat(halves, dim=3))


def test_the_bias_is_minus_slope_times_distance_on_any_grid():
    bias = alibi_bias((3, 5), 16)
    assert bias.shape == (16, 15, 15)
    assert bias[:, 7, 7].abs().max() == 0
    assert bias[15, 0, 14].item() == pytest.approx(-(2.0**-8) * (2**2 + 4**2) ** 0.5)
    assert bias[1, 0, 14].item() == pytest.approx(-0.5 * (2**2 + 4**2) ** 0.5)
    torch.testing.assert_close(bias, bias.transpose(1, 2))


def test_many_queries_attend_as_few_do(monkeypatch):
    attention, x = AlibiAttention(32, 16, qkv_bias=False), torch.randn(2, 5, 7, 32)
    with torch.no_grad():
        once = attention(x)
        monkeypatch.setattr(alibi, 'MOST_BIASES', 16 * 35 * 4)
        torch.testing.assert_close(attention(x), once)

"""What of a backbone learns, how fast, and low-rank updates."""

import dataclasses
import math
import re

import pytest
import torch
from torch import nn

from geolearn.backbones import catalog, create_backbone
from geolearn.backbones.adapt import (
    LORA_TARGETS,
    Adaptation,
    LoraLinear,
    adapt,
    merged_state_dict,
    own_parameters,
    param_groups,
)
from geolearn.bands import get_bands
from geolearn.errors import BackboneError

BANDS = get_bands('sentinel2_l2a', ['B02', 'B03', 'B04', 'B8A', 'B11', 'B12'])


@pytest.fixture
def small(monkeypatch):
    """Let every backbone of the catalog be 48 wide, `depth` deep; a function that builds one."""
    own = catalog.get_record

    def build(name, *, depth=4, bands=BANDS, **options):
        shape = {'dim': 48, 'depth': depth, 'heads': 3}
        monkeypatch.setattr(catalog, 'get_record', lambda wanted: dataclasses.replace(own(wanted), **shape))
        torch.manual_seed(0)
        return create_backbone(name, bands, pretrained=False, **options)

    return build


PLAIN = [
    'dofa_tiny',
    'dofa_v2_base',
    'prithvi_v2_tiny',
    'prithvi_v2_300M_TL',
    'clay_large',
    'ssl4eo_mae',
    'scalemae_large',
]


def build(small, name, **options):
    if name == 'test_vit':  # timm's own tiny one
        torch.manual_seed(0)
        return create_backbone(name, BANDS, pretrained=False, **options)
    return small(name, **options)


def step(backbone, *, rate=1e-2):
    """Change what learns as training would, by one step of plain gradient descent on noise."""
    x = torch.randn(2, len(BANDS), 64, 64, generator=torch.Generator().manual_seed(1))
    found = backbone.train()(x)
    loss = sum(m.square().mean() + m.mean() for m in (found if isinstance(found, list) else [found]))
    loss.backward()
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.grad is not None:
                parameter -= rate * torch.sign(parameter.grad)


def learning(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def copies(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def block_of(name):
    """Position of the block that a trunk's parameter lies in, or None."""
    found = re.match(r'(?:net\.|optical\.)?(?:blocks|encoder)\.(\d+)\.', name)
    return int(found[1]) if found else None


# -- what learns


ADAPTATIONS = [
    Adaptation(),
    Adaptation('all'),
    Adaptation('all but norms'),
    Adaptation(2),
    Adaptation(lora_rank=4),
    Adaptation('all but norms', lora_rank=4),
    Adaptation(1, lora_rank=4),
]
LEARNERS = [*PLAIN, 'test_vit', 'terramind_tiny', 'galileo_nano', 'spectralgpt', 'croma_base']
# the first backbone meets every adaptation; each of the others three, so that each adaptation meets five backbones
PAIRS = [
    pytest.param(name, adaptation, marks=[] if name == LEARNERS[0] or (i + j) % 7 in (0, 2, 4) else [pytest.mark.slow])
    for i, name in enumerate(LEARNERS)
    for j, adaptation in enumerate(ADAPTATIONS)
]


@pytest.mark.parametrize(('name', 'adaptation'), PAIRS, ids=str)
def test_what_should_learn_gets_a_gradient_and_nothing_else_changes(small, name, adaptation):
    backbone = build(small, name)
    adapt(backbone, adaptation)
    before, wanted = copies(backbone), learning(backbone)
    step(backbone)
    step(backbone)  # the first leaves lora_a as it is, because lora_b starts at zero
    assert changed(backbone, before) == wanted
    assert {n for n in wanted if n.startswith('trunk.')} or adaptation.freeze == 'all'
    assert {n for n in before if n.startswith('pyramid.') and not n.endswith('num_batches_tracked')} <= wanted


@pytest.mark.parametrize('name', [*PLAIN, 'test_vit'])
def test_each_way_to_freeze_leaves_what_it_says(small, name):
    every = learning(build(small, name).trunk)
    found = {}
    for freeze in ('none', 'all', 'all but norms', 1, 2):
        backbone = build(small, name)
        adapt(backbone, Adaptation(freeze))
        found[freeze] = learning(backbone.trunk)
    assert found['none'] == every
    assert found['all'] == set()
    assert found['all but norms'] == {n for n in every if '.norm1.' in n or '.norm2.' in n} - {
        n for n in every if 'patch_embed' in n
    } | {n for n in every if 'patch_embed' in n and 'norm' in n}
    for count in (1, 2):
        assert found[count] == {n for n in every if block_of(n) is not None and block_of(n) >= count}


def test_nothing_that_was_frozen_is_thawed(small):
    backbone = small('dofa_tiny')
    assert 'cls_token' not in learning(backbone.trunk)
    for adaptation in (Adaptation(), Adaptation('all but norms'), Adaptation(1), Adaptation(layer_decay=0.7)):
        adapt(backbone, adaptation)
        assert not {'cls_token', 'norm.weight', 'norm.bias'} & learning(backbone.trunk)


def test_networks_without_blocks_in_a_row_freeze_by_word_only():
    backbone = create_backbone('test_resnet', BANDS, pretrained=False)
    for adaptation in (Adaptation(1), Adaptation(layer_decay=0.8)):
        with pytest.raises(BackboneError, match="test_resnet has no blocks in a row; pass freeze='none', 'all' or"):
            adapt(backbone, adaptation)
    with pytest.raises(BackboneError, match=r'test_resnet has no linear layers qkv, .* so lora_rank does not apply'):
        adapt(backbone, Adaptation(lora_rank=4))
    assert learning(backbone.trunk) == set(dict(backbone.trunk.named_parameters())), 'a refusal changes nothing'
    adapt(backbone, Adaptation('all but norms'))
    norms = [module for module in backbone.trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    assert (
        {id(p) for p in backbone.trunk.parameters() if p.requires_grad}
        == {id(p) for norm in norms for p in norm.parameters()}
        != set()
    )
    adapt(backbone, Adaptation('all'))
    assert learning(backbone.trunk) == set()


def test_more_blocks_than_there_are_cannot_be_frozen(small):
    with pytest.raises(BackboneError, match='dofa_tiny has 4 blocks, not 5 to freeze'):
        adapt(small('dofa_tiny'), Adaptation(5))


@pytest.mark.parametrize(
    ('values', 'words'),
    [
        ({'freeze': 'norms'}, "freeze must be one of .* or a number of blocks, got 'norms'"),
        ({'freeze': -1}, 'or a number of blocks, got -1'),
        ({'freeze': True}, 'or a number of blocks, got True'),
        ({'freeze': 1.5}, 'or a number of blocks, got 1.5'),
        ({'freeze': None}, 'or a number of blocks, got None'),
        ({'layer_decay': 0}, 'layer_decay must lie over 0 and up to 1, got 0'),
        ({'layer_decay': 1.1}, 'layer_decay must lie over 0 and up to 1, got 1.1'),
        ({'layer_decay': math.nan}, 'layer_decay must lie over 0'),
        ({'layer_decay': '0.7'}, "layer_decay must lie over 0 and up to 1, got '0.7'"),
        ({'lora_rank': -1}, 'lora_rank must be a whole number from 0, got -1'),
        ({'lora_rank': 4.0}, 'lora_rank must be a whole number from 0, got 4.0'),
        ({'lora_rank': 4, 'lora_alpha': 0}, 'lora_alpha must be a number over 0, got 0'),
        ({'lora_rank': 4, 'lora_alpha': math.inf}, 'lora_alpha must be a number over 0, got inf'),
        ({'lora_alpha': 8}, 'lora_alpha goes with lora_rank'),
    ],
)
def test_adaptations_that_make_no_sense_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        Adaptation(**values)


# -- how fast


@pytest.mark.parametrize(
    'name', [*PLAIN, 'test_vit', 'terramind_tiny', 'galileo_nano', 'croma_base', 'satlas_tiny_rgb']
)
@pytest.mark.parametrize('form', ['pyramid', 'tokens'])
def test_rates_fall_from_block_to_block_and_cover_what_learns_once(small, name, form):
    if name.startswith('satlas'):
        if form == 'tokens':
            pytest.skip('has none')
        backbone = create_backbone(name, BANDS[:3], pretrained=False)
    else:
        backbone = build(small, name, form=form)
    depth, names = len(backbone.trunk.stages), {id(p): n for n, p in backbone.trunk.named_parameters()}
    groups = param_groups(backbone, 0.5)
    assert sorted(names[id(p)] for group in groups for p in group.parameters) == sorted(learning(backbone.trunk))
    scales = [group.lr_scale for group in groups]
    assert scales == sorted(set(scales))
    assert scales[: depth + 1] == [0.5 ** (depth + 1 - i) for i in range(depth + 1)]
    for group in groups:
        for parameter in group.parameters:
            block = block_of(names[id(parameter)])
            if block is not None:
                assert group.lr_scale == 0.5 ** (depth - block)
            elif group.lr_scale == 1:
                assert 'norm' in names[id(parameter)]
            elif not name.startswith('satlas'):
                assert group.lr_scale == 0.5 ** (depth + 1)


def test_blocks_of_a_convolutional_network_count_too():
    backbone = create_backbone('plain_unet', BANDS, pretrained=False, strides=None)
    adapt(backbone, Adaptation(2, layer_decay=0.5))
    assert {name.split('.')[1] for name in learning(backbone.trunk)} == {'2', '3'}
    assert [group.lr_scale for group in param_groups(backbone, 0.5)] == [0.25, 0.5]
    with pytest.raises(BackboneError, match='plain_unet has no linear layers'):
        adapt(backbone, Adaptation(lora_rank=2))


def test_frozen_blocks_have_no_rate(small):
    backbone = small('dofa_tiny')
    adapt(backbone, Adaptation(2, layer_decay=0.5))
    assert [group.lr_scale for group in param_groups(backbone, 0.5)] == [0.25, 0.5]
    adapt(backbone, Adaptation('all'))
    assert param_groups(backbone, 0.5) == []


@pytest.mark.real_data
def test_the_rates_are_those_of_vitdet(shared, small):
    oracle = torch.load(shared / 'oracles' / 'vitdet.pt', weights_only=True)['lr_decay']
    for key, scale in oracle.items():
        name, decay, depth = key.split('|')
        backbone = small('prithvi_v2_tiny', depth=int(depth))
        trunk = dict(backbone.trunk.named_parameters())
        found = {id(p): group.lr_scale for group in param_groups(backbone, float(decay)) for p in group.parameters}
        own = name.removeprefix('backbone.net.')
        if own in trunk:
            assert found[id(trunk[own])] == pytest.approx(scale, rel=1e-12)
        elif own == 'pos_embed':  # a buffer here
            assert found[id(trunk['patch_embed.proj.weight'])] == pytest.approx(scale, rel=1e-12)
        else:
            assert scale == 1, 'pyramid and heads'
    assert len(oracle) == 18


# -- low-rank updates


@pytest.mark.parametrize('name', [*PLAIN, 'test_vit', 'terramind_tiny', 'croma_base'])
def test_updates_start_as_nothing_and_merge_to_the_same(small, name):
    backbone, plain = build(small, name), build(small, name)
    x = torch.randn(2, len(BANDS), 64, 64)
    adapt(backbone, Adaptation(lora_rank=4))
    with torch.inference_mode():
        for ours, theirs in zip(backbone.eval()(x), plain.eval()(x)):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    for _ in range(3):
        step(backbone)
    merged = merged_state_dict(backbone)
    assert merged.keys() == plain.state_dict().keys()
    plain.load_state_dict(merged)
    with torch.inference_mode():
        for ours, theirs in zip(backbone.eval()(x), plain.eval()(x)):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    for key in merged:
        assert not any(part in key for part in ('lora', 'frozen'))


def test_merging_changes_only_the_layers_with_updates(small):
    backbone = small('dofa_tiny')
    before = copies(backbone)
    adapt(backbone, Adaptation(lora_rank=2))
    assert all(torch.equal(value, before[name]) for name, value in merged_state_dict(backbone).items())
    for module in backbone.modules():
        if isinstance(module, LoraLinear):
            nn.init.ones_(module.lora_b)
    touched = {name for name, value in merged_state_dict(backbone).items() if not torch.equal(value, before[name])}
    assert touched == {
        n for n in before if n.split('.')[-2] in LORA_TARGETS and n.endswith('.weight') and 'blocks' in n
    }


@pytest.mark.parametrize(('alpha', 'scale'), [(None, 2.0), (4, 0.5), (8.0, 1.0)])
def test_an_update_is_the_product_of_its_factors(alpha, scale):
    torch.manual_seed(0)
    linear = nn.Linear(5, 3)
    weight, x = linear.weight.detach().clone(), torch.randn(2, 7, 5)
    layer = LoraLinear(linear, 8, 16.0 if alpha is None else alpha)
    assert torch.equal(layer(x), linear(x))
    nn.init.normal_(layer.lora_b)
    expected = weight + scale * layer.lora_b @ layer.lora_a
    torch.testing.assert_close(layer.weight, expected)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, expected, linear.bias))
    assert set(layer.state_dict()) == {'weight', 'bias', 'lora_a', 'lora_b'}
    assert torch.equal(layer.state_dict()['weight'], weight)
    assert {n for n, p in layer.named_parameters() if p.requires_grad} == {'lora_a', 'lora_b'}
    assert layer.double()(x.double()).dtype == torch.float64


def test_weights_read_past_the_layer_carry_the_update():
    """torchvision's shifted windows take qkv.weight for themselves."""
    torch.manual_seed(0)
    backbone = create_backbone('satlas_tiny_rgb', BANDS[:3], pretrained=False)
    adapt(backbone, Adaptation(lora_rank=2))
    before, wanted = copies(backbone.trunk), learning(backbone.trunk)
    x = torch.randn(1, 3, 64, 64)
    for _ in range(2):
        sum(m.square().mean() for m in backbone.train()(x)).backward()
        with torch.no_grad():
            for parameter in backbone.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-3 * torch.sign(parameter.grad)
    assert {n for n in wanted if n.endswith('qkv.lora_b')} != set()
    assert {n for n in changed(backbone.trunk, before) if 'lora_b' in n} == {n for n in wanted if 'lora_b' in n}


def test_updates_of_blocks_that_are_frozen_or_not_run_are_left_out(small):
    backbone = small('dofa_tiny', depth=6)
    adapt(backbone, Adaptation(4, lora_rank=2))
    assert {block_of(n) for n in learning(backbone.trunk)} == {4, 5}
    backbone = small('dofa_tiny', depth=6, form='layers', layers=(0, 1, 2, 3))
    adapt(backbone, Adaptation(lora_rank=2))
    assert {block_of(n) for n in learning(backbone.trunk)} == {0, 1, 2, 3}


def test_updates_are_no_parameters_of_the_trunks_own(small):
    backbone = small('dofa_tiny')
    adapt(backbone, Adaptation('all but norms', lora_rank=2))
    names = {id(p): n for n, p in backbone.trunk.named_parameters()}
    own = {names[id(p)] for p in own_parameters(backbone)}
    assert own == {n for n in names.values() if 'lora' not in n}
    grouped = {names[id(p)] for group in param_groups(backbone, 0.5) for p in group.parameters}
    assert grouped == {n for n in learning(backbone.trunk) if 'lora' not in n}
    assert grouped


@pytest.mark.parametrize('decay', [None, 0.5])
def test_a_network_trains_updates_with_its_new_layers(small, decay):
    from geolearn.networks.network import (
        Network,  # layers above, for this test alone
        Normalize,  # layers above, for this test alone
    )

    backbone = small('dofa_tiny')
    adapt(backbone, Adaptation('all but norms', lora_rank=2, layer_decay=decay))
    names = {id(p): n for n, p in backbone.trunk.named_parameters()}
    network = Network(Normalize([0.0] * len(BANDS), [1.0] * len(BANDS)), backbone)
    network.layer_decay = decay
    *trunk, new = network.param_groups()
    assert new.lr_scale == 1
    assert {n for n in learning(backbone.trunk) if 'lora' in n} == {
        names[id(p)] for p in new.parameters if id(p) in names
    }
    assert not any('lora' in names[id(p)] for group in trunk for p in group.parameters)


def test_updates_are_a_small_share_of_a_large_network():
    with torch.device('meta'):
        backbone = create_backbone('prithvi_v2_300M', BANDS, pretrained=False)
    total = sum(p.numel() for p in backbone.trunk.parameters())
    adapt(backbone, Adaptation(lora_rank=8))
    learns = sum(p.numel() for p in backbone.trunk.parameters() if p.requires_grad)
    # qkv 4 D, proj 2 D, fc1 and fc2 5 D each, times rank and depth
    assert learns == 16 * 1024 * 8 * 24
    assert 0.009 < learns / total < 0.012

"""Weights of one's own, in whatever layout they were saved: found under their prefix, refused where they do not fit."""

import logging

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from geolearn.backbones import create_backbone
from geolearn.backbones.loading import find_state, load_strict
from geolearn.bands import Band, get_bands
from geolearn.errors import WeightsError

RGB = (Band('red', 0.665, 'red'), Band('green', 0.56, 'green'), Band('blue', 0.49, 'blue'))
S2 = get_bands('sentinel2_l2a', ['B04', 'B03', 'B02'])


def weights_of(name, **arguments):
    """The state of a network of timm with random values, which nothing is initialized to."""
    torch.manual_seed(1)
    net = timm.create_model(name, **arguments)
    return {k: torch.rand_like(v) + 0.1 if v.is_floating_point() else v for k, v in net.state_dict().items()}


@pytest.fixture(scope='module')
def resnet():
    return weights_of('resnet10t')


def put(state, prefix, **others):
    return {f'{prefix}{name}': value for name, value in state.items()} | others


LAYOUTS = {
    'as it is': lambda s: s,
    'encoder': lambda s: put(s, 'encoder.', **{'decoder.weight': torch.ones(2)}),
    'backbone': lambda s: {'state_dict': put(s, 'backbone.'), 'optimizer': {'state': {0: {'exp_avg': torch.ones(9)}}}},
    'MoCo': lambda s: {'epoch': 3, 'state_dict': put(s, 'module.encoder_q.') | put(wrong(s), 'module.encoder_k.')},
    'DINO': lambda s: {'student': put(wrong(s), 'module.backbone.'), 'teacher': put(s, 'backbone.')},
    'Lightning': lambda s: {'state_dict': put(s, 'model.encoder.'), 'hyper_parameters': {'lr': 0.1}, 'loops': {}},
    'compiled and distributed': lambda s: {'model': put(s, 'module._orig_mod.student.backbone.'), 'scaler': None},
    'nested': lambda s: {'a': {'b': {'state_dict': put(s, 'net.vision.')}}},
}


def wrong(state):
    return {name: torch.zeros_like(value) for name, value in state.items()}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_weights_of_a_timm_model_are_found_under_any_prefix(resnet, layout, tmp_path, caplog):
    torch.save(LAYOUTS[layout](resnet), tmp_path / 'w.pth')
    with caplog.at_level(logging.INFO, 'geolearn'):
        net = create_backbone('resnet10t', RGB, weights=tmp_path / 'w.pth')
    assert all(torch.equal(value, resnet[name]) for name, value in net.trunk.state_dict().items())
    assert set(net.load_report.matched) == set(net.trunk.state_dict())
    assert ('without the prefix' in net.load_report.source) == (layout != 'as it is')
    assert ('without the prefix' in caplog.text) == (layout != 'as it is')


@pytest.mark.parametrize('suffix', ['.safetensors', '.pt', '.bin', '.ckpt'])
def test_every_kind_of_file_is_read(resnet, suffix, tmp_path):
    path = tmp_path / f'w{suffix}'
    state = put(resnet, 'encoder.')
    save_file(state, path) if suffix == '.safetensors' else torch.save(state, path)
    net = create_backbone('resnet10t', RGB, weights=path)
    assert torch.equal(net.trunk.layer1[0].conv1.weight, resnet['layer1.0.conv1.weight'])


@pytest.mark.parametrize(
    ('name', 'prefix'),
    [
        ('test_convnext', ''),
        ('test_convnext', 'backbone.'),
        ('test_vit', ''),
        ('test_vit', 'backbone.'),
        ('test_efficientnet', 'encoder.'),
        pytest.param('swin_tiny_patch4_window7_224', 'backbone.', marks=pytest.mark.slow),
    ],
)
def test_other_families_of_timm_are_filled_to_the_last_tensor(name, prefix, tmp_path):
    state = weights_of(name)
    torch.save(put(state, prefix), tmp_path / 'w.pth')
    net = create_backbone(name, RGB, weights=tmp_path / 'w.pth')
    sums = sorted(round(value.double().sum().item(), 3) for value in state.values() if value.is_floating_point())
    for key, value in net.trunk.state_dict().items():
        if value.is_floating_point():
            assert round(value.double().sum().item(), 3) in sums, key


@pytest.mark.parametrize('prefix', ['', 'module.trunk.'])
def test_a_trunks_own_names_serve_too(prefix, tmp_path):
    donor = create_backbone('test_convnext', RGB, pretrained=False).trunk.state_dict()
    torch.save(put(donor, prefix), tmp_path / 'w.pth')
    net = create_backbone('test_convnext', RGB, weights=tmp_path / 'w.pth')
    assert all(torch.equal(value, donor[name]) for name, value in net.trunk.state_dict().items())
    torch.save(put(dict(list(donor.items())[:-1]), prefix), tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match='do not fit the network; 1 missing'):
        create_backbone('test_convnext', RGB, weights=tmp_path / 'w.pth')


def fits_nothing(s):
    return {f'x{i}': value for i, value in enumerate(s.values())}


def three_of_all(s):
    return fits_nothing(s) | dict(list(s.items())[:3])


def all_but_one(s):
    return {name: value for name, value in s.items() if name != 'layer2.0.conv1.weight'}


def another_shape(s):
    return s | {'layer2.0.conv1.weight': torch.ones(8, 8, 3, 3)}


def deeper(s):
    return s | {'layer2.1.conv1.weight': torch.ones(128, 128, 3, 3)}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (fits_nothing, r'do not fit resnet10t; \d+ missing: .*conv1.*unexpected: x0'),
        (three_of_all, r'do not fit resnet10t; \d+ missing: '),
        (all_but_one, r'do not fit resnet10t; 1 missing: layer2\.0\.conv1\.weight'),
        (another_shape, r'do not fit resnet10t .*layer2\.0\.conv1\.weight'),
        (deeper, r'do not fit resnet10t; 1 unexpected: layer2\.1\.conv1\.weight'),
        (
            lambda s: s | {'layer2.0.conv1.weight': s['layer2.0.conv1.weight'] * torch.nan},
            'hold NaN or infinite values',
        ),
        (lambda s: s | {'bn1.running_var': torch.full_like(s['bn1.running_var'], torch.inf)}, 'hold NaN or infinite'),
        (lambda s: {'epoch': 3}, r'holds no tensors by name, found epoch'),
        (lambda s: {'conv1.weight': s['bn1.bias']}, r'they hold \d+ numbers in 1 tensors, it has [\d,]+'),
        (lambda s: put(s, 'a.') | put(s, 'b.'), r"holds several weights that fit: 'a', 'b'; save one of them alone"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_names(resnet, change, message, tmp_path):
    torch.save(change(resnet), tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match=message):
        create_backbone('resnet10t', RGB, weights=tmp_path / 'w.pth')


def test_a_deeper_transformer_does_not_fill_a_shallower_one(tmp_path):
    state = weights_of('vit_tiny_patch16_224')
    state |= {name.replace('blocks.11', 'blocks.12'): value for name, value in state.items() if 'blocks.11' in name}
    torch.save(state, tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match=r'12 unexpected: blocks\.12\.norm1\.weight'):
        create_backbone('vit_tiny_patch16_224', RGB, weights=tmp_path / 'w.pth')


@pytest.mark.parametrize('head', [{}, {'classifier.3.weight': torch.ones(7, 1024), 'classifier.3.bias': torch.ones(7)}])
@pytest.mark.parametrize('prefix', ['', 'module.backbone.'])
def test_models_of_torchvision_need_no_classifier(head, prefix, tmp_path):
    from torchvision.models import mobilenet_v3_small

    state = {k: v for k, v in mobilenet_v3_small().state_dict().items() if not k.startswith('classifier')}
    torch.save(put(state | head, prefix), tmp_path / 'w.pth')
    net = create_backbone('torchvision:mobilenet_v3_small', RGB, weights=tmp_path / 'w.pth')
    assert torch.equal(net.trunk.features[1].block[0][0].weight, state['features.1.block.0.0.weight'])
    torch.save(put({k: v for k, v in state.items() if k != 'features.1.block.0.0.weight'}, prefix), tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match=r'1 missing: features\.1\.block\.0\.0\.weight'):
        create_backbone('torchvision:mobilenet_v3_small', RGB, weights=tmp_path / 'w.pth')


@pytest.mark.parametrize('prefix', ['module.', 'model.', 'backbone.trunk.', 'student.backbone.', '_orig_mod.encoder.'])
def test_geolearns_own_encoders_are_found_under_any_prefix(small_dofa, prefix, tmp_path):
    net = create_backbone('dofa_base', S2, pretrained=False)
    state = put(net.trunk.state_dict(), prefix, **{'head.weight': torch.ones(3)})
    torch.save({'state_dict': state, 'epoch': 2}, tmp_path / 'w.pth')
    other = create_backbone('dofa_base', S2, weights=tmp_path / 'w.pth')
    assert all(torch.equal(value, net.trunk.state_dict()[name]) for name, value in other.trunk.state_dict().items())
    assert f'without the prefix {prefix!r}' in other.load_report.source


@pytest.mark.parametrize('name', ['dofa_base', 'resnet10t', 'torchvision:mobilenet_v3_small', 'plain_unet'])
def test_no_family_takes_weights_that_are_not_finite(small_dofa, name, tmp_path):
    net = create_backbone(name, RGB, pretrained=False, strides=None)
    state = {
        key: value * torch.nan if value.is_floating_point() else value for key, value in net.trunk.state_dict().items()
    }
    torch.save(state, tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match=r'hold NaN or infinite values in \d+ of \d+ tensors'):
        create_backbone(name, RGB, weights=tmp_path / 'w.pth', strides=None)


def test_a_large_network_is_not_built_for_a_small_file(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(nn.Linear, 'reset_parameters', lambda self: built.append(self.weight.is_meta))
    torch.save({'conv1.weight': torch.ones(64, 3, 7, 7)}, tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match='numbers in 1 tensors, it has 1,8'):
        create_backbone('vit_gigantic_patch14_224', RGB, weights=tmp_path / 'w.pth')
    assert built
    assert all(built)


def test_a_folder_or_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WeightsError, match='is a folder; name the file in it'):
        create_backbone('resnet10t', RGB, weights=tmp_path)
    with pytest.raises(WeightsError, match='there is no file at .*absent'):
        create_backbone('resnet10t', RGB, weights=tmp_path / 'absent.pth')


def test_the_prefix_that_most_names_have_is_taken_and_of_equal_ones_the_outer():
    state = {'encoder.encoder.a': torch.ones(1), 'encoder.a': torch.zeros(1)}
    assert find_state(state, {'a', 'encoder.a'}, 'f').state == {'encoder.a': 1, 'a': 0}
    assert list(find_state({'m.m.a': torch.ones(1)}, {'a', 'm.a'}, 'f').state) == ['m.a']


def test_finite_weights_alone_are_loaded():
    net = nn.Linear(2, 1)
    with pytest.raises(WeightsError, match='NaN or infinite values in 1 of 2 tensors: bias'):
        load_strict(net, {'weight': torch.ones(1, 2), 'bias': torch.tensor([torch.nan])})

"""A module of one's own as a backbone: its facts, its weights, and that they come back from a bundle."""

import pytest
import torch
from torch import nn

from geolearn.backbones import ModuleBackbone, create_backbone, offers_tokens, register_module
from geolearn.backbones.custom import name_backbone
from geolearn.bands import Band
from geolearn.errors import BackboneError, WeightsError

RGB = (Band('red', 0.665), Band('green', 0.56), Band('blue', 0.49))


class Steps(nn.Module):
    """Maps at strides 4 to 32, as a dict or a list."""

    def __init__(self, bands=3, *, as_dict=False):
        super().__init__()
        self.steps = nn.ModuleList(
            nn.Conv2d(bands if i == 0 else 8 * i, 8 * i + 8, s, s) for i, s in enumerate((4, 2, 2, 2))
        )
        self.as_dict = as_dict

    def forward(self, x):
        maps = []
        for step in self.steps:
            x = step(x)
            maps.append(x)
        return {str(i): m for i, m in enumerate(maps)} if self.as_dict else maps


def declared(module, name='steps', **facts):
    return ModuleBackbone(module, **{'channels': (8, 16, 24, 32), 'strides': (4, 8, 16, 32), 'name': name} | facts)


@pytest.mark.parametrize('as_dict', [False, True])
def test_its_maps_have_the_declared_channels_and_strides_at_any_size(as_dict):
    name = register_module(declared(Steps(as_dict=as_dict)))
    net = create_backbone(name, RGB)
    shapes = [tuple(m.shape) for m in net(torch.randn(2, 3, 50, 33))]
    assert shapes == [(2, c, -(-50 // s), -(-33 // s)) for c, s in zip(net.channels, net.strides)]
    some = create_backbone(name, RGB, strides=(8, 16))
    assert (some.strides, some.channels) == ((8, 32), (16, 32))
    assert not offers_tokens(name)


def test_every_backbone_has_a_copy_with_the_modules_own_weights():
    module = Steps()
    name = register_module(declared(module))
    one, two = create_backbone(name, RGB), create_backbone(name, RGB)
    assert torch.equal(one.trunk.steps[0].weight, module.steps[0].weight)
    one.trunk.steps[0].weight.data.zero_()
    assert two.trunk.steps[0].weight.any()
    assert module.steps[0].weight.any()


def test_weights_of_a_file_are_loaded_strictly(tmp_path):
    name, donor = register_module(declared(Steps())), Steps()
    torch.save({f'encoder.{k}': v for k, v in donor.state_dict().items()}, tmp_path / 'w.pth')
    net = create_backbone(name, RGB, weights=tmp_path / 'w.pth')
    assert torch.equal(net.trunk.steps[3].weight, donor.steps[3].weight)
    torch.save({k: v for k, v in donor.state_dict().items() if k != 'steps.2.bias'}, tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match=r'1 missing: steps\.2\.bias'):
        create_backbone(name, RGB, weights=tmp_path / 'w.pth')


@pytest.mark.parametrize(
    ('facts', 'message'),
    [
        ({'channels': (8, 16, 24)}, 'strides must be a list of whole numbers, one for each map'),
        ({'channels': 8}, 'channels must be a list of whole numbers'),
        ({'strides': (4, 8, 16, 12)}, 'strides must be some of'),
        ({'strides': (8, 4, 16, 32)}, 'strides must be some of .*, finest first'),
        ({'name': 'a:b'}, 'name must be a text without colons'),
    ],
)
def test_facts_that_cannot_be_are_refused(facts, message):
    with pytest.raises(BackboneError, match=message):
        declared(Steps(), **facts)


def test_facts_that_are_not_so_are_refused_where_it_is_built():
    name = register_module(declared(Steps(), channels=(8, 16, 24, 48)))
    with pytest.raises(BackboneError, match=r'declared to give maps of \[8, 16, 24, 48\] .*found .*\(32, 2, 2\)'):
        create_backbone(name, RGB)
    with pytest.raises(BackboneError, match='steps cannot take images of 2 bands'):
        create_backbone(register_module(declared(Steps())), RGB[:2])
    with pytest.raises(BackboneError, match="'dofa_base' is the name of a backbone of geolearn"):
        register_module(declared(Steps(), 'dofa_base'))


def test_what_else_stands_for_a_backbone_is_answered_in_words():
    assert name_backbone('resnet18') == 'resnet18'
    assert name_backbone(declared(Steps())) == 'steps'
    with pytest.raises(BackboneError, match=r'Steps must say what maps it gives: pass backbone=ModuleBackbone\('):
        name_backbone(Steps())
    with pytest.raises(BackboneError, match="backbone must be a name such as 'dofa_base', got 4; list_backbones"):
        name_backbone(4)

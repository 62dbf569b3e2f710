"""Heat maps show the place that decides."""

import numpy as np
import pytest
import torch
from torch import nn

from geolearn.backbones import create_backbone
from geolearn.bands import get_bands
from geolearn.errors import BackboneError
from geolearn.inference.explain import _rollout, heat_map
from geolearn.networks.classification import ChipNetwork
from geolearn.networks.network import Normalize

pytestmark = pytest.mark.usefixtures('one_thread', 'small_dofa')

BANDS = get_bands('naip')


def build(name, *, form='tokens', pooling='auto'):
    torch.manual_seed(0)
    options = {'form': 'tokens'} if form == 'tokens' else {'strides': (32,)}
    backbone = create_backbone(name, BANDS, pretrained=False, **options)
    return ChipNetwork(Normalize([0.0] * 4, [1.0] * 4), backbone, 3, pooling=pooling, dropout=0.5).eval()


@pytest.mark.parametrize(
    ('name', 'form', 'method'),
    [
        ('dofa_tiny', 'tokens', 'auto'),
        ('dofa_tiny', 'tokens', 'gradcam'),
        ('test_vit', 'tokens', 'auto'),
        ('test_resnet', 'maps', 'auto'),
    ],
)
@pytest.mark.parametrize('size', [(64, 64), (70, 41)])
def test_a_heat_map_is_of_the_images_size_and_leaves_the_network_as_it_was(name, form, method, size):
    network = build(name, form=form)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    heat = heat_map(network, torch.rand(4, *size), 1, method)
    assert heat.shape == size
    assert heat.dtype == torch.float32
    assert 0 <= heat.min() <= heat.max() <= 1
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_pre_hooks for module in network.modules())


class OneHotPlaces(nn.Module):
    """A backbone whose map is the image averaged over places: channel c is band c."""

    name, channels, strides, trunk = 'places', (4,), (16,), nn.Identity()
    takes_missing = False

    def forward(self, x):
        return [nn.functional.avg_pool2d(x, 16)]


def test_gradcam_finds_where_the_band_of_a_class_is_bright():
    network = ChipNetwork(Normalize([0.0] * 4, [1.0] * 4), OneHotPlaces(), 4, pooling='mean', dropout=0.0).eval()
    with torch.no_grad():
        network.head[1].weight.copy_(torch.eye(4))
    image = torch.zeros(4, 64, 64)
    image[2, 16:32, 48:] = 1
    heat = heat_map(network, image, 2).numpy()
    assert np.unravel_index(heat.argmax(), heat.shape)[0] in range(16, 32)
    assert heat[16:32, 52:].min() > 0.4
    assert heat[:, :32].max() == 0
    assert not heat_map(network, image, 1).any(), 'nothing speaks for the other class'


def test_rollout_of_a_transformer_that_attends_nowhere_else_is_even():
    network = build('dofa_tiny', pooling='mean')
    for block in network.backbone.trunk.stages:
        nn.init.zeros_(block.attn.qkv.weight)
        nn.init.zeros_(block.attn.qkv.bias)
    flow = _rollout(network, torch.rand(1, 4, 64, 64))
    assert flow.shape == (16,)
    assert (flow - flow.mean()).abs().max() < 1  # scaled noise of rounding, or nothing


def test_what_cannot_be_explained_so_is_refused():
    with pytest.raises(BackboneError, match="test_resnet does not offer its attention; pass method='gradcam'"):
        heat_map(build('test_resnet', form='maps'), torch.rand(4, 64, 64), 0, 'rollout')
    with pytest.raises(ValueError, match="method must be one of 'auto', 'gradcam', 'rollout', got 'lime'"):
        heat_map(build('test_resnet', form='maps'), torch.rand(4, 64, 64), 0, 'lime')

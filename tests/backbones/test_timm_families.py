"""Every family of timm serves as a backbone or is refused in words; nothing is allocated."""

import pytest
import timm
import torch
from timm.models import _registry

from geolearn.backbones import create_backbone
from geolearn.bands import Band
from geolearn.errors import BackboneError

BANDS = (Band('red', 0.665, 'red'), Band('nir', 0.842, 'nir'))
SMALL = ('test', 'pico', 'femto', 'atto', 'nano', 'micro', 'tiny', 'xxs', 'xs', 'small', 't0', 's0', 'b0', '_t', '_s')


def smallest_of_each():
    """A model of each of timm's modules, small by its name."""
    modules = {}
    for name in timm.list_models():
        modules.setdefault(_registry._model_to_module[name], []).append(name)

    def rank(name):
        return next((i for i, word in enumerate(SMALL) if word in name), len(SMALL)), len(name), name

    return sorted(min(names, key=rank) for names in modules.values())


def check(name, form):
    refused = ''
    with torch.device('meta'), torch.no_grad():
        try:
            net = create_backbone(name, BANDS, pretrained=False, form=form).eval()
        except BackboneError as error:
            refused = str(error)
        found = None if refused else net(torch.zeros(1, 2, 70, 129))
    if refused:
        assert name in refused
        return
    if form == 'tokens':
        assert found.shape[2] == net.channels[0]
        return
    assert [tuple(m.shape) for m in found] == [
        (1, c, -(-70 // s), -(-129 // s)) for c, s in zip(net.channels, net.strides)
    ]


@pytest.mark.parametrize('form', ['pyramid', 'tokens'])
@pytest.mark.parametrize(
    'name',
    [
        *(
            'sam2_hiera_tiny',
            'samvit_base_patch16',
            'vit_small_patch16_dinov3',
            'hiera_tiny_224',
            'ghostnet_050',
            'halonet26t',
        ),
        *('test_vit', 'test_convnext'),
    ],
)
def test_a_family_is_a_backbone_or_is_refused_in_words(name, form):
    check(name, form)


@pytest.mark.slow
@pytest.mark.parametrize('form', ['pyramid', 'tokens'])
@pytest.mark.parametrize('name', smallest_of_each())
def test_every_family_is_a_backbone_or_is_refused_in_words(name, form):
    check(name, form)

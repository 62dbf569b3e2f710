"""Which maps a backbone offers: by default at strides 4 to 32, all that it has where strides are None."""

import pytest
import torch

from geolearn.backbones import create_backbone
from geolearn.bands import Band
from geolearn.errors import BackboneError

BANDS = (Band('red', 0.665, 'red'), Band('green', 0.56, 'green'), Band('blue', 0.49, 'blue'), Band('nir', 0.842, 'nir'))
FORMS = ('pyramid', 'layers')


@pytest.mark.parametrize(
    ('name', 'offered'),
    [
        ('vgg11', (1, 2, 4, 8, 16, 32)),
        ('torchvision:vgg11', (1, 2, 4, 8, 16, 32)),
        ('mobilenet_v3_small', (2, 4, 8, 16, 32)),
        ('timm:convnext_atto', (4, 8, 16, 32)),
        ('swin_tiny_patch4_window7_224', (4, 8, 16, 32)),
        ('satlas_tiny', (4, 8, 16, 32)),
        ('test_vit', (4, 8, 16, 32)),
        ('dofa_tiny', (4, 8, 16, 32)),
    ],
)
def test_none_takes_every_map_finest_first(name, offered):
    with torch.device('meta'):
        net = create_backbone(name, BANDS, pretrained=False, strides=None)
    assert (net.strides, len(net.channels)) == (offered, len(offered))


@pytest.mark.parametrize('name', ['resnet18', 'torchvision:resnet18', 'plain_unet'])
def test_finer_maps_come_where_they_are_asked_for(name):
    net = create_backbone(name, BANDS, pretrained=False, strides=(2, 8)).eval()
    with torch.no_grad():
        assert [m.shape[2:] for m in net(torch.rand(1, 4, 33, 64))] == [(17, 32), (5, 8)]


@pytest.mark.parametrize('name', ['resnet18', 'test_efficientnet', 'mobilenetv3_small_050', 'test_convnext'])
def test_nothing_is_kept_behind_the_coarsest_map_that_is_taken(name):
    net = create_backbone(name, BANDS, pretrained=False, strides=(4, 8)).train()
    whole = create_backbone(name, BANDS, pretrained=False)
    sum(m.square().mean() for m in net(torch.rand(2, 4, 64, 64))).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []
    assert len(list(net.parameters())) < len(list(whole.parameters()))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(
    ('name', 'asked', 'offered'),
    [
        ('dofa_tiny', (2, 4), r'\(4, 8, 16, 32\)'),
        ('test_vit', (2, 4), r'\(4, 8, 16, 32\)'),
        ('timm:convnext_atto', (2, 4, 8), r'\(4, 8, 16, 32\)'),
        ('satlas_tiny', (2, 4), r'\(4, 8, 16, 32\)'),
        ('resnet18', (1, 2), r'\(2, 4, 8, 16, 32\)'),
        ('torchvision:resnet18', (2, 64), r'\(2, 4, 8, 16, 32\)'),
        ('plain_unet', (4, 8, 16, 32), r'\(1, 2, 4, 8\)'),
    ],
)
def test_strides_that_are_not_there_are_refused_with_what_is(name, asked, offered, form):
    message = f'strides must be some of {offered}, finest first, got'
    with pytest.raises(BackboneError, match=message), torch.device('meta'):
        create_backbone(name, BANDS, pretrained=False, strides=asked, form=form)


@pytest.mark.parametrize('name', ['resnet18', 'torchvision:resnet18', 'satlas_tiny', 'plain_unet'])
def test_the_layers_of_a_convolutional_network_are_its_maps(name):
    torch.manual_seed(0)
    pyramid, layers = (create_backbone(name, BANDS, pretrained=False, strides=None, form=f) for f in FORMS)
    layers.load_state_dict(pyramid.state_dict())
    x = torch.rand(1, 4, 64, 32)
    with torch.no_grad():
        for a, b in zip(pyramid.eval()(x), layers.eval()(x)):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ('name', 'options', 'stride'),
    [
        ('resnet10t', {}, 32),
        ('resnet10t', {'strides': (4, 8)}, 8),
        ('dofa_tiny', {'strides': (4,)}, 16),
        ('dofa_tiny', {}, 32),
        ('dofa_tiny', {'form': 'tokens'}, 16),
        ('vit_small_patch14_dinov2', {'form': 'tokens'}, 14),
        ('plain_unet', {'strides': None}, 8),
        ('dofa_tiny', {'dates': 2}, 32),
    ],
)
def test_an_image_may_be_cut_at_multiples_of_the_coarsest_stride(name, options, stride):
    with torch.device('meta'):
        net = create_backbone(name, ['red', 'green', 'blue'], pretrained=False, **options)
    assert net.coarsest_stride == stride

"""Every promise that a decoder makes, over every decoder."""

import warnings
from functools import cache

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import nn

from geolearn.backbones import create_backbone
from geolearn.bands import Band
from geolearn.decoders import DECODERS, Decoder, create_decoder, get_decoder, register_decoder
from geolearn.errors import BackboneError, UnknownNameError

BANDS = (Band('red', 0.665, 'red'), Band('nir', 0.842, 'nir'))
NAMES = sorted(DECODERS)


@cache
def backbone(name, form, strides):
    torch.manual_seed(0)
    return create_backbone(name, BANDS, pretrained=False, form=form, strides=strides).eval()


class Network(nn.Module):
    """A backbone and a decoder, for images of any size."""

    def __init__(self, backbone, decoder):
        super().__init__()
        self.backbone, self.decoder = backbone, decoder

    def forward(self, x):
        h, w = x.shape[2:]
        x = F.pad(x, (0, -w % 32, 0, -h % 32))
        return F.interpolate(self.decoder(self.backbone(x)), size=x.shape[2:], mode='bilinear')[..., :h, :w]


def strides_of(name):
    return DECODERS[name].strides or (2, 4, 8, 16, 32)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('trunk', ['dofa_tiny', 'resnet18', 'torchvision:resnet18'])
def test_images_of_any_size_give_outputs_of_that_size(name, trunk, make_decoder):
    decoder = get_decoder(name)
    body = backbone(trunk, decoder.form, decoder.strides)
    network = Network(body, create_decoder(name, body.channels, body.strides, 3)).eval()
    for size in ((33, 70), (64, 32)):
        with torch.no_grad():
            outputs = network(torch.rand(2, len(BANDS), *size))
        assert outputs.shape == (2, 3, *size)
        assert outputs.isfinite().all()


@pytest.mark.parametrize('name', ['unet', 'auxiliary'])
def test_the_plain_encoder_has_maps_for_it(name):
    body = backbone('plain_unet', 'pyramid', None if name == 'unet' else (8,))
    with torch.no_grad():
        outputs = Network(body, create_decoder(name, body.channels, body.strides, 3)).eval()(torch.rand(1, 2, 40, 33))
    assert outputs.shape == (1, 3, 40, 33)


def test_the_linear_decoder_sees_the_last_block_unchanged():
    decoder = get_decoder('linear')
    body = backbone('dofa_tiny', decoder.form, decoder.strides)
    assert body.layers == (body.trunk.depth - 1,)
    x = torch.rand(1, len(BANDS), 32, 32)
    with torch.no_grad():
        assert body(x)[0].equal(body.trunk.maps(x, [body.trunk.depth - 1])[0])


@pytest.mark.parametrize('name', NAMES)
def test_every_parameter_learns(name, make_decoder, make_maps):
    # in evaluation: batch norm takes out what a bias before it adds, so that training gives that none but noise
    decoder = make_decoder(name).eval()
    maps = [m.requires_grad_() for m in make_maps(strides_of(name))]
    outputs = decoder(maps)
    (outputs * torch.randn_like(outputs)).sum().backward()
    learning = {n: p.grad for n, p in decoder.named_parameters()} | {f'map {i}': m.grad for i, m in enumerate(maps)}
    assert [n for n, g in learning.items() if g is None or not g.isfinite().all() or not g.any()] == []


@pytest.mark.parametrize('name', NAMES)
def test_one_image_of_32_pixels_trains(name, make_decoder, make_maps):
    decoder = make_decoder(name).train()
    outputs = decoder(make_maps(strides_of(name), (32, 32), batch=1))
    outputs.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())
    with torch.no_grad():
        assert decoder.eval()(make_maps(strides_of(name), (32, 32), batch=1)).isfinite().all()


@pytest.mark.parametrize('name', NAMES)
def test_a_state_dict_brings_the_outputs_back_and_evaluation_repeats(name, make_decoder, make_maps):
    maps = make_maps(strides_of(name))
    before = make_decoder(name)
    before.train()(maps)  # running statistics differ from those of a new decoder
    after = make_decoder(name)
    for parameter in after.parameters():
        nn.init.normal_(parameter)
    after.load_state_dict(before.state_dict())
    with torch.no_grad():
        outputs = before.eval()(maps)
        assert outputs.equal(before(maps))
        assert outputs.equal(after.eval()(maps))


@pytest.mark.parametrize('name', NAMES)
def test_exported_programs_give_the_same_outputs(name, make_decoder, make_maps):
    decoder, maps = make_decoder(name).eval(), make_maps(strides_of(name), (64, 64), batch=1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of torch's own making
        program = torch.export.export(decoder, (maps,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(maps), decoder(maps))


@pytest.mark.parametrize('name', NAMES)
def test_it_trains_in_half_precision_with_channels_last(name, make_decoder, make_maps):
    decoder = make_decoder(name).to(memory_format=torch.channels_last)
    maps = [m.to(memory_format=torch.channels_last) for m in make_maps(strides_of(name))]
    with torch.autocast('cpu', torch.bfloat16):
        outputs = decoder(maps)
    outputs.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in decoder.parameters())


@pytest.mark.parametrize('name', NAMES)
def test_maps_are_left_as_they_were(name, make_decoder, make_maps):
    maps = make_maps(strides_of(name))
    given = [*maps]
    make_decoder(name).train()(given)
    assert len(given) == len(maps)
    assert all(m.equal(kept) for m, kept in zip(given, make_maps(strides_of(name))))


@pytest.mark.parametrize('name', NAMES)
def test_other_maps_are_refused(name, make_decoder):
    wanted = strides_of(name)
    unusable = [((), ()), ((16, 4), (8, 8)), ((3,), (8,)), (wanted, [8] * (len(wanted) + 1)), ((8, 8), (8, 8))]
    for strides, channels in unusable:
        with pytest.raises(BackboneError, match='cannot take maps of strides'):
            create_decoder(name, channels, strides, 3)


@pytest.mark.parametrize('name', ['deeplab', 'upernet', 'fpn', 'segformer', 'muster'])
def test_finer_maps_than_a_decoder_is_made_for_are_refused(name):
    wanted = strides_of(name)
    with pytest.raises(BackboneError, match=r'it needs those of strides \(4'):
        create_decoder(name, [8] * len(wanted), [s // 2 for s in wanted], 3)


# smp's model of each name, its arguments, strides of its encoder's maps without the image, and its names for ours
PLAIN = {
    'unet': (smp.Unet, {}, (2, 4, 8, 16, 32), {}),
    'upernet': (smp.UPerNet, {}, (2, 4, 8, 16, 32), {}),
    'fpn': (smp.FPN, {}, (2, 4, 8, 16, 32), {}),
    'segformer': (smp.Segformer, {'encoder_name': 'mit_b0'}, (2, 4, 8, 16, 32), {}),
    'pspnet': (smp.PSPNet, {}, (2, 4, 8), {'decoder.psp.': 'pyramid.', 'decoder.conv.': 'fuse.'}),
    'deeplab': (smp.DeepLabV3Plus, {'encoder_output_stride': 16}, (2, 4, 8, 16, 16), {}),
    'deeplab_v3': (smp.DeepLabV3, {'encoder_output_stride': 16}, (2, 4, 8, 16, 16), {}),
}


@pytest.mark.parametrize('name', PLAIN)
def test_it_is_the_decoder_of_smp_weight_by_weight(name):
    build, arguments, strides, renamed = PLAIN[name]
    torch.manual_seed(0)
    theirs = build(**{'encoder_name': 'resnet18', 'encoder_weights': None, 'classes': 3} | arguments).eval()
    state = {'decoder.' + k: v for k, v in theirs.decoder.state_dict().items()}
    state |= {'classifier.' + k: v for k, v in theirs.segmentation_head[0].state_dict().items()}
    for old, new in renamed.items():
        state = {k.replace(old, new): v for k, v in state.items()}
    depths = {stride: i for i, stride in enumerate((1, *strides))}  # the last of each stride
    wanted = strides_of(name)
    channels = [theirs.encoder.out_channels[depths[s]] for s in wanted]
    options = {'atrous_rates': (12, 24, 36)} if name == 'deeplab_v3' else {}
    ours = create_decoder(name, channels, wanted, 3, options=options).eval()
    ours.load_state_dict(state, strict=True)

    features = [torch.randn(2, c, 64 // s, 64 // s) for c, s in zip(theirs.encoder.out_channels, (1, *strides))]
    with torch.no_grad():
        expected = theirs.segmentation_head[0](theirs.decoder([*features]))
        torch.testing.assert_close(ours([features[depths[s]] for s in wanted]), expected)


@pytest.mark.parametrize(('strides', 'steps'), [((4, 8, 16, 32), 5), ((1, 2, 4, 8), 3), ((4, 16), 4), ((1,), 0)])
def test_unet_goes_on_to_the_images_own_size(strides, steps, make_decoder, make_maps):
    decoder = make_decoder('unet', strides)
    assert len(decoder.decoder.blocks) == steps
    assert decoder(make_maps(strides)).shape == (2, 3, 64, 96)


def test_unet_without_fine_maps_is_smps_for_encoders_that_have_none():
    theirs = smp.Unet('mit_b0', encoder_weights=None, classes=3)  # its map of stride 2 has no channels
    ours = create_decoder('unet', theirs.encoder.out_channels[2:], (4, 8, 16, 32), 3)
    parts = (theirs.decoder, theirs.segmentation_head)
    assert _size(ours) == sum(map(_size, parts))


def test_deeplab_enlarges_a_map_of_stride_32():
    deeplab = create_decoder('deeplab', (8, 16), (4, 32), 3).eval()
    fine, coarse = torch.randn(1, 8, 16, 16), torch.randn(1, 16, 2, 2)
    same = create_decoder('deeplab', (8, 16), (4, 16), 3).eval()
    same.load_state_dict(deeplab.state_dict())
    with torch.no_grad():
        enlarged = F.interpolate(coarse, scale_factor=2, mode='bilinear')
        torch.testing.assert_close(deeplab([fine, coarse]), same([fine, enlarged]))


def test_the_linear_decoder_is_linear(make_decoder):
    decoder = make_decoder('linear')
    x, y = torch.randn(2, 1, 8, 4, 4)
    at_zero = decoder([torch.zeros_like(x)])
    with torch.no_grad():
        torch.testing.assert_close(decoder([x + y]) + at_zero, decoder([x]) + decoder([y]))


def test_fcn_gives_logits_of_either_sign_and_drops_in_training_alone(make_decoder, make_maps):
    decoder, maps = make_decoder('fcn', dropout=0.5), make_maps((16,))
    with torch.no_grad():
        assert decoder.eval()(maps).min() < 0 < decoder(maps).max()
        assert decoder(maps).equal(decoder(maps))
        # as in training, but for batch norm, which would differ by itself
        decoder.dropout.train()
        assert not decoder(maps).equal(decoder(maps))


def test_pyramid_sizes_are_the_regions_that_are_averaged(make_maps):
    decoder = create_decoder('pspnet', (8,), (8,), 3, options={'pyramid_sizes': [1, 2, 5]})
    assert [block.pool_size for block in decoder.pyramid.blocks] == [1, 2, 5]
    assert decoder(make_maps((8,))).shape == (2, 3, 8, 12)


def test_names_are_registered_once_and_misses_name_the_nearest():
    with pytest.raises(ValueError, match="decoder 'unet' is already registered by geolearn"):
        register_decoder('unet')(Decoder)
    with pytest.raises(UnknownNameError, match="unknown decoder 'u-net'; did you mean 'unet'"):
        create_decoder('u-net', (8,), (8,), 3)
    with pytest.raises(UnknownNameError, match='unknown decoder'):
        get_decoder(['unet'])


def _size(module):
    return sum(p.numel() for p in module.parameters())

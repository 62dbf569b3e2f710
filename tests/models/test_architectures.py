"""What every pixel classifier promises, on each kind of backbone."""

import dataclasses

import pytest
import torch

from geolearn.adaptation import Adaptation
from geolearn.decoders import DECODERS
from geolearn.errors import BundleError, UnknownNameError
from geolearn.losses import PixelLossOptions
from geolearn.models import (
    FCN,
    FPN,
    MUSTER,
    DeepLab,
    DeepLabV3,
    LinearProbe,
    PSPNet,
    PSPNetClassifier,
    SegFormer,
    UNet,
    UnetClassifier,
    UPerNet,
    load_model,
)

CLASSES = (DeepLab, DeepLabV3, FCN, FPN, LinearProbe, MUSTER, PSPNet, SegFormer, UNet, UPerNet)
UNMOVED = {
    # on the coarsest map of chips this small attention has but one place to look at
    MUSTER: ('stages.3',),
    # a norm takes away what these biases add: only rounding moves them
    SegFormer: tuple(f'mlp_stage.{level}.linear.bias' for level in range(4)),
}
"""Parameters that a training on these chips may leave as they were."""

BACKBONES = ('test_resnet', 'dofa_tiny', 'regnety_002')

NARROW = {'width': 32}
"""What trains and is saved is the same decoder at an eighth of its width and a sixteenth of its time."""
WIDTHS = {FCN: NARROW, SegFormer: NARROW, UPerNet: NARROW, PSPNet: NARROW, MUSTER: NARROW}


def make(model, data, backbone, **options):
    torch.manual_seed(0)
    return model(data, backbone, pretrained=False, **({'decoder_options': WIDTHS.get(model)} | options))


def test_every_decoder_has_its_class():
    assert {model.decoder for model in CLASSES} == set(DECODERS) - {'auxiliary'}
    assert (UnetClassifier, PSPNetClassifier) == (UNet, PSPNet)


PAIRS = [
    # other families take the same way through every decoder, and a frozen transformer passes through each below
    pytest.param(model, backbone, marks=[pytest.mark.slow] if backbone != 'test_resnet' and model != DeepLab else [])
    for model in CLASSES
    for backbone in BACKBONES
]


@pytest.mark.parametrize(('model', 'backbone'), PAIRS)
def test_a_model_trains_saves_and_loads(scene_data, tmp_path, one_thread, model, backbone):
    made = make(model, scene_data, backbone)
    before = {name: parameter.clone() for name, parameter in made.network.named_parameters() if parameter.requires_grad}
    made.fit(1, lr=1e-3)
    after = dict(made.network.named_parameters())
    still = [name for name, parameter in before.items() if torch.equal(parameter, after[name])]
    assert not [name for name in still if not any(part in name for part in UNMOVED.get(model, ()))]
    again = load_model(made.save(tmp_path / 'm.dlpk', compute_metrics=False))
    assert type(again) is model
    assert again.spec == made.spec
    odd = torch.rand(2, 10, 45, 70) * 3000
    with torch.inference_mode():
        logits = made.network.eval()(odd)
        assert logits.shape == (2, 6, 45, 70)
        assert torch.allclose(again.network(odd), logits, atol=1e-4)


@pytest.mark.parametrize('model', CLASSES)
def test_a_frozen_trunk_stays_and_all_else_learns(scene_data, one_thread, model):
    made = make(model, scene_data, 'dofa_tiny', adapt=Adaptation(freeze='all'))
    before = {name: tensor.clone() for name, tensor in made.network.state_dict().items()}
    made.fit(1, lr=1e-3)
    changed = {name for name, tensor in made.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not {name for name in changed if '.trunk.' in name}
    assert {name for name in changed if name.startswith('decoder.')}


def test_the_plain_unet_has_the_papers_widths(scene_data, one_thread):
    made = make(UNet, scene_data, 'plain_unet')
    assert made.network.backbone.channels == (64, 128, 256, 512)
    assert made.network.backbone.strides == (1, 2, 4, 8)
    with torch.inference_mode():
        assert made.network.eval()(torch.rand(1, 10, 33, 40)).shape == (1, 6, 33, 40)


def test_an_auxiliary_head_learns_and_takes_no_part_afterwards(scene_data, tmp_path, one_thread):
    made = make(UNet, scene_data, 'test_resnet', auxiliary_head=True)
    images, masks = next(iter(scene_data.valid_dl))
    main, auxiliary = made.network.train()(images)
    assert main.shape == auxiliary.shape
    loss = made.make_loss()
    both, alone, beside = (loss(o, masks).item() for o in ((main, auxiliary), main, auxiliary))
    assert both == pytest.approx(alone + 0.4 * beside, rel=1e-4)
    before = {name: parameter.clone() for name, parameter in made.network.auxiliary.named_parameters()}
    made.fit(1, lr=1e-3)
    assert not [n for n, p in made.network.auxiliary.named_parameters() if torch.equal(p, before[n])]
    with torch.inference_mode():
        assert isinstance(made.network.eval()(images), torch.Tensor)
    assert load_model(made.save(tmp_path / 'm.dlpk', compute_metrics=False)).network.auxiliary is not None


def test_losses_are_chosen_by_arcgis_words_or_in_full(scene_data, tmp_path):
    short = make(UNet, scene_data, 'test_resnet', focal_loss=True, dice_loss_fraction=0.3, dice_loss_average='macro')
    full = PixelLossOptions(loss='focal', dice_fraction=0.3, dice_average='macro')
    saved = load_model(short.save(tmp_path / 'm.dlpk', compute_metrics=False)).spec
    same = make(UNet, scene_data, 'test_resnet', loss=full).spec
    assert saved.arguments != same.arguments, 'each keeps what the user wrote'
    assert dataclasses.replace(saved, arguments={}) == dataclasses.replace(same, arguments={})
    with pytest.raises(ValueError, match='pass either loss, or focal_loss and dice_loss_fraction'):
        make(UNet, scene_data, 'test_resnet', focal_loss=True, loss=PixelLossOptions(loss='lovasz'))
    with pytest.raises(ValueError, match=r'dice_fraction must lie in 0..1, got 1.5'):
        make(UNet, scene_data, 'test_resnet', dice_loss_fraction=1.5)


def test_a_loss_that_is_none_is_refused_with_what_to_pass(scene_data):
    with pytest.raises(ValueError, match=r'loss must be PixelLossOptions, such as PixelLossOptions\(.*, got 3'):
        make(UNet, scene_data, 'test_resnet', loss=3)


def test_decoder_options_are_kept_and_checked(scene_data, tmp_path):
    made = make(PSPNet, scene_data, 'test_resnet', decoder_options={'pyramid_sizes': (1, 2)})
    again = load_model(made.save(tmp_path / 'm.dlpk', compute_metrics=False))
    names = set(made.network.state_dict())
    assert set(again.network.state_dict()) == names != set(make(PSPNet, scene_data, 'test_resnet').network.state_dict())
    with pytest.raises(UnknownNameError, match="option of decoder 'pspnet'"):
        make(PSPNet, scene_data, 'test_resnet', decoder_options={'pyramid_size': (1, 2)})


@pytest.mark.parametrize(
    'options',
    [{'decoder': 'os.system'}, {'decoder': 3}, {'loss': {'loss': 'free'}}, {'loss': {'x': 1}}, {'decoder_options': 5}],
)
def test_hostile_options_are_refused(scene_data, options):
    spec = make(UNet, scene_data, 'test_resnet').spec
    manifest = spec.to_manifest() | {'options': options}
    with pytest.raises((BundleError, UnknownNameError)):
        UNet.build(type(spec).from_manifest(manifest))

"""What every backbone promises, and the registry that makes them."""

import math
import re

import pytest
import timm
import torch
import torchvision

from geolearn.backbones import backbone as _backbone
from geolearn.backbones import create_backbone, describe_backbone, list_backbones, register_backbone
from geolearn.backbones.catalog import find_record
from geolearn.bands import Band, get_bands
from geolearn.errors import BackboneError, BandError, UnknownNameError, WeightsError

BANDS = (Band('red', 0.665, 'red'), Band('green', 0.56, 'green'), Band('blue', 0.49, 'blue'), Band('nir', 0.842, 'nir'))


class BackboneContract:
    """Subclass, set `name`, and pytest runs every promise a backbone makes."""

    name: str
    asked: tuple[int, ...] | None = (4, 8, 16, 32)
    offered: tuple[int, ...] = (4, 8, 16, 32)

    def build(self):
        torch.manual_seed(0)
        return create_backbone(self.name, BANDS, pretrained=False, strides=self.asked)

    @pytest.mark.parametrize('size', [(64, 96), (65, 97)])
    def test_maps_have_the_declared_channels_and_strides(self, size):
        net = self.build().eval()
        with torch.no_grad():
            shapes = [tuple(m.shape) for m in net(torch.rand(2, 4, *size))]
        assert shapes == [
            (2, c, math.ceil(size[0] / s), math.ceil(size[1] / s)) for c, s in zip(net.channels, net.strides)
        ]
        assert net.strides == self.offered

    def test_gradients_reach_the_trunk(self):
        net = self.build()
        sum(m.square().mean() for m in net(torch.rand(2, 4, 64, 96))).backward()
        trained = [(n, p) for n, p in net.trunk.named_parameters() if p.requires_grad]
        assert trained
        assert [n for n, p in trained if p.grad is None] == []

    def test_a_state_dict_round_trip_gives_equal_maps(self):
        net, other, x = self.build().eval(), self.build(), torch.rand(1, 4, 64, 64)
        for parameter in other.parameters():
            torch.nn.init.normal_(parameter)
        other.load_state_dict(net.state_dict())
        with torch.no_grad():
            pairs = zip(net(x), other.eval()(x))
            assert all(torch.equal(a, b) for a, b in pairs)

    def test_images_of_a_batch_do_not_mix(self):
        net, x = self.build().eval(), torch.rand(2, 4, 64, 64)
        with torch.no_grad():
            for both, one in zip(net(x), net(x[1:])):
                torch.testing.assert_close(both[1:], one, atol=1e-4, rtol=1e-4)

    def test_it_says_what_it_is(self):
        net = self.build()
        assert net.name == self.name.rpartition(':')[2]
        assert net.load_report is None
        assert any(p is q for p in net.trunk.parameters() for q in net.parameters())


class TestDofa(BackboneContract):
    name = 'dofa_base'

    @pytest.fixture(autouse=True)
    def _small(self, small_dofa):
        pass


class TestResNet(BackboneContract):
    name = 'resnet18'


class TestDofaAtTwoStrides(TestDofa):
    asked = offered = (4, 16)


class TestDilatedResNet(BackboneContract):
    name = 'resnet18'
    asked = offered = (4, 16)


class TestDenseNetThatCannotBeDilated(BackboneContract):
    name = 'densenet121'
    asked, offered = (4, 16), (4, 32)


class TestConvNeXt(BackboneContract):
    name = 'timm:convnext_atto'


class TestMobileNetOfTorchvision(BackboneContract):
    name = 'mobilenet_v3_small'


class TestResNetOfTorchvision(BackboneContract):
    name = 'torchvision:resnet18'


class TestShuffleNetOfTorchvision(BackboneContract):
    name = 'shufflenet_v2_x0_5'


class TestEveryMapOfAResNet(BackboneContract):
    name = 'resnet18'
    asked, offered = None, (2, 4, 8, 16, 32)


class TestEveryMapOfAResNetOfTorchvision(BackboneContract):
    name = 'torchvision:resnet18'
    asked, offered = None, (2, 4, 8, 16, 32)


class TestPlainCnn(BackboneContract):
    name = 'plain_unet'
    asked, offered = None, (1, 2, 4, 8)


class TestFirstBlocksOfThePlainCnn(BackboneContract):
    name = 'plain_unet'
    asked = offered = (1, 4)


@pytest.mark.parametrize('name', ['vgg11', 'torchvision:vgg11'])
def test_chains_with_finer_strides_start_at_4(name):
    net = create_backbone(name, BANDS, pretrained=False)
    assert (net.channels, net.strides) == ((256, 512, 512, 512), (4, 8, 16, 32))


def test_unknown_names_suggest_near_ones_over_all_libraries():
    with pytest.raises(UnknownNameError, match="unknown backbone 'dofa_bas'; did you mean 'dofa_base'"):
        create_backbone('dofa_bas', BANDS)
    with pytest.raises(UnknownNameError, match=r"did you mean .*'mobilenet_v3_large'"):
        create_backbone('mobilenet_v3_larg', BANDS)
    with pytest.raises(UnknownNameError, match=r"did you mean .*'resnet50'"):
        create_backbone('torchvision:resnet500', BANDS)


@pytest.mark.parametrize('name', ['alphaearth', 'AlphaEarth-Foundations'])
def test_networks_that_are_not_there_say_what_to_take(name):
    for ask in (lambda n: create_backbone(n, BANDS), describe_backbone):
        with pytest.raises(BackboneError, match=r'AlphaEarth is no backbone.*presto') as caught:
            ask(name)
    names = re.findall(r'[a-z]+_[a-z0-9_]*base', str(caught.value))
    assert all(find_record(n) for n in [*names, 'presto'])


def test_own_names_are_listed_and_other_libraries_on_request():
    assert {'dofa_base', 'dofa_large'} <= set(list_backbones())
    assert list_backbones('dofa_b*') == ['dofa_base']
    assert 'timm:resnet50' in list_backbones('timm:resnet*')
    assert list_backbones('torchvision:mobilenet_v3*') == [
        'torchvision:mobilenet_v3_large',
        'torchvision:mobilenet_v3_small',
    ]
    assert 'resnet50' in list_backbones('resnet5*')


def test_a_registered_builder_is_found_and_a_second_of_its_name_is_refused(monkeypatch):
    monkeypatch.setattr(_backbone, 'BUILDERS', dict(_backbone.BUILDERS))
    register_backbone('mine_too')(lambda name, bands, options: None)
    with pytest.raises(ValueError, match="'mine_too' is already registered by"):
        register_backbone('mine_too')(lambda name, bands, options: None)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'form': 'maps'}, "form must be 'pyramid', 'layers' or 'tokens', got 'maps'"),
        ({'window': -1}, 'window must be None, 0 for global attention'),
        ({'drop_path': 1.0}, 'drop_path must lie in 0..1'),
        ({'strides': (2, 4)}, r'strides must be some of \(4, 8, 16, 32\), finest first, got \(2, 4\)'),
        ({'strides': (16, 4)}, 'finest first'),
        ({'strides': ()}, 'strides must be some of'),
        ({'layers': (1, 2)}, "layers goes with the forms 'layers' and 'tokens'"),
        ({'relative_positions': True, 'form': 'tokens'}, 'native tokens have none'),
    ],
)
def test_impossible_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_backbone('dofa_tiny', BANDS, pretrained=False, **arguments)


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        ('resnet18', {'form': 'tokens'}, 'without tokens'),
        ('mobilenet_v3_small', {'drop_path': 0.1}, 'comes from torchvision'),
        ('mobilenet_v3_small', {'window': 7}, 'is no plain transformer'),
        ('plain_unet', {'drop_path': 0.1}, 'has no residuals to drop'),
        ('plain_unet', {'form': 'tokens'}, 'without tokens'),
        ('plain_unet', {'form': 'layers', 'layers': (0, 1, 2, 3)}, 'is no plain transformer'),
        ('plain_unet', {'pretrained': True, 'strides': None}, 'no weights are published for plain_unet; pass pretrain'),
        ('alexnet', {}, 'needed .4, 8, 16, 32.; take another model'),
        ('torchvision:vit_b_16', {}, 'does not run its layers in one chain'),
        ('maxvit_t', {}, 'does not run its layers in one chain'),
    ],
)
def test_models_that_cannot_serve_say_why(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        create_backbone(name, BANDS, **({'pretrained': False} | arguments))


def test_no_bands_is_an_error():
    with pytest.raises(BandError, match='resnet18 needs at least one band'):
        create_backbone('resnet18', ())


class TestPretrainedConvolutions:
    def test_weights_of_the_plain_cnn_come_from_files_of_ones_own(self, tmp_path):
        donor = create_backbone('plain_unet', BANDS, pretrained=False, strides=None)
        torch.save(donor.trunk.state_dict(), tmp_path / 'w.pth')
        net = create_backbone('plain_unet', BANDS, weights=tmp_path / 'w.pth', strides=None)
        assert torch.equal(net.trunk.stages[3][0].weight, donor.trunk.stages[3][0].weight)

    def test_rgb_weights_of_timm_are_carried_over_by_band(self, tmp_path):
        donor = timm.create_model('resnet18', pretrained=False)
        torch.save({'state_dict': donor.state_dict()}, tmp_path / 'w.pth')
        blue, red = get_bands('sentinel2', ['B02', 'B04'])
        net = create_backbone('resnet18', (blue, red), weights=tmp_path / 'w.pth')
        assert torch.equal(net.trunk.conv1.weight, donor.conv1.weight[:, [2, 0]] * 1.5)
        assert torch.equal(net.trunk.layer4[1].conv2.weight, donor.layer4[1].conv2.weight)
        assert net.load_report.resized == ('conv1.weight',)
        assert 'B02 <- blue, B04 <- red; unused: green; kernels x 1.5' in str(net.load_report)

    def test_weights_of_another_timm_model_do_not_load(self, tmp_path):
        torch.save(timm.create_model('resnet26', pretrained=False).state_dict(), tmp_path / 'w.pth')
        with pytest.raises(WeightsError, match='do not fit resnet18'):
            create_backbone('resnet18', BANDS, weights=tmp_path / 'w.pth')

    def test_rgb_weights_of_torchvision_are_carried_over_by_band(self, tmp_path):
        donor = torchvision.models.mobilenet_v3_small()
        torch.save(donor.state_dict(), tmp_path / 'w.pth')
        net = create_backbone('mobilenet_v3_small', BANDS[::-1], weights=tmp_path / 'w.pth')
        expected = donor.features[0][0].weight[:, [0, 2, 1, 0]] * 0.75
        assert torch.equal(net.trunk.features[0][0].weight, expected)
        layers = {name for name in donor.state_dict() if name.startswith('features.')}
        assert set(net.load_report.matched) == layers
        assert set(net.load_report.unexpected) == set(donor.state_dict()) - layers  # the classifier

    def test_timm_offline_says_what_to_do(self, monkeypatch):
        def fail(*args, **kwargs):
            raise FileNotFoundError('no connection')

        monkeypatch.setattr(timm.models._builder, 'load_state_dict_from_hf', fail)
        with pytest.raises(WeightsError, match=r"no connection\); pass weights='<file>' or pretrained=False"):
            create_backbone('resnet18', BANDS)

    def test_torchvision_offline_says_what_to_do(self, monkeypatch):
        def fail(*args, **kwargs):
            raise OSError('no connection')

        monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', fail)
        with pytest.raises(WeightsError, match=r'could not be downloaded from https.*pretrained=False'):
            create_backbone('mobilenet_v3_small', BANDS)

    def test_timm_models_without_weights_say_so(self):
        with pytest.raises(WeightsError, match='pretrained weights of convnext_atto_rms could not be had'):
            create_backbone('convnext_atto_rms', BANDS)

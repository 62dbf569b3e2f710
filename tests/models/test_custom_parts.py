"""Parts of the user's own: loss, metrics and backbone, trained with, saved and loaded honestly."""

import logging

import pytest
import torch
from torch import nn

from geolearn import UNet, load_model
from geolearn.backbones import custom
from geolearn.backbones.backbone import BUILDERS
from geolearn.backbones.custom import ModuleBackbone
from geolearn.errors import ArgumentError, BundleError, NotTrainedError, UnknownNameError
from geolearn.losses import PixelLossOptions

pytestmark = pytest.mark.usefixtures('one_thread')


class ScaledCrossEntropy(nn.Module):
    """Cross-entropy times a factor."""

    def __init__(self, factor=2.0, ignore_index=255):
        super().__init__()
        self.factor, self.ignore_index, self.calls = factor, ignore_index, 0

    def forward(self, logits, target):
        self.calls += 1
        return self.factor * nn.functional.cross_entropy(logits, target, ignore_index=self.ignore_index)


class Maps(nn.Module):
    """Maps at strides 2 to 32."""

    def __init__(self, bands):
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(bands if i == 0 else 8, 8, 3, 2, 1) for i in range(5))

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = stage(x).relu()
            maps.append(x)
        return maps


def make(data, **options):
    torch.manual_seed(0)
    return UNet(data, options.pop('backbone', 'test_resnet'), pretrained=False, **options)


def share_of_first_class(output, target):
    return (output.argmax(1) == 0).float().mean()


def test_a_loss_of_ones_own_is_trained_with_and_asked_for_after_loading(scene_data, tmp_path, caplog):
    loss = ScaledCrossEntropy()
    model = make(scene_data, loss=loss).fit(1, lr=1e-3, checkpoint=False, metrics=[share_of_first_class])
    assert loss.calls
    row = model.history.epochs[-1]
    assert 0 <= row['share_of_first_class'] <= 1
    with caplog.at_level(logging.WARNING, 'geolearn'):
        path = model.save(tmp_path / 'm.dlpk')
    assert 'the bundle names the loss ScaledCrossEntropy and does not hold it' in caplog.text
    loaded = load_model(path, scene_data)
    assert loaded.confusion().counts.tolist() == model.confusion().counts.tolist()
    with pytest.raises(NotTrainedError, match=r'load_model\(path, data, loss=...\)'):
        loaded.fit(1, lr=1e-3, checkpoint=False)
    again = ScaledCrossEntropy()
    load_model(path, scene_data, loss=again).fit(1, lr=1e-3, checkpoint=False)
    assert again.calls
    assert load_model(path).data is None, 'maps are made without the loss'


def test_a_loss_may_be_named(scene_data):
    assert make(scene_data, loss='focal').spec.options == make(scene_data, focal_loss=True).spec.options
    with pytest.raises(UnknownNameError, match='focall'):
        make(scene_data, loss='focall')
    with pytest.raises(ArgumentError, match='loss must be PixelLossOptions'):
        make(scene_data, loss=3)
    with pytest.raises(ArgumentError, match='class_balancing'):
        make(scene_data, loss=ScaledCrossEntropy(), class_balancing=True)
    assert make(scene_data, loss=PixelLossOptions(loss='dice')).spec.options['loss']['loss'] == 'dice'


def test_a_loss_that_does_not_ignore_unlabelled_pixels_is_told_how(scene_data):
    model = make(scene_data, loss=ScaledCrossEntropy(ignore_index=-100))
    with pytest.raises(ArgumentError, match='make it with ignore_index=255'):
        model.fit(1, lr=1e-3, checkpoint=False)


def test_metrics_that_cannot_be_columns_are_refused(scene_data):
    model = make(scene_data)
    with pytest.raises(ArgumentError, match='metrics must be functions'):
        model.fit(1, lr=1e-3, checkpoint=False, metrics=[3])

    def miou(output, target):
        return 0.0

    with pytest.raises(ArgumentError, match="there is a metric 'miou' already"):
        model.fit(1, lr=1e-3, checkpoint=False, metrics=[miou])


def test_a_backbone_of_ones_own_is_asked_for_by_name(scene_data, tmp_path, monkeypatch):
    def own():
        module = Maps(len(scene_data.bands))
        return ModuleBackbone(module, channels=(8,) * 5, strides=(2, 4, 8, 16, 32), name='my_maps')

    model = make(scene_data, backbone=own())
    assert model.spec.backbone == 'my_maps'
    path = model.save(tmp_path / 'm.dlpk')
    image = torch.rand(1, len(scene_data.bands), 32, 32) * 1000
    with torch.inference_mode():
        expected = model.network.eval()(image)
    monkeypatch.delitem(BUILDERS, 'my_maps')
    monkeypatch.delitem(custom._MODULES, 'my_maps')
    with pytest.raises(BundleError, match=r"pass it as load_model\(path, backbone=ModuleBackbone\(.*name='my_maps'"):
        load_model(path)
    torch.manual_seed(5)
    loaded = load_model(path, backbone=own())
    with torch.inference_mode():
        assert torch.equal(loaded.network.eval()(image), expected)

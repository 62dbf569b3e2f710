"""Parts of the user's own: loss, metrics and backbone, trained with, saved and loaded honestly."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from geolearn import FCOS, FeatureClassifier, UNet, from_arrays, load_model
from geolearn.backbones import custom
from geolearn.backbones.backbone import BUILDERS
from geolearn.backbones.custom import ModuleBackbone
from geolearn.errors import ArgumentError, BundleError, NotTrainedError, UnknownNameError
from geolearn.losses import PixelLossOptions
from geolearn.metrics import CustomMetric

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


# -- classifiers of chips and detectors


@pytest.fixture(scope='module')
def pixels():
    return np.random.default_rng(0).integers(1, 3000, (8, 3, 32, 32)).astype(np.uint16)


def prepared(images, labels, path):
    bands = ['red', 'green', 'blue']
    return from_arrays(images, labels, bands=bands, batch_size=2, val_split_pct=0.25, working_dir=path)


def plain_loss(logits, target):
    kind = nn.functional.cross_entropy if target.dim() == 1 else nn.functional.binary_cross_entropy_with_logits
    return kind(logits, target)


@pytest.mark.parametrize('several', [False, True])
def test_classifiers_of_chips_take_losses_by_name_and_of_ones_own(pixels, several, tmp_path):
    labels = np.arange(8) % 2
    data = prepared(pixels, np.eye(2, dtype=bool)[labels] if several else labels, tmp_path)
    focal = FeatureClassifier(data, 'test_resnet', pretrained=False, loss='focal').make_loss()
    usual = FeatureClassifier(data, 'test_resnet', pretrained=False)
    logits, target = torch.tensor([[3.0, -3.0]]), torch.tensor([[1.0, 0.0]]) if several else torch.tensor([0])
    assert float(focal(logits, target)) < 0.01 * float(usual.make_loss()(logits, target)), 'right already'
    with pytest.raises(UnknownNameError, match='focall'):
        FeatureClassifier(data, 'test_resnet', pretrained=False, loss='focall')
    with pytest.raises(ArgumentError, match=r'pass CrossEntropyLoss\(\.\.\.\)'):
        FeatureClassifier(data, 'test_resnet', pretrained=False, loss=nn.CrossEntropyLoss)
    model = FeatureClassifier(data, 'test_resnet', pretrained=False, loss=plain_loss)
    model.fit(1, lr=1e-3, checkpoint=False)
    path = model.save(tmp_path / 'm.dlpk', compute_metrics=False)
    with pytest.raises(NotTrainedError, match='plain_loss'):
        load_model(path, data).fit(1, lr=1e-3, checkpoint=False)
    assert load_model(path, data, loss=plain_loss).make_loss()(logits, target) == plain_loss(logits, target)


def test_detectors_take_what_is_made_of_their_own_losses(pixels, tmp_path):
    box = (np.array([[4.0, 4, 20, 20]]), np.array([1]))
    data = prepared(pixels, [box] * 8, tmp_path)
    seen = []

    def weighted(parts):
        seen.append(sorted(parts))
        return parts['classes'] + 2 * parts['boxes']

    torch.manual_seed(0)
    model = FCOS(data, 'test_resnet', pretrained=False, loss=weighted)
    model.fit(1, lr=1e-4, checkpoint=False, metrics=[CustomMetric(lambda output, target: len(target), name='images')])
    row = model.history.epochs[-1]
    assert seen[0] == ['boxes', 'centers', 'classes']
    assert row['train_loss'] == pytest.approx(row['classes'] + 2 * row['boxes'], rel=0.2)
    assert row['images'] == 2
    for bad, said in (('focal', 'a detector computes its own losses'), (3, 'loss must be a function of them by name')):
        with pytest.raises(ArgumentError, match=said):
            FCOS(data, 'test_resnet', pretrained=False, loss=bad)
    with pytest.raises(ArgumentError, match="asks for the part 'class' of the loss; this detector has 'classes'"):
        FCOS(data, 'test_resnet', pretrained=False, loss=lambda parts: parts['class']).fit(1, 1e-4, checkpoint=False)


def test_a_metric_of_ones_own_is_monitored_where_it_says_which_way_is_better(scene_data):
    model = make(scene_data)
    with pytest.raises(ArgumentError, match=r'CustomMetric\(share_of_first_class, higher_is_better=True\)'):
        model.fit(1, lr=1e-3, metrics=[share_of_first_class], monitor='share_of_first_class')
    with pytest.raises(ArgumentError, match=r'needs a name.*CustomMetric\(function, name=...\)'):
        model.fit(1, lr=1e-3, metrics=[lambda output, target: 0])
    epochs = []

    def falling(output, target):
        epochs.append(1)
        return -len(epochs)

    model.fit(
        2,
        lr=1e-3,
        metrics=[CustomMetric(falling, name='fall', higher_is_better=True)],
        monitor='fall',
        checkpoint='all',
    )
    first, second = (row['fall'] for row in model.history.epochs)
    assert first > second
    falling.higher_is_better = False  # as metrics of torchmetrics say it
    assert CustomMetric(falling).higher_is_better is False

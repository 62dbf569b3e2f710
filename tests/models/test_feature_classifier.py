"""What FeatureClassifier promises, on backbones with tokens and with maps, for one class per chip and for several."""

import dataclasses

import numpy as np
import pytest
import torch

from geolearn import Adaptation
from geolearn.bundle import read_bundle
from geolearn.errors import BackboneError, BundleError, ChipFolderError, RasterError, UnknownNameError
from geolearn.models import load_model
from geolearn.models.evaluation.classification import collect_outputs, score_chips
from geolearn.models.feature_classifier import FeatureClassifier
from geolearn.models.registry import MODELS
from geolearn.networks.classification import ChipOptions
from geolearn.networks.spec import ModelSpec

pytestmark = pytest.mark.usefixtures('one_thread', 'small_dofa')

BACKBONES = ['dofa_tiny', 'resnet18']


@pytest.fixture(params=['one', 'several'])
def folder(request):
    """Chips of one class each, and of several."""
    return request.getfixturevalue(f'{request.param}_folder')


def make(data, backbone='dofa_tiny', *, seed=0, **options):
    torch.manual_seed(seed)
    return FeatureClassifier(data, backbone, pretrained=False, **({'dropout': 0.0} | options))


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


# -- training, saving, loading


@pytest.mark.parametrize('backbone', ['dofa_tiny', 'test_resnet'])
def test_it_learns_a_toy_and_is_the_same_after_saving_and_loading(folder, prepare, backbone, tmp_path):
    # at the end of a ResNet such chips are one place, so batch normalization needs the chips of a large batch
    epochs, batch_size = (20, 9) if backbone == 'test_resnet' else (8, 3)
    data = prepare(folder, batch_size=batch_size)
    model = make(data, backbone).fit(epochs, lr=3e-3)
    assert model.history.epochs[-1]['train_loss'] < model.history.epochs[0]['train_loss']
    assert score_chips(collect_outputs(model.network, data.train_dl))['f1_micro'] >= 0.8
    again = load_model(model.save(tmp_path / 'm.dlpk'))
    assert isinstance(again, FeatureClassifier)
    image = data.valid_ds[0][0].numpy()
    assert again.predict(image).names == model.predict(image).names
    assert again.predict(image).confidences == pytest.approx(model.predict(image).confidences, abs=1e-5)
    assert again.evaluation.metrics['hamming_loss'] == pytest.approx(model.scores()['hamming_loss'])


@pytest.mark.parametrize('backbone', [*BACKBONES, 'test_vit'])
@pytest.mark.parametrize('pooling', ['auto', 'mean', 'cls'])
def test_every_parameter_that_should_learn_gets_a_gradient(one_folder, prepare, backbone, pooling):
    data = prepare(one_folder)
    if backbone == 'resnet18' and pooling == 'cls':
        with pytest.raises(BackboneError, match="resnet18 has no class token here; pooling must be 'auto' or 'mean'"):
            make(data, backbone, pooling=pooling)
        return
    model = make(data, backbone, pooling=pooling)
    model.network.train()
    images, labels = next(iter(data.train_dl))
    model.make_loss()(model.network(images), labels).backward()
    without = {name for name, p in model.network.named_parameters() if p.requires_grad and p.grad is None}
    assert not without


@pytest.mark.parametrize('backbone', BACKBONES)
def test_what_is_frozen_stays_as_it_is(one_folder, prepare, backbone):
    model = make(prepare(one_folder), backbone, adapt=Adaptation(freeze='all'))
    before = state(model.network)
    model.fit(1, lr=1e-2)
    changed = {name for name, tensor in model.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {'head.1.weight', 'head.1.bias'}


def test_a_class_token_is_taken_where_the_transformer_was_pretrained_with_it(one_folder, prepare):
    data = prepare(one_folder)
    assert not make(data, 'dofa_tiny').network.takes_class_token, 'a masked autoencoder leaves it to itself'
    assert make(data, 'test_vit').network.takes_class_token, 'timm classifies by it'
    assert make(data, 'dofa_tiny', pooling='cls').network.takes_class_token


def test_images_of_any_size_are_classified(one_folder, prepare):
    for backbone in BACKBONES:
        network = make(prepare(one_folder), backbone).network.eval()
        with torch.inference_mode():
            assert network(1000 * torch.rand(2, 3, 70, 41)).shape == (2, 3)


def test_rare_classes_weigh_more_and_are_shown_more_often(write_chips, prepare, tmp_path):
    folder = write_chips(tmp_path / 'c', [('water',)] * 30 + [('forest',), ('field',)] * 2)
    data = prepare(folder, split='stratified')
    model = make(data, class_balancing=True, oversample=True)
    weights = model.make_loss().class_weights
    assert weights[0] < weights[1]
    assert model.data.train_dl.options.repeats.max() > 1
    assert data.train_dl.options.repeats is None, 'the data is left as it was'


def test_mixup_blends_training_chips_alone_also_after_loading(folder, prepare, tmp_path):
    data = prepare(folder)

    def has_shares(loader):
        # two epochs: in one batch of three chips each may meet a chip of its own class
        labels = torch.cat([labels.float() for _ in range(2) for _, labels in loader])
        return bool((labels.frac() > 0).any())

    model = make(data, mixup=True)
    assert has_shares(model.data.train_dl)
    assert not has_shares(model.data.valid_dl)
    assert not has_shares(data.train_dl), 'the data is left as it was'
    model.fit(1, lr=1e-3)
    again = load_model(model.save(tmp_path / 'm.dlpk'), data)
    assert has_shares(again.data.train_dl)


def test_mixing_twice_is_refused(one_folder, prepare):
    data = prepare(one_folder, transforms={'mixup_alpha': 0.2})
    with pytest.raises(ValueError, match='the data mixes its chips already'):
        make(data, mixup=0.3)


# -- evaluation


def test_metrics_and_figures_tell_the_same_as_the_predictions(folder, prepare):
    data = prepare(folder, val_split_pct=0.5)
    model = make(data)
    outputs = model.evaluate().outputs
    assert len(outputs.truth) == len(data.valid_ds) == 6
    table = model.per_class_metrics()
    assert table.index.tolist() == ['water', 'forest', 'field']
    assert table['support'].sum() == int(outputs.present.sum())
    assert model.scores()['hamming_loss'] == pytest.approx(float((outputs.predicted != outputs.present).float().mean()))
    if outputs.multi_label:
        with pytest.raises(ValueError, match='chips of several classes have no one confusion matrix'):
            model.confusion()
        assert len(model.plot_confusion_matrix().axes) == 3
    else:
        assert model.confusion().accuracy == pytest.approx(model.accuracy())
    hard = model.plot_hard_examples(2)
    assert f'loss {float(outputs.losses.max()):.2f}' in hard.axes[0].get_title()
    assert len(hard.axes) == 2
    assert len(model.show_results(3).axes) == 3
    assert len(model.show_results(3, explain=True).axes) >= 6
    with pytest.raises(ValueError, match='num_examples must be at least 1'):
        model.plot_hard_examples(0)


def test_a_class_that_is_absent_from_validation_has_no_score(write_chips, prepare, tmp_path):
    labels = [('water',), ('forest',), ('field',), ('water',), ('forest',), ('field',), ('water',), ('forest',)]
    data = prepare(write_chips(tmp_path / 'c', labels), split={'valid': ['000000006', '000000007']})
    model = make(data).fit(1, lr=1e-3)
    table = model.per_class_metrics()
    assert table.loc['field', 'support'] == 0
    assert np.isnan(table.loc['field', 'recall'])
    assert np.isfinite(model.scores()['f1_macro'])


def test_the_bundle_says_what_arcgis_asks(folder, prepare, tmp_path):
    data = prepare(folder)
    model = make(data).fit(1, lr=1e-3)
    emd = read_bundle(model.save(tmp_path / 'm.dlpk')).emd
    assert emd['ModelType'] == 'ObjectClassification'
    assert emd['MetaDataMode'] == data.dataset_type
    assert emd['CropSizeFixed'] == 1
    assert [row['Name'] for row in emd['Classes']] == ['water', 'forest', 'field']


# -- bad input


def test_other_chips_and_too_few_are_refused(scene_data, one_folder, write_chips, prepare, tmp_path):
    with pytest.raises(ChipFolderError, match='FeatureClassifier needs one class per chip or any number of classes'):
        make(scene_data)
    with pytest.raises(ValueError, match='batch_size must be at least 2'):
        make(prepare(one_folder, batch_size=1)).fit(1, lr=1e-3)
    with pytest.raises(ChipFolderError, match='at least two classes are needed to tell apart'):
        prepare(write_chips(tmp_path / 'same', [('water',)] * 4, names=['water']))


def test_one_class_that_is_there_or_not_can_be_learned(write_chips, prepare, tmp_path):
    data = prepare(write_chips(tmp_path / 'c', [('water',), ()] * 4, names=['water']))
    model = make(data).fit(1, lr=1e-3)
    assert model.predict(data.valid_ds[0][0]).confidences.keys() == {'water'}


def test_pixels_without_data_do_not_spoil_a_training(write_chips, prepare, tmp_path):
    data = prepare(write_chips(tmp_path / 'c', [('water',), ('forest',), ('field',)] * 4, nodata_at=range(0, 12, 2)))
    assert any(torch.isnan(images).any() for images, _ in data.train_dl)
    for backbone in BACKBONES:
        model = make(data, backbone).fit(1, lr=1e-3)
        assert np.isfinite(model.history.epochs[-1]['train_loss'])
        assert all(torch.isfinite(p).all() for p in model.network.parameters())


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'pooling': 'max'}, "pooling must be one of 'auto', 'mean', 'cls', got 'max'"),
        ({'dropout': 1.0}, 'dropout must be a number of 0 or more and below 1, got 1.0'),
        ({'label_smoothing': -0.1}, 'label_smoothing must be a number'),
        ({'mixup': -1}, 'mixup must be True, False or a strength'),
        ({'mixup': float('nan')}, 'mixup must be True, False or a strength'),
    ],
)
def test_options_that_make_no_sense_are_refused(one_folder, prepare, options, match):
    with pytest.raises(ValueError, match=match):
        make(prepare(one_folder), **options)


def test_label_smoothing_is_for_one_class_per_chip(one_folder, several_folder, prepare):
    assert make(prepare(one_folder), label_smoothing=0.1).make_loss().label_smoothing == 0.1
    with pytest.raises(ValueError, match='label_smoothing is for chips of one class each'):
        make(prepare(several_folder), label_smoothing=0.1)


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'multi_label': 'yes'}, 'Expected `bool`, got `str` - at `..multi_label`'),
        ({'pooling': ['cls']}, 'Expected `str`, got `array` - at `..pooling`'),
        ({'dropout': 1e9}, 'dropout must be a number'),
        ({'mixup': 'rm -rf'}, 'Expected `float`, got `str` - at `..mixup`'),
        ({'crop': 'circle'}, "Invalid enum value 'circle' - at `..crop`"),
        ({'blackened': 1}, 'Expected `bool`, got `int` - at `..blackened`'),
        ({'exec': 'x'}, "unknown field 'exec'"),
    ],
)
def test_hostile_options_of_a_manifest_are_refused(one_folder, prepare, changes, match):
    model = make(prepare(one_folder))
    spec = dataclasses.replace(model.spec, options={**model.spec.options, **changes})
    assert ModelSpec.from_manifest(spec.to_manifest()) == spec, 'the spec itself takes any plain options'
    with pytest.raises(BundleError, match=match):
        MODELS['FeatureClassifier'].from_spec(spec, model.network.state_dict())


def test_a_manifest_without_classes_or_options_is_refused(one_folder, prepare):
    spec = make(prepare(one_folder)).spec
    with pytest.raises(BundleError, match='needs 2 classes or more'):
        FeatureClassifier.build(dataclasses.replace(spec, class_infos=spec.class_infos[:1]))
    with pytest.raises(BundleError, match='the manifest lacks .multi_label.'):
        FeatureClassifier.build(dataclasses.replace(spec, options={}))


def test_data_of_one_class_does_not_go_with_a_model_of_several(one_folder, several_folder, prepare, tmp_path):
    path = make(prepare(several_folder)).save(tmp_path / 'm.dlpk')
    with pytest.raises(BundleError, match='this model was trained on any number of classes per chip'):
        load_model(path, prepare(one_folder))


def test_options_survive_json():
    for options in (ChipOptions(False), ChipOptions(True, 'cls', 0.5, mixup=0.2, oversample=True)):
        assert ChipOptions.from_json(options.to_json()) == options


# -- predicting one image


@pytest.fixture
def model(one_folder, prepare):
    return make(prepare(one_folder), 'test_resnet')


def test_a_file_and_its_pixels_are_predicted_alike(model, one_folder, save, tmp_path):
    file = one_folder / 'images' / '000000004.tif'
    with pytest.raises(ValueError, match=r'an image must be an array of 3 bands .*, H, W; got \(32, 32\)'):
        model.predict(np.ones((32, 32)))
    with pytest.raises(ValueError, match='threshold must be a probability'):
        model.predict(file, threshold=1.5)
    import rasterio

    with rasterio.open(file) as src:
        pixels = src.read()
    names, confidences = model.predict(file, bands=['Blue', 'Green', 'Red'])
    assert confidences == pytest.approx(model.predict(pixels).confidences, abs=1e-5)
    assert sum(confidences.values()) == pytest.approx(1, abs=1e-5)
    assert names == (max(confidences, key=confidences.get),)
    turned = save(tmp_path / 't.tif', pixels[::-1], names=['Red', 'Green', 'Blue'])
    assert model.predict(turned).confidences == pytest.approx(confidences, abs=1e-5), 'bands go by name'


def test_images_in_other_units_or_without_data_are_refused(model):
    pixels = 600 * np.ones((3, 32, 32), np.float32)
    with pytest.raises(RasterError, match='in other units than the training chips'):
        model.predict(pixels / 10_000)
    scaled = model.predict(pixels / 10_000, scale=10_000).confidences
    assert scaled == pytest.approx(model.predict(pixels).confidences, abs=1e-4)
    with pytest.raises(RasterError, match='the image holds no pixel with data in all bands'):
        model.predict(np.full((3, 32, 32), np.nan))


def test_several_classes_are_named_from_the_threshold_on(several_folder, prepare):
    model = make(prepare(several_folder), 'test_resnet')
    image = model.data.valid_ds[0][0]
    names, confidences = model.predict(image, threshold=1e-6)
    assert names == ('water', 'forest', 'field')
    assert model.predict(image, threshold=1 - 1e-6).names == ()
    assert all(0 <= share <= 1 for share in confidences.values())


def test_an_unknown_class_is_not_explained(model):
    with pytest.raises(UnknownNameError, match="unknown class 'watr'; did you mean 'water'"):
        model.explain(600 * np.ones((3, 32, 32)), class_name='watr')

"""What every DeepLab promises, on a convolutional and on a wavelength-conditioned backbone."""

import copy
import dataclasses
import functools
import math

import pandas as pd
import pytest
import timm
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

from geolearn import training
from geolearn.bands import Band, get_bands
from geolearn.bundle import read_bundle
from geolearn.errors import (
    BackboneError,
    BandError,
    BundleError,
    FileWriteError,
    NotTrainedError,
    UnknownNameError,
)
from geolearn.losses import PixelCrossEntropy
from geolearn.models import DeepLab, PixelClassifier, load_model, registry
from geolearn.prepare import prepare_data

pytestmark = pytest.mark.usefixtures('one_thread')

CLASS_NAMES = ['water', 'forest', 'grass', 'cropland', 'bare soil', 'built-up']


def make(data, backbone='test_resnet', *, seed=0, **options):
    torch.manual_seed(seed)
    return DeepLab(data, backbone, pretrained=False, **options)


def images(*shape, seed=0):
    """Reflectances x 10000 of ten bands."""
    return 4000 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def logits(model, x):
    with torch.inference_mode():
        return model.network.eval()(x)


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module, before):
    """Names of parameters and buffers that differ from before."""
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


class DeepLabContract:
    """Subclass, set `backbone`, and pytest runs every promise."""

    backbone: str

    @pytest.fixture
    def model(self, scene_data):
        return make(scene_data, self.backbone)

    @pytest.mark.parametrize('size', [(64, 64), (65, 97), (1, 40)])
    def test_logits_have_the_images_size(self, model, size):
        assert logits(model, images(2, 10, *size)).shape == (2, 6, *size)

    def test_pixels_without_data_count_as_the_band_mean(self, model):
        x, hole = images(2, 10, 65, 97), torch.zeros(2, 1, 65, 97, dtype=bool)
        hole[0, :, 10:40, 20:] = True
        mean = torch.tensor(model.spec.statistics.mean).view(1, 10, 1, 1)
        found = logits(model, x.masked_fill(hole, math.nan))
        assert found.isfinite().all()
        assert torch.equal(found, logits(model, torch.where(hole, mean, x)))

    def test_every_trainable_parameter_gets_a_gradient(self, model):
        target = torch.randint(0, 6, (2, 64, 64), generator=torch.Generator().manual_seed(0))
        PixelCrossEntropy()(model.network.train()(images(2, 10, 64, 64)), target).backward()
        trainable = {n: p for n, p in model.network.named_parameters() if p.requires_grad}
        assert [n for n, p in trainable.items() if p.grad is None] == []
        assert {id(p) for group in model.network.param_groups() for p in group.parameters} == {
            id(p) for p in trainable.values()
        }

    def test_a_frozen_backbone_stays_as_it_is_and_an_unfrozen_one_learns(self, model):
        trunk, decoder = model.network.backbone.trunk, model.network.decoder
        learning = {n for n, p in trunk.named_parameters() if p.requires_grad}
        model.freeze()
        before = state(trunk), state(decoder)
        model.fit(1, lr=1e-2)
        assert changed(trunk, before[0]) == set()
        assert set(dict(decoder.named_parameters())) <= changed(decoder, before[1])
        model.unfreeze()
        assert {n for n, p in trunk.named_parameters() if p.requires_grad} == learning
        model.fit(1, lr=1e-2)
        assert learning <= changed(trunk, before[0])

    def test_a_saved_model_loads_with_equal_logits(self, model, tmp_path):
        model.fit(1, lr=1e-3)
        loaded = load_model(model.save(tmp_path / 'm.dlpk', compute_metrics=False))
        x = images(2, 10, 65, 97)
        assert isinstance(loaded, DeepLab)
        assert loaded.spec == model.spec
        assert torch.equal(logits(loaded, x), logits(model, x))

    def test_evaluation_after_training_uses_the_current_weights(self, model):
        """fastai's optimizer writes past autograd's version counter, so a kernel that is kept must be dropped."""
        x = images(2, 10, 64, 64)
        logits(model, x)  # fills any cache
        for epochs in (1, 2):  # the second epoch of one call starts with what validation left
            model.fit(epochs, lr=1e-2)
            fresh = DeepLab.from_spec(model.spec, model.network.state_dict())
            with torch.inference_mode():
                assert torch.equal(model.network(x), fresh.network(x))  # as training left it
            assert torch.equal(logits(model, x), logits(fresh, x))

    def test_the_same_seed_gives_the_same_losses(self, scene_chips):
        runs = []
        for _ in range(2):
            data = prepare_data(scene_chips, chip_size=32, batch_size=4, val_split_pct=0.25, ignore_classes=[0])
            runs.append(make(data, self.backbone, seed=3).fit(1, lr=1e-3).history)
        assert runs[0].batch_losses == runs[1].batch_losses
        assert runs[0].epochs[0]['valid_loss'] == runs[1].epochs[0]['valid_loss']


class TestOnResNet(DeepLabContract):
    backbone = 'test_resnet'


class TestOnConvNeXt(DeepLabContract):
    """Its first map is that of stride 4, and it knows no running statistics."""

    backbone = 'test_convnext'


class TestOnDofa(DeepLabContract):
    backbone = 'dofa_tiny'

    @pytest.fixture(autouse=True)
    def _small(self, small_dofa):
        pass


# -- training


def test_a_second_fit_goes_on_from_the_first(scene_data):
    model = make(scene_data)
    assert model.fit(2, lr=3e-3) is model
    first, weights = model.history.epochs.copy(), state(model.network)
    model.fit(2, lr=1e-9)
    assert [row['epoch'] for row in model.history.epochs] == [1, 2, 3, 4]
    assert model.history.epochs[:2] == first
    assert len(model.history.batch_losses) == 4 * len(scene_data.train_dl)
    assert model.history.epochs[3]['train_loss'] < first[0]['train_loss']
    for name, parameter in model.network.named_parameters():
        torch.testing.assert_close(parameter, weights[name], atol=1e-5, rtol=0)


def test_rows_of_the_history_are_what_the_validation_chips_say(scene_data):
    model = make(scene_data).fit(2, lr=1e-3, checkpoint=False)
    row = model.history.epochs[-1]
    assert list(row) == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'miou', 'dice', 'learning_rate', 'seconds']
    assert row['accuracy'] == pytest.approx(model.accuracy())
    assert row['miou'] == pytest.approx(model.mIOU(mean=True))
    assert row['seconds'] > 0


def test_metrics_follow_each_fit(scene_data):
    model = make(scene_data).fit(1, lr=1e-5)
    before = model.confusion()
    assert model.confusion() is before
    model.fit(1, lr=1e-2)
    assert not torch.equal(model.confusion().counts, before.counts)


def test_a_constant_rate_is_constant(scene_data):
    model = make(scene_data).fit(1, lr=2e-3, one_cycle=False)
    assert {h['lr'] for h in model.learner.opt.hypers} == {2e-3}
    assert model.history.learning_rate == 2e-3


def test_a_slice_gives_the_backbone_a_lower_rate(scene_data):
    model = make(scene_data).fit(1, lr=slice(1e-4, 1e-3), one_cycle=False)
    assert [h['lr'] for h in model.learner.opt.hypers] == pytest.approx([1e-4, 1e-3])
    assert model.history.learning_rate == 1e-3


def test_a_pretrained_backbone_gets_a_tenth_of_the_rate(scene_data, tmp_path):
    save_file(timm.create_model('test_resnet').state_dict(), tmp_path / 'rgb.safetensors')
    model = DeepLab(scene_data, 'test_resnet', weights=tmp_path / 'rgb.safetensors')
    model.fit(1, lr=1e-3, one_cycle=False)
    assert [h['lr'] for h in model.learner.opt.hypers] == pytest.approx([1e-4, 1e-3])
    assert 'weights  ' in repr(model)
    assert 'rgb.safetensors' in repr(model)
    again = load_model(model.save(tmp_path / 'm.dlpk'), scene_data).fit(1, lr=1e-3, one_cycle=False)
    assert [h['lr'] for h in again.learner.opt.hypers] == pytest.approx([1e-4, 1e-3])
    assert not make(scene_data).spec.pretrained


@pytest.fixture
def short_search(monkeypatch):
    """Search in 30 batches instead of 100."""
    monkeypatch.setattr(training, 'find_learning_rate', functools.partial(training.find_learning_rate, iterations=30))


def test_the_rate_search_changes_neither_weights_nor_optimiser_nor_leaves_files(scene_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make(scene_data).fit(1, lr=1e-3, checkpoint=False)
    weights, optimiser = state(model.network), copy.deepcopy(model.learner.opt.state_dict())
    rows, losses = len(model.history.epochs), len(model.history.batch_losses)
    rate = model.lr_find()
    assert isinstance(rate, float)
    assert 1e-7 < rate < 10
    assert changed(model.network, weights) == set()
    after = model.learner.opt.state_dict()
    for new, old in zip(after['param_groups'], optimiser['param_groups'], strict=True):
        assert new | {'lr': 0} == old | {'lr': 0}, 'but for the rate, which every fit sets anew'
    assert after['state'].keys() == optimiser['state'].keys() != set()
    for key, old in optimiser['state'].items():
        assert torch.equal(after['state'][key]['exp_avg'], old['exp_avg'])
        assert torch.equal(after['state'][key]['exp_avg_sq'], old['exp_avg_sq'])
    assert all(p.grad is None or not p.grad.any() for p in model.network.parameters())
    assert (len(model.history.epochs), len(model.history.batch_losses)) == (rows, losses)
    assert isinstance(model.lr_figure, Figure)
    assert list(tmp_path.iterdir()) == []


def test_the_rate_search_bears_batches_without_a_labelled_pixel(scene_data, short_search):
    model = make(scene_data)
    options = scene_data.train_dl.options
    calls = []

    def blank_first(batch, generator):
        batch = options.transform(batch, generator)
        calls.append(0)
        return dataclasses.replace(batch, masks=torch.full_like(batch.masks, 255)) if len(calls) % 3 == 1 else batch

    scene_data.train_dl.options = dataclasses.replace(options, transform=blank_first)
    assert 1e-7 < model.lr_find() < 10
    assert len(calls) >= 9


# fastai's finder leaves a folder inside ours, which is gone before Python cleans up after it
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_an_interrupted_rate_search_puts_the_weights_back(scene_data, short_search):
    model = make(scene_data)
    weights, calls = state(model.network), []

    def interrupt(batch, generator):
        calls.append(0)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return batch

    scene_data.train_dl.options = dataclasses.replace(scene_data.train_dl.options, transform=interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.lr_find()
    assert changed(model.network, weights) == set()


def test_fit_without_a_rate_searches_for_one(scene_data, short_search):
    model = make(scene_data).fit(1)
    assert 1e-7 < model.history.learning_rate < 10
    assert len(model.history.epochs) == 1


def test_impossible_trainings_are_refused(scene_data, scene_chips):
    with pytest.raises(ValueError, match='epochs must be at least 1, got 0'):
        make(scene_data).fit(0, lr=1e-3)
    for rate in ('1e-3', -1, 0, math.nan, math.inf, True, slice(0, 1e-3), slice(1e-4, None), slice(None), [1e-3]):
        with pytest.raises(ValueError, match='lr must be a positive number, or a slice of two, got '):
            make(scene_data).fit(1, lr=rate)
    alone = prepare_data(scene_chips, chip_size=32, batch_size=1, ignore_classes=[0])
    with pytest.raises(ValueError, match='batch_size must be at least 2: batch normalization'):
        make(alone).fit(1, lr=1e-3)
    few = prepare_data(scene_chips, chip_size=32, batch_size=4, val_split_pct=15 / 16, ignore_classes=[0])
    with pytest.raises(ValueError, match='1 chip is left to train on; at least 2 are needed: export more chips'):
        make(few).fit(1, lr=1e-3)


def test_a_chip_left_over_does_not_stop_batch_normalisation(scene_chips):
    data = prepare_data(scene_chips, chip_size=32, batch_size=4, val_split_pct=3 / 16, ignore_classes=[0])
    assert len(data.train_ds) % 4 == 1
    assert len(make(data).fit(1, lr=1e-3).history.batch_losses) == 3


# -- looking


def test_iou_by_class_and_its_mean(scene_data):
    model = make(scene_data).fit(1, lr=1e-3)
    by_class = model.mIOU()
    assert list(by_class) == CLASS_NAMES
    present = [value for value in by_class.values() if not math.isnan(value)]
    assert model.mIOU(mean=True) == pytest.approx(sum(present) / len(present))
    assert 0 <= model.accuracy() <= 1


def test_the_table_of_metrics_has_a_row_per_class(scene_data):
    table = make(scene_data).per_class_metrics()
    assert isinstance(table, pd.DataFrame)
    assert list(table.index) == CLASS_NAMES
    assert list(table.columns) == ['precision', 'recall', 'f1', 'iou']


def test_figures_are_drawn(scene_data, tmp_path):
    model = make(scene_data)
    with pytest.raises(NotTrainedError, match=r'no losses to plot; call fit\(\) first'):
        model.plot_losses()
    model.fit(1, lr=1e-3)
    for name, figure in [('results', model.show_results(rows=2)), ('losses', model.plot_losses())]:
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / f'{name}.png')
    assert len(model.show_results(rows=3).axes) == 12


# -- bands and classes


def test_nanometers_are_converted_with_a_warning(scene_data):
    nanometers = [490, 560, 665, 705, 740, 783, 842, 865, 1610, 2190]
    with pytest.warns(UserWarning, match='read as nanometers'):
        model = make(scene_data, wavelengths=nanometers)
    assert [band.wavelength_um for band in model.spec.bands] == [nm / 1000 for nm in nanometers]
    assert [band.name for band in model.spec.bands] == [band.name for band in scene_data.bands]


def test_a_wavelength_for_each_band_is_needed(scene_data):
    with pytest.raises(BandError, match='found 3 wavelengths, needed 10'):
        make(scene_data, wavelengths=[0.49, 0.56, 0.665])


def test_bands_keep_what_they_are_when_wavelengths_are_given(scene_data):
    given = [0.495, 0.56, 0.665, 0.705, 0.74, 0.783, 0.842, 0.865, 1.61, 1.0]
    bands = make(scene_data, wavelengths=given).spec.bands
    assert [band.wavelength_um for band in bands] == given
    names = [band.common_name for band in scene_data.bands]
    assert names[0] == 'blue'
    assert [band.common_name for band in bands] == [*names[:-1], None], 'at 1 um it is no second short-wave infrared'


def test_radar_stays_radar_when_wavelengths_are_given(scene_chips):
    optical = get_bands('sentinel2_l2a', ['B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A'])
    radar = get_bands('sentinel1', ['VV', 'VH'])
    data = prepare_data(scene_chips, chip_size=32, batch_size=4, ignore_classes=[0], bands=[*radar, *optical])
    nanometers = [490, 560, 665, 705, 740, 783, 842, 865]
    with pytest.warns(UserWarning, match='read as nanometers'):
        bands = make(data, wavelengths=[None, None, *nanometers]).spec.bands
    assert bands[:2] == radar
    assert [band.wavelength_um for band in bands[2:]] == [nm / 1000 for nm in nanometers]
    with pytest.raises(BandError, match='needed a number of micrometers for every optical band'):
        make(data, wavelengths=[None] * 10)


def test_the_bundle_says_which_bands_of_the_raster_were_chosen(scene_chips, tmp_path):
    data = prepare_data(
        scene_chips, chip_size=32, batch_size=4, ignore_classes=[0], extract_bands=['B08', 'B04', 'B03']
    )
    model = load_model(make(data).save(tmp_path / 'm.dlpk'))
    assert model.spec.band_indexes == data.band_indexes == (6, 2, 1)
    assert read_bundle(tmp_path / 'm.dlpk').emd['ExtractBands'] == [6, 2, 1]


def test_dofa_asks_for_unknown_wavelengths_with_the_line_to_paste(scene_chips, small_dofa):
    bands = [*get_bands('sentinel2_l2a', ['B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11']), Band('odd')]
    data = prepare_data(scene_chips, chip_size=32, batch_size=4, ignore_classes=[0], bands=bands)
    words = (
        r"unresolved: 'odd'. Pass wavelengths= with a number of micrometers for each band in this order: "
        r"'B02' \(0.49\)"
    )
    with pytest.raises(BandError, match=words):
        make(data, 'dofa_tiny')
    make(data)  # a convolutional network needs no wavelengths
    model = make(data, 'dofa_tiny', wavelengths=[0.49, 0.56, 0.665, 0.705, 0.74, 0.783, 0.842, 0.865, 1.61, 2.19])
    assert model.spec.bands[-1] == Band('odd', 2.19)


def test_wavelengths_reach_the_network(scene_data, small_dofa):
    other = [0.49, 0.56, 0.665, 0.705, 0.74, 0.783, 0.842, 0.865, 1.61, 1.0]
    x = images(1, 10, 64, 64)
    assert not torch.equal(
        logits(make(scene_data, 'dofa_tiny'), x), logits(make(scene_data, 'dofa_tiny', wavelengths=other), x)
    )


def test_more_classes_can_be_ignored(scene_data):
    model = make(scene_data, ignore_classes=[2, 5])
    assert [info.value for info in model.spec.class_infos] == [1, 3, 4, 6]
    assert model.spec.ignored_values == (0, 2, 5)
    assert logits(model, images(1, 10, 32, 32)).shape[1] == 4
    assert list(model.fit(1, lr=1e-3).mIOU()) == ['water', 'grass', 'cropland', 'built-up']


def test_an_unknown_backbone_gets_a_suggestion(scene_data):
    with pytest.raises(UnknownNameError, match="unknown backbone 'dofa_bse'; did you mean 'dofa_base'"):
        make(scene_data, 'dofa_bse')


@pytest.mark.parametrize(
    ('backbone', 'message'),
    [
        ('beit_base_patch16_224', 'beit_base_patch16_224 cannot take images of any size'),
        (50, "backbone must be a name such as 'dofa_base', got 50"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused_in_geolearns_words(scene_data, backbone, message):
    with pytest.raises(BackboneError, match=message):
        make(scene_data, backbone)


# -- keeping


def test_a_bare_name_is_saved_beside_the_data(scene_data, tmp_path):
    model = make(scene_data)
    assert model.save('first') == tmp_path / 'models' / 'first' / 'first.dlpk'
    assert model.save('v1.2') == tmp_path / 'models' / 'v1.2' / 'v1.2.dlpk'
    assert load_model(tmp_path / 'models' / 'first').spec == model.spec


@pytest.mark.parametrize(
    ('given', 'written'),
    [
        ('lc.dlpk', 'lc.dlpk'),
        ('./landcover', 'landcover/landcover.dlpk'),
        ('landcover/', 'landcover/landcover.dlpk'),
        ('deep/file.dlpk', 'deep/file.dlpk'),
        ('.', 'here.dlpk'),
        ('..', '../there.dlpk'),
    ],
)
def test_a_path_is_a_folder_or_a_file(scene_data, tmp_path, monkeypatch, given, written):
    here = tmp_path / 'there' / 'here'
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    path = make(scene_data).save(given)
    assert path.resolve() == (here / written).resolve()
    assert load_model(path).spec.model == 'DeepLab'


def test_a_place_that_cannot_be_written_is_named(scene_data, tmp_path):
    (tmp_path / 'taken').write_text('a file')
    with pytest.raises(FileWriteError, match='cannot write .*taken.*save to another folder'):
        make(scene_data).save(tmp_path / 'taken' / 'model.dlpk')


def test_from_model_takes_its_own_class_only(scene_data, tmp_path, monkeypatch):
    path = make(scene_data).save(tmp_path / 'm.dlpk')
    assert isinstance(DeepLab.from_model(path), DeepLab)
    assert isinstance(PixelClassifier.from_model(path), DeepLab)
    monkeypatch.setattr(registry, 'MODELS', dict(registry.MODELS))

    @registry.register_model
    class Other(PixelClassifier):
        pass

    with pytest.raises(BundleError, match=r'holds a DeepLab; load it with geolearn.load_model'):
        Other.from_model(path)
    with pytest.raises(ValueError, match=r"model 'Other' is already registered by"):
        registry.register_model(Other)


def test_a_model_without_data_says_what_to_pass(scene_data, tmp_path):
    model = load_model(make(scene_data).save(tmp_path / 'm.dlpk'))
    for need in (model.fit, model.lr_find, model.mIOU, model.show_results, model.freeze):
        with pytest.raises(NotTrainedError, match='loaded without data; pass data= to load_model or from_model'):
            need()
    with pytest.raises(NotTrainedError, match=r"save\('again'\) goes beside the data, which is not here; pass a path"):
        model.save('again')
    copy = load_model(model.save(tmp_path / 'copy.dlpk'))
    assert torch.equal(logits(copy, images(1, 10, 32, 32)), logits(model, images(1, 10, 32, 32)))


def test_a_loaded_model_with_data_goes_on_training(scene_data, tmp_path):
    first = make(scene_data).fit(2, lr=3e-3)
    path = first.save(tmp_path / 'm.dlpk')
    model = load_model(path, scene_data)
    assert model.history.epochs == first.history.epochs
    assert model.mIOU(mean=True) == pytest.approx(first.mIOU(mean=True))
    model.save(tmp_path / 'unchanged.dlpk')
    model.fit(1, lr=1e-3)
    assert [row['epoch'] for row in model.history.epochs] == [1, 2, 3]
    validation = model.plot_losses().axes[0].lines[1]
    assert list(validation.get_xdata()) == [3], 'one epoch of three batches was trained here'
    assert len(load_model(model.save(tmp_path / 'n.dlpk')).history.epochs) == 3


def test_what_a_bundle_says_of_a_model_stays_until_it_is_trained_again(scene_data, tmp_path):
    first = make(scene_data).fit(1, lr=3e-3).save(tmp_path / 'm.dlpk')
    said = read_bundle(first)
    figures = {f'ModelCharacteristics/{name}.png' for name in ('loss_graph', 'show_results', 'confusion_matrix')}
    assert set(said.extras) == {*figures, 'model_metrics.html'}
    for data in (None, scene_data):
        model = load_model(first, data)
        assert model.history.learning_rate == 3e-3
        assert model.evaluation.metrics == said.manifest['metrics']
        again = read_bundle(model.save(tmp_path / 'm2.dlpk'))
        # a page of others could hold anything that a browser runs: it is dropped on loading, and made anew from data
        assert again.extras.keys() == (figures if data is None else said.extras.keys())
        assert all(again.extras[name] == said.extras[name] for name in figures)
        assert data is None or again.extras['model_metrics.html'].startswith(b'<!doctype html>')
        assert again.manifest == said.manifest
        for key in ('accuracy', 'per_class_metrics', 'LearningRate'):
            assert again.emd[key] == said.emd[key]
    model.fit(1, lr=1e-2)
    assert model.evaluation is None
    after = read_bundle(model.save(tmp_path / 'm3.dlpk'))
    assert after.manifest['metrics'] == {'accuracy': model.accuracy(), 'miou': model.mIOU(mean=True)}
    assert after.emd['LearningRate'] == '0.01'
    assert after.extras.keys() == said.extras.keys()
    assert after.extras != said.extras


def test_data_that_does_not_fit_a_model_is_refused(scene_data, scene_chips, tmp_path):
    path = make(scene_data).save(tmp_path / 'm.dlpk')

    def data(**changes):
        return prepare_data(scene_chips, **({'chip_size': 32, 'batch_size': 4, 'ignore_classes': [0]} | changes))

    with pytest.raises(BundleError, match=r'class values \[1, 2, 3, 4, 5, 6\]; the data has .* \[1, 3, 4, 5, 6\]'):
        load_model(path, data(ignore_classes=[0, 2]))
    with pytest.raises(BundleError, match='Prepare the data with the same bands'):
        load_model(path, data(extract_bands=['B02', 'B03', 'B04']))
    names = [band.name for band in scene_data.bands]
    with pytest.raises(BundleError, match='Prepare the data with the same bands'):
        load_model(path, data(extract_bands=names[::-1]))
    assert load_model(path, data(extract_bands=names)).data is not None
    assert load_model(path, data(bands=[f'band_{i}' for i in range(1, 11)])).data is not None


def test_a_model_describes_itself(scene_data):
    page = make(scene_data)._repr_html_()
    assert page.startswith('<table><caption')
    assert '>DeepLab</caption>' in page
    for info in scene_data.class_infos:
        assert f'background:rgb{info.color}' in page
        assert info.name in page
    assert '<th style="text-align:left">validation</th>' not in page, 'nothing is computed to be shown'
    text = repr(make(scene_data))
    assert text.startswith('DeepLab on test_resnet: ')
    assert '0 epochs trained' in text
    assert 'bands    B02, B03' in text
    assert 'classes  water, forest' in text
    assert 'weights' not in text

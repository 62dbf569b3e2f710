"""Evaluation of pixel classifiers: order of chips, boundaries, calibration, report."""

import miniatures
import numpy as np
import pytest
import torch
from harmless_page import is_report
from matplotlib.figure import Figure

from geolearn.bundle import REPORT, read_bundle, write_bundle
from geolearn.errors import BundleError, NotTrainedError, UnknownNameError
from geolearn.metrics import ConfusionMatrix
from geolearn.models import DeepLab, PixelRegressor, UNet, load_model
from geolearn.models.evaluation.pixels import SlidingWindow, evaluate_pixels
from geolearn.plotting import natural_colors
from geolearn.prepare import prepare_data


@pytest.fixture
def model(scene_data, one_thread):
    torch.manual_seed(0)
    return UNet(scene_data, 'resnet18', pretrained=False).fit(2, lr=1e-3, checkpoint=False)


def test_the_evaluation_is_computed_once_and_counts_every_validation_pixel(model):
    counted = ConfusionMatrix.empty(model.data.c)
    with torch.inference_mode():
        for images, masks in model.data.valid_dl:
            counted.add(model.network.eval()(images).argmax(1), masks)
    assert torch.equal(model.confusion().counts, counted.counts)
    assert torch.equal(model.evaluate().confusion.counts, counted.counts)
    assert model.evaluate() is model.evaluate(), 'computed once'
    assert model.evaluate().metrics == model.scores() == {'accuracy': model.accuracy(), 'miou': model.mIOU(mean=True)}
    assert len(model.evaluate().per_chip) == len(model.data.valid_ds)
    assert model.boundary_iou(mean=True) <= model.mIOU(mean=True)
    assert list(model.boundary_iou()) == list(model.mIOU())


def test_a_fit_drops_the_evaluation(model):
    before = model.evaluate()
    model.fit(1, lr=1e-3, checkpoint=False)
    assert model.evaluate() is not before


def test_figures_show_the_worst_chips_on_request(model):
    names = [model.data.table.names[position] for position in model.data.split.valid]
    scores = model.evaluate().per_chip
    worst = names[min(range(len(scores)), key=scores.__getitem__)]
    figure = model.show_results(rows=1, worst_first=True)
    assert worst in ' '.join(text.get_text() for text in figure.findobj(lambda o: hasattr(o, 'get_text')))
    costly = names[max(range(len(scores)), key=model.evaluate().losses.__getitem__)]
    figure = model.plot_hard_examples(num_examples=1)
    assert costly in ' '.join(text.get_text() for text in figure.findobj(lambda o: hasattr(o, 'get_text')))
    for drawn in (model.plot_confusion_matrix(), model.plot_calibration(), model.plot_losses()):
        assert isinstance(drawn, Figure)


def test_results_show_every_class_of_the_validation_chips_in_the_colors_of_the_data_set(scene_data):
    data = scene_data
    amounts = data.table.amounts([info.value for info in data.class_infos])[list(data.split.valid)]
    figure = UNet(data, 'resnet18', pretrained=False).show_results()
    names = [data.table.names[position] for position in data.split.valid]
    titles = [ax.get_title(loc='left').split(' ')[0].strip() for ax in figure.axes[::4]]
    shown = [names.index(title) for title in titles]
    assert len(shown) >= min(4, len(names))
    assert (amounts[shown] > 0).any(0).tolist() == (amounts > 0).any(0).tolist()
    image = natural_colors(data.valid_ds[shown[0]][0], data.bands, data.display_stretch)
    assert np.array_equal(np.asarray(figure.axes[0].images[0].get_array()), image)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[: data.c] == data.classes


def test_a_temperature_is_kept_and_changes_no_class(model, tmp_path):
    before = model.confusion().counts.clone()
    temperature = model.calibrate()
    assert 0.01 <= temperature <= 100
    again = load_model(model.save(tmp_path / 'm.dlpk'), model.data)
    assert again.spec.temperature == pytest.approx(temperature)
    assert again.evaluate().calibration.temperature == pytest.approx(temperature)
    assert torch.equal(again.confusion().counts, before)
    model.fit(1, lr=1e-3, checkpoint=False)
    assert model.spec.temperature == 1, 'it belonged to the weights before'


def test_the_report_is_a_page_and_lies_in_the_bundle(model, tmp_path):
    page = model.report(tmp_path / 'report.html').read_bytes()
    assert is_report(page)
    for info in model.spec.class_infos:
        assert info.name.encode() in page
    path = model.save(tmp_path / 'm.dlpk')
    assert is_report(read_bundle(path).extras[REPORT])
    loaded = load_model(path)
    assert REPORT not in read_bundle(loaded.save(tmp_path / 'again.dlpk')).extras, (
        'a page that was loaded is not passed on'
    )
    again = load_model(path, model.data)
    assert is_report(read_bundle(again.save(tmp_path / 'again.dlpk')).extras[REPORT])
    with pytest.raises(NotTrainedError):
        loaded.report(tmp_path / 'no.html')


def test_a_page_of_others_is_dropped(model, tmp_path):
    bundle = read_bundle(model.save(tmp_path / 'm.dlpk'))
    hostile = dict(bundle.extras) | {REPORT: b'<html><script>alert(1)</script></html>'}
    write_bundle(tmp_path / 'odd.dlpk', type(bundle)(bundle.emd, bundle.weights, hostile))
    assert REPORT not in load_model(tmp_path / 'odd.dlpk').evaluation.figures


def test_metrics_can_be_left_out_of_the_bundle(model, tmp_path):
    bundle = read_bundle(model.save(tmp_path / 'm.dlpk', compute_metrics=False))
    assert not bundle.extras
    assert 'metrics' not in bundle.manifest


def test_monitors_and_backbones_are_listed(model):
    assert model.available_metrics == ['train_loss', 'valid_loss', 'accuracy', 'miou', 'dice']
    assert {'dofa_base', 'plain_unet'} <= set(model.supported_backbones)
    with pytest.raises(UnknownNameError, match='mio'):
        model.fit(1, lr=1e-3, monitor='mio', checkpoint=False)


def test_rows_of_classes_can_be_left_out(model):
    first = model.spec.class_infos[0]
    table = model.per_class_metrics(ignore_classes=[first.value])
    assert first.name not in table.index
    assert len(table) == len(model.spec.class_infos) - 1


def test_a_saved_model_is_loaded_into_another_by_name(model, scene_data):
    model.save('first', compute_metrics=False)
    torch.manual_seed(1)
    other = UNet(scene_data, 'resnet18', pretrained=False).load('first')
    assert torch.equal(other.confusion().counts, model.confusion().counts)
    assert [row['epoch'] for row in other.history.epochs] == [1, 2]
    with pytest.raises(BundleError, match=r'this model has backbone resnet34 and the saved one resnet18'):
        UNet(scene_data, 'resnet34', pretrained=False).load('first')
    with pytest.raises(BundleError, match=r'holds a UNet; load it with geolearn.load_model'):
        DeepLab(scene_data, 'resnet18', pretrained=False).load('first')


def test_a_killed_fit_is_resumed_and_ends_as_the_unbroken_one(scene_data, one_thread):
    def fresh():
        torch.manual_seed(0)
        return UNet(scene_data, 'test_resnet', pretrained=False)

    class Kill(Exception):
        pass

    from geolearn.training import Callback

    class Killer(Callback):
        def before_batch(self):
            if self.epoch == 2 and self.training:
                raise Kill('here')

    start = scene_data.train_dl.epoch
    unbroken = fresh().fit(3, lr=1e-3, seed=1)
    expected = {name: tensor.clone() for name, tensor in unbroken.network.state_dict().items()}
    scene_data.train_dl.epoch = start
    with pytest.raises(Kill):
        fresh().fit(3, lr=1e-3, seed=1, callbacks=[Killer()])
    resumed = fresh().fit(3, resume=True, seed=1)
    for name, tensor in resumed.network.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)
    assert len(resumed.history.epochs) == 3


def test_whole_chips_are_evaluated_in_windows(tmp_path, one_thread):
    folder = miniatures.burn_scars(tmp_path / 'scars', train=2, valid=2, side=50)
    data = prepare_data(folder, chip_size=32, batch_size=2, transforms=False)
    torch.manual_seed(0)
    network = torch.nn.Conv2d(len(data.bands), data.c, 1)
    found = evaluate_pixels(_Filled(network), data.valid_dl, data.classes)
    labelled = sum(data.table.value_counts(data.split.valid)[info.value] for info in data.class_infos)
    assert int(found.confusion.counts.sum()) == labelled > 2 * 32**2
    whole = prepare_data(folder, chip_size=50, batch_size=2, transforms=False)
    expected = evaluate_pixels(_Filled(network), whole.valid_dl, whole.classes)
    assert torch.equal(found.confusion.counts, expected.confusion.counts)
    images = torch.rand(1, 1, 50, 70)
    seen = []
    mean = SlidingWindow(_Noted(seen), 32)(images)
    torch.testing.assert_close(mean, images)
    assert seen == [(32, 32)] * 6


def test_models_are_evaluated_on_every_pixel_of_chips_larger_than_their_images(tmp_path, write_export, one_thread):
    """Not on the middle of each alone, on which epochs are validated."""
    images = list(np.random.default_rng(0).integers(0, 255, (6, 3, 48, 48), dtype=np.uint8))
    halves = np.where(np.arange(48) < 24, 1, 2)[None].repeat(48, 0).astype(np.uint8)
    folder = write_export(tmp_path / 'halves', images, [halves] * 6)
    data = prepare_data(folder, chip_size=32, batch_size=2, val_split_pct=0.5, transforms=False)
    model = UNet(data, 'test_resnet', pretrained=False)
    assert int(model.confusion().counts.sum()) == 48 * 48 * len(data.valid_ds)
    assert len(model.evaluate().per_chip) == len(data.valid_ds)
    folder = write_export(tmp_path / 'heights', images, [image[0] / np.float32(9) for image in images], classes=())
    data = prepare_data(folder, chip_size=32, batch_size=2, val_split_pct=0.5, transforms=False)
    found = PixelRegressor(data, 'test_resnet', pretrained=False).evaluate()
    assert (len(found.truth), len(found.per_chip)) == (48 * 48 * len(data.valid_ds), len(data.valid_ds))


class _Filled(torch.nn.Module):
    """A network that takes missing pixels."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images.nan_to_num())


class _Noted(torch.nn.Module):
    """Returns its input, and notes its size."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, images):
        self.seen.append(tuple(images.shape[-2:]))
        return images

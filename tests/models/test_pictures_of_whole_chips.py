"""Pictures show whole chips, predicted in the windows in which they are scored, where chips are larger than these."""

import numpy as np
import pytest
import torch
from torch import nn

from geolearn import from_arrays
from geolearn.models import ChangeDetector, PixelRegressor, UNet
from geolearn.models.evaluation import pixels
from geolearn.models.evaluation.pixels import predict_chips

SIDE, WINDOW = 50, 32
pytestmark = pytest.mark.usefixtures('one_thread')


class Perfect(nn.Module):
    """Computes the truth from the pixels of one window; larger images are refused."""

    def __init__(self, truth, window=WINDOW):
        super().__init__()
        self.truth, self.window = truth, window

    def forward(self, images):
        assert images.shape[-2:] == (self.window, self.window)
        return self.truth(images)


def as_logits(found):
    return 20.0 * torch.stack([~found, found], 1)


def shapes_of(figure):
    return {shown.get_array().shape[:2] for ax in figure.axes for shown in ax.images}


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(1, 255, (6, 3, SIDE, SIDE), dtype=np.uint8)


def options(tmp_path):
    return {
        'chip_size': WINDOW, 'batch_size': 2, 'val_split_pct': 0.5, 'transforms': False, 'working_dir': tmp_path,
    }  # fmt: skip


def test_of_classes(images, tmp_path):
    data = from_arrays(images, 1 + (images[:, 0] > 99).astype(np.uint8), **options(tmp_path))
    model = UNet(data, 'test_resnet', pretrained=False)
    model.network = Perfect(lambda images: as_logits(images[:, 0] > 99))
    assert model.scores()['miou'] == 1
    for figure in (model.show_results(), model.show_results(worst_first=True), model.plot_hard_examples(2)):
        assert shapes_of(figure) == {(SIDE, SIDE)}
    chips = predict_chips(model.network, data.valid_dl, range(len(data.valid_ds)))
    assert torch.equal(chips.predictions, chips.masks)


def test_a_temperature_is_that_of_whole_chips(images, tmp_path):
    middle = slice((SIDE - WINDOW) // 2, (SIDE + WINDOW) // 2)
    images[:, 1] = 1
    images[:, 1, middle, middle] = 2
    data = from_arrays(images, 1 + (images[:, 0] > 99).astype(np.uint8), **options(tmp_path))
    model = UNet(data, 'test_resnet', pretrained=False)
    # half of the pixels outside of the middle are wrong
    model.network = Perfect(
        lambda images: as_logits((images[:, 0] > 99) ^ ((images[:, 1] == 1) & (images[:, 2] > 127)))
    )
    assert model.calibrate() > 5


def test_of_values(images, tmp_path):
    data = from_arrays(images, images[:, 0] / np.float32(9), **options(tmp_path))
    model = PixelRegressor(data, 'test_resnet', pretrained=False)
    model.network = Perfect(lambda images: images[:, :1] / 9)
    assert model.scores()['rmse'] == pytest.approx(0, abs=1e-4)
    assert shapes_of(model.show_results(worst_first=True)) >= {(SIDE, SIDE)}
    assert (WINDOW, WINDOW) not in shapes_of(model.show_results())


def test_of_changes(pairs_folder, prepare):
    data = prepare(pairs_folder, chip_size=16)
    model = ChangeDetector(data, 'test_resnet', pretrained=False)
    model.network = Perfect(lambda images: as_logits(images[:, 1, 0] > 700), 16)
    assert model.scores()['miou'] == 1
    assert shapes_of(model.show_results()) == shapes_of(model.plot_hard_examples(2)) == {(32, 32)}


def test_reports_draw_the_worst_chips_whole(images, tmp_path, monkeypatch):
    data = from_arrays(images, 1 + (images[:, 0] > 99).astype(np.uint8), **options(tmp_path))
    model = UNet(data, 'test_resnet', pretrained=False)
    model.network.forward = Perfect(lambda images: as_logits(images[:, 0] > 99)).forward
    drawn, draw = [], pixels.draw_chips
    monkeypatch.setattr(
        pixels, 'draw_chips', lambda *given, **options: drawn.append(draw(*given, **options)) or drawn[-1]
    )
    model.report_contents()
    assert drawn
    assert all(shapes_of(figure) == {(SIDE, SIDE)} for figure in drawn)

"""A network that returns NaN is told of with the chip's name: metrics would take NaN for some class."""

import numpy as np
import pytest
import torch

from geolearn.errors import TrainingError
from geolearn.models import FCN, FCOS, PixelRegressor
from geolearn.prepare import prepare_data

pytestmark = pytest.mark.usefixtures('one_thread')


def spoil(model, row, value=torch.nan):
    """Let the network return NaN for one chip of the second batch of validation chips."""
    calls = []

    def hook(module, given, output):
        if not module.training:
            calls.append(0)
            if len(calls) == 2:
                output = output.clone()
                output[row, 0, 3, 3] = value
        return output

    return model.network.register_forward_hook(hook)


@pytest.fixture
def few(scene_chips, tmp_path):
    options = {'chip_size': 32, 'batch_size': 2, 'val_split_pct': 0.25, 'ignore_classes': [0], 'working_dir': tmp_path}
    return prepare_data(scene_chips, **options)


@pytest.mark.parametrize(('value', 'text'), [(torch.nan, 'NaN'), (torch.inf, 'infinite values')])
def test_evaluation_calibration_and_training_name_the_chip(few, value, text):
    model = FCN(few, 'test_resnet', pretrained=False)
    name = few.valid_ds.names[3]
    for use in (model.evaluate, model.calibrate, lambda: model.fit(1, 1e-3, checkpoint=False)):
        hook = spoil(model, 1, value)
        with pytest.raises(TrainingError, match=f'the network returns {text} for chip {name}. Its weights are broken'):
            use()
        hook.remove()
    model.fit(1, 1e-3, checkpoint=False)
    assert 0 <= model.evaluate().metrics['miou'] <= 1


def test_a_single_prediction_too(few):
    model = FCN(few, 'test_resnet', pretrained=False)
    model.fit(1, 1e-3, checkpoint=False)
    model.evaluate()
    for parameter in list(model.network.parameters())[-1:]:
        parameter.data.fill_(torch.nan)
    with pytest.raises(TrainingError, match='the network returns NaN for chip '):
        model.show_results()


def test_detectors_do_not_leave_it_out_without_a_word(square_chips, tmp_path):
    data = prepare_data(square_chips(), batch_size=4, chip_size=64, working_dir=tmp_path)
    model = FCOS(data, 'test_resnet', pretrained=False)
    first = next(iter(model.network.levels.parameters()))
    first.data[0] = torch.nan
    with pytest.raises(TrainingError, match='weights of the network are NaN or infinite, the first levels'):
        model.evaluate()
    first.data.nan_to_num_()
    hook = model.network.levels.register_forward_hook(lambda m, g, o: [level * torch.nan for level in o])
    with pytest.raises(TrainingError, match=f'the network returns NaN for chips? {data.valid_ds.names[0]}'):
        model.evaluate()
    hook.remove()


def test_regression_too(tmp_path, write_export):
    rng = np.random.default_rng(0)
    images = [rng.integers(1, 255, (3, 32, 32)).astype(np.uint8) for _ in range(8)]
    labels = [image[0].astype(np.float32) / 10 for image in images]
    folder = write_export(tmp_path / 'heights', images, labels, classes=())
    model = PixelRegressor(
        prepare_data(folder, chip_size=32, batch_size=2, val_split_pct=0.5), 'test_resnet', pretrained=False
    )
    hook = spoil(model, 1)
    with pytest.raises(TrainingError, match=f'the network returns NaN for chip {model.data.valid_ds.names[3]}'):
        model.evaluate()
    hook.remove()

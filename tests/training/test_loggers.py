"""Numbers go to TensorBoard, MLflow and Weights & Biases where these are installed."""

import sys
import types

import pytest
from training_tools import build, fit

from geolearn.errors import MissingExtraError
from geolearn.training import mlflow_logger, tensorboard_logger, wandb_logger

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.mark.parametrize(
    ('library', 'make'),
    [
        ('tensorboard', lambda: tensorboard_logger('log')),
        ('mlflow', mlflow_logger),
        ('wandb', lambda: wandb_logger('land')),
    ],
)
def test_without_the_library_there_is_an_install_line(library, make, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    message = rf"{library} is needed to .*; install it with: pip install '{library}>="
    with pytest.raises(MissingExtraError, match=message):
        make()


def test_mlflow_gets_parameters_and_a_row_for_each_epoch(monkeypatch):
    logged = []
    fake = types.SimpleNamespace(
        log_params=lambda values: logged.append(values), log_metrics=lambda row, step: logged.append((row, step))
    )
    monkeypatch.setitem(sys.modules, 'mlflow', fake)
    learner, history = build()
    fit(learner, history, callbacks=(mlflow_logger({'backbone': 'resnet18'}),))
    assert logged[0] == {'backbone': 'resnet18'}
    assert [step for _, step in logged[1:]] == [1, 2]
    assert logged[2][0] == {name: history.epochs[1][name] for name in ('train_loss', 'valid_loss', 'accuracy')}


def test_fastais_tensorboard_callback_finds_what_it_needs(tmp_path, monkeypatch):
    scalars = {}

    class Writer:
        def __init__(self, log_dir):
            scalars['folder'] = log_dir

        def add_scalar(self, name, value, step):
            scalars.setdefault(name, []).append((step, float(value)))

        def close(self):
            scalars['closed'] = True

    monkeypatch.setitem(sys.modules, 'tensorboard', types.ModuleType('tensorboard'))
    writer = types.ModuleType('torch.utils.tensorboard')
    writer.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', writer)
    monkeypatch.delitem(sys.modules, 'fastai.callback.tensorboard', raising=False)
    learner, history = build()
    fit(learner, history, callbacks=(tensorboard_logger(tmp_path / 'log'),))
    sys.modules.pop('fastai.callback.tensorboard')
    assert scalars['folder'] == str(tmp_path / 'log')
    assert scalars['closed']
    assert [value for _, value in scalars['valid_loss']] == pytest.approx([r['valid_loss'] for r in history.epochs])
    assert [value for _, value in scalars['accuracy']] == pytest.approx([r['accuracy'] for r in history.epochs])
    assert len(scalars['lr_1']) >= 6


def test_wandb_gets_a_row_for_each_epoch_in_a_run_of_the_project(monkeypatch):
    logged, begun = [], []
    wandb = types.SimpleNamespace(run=None, log=logged.append, init=lambda project: begun.append(project))
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    learner, history = build()
    fit(learner, history, callbacks=(wandb_logger('land'),))
    assert begun == ['land']
    assert [row['accuracy'] for row in logged] == [row['accuracy'] for row in history.epochs]
    assert [row['epoch'] for row in logged] == [1, 2]
    wandb.run = object()
    wandb_logger('land')
    assert begun == ['land']

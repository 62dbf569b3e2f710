"""Several classes of models on one data set under one budget: the worst end early, the best comes back."""

import math
import os
import shutil
import time

import pytest
import torch

from geolearn import compare
from geolearn.chips.label import Task
from geolearn.errors import ArgumentError, CheckpointError, ChipFolderError, TrainingError, UnknownNameError
from geolearn.models import UNet, load_model
from geolearn.models.compare import choose_classes, plan_rounds
from geolearn.prepare import prepare_data

pytestmark = pytest.mark.usefixtures('one_thread')

SMALL = {'backbones': ['test_resnet'], 'pretrained': False, 'lr': 2e-3}


@pytest.mark.parametrize(
    ('candidates', 'epochs', 'rounds'),
    [
        (1, 5, [(1, 5)]),
        (4, 8, [(4, 2), (2, 4), (1, 8)]),
        (8, 16, [(8, 2), (4, 4), (2, 8), (1, 16)]),
        (5, 1, [(5, 1)]),
        (8, 2, [(8, 1), (1, 2)]),
    ],
)
def test_rounds_halve_the_candidates_and_double_the_epochs(candidates, epochs, rounds):
    assert plan_rounds(candidates, epochs) == rounds


def test_the_worst_ends_early_and_the_best_model_comes_back(scene_data):
    found = compare(scene_data, ['FCN', 'UNet', 'PixelHead'], epochs=4, **SMALL)
    table = found.table
    assert found.metric.name == 'miou'
    assert list(table['miou']) == sorted(table['miou'], reverse=True)
    assert type(found.model).__name__ == table['model'][0]
    assert found.model.scores()['miou'] == pytest.approx(table['miou'][0], abs=1e-6)
    assert set(table['status']) == {'trained', 'stopped early'}
    assert table['epochs'].max() == 4
    assert table[table['status'] == 'stopped early']['epochs'].max() < 4
    assert 'miou' in repr(found)
    assert '<table' in found._repr_html_()
    # what is finished is not trained again
    again = compare(scene_data, ['FCN', 'UNet', 'PixelHead'], epochs=4, resume=True, **SMALL)
    assert again.table.equals(table)


def test_an_interrupted_comparison_continues_where_it_was(scene_data, monkeypatch):
    fit, calls = UNet.fit, []

    def stopped(self, *args, **given):
        calls.append(type(self).__name__)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(self, *args, **given)

    monkeypatch.setattr('geolearn.models.base.Model.fit', stopped)
    with pytest.raises(KeyboardInterrupt):
        compare(scene_data, ['FCN', 'UNet'], epochs=2, **SMALL)
    assert calls == ['FCN', 'UNet']
    found = compare(scene_data, ['FCN', 'UNet'], epochs=2, resume=True, **SMALL)
    # the first round of FCN is not repeated: UNet's (no epoch of which is to be resumed), and then the better one's
    assert calls[2:] == ['UNet', 'UNet', found.table['model'][0]]
    assert list(found.table['epochs']) == [2, 1]
    with pytest.raises(CheckpointError, match='without resume'):
        compare(scene_data, ['FCN', 'UNet'], epochs=3, resume=True, **SMALL)


def test_corrected_labels_are_another_comparison(scene_chips, tmp_path, monkeypatch):
    def failing(self, *args, **given):
        raise TrainingError('the loss is NaN')

    monkeypatch.setattr('geolearn.models.base.Model.fit', failing)
    chips = shutil.copytree(scene_chips, tmp_path / 'chips')
    reading = {'chip_size': 32, 'batch_size': 4, 'val_split_pct': 0.25, 'ignore_classes': [0], 'working_dir': tmp_path}
    for resume in (False, True):
        with pytest.raises(TrainingError, match='none of 1 candidates'):
            compare(prepare_data(chips, **reading), ['FCN'], epochs=1, resume=resume, **SMALL)
    os.utime(next((chips / 'labels').glob('*.tif')), (1, 1))
    with pytest.raises(CheckpointError, match='without resume'):
        compare(prepare_data(chips, **reading), ['FCN'], epochs=1, resume=True, **SMALL)


def test_a_candidate_that_fails_late_takes_no_place_of_others(scene_data, monkeypatch):
    fit, calls = UNet.fit, []

    def failing(self, *args, **given):
        name = type(self).__name__
        calls.append(name)
        if calls.count(name) == 2 and len(set(calls)) == 3 and len(calls) == 4:
            raise TrainingError('the loss is NaN')
        return fit(self, *args, **given)

    monkeypatch.setattr('geolearn.models.base.Model.fit', failing)
    table = compare(scene_data, ['FCN', 'UNet', 'DeepLab'], epochs=4, **SMALL).table
    assert sorted(table['status']) == ['failed', 'stopped early', 'trained']
    assert table.set_index('status').epochs.to_dict() == {'failed': 1, 'stopped early': 1, 'trained': 4}


class Clock:
    """Each look at it takes a second."""

    seconds = 0

    def monotonic(self):
        self.seconds += 1
        return self.seconds


def test_time_that_is_over_ends_the_comparison(scene_data, monkeypatch):
    clock = Clock()
    monkeypatch.setattr('geolearn.models.compare.time', clock)
    monkeypatch.setattr('geolearn.training.deadline.time', clock)
    with pytest.raises(TrainingError, match='longer time_limit'):
        compare(scene_data, ['FCN'], epochs=500, time_limit=0.01, **SMALL)
    # three batches and the end of an epoch are four seconds
    found = compare(scene_data, ['FCN'], epochs=500, time_limit=0.5, **SMALL)
    assert 4 <= found.table['epochs'][0] <= 7
    with pytest.raises(TrainingError, match='no time was left'):
        compare(scene_data, ['FCN'], epochs=400, time_limit=0.12, **SMALL)


def test_an_epoch_that_would_not_end_in_time_is_not_begun():
    from geolearn.training import fastai
    from geolearn.training.deadline import Deadline

    deadline = Deadline(end=time.monotonic() + 100, last=time.monotonic() + 0.05)
    deadline.before_epoch()
    time.sleep(0.03)
    with pytest.raises(fastai.CancelFitException):
        deadline.after_epoch()


def test_a_candidate_that_cannot_be_built_is_noted_and_the_others_are_trained(scene_data):
    given = SMALL | {'backbones': ['no_such_backbone', 'test_resnet']}
    found = compare(scene_data, ['FCN'], epochs=1, **given)
    assert list(found.table['status']) == ['trained', 'failed']
    assert 'no_such_backbone' in found.table['note'][1]
    assert math.isnan(found.table['miou'][1])


def test_what_cannot_be_compared_is_refused_at_once(scene_data):
    with pytest.raises(UnknownNameError, match="did you mean 'UNet'"):
        compare(scene_data, ['UNett'], **SMALL)
    with pytest.raises(ChipFolderError, match='FasterRCNN needs boxes'):
        compare(scene_data, ['UNet', 'FasterRCNN'], **SMALL)
    with pytest.raises(ArgumentError, match="'dice'"):
        compare(scene_data, ['UNet'], options={'dice': 1}, **SMALL)
    with pytest.raises(ValueError, match='twice'):
        compare(scene_data, ['UNet'], **(SMALL | {'backbones': ['test_resnet', 'test_resnet']}))
    with pytest.raises(ValueError, match='time_limit'):
        compare(scene_data, ['UNet'], time_limit=0.0, **SMALL)
    with pytest.raises(ValueError, match='epochs'):
        compare(scene_data, ['UNet'], epochs=0, **SMALL)
    assert 'UNet' in [cls.__name__ for cls in choose_classes(scene_data, None)]
    assert all(Task.PIXELS in cls.tasks for cls in choose_classes(scene_data, None))


def test_the_command_line_compares(scene_chips, tmp_path, capsys):
    from geolearn.cli import main

    torch.manual_seed(0)
    words = [scene_chips, tmp_path / 'best.dlpk', '--models', 'FCN', 'LinearProbe', '--backbones', 'test_resnet']
    words += ['--from-scratch', '--chip-size', 32, '--batch-size', 4, '--epochs', 2, '--lr', 1e-3]
    main(['compare', *map(str, words), '--valid', '0.25', '--table', str(tmp_path / 'table.csv')])
    assert 'stopped early' in capsys.readouterr().out
    assert (tmp_path / 'table.csv').read_text().startswith('model,backbone,status')
    assert load_model(tmp_path / 'best.dlpk').spec.backbone == 'test_resnet'

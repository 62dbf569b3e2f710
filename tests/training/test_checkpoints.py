"""A training that was killed continues as if it had not been."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from training_tools import Batches, assert_equal, build, fit, make_network, state

from geolearn.errors import CheckpointError
from geolearn.history import History
from geolearn.training import Callback, FitOptions, read_rate, train
from geolearn.training import checkpoints as _snapshots
from geolearn.training import learner as _making

pytestmark = pytest.mark.usefixtures('one_thread')

EVERYTHING = {
    'epochs': 4,
    'checkpoint': True,
    'ema': True,
    'accumulate': 2,
    'early_stopping': True,
    'seed': 3,
    'monitor': 'accuracy',
}


class StopsAt(Callback):
    """Ctrl-C in some batch."""

    def __init__(self, epoch, batch):
        self.place = epoch, batch

    def before_batch(self):
        if self.learn.training and (self.learn.epoch, self.learn.iter) == self.place:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    'options', [{}, EVERYTHING, {'one_cycle': False, 'learning_rate': [1e-3, 1e-2], 'mixed_precision': 'bf16'}], ids=str
)
@pytest.mark.parametrize('channels_last', [False, True])
def test_a_resumed_training_ends_as_the_unbroken_one(tmp_path, monkeypatch, options, channels_last):
    monkeypatch.setattr(_making, 'prefers_channels_last', lambda device: channels_last)
    options = {'epochs': 4, 'checkpoint': True} | options
    learner, history = build(make_network(dropout=0.3))
    torch.manual_seed(0)
    wanted = fit(learner, history, folder=tmp_path / 'whole', **options)
    broken, broken_history = build(make_network(dropout=0.3))
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, broken_history, folder=tmp_path / 'broken', callbacks=(StopsAt(2, 1),), **options)
    again, again_history = build(make_network(dropout=0.3, seed=99))
    torch.manual_seed(77)
    found = fit(again, again_history, folder=tmp_path / 'broken', resume=True, **options)
    assert_equal(found, wanted)
    assert again_history.batch_losses == history.batch_losses
    assert [row | {'seconds': 0} for row in again_history.epochs] == [row | {'seconds': 0} for row in history.epochs]


SCRIPT = """
import sys
from pathlib import Path
import torch
from training_tools import Batches, build, fit, make_network
from geolearn.training import Callback

class Announces(Callback):
    order = 99
    def before_batch(self):
        if self.learn.training:
            print(self.learn.epoch, self.learn.iter, flush=True)

torch.set_num_threads(1)
learner, history = build(make_network(dropout=0.3), train_dl=Batches(40))
fit(learner, history, folder=Path(sys.argv[1]), epochs=5, checkpoint=True, seed=1, callbacks=(Announces(),))
"""


def test_a_killed_process_is_gone_on_with(tmp_path):
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    process = subprocess.Popen(
        [sys.executable, '-c', SCRIPT, str(tmp_path / 'killed')], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        for line in process.stdout:
            if line.split() == ['3', '4']:
                process.send_signal(signal.SIGKILL)
                break
        process.wait(20)
    finally:
        process.kill()
        process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    options = {'epochs': 5, 'checkpoint': True, 'seed': 1}
    learner, history = build(make_network(dropout=0.3), train_dl=Batches(40))
    wanted = fit(learner, history, folder=tmp_path / 'whole', **options)
    again, again_history = build(make_network(dropout=0.3, seed=5), train_dl=Batches(40))
    found = fit(again, again_history, folder=tmp_path / 'killed', resume=True, **options)
    assert_equal(found, wanted, atol=1e-6, rtol=0)
    assert again_history.batch_losses == pytest.approx(history.batch_losses, abs=1e-6)
    assert [row['epoch'] for row in again_history.epochs] == [1, 2, 3, 4, 5]


def test_a_checkpoint_of_the_first_format_is_resumed(tmp_path, monkeypatch):
    # written by the version before this format, two epochs into four; dropout draws in the order of memory
    monkeypatch.setattr(_making, 'prefers_channels_last', lambda device: False)
    shutil.copytree(Path(__file__).parent / 'old', tmp_path / 'old')
    options = {'epochs': 4, 'checkpoint': True, 'ema': True, 'seed': 3}
    learner, history = build(make_network(dropout=0.3))
    torch.manual_seed(0)
    wanted = fit(learner, history, folder=tmp_path / 'whole', **options)
    again, again_history = build(make_network(dropout=0.3, seed=99))
    found = fit(again, again_history, folder=tmp_path / 'old', resume=True, **options)
    for tensors in (found, wanted):
        del tensors['0.bias'], tensors['1.running_mean']  # a bias before a norm learns rounding errors alone
    assert_equal(found, wanted, atol=1e-6, rtol=1e-5)
    assert again_history.batch_losses == pytest.approx(history.batch_losses, abs=1e-6)
    assert [row['epoch'] for row in again_history.epochs] == [1, 2, 3, 4]


def test_a_training_that_had_ended_stays_as_it_is(tmp_path):
    options = {'folder': tmp_path, 'epochs': 3, 'checkpoint': True}
    learner, history = build()
    wanted = fit(learner, history, **options)
    again, again_history = build(make_network(seed=4))
    assert_equal(fit(again, again_history, resume=True, **options), wanted)
    assert len(again_history.epochs) == 3


def test_one_that_had_stopped_early_does_not_start_again(tmp_path):
    options = {'folder': tmp_path, 'epochs': 9, 'checkpoint': True, 'early_stopping': True, 'patience': 1}
    options |= {'min_delta': 100.0}
    learner, history = build()
    wanted = fit(learner, history, **options)
    assert len(history.epochs) == 2
    again, again_history = build(make_network(seed=4))
    assert_equal(fit(again, again_history, resume=True, **options), wanted)
    assert len(again_history.epochs) == 2


def test_without_a_rate_the_checkpoint_says_it(tmp_path):
    for rate in (1e-3, slice(1e-4, 1e-3), [1e-4, 2e-3]):
        learner, history = build()
        fit(learner, history, folder=tmp_path, checkpoint=True, learning_rate=rate)
        assert read_rate(tmp_path) == rate
        fit(build()[0], History(), folder=tmp_path, checkpoint=True, learning_rate=None, resume=True)


def test_there_is_no_code_in_a_checkpoint_and_best_holds_the_weights(tmp_path):
    learner, history = build()
    after = fit(learner, history, folder=tmp_path, checkpoint='all', epochs=3, ema=True)
    files = sorted(path.name for path in (tmp_path / 'checkpoints').iterdir())
    assert files == ['best.safetensors', *(f'epoch-000{n}.safetensors' for n in (1, 2, 3)), 'last.safetensors']
    best = load_file(tmp_path / 'checkpoints' / 'best.safetensors')
    assert_equal({name.removeprefix('network/'): tensor for name, tensor in best.items()}, after)
    with safe_open(tmp_path / 'checkpoints' / 'last.safetensors', framework='pt') as file:
        facts = json.loads(file.metadata()['geolearn'])
        assert {name.split('/')[0] for name in file.keys()} == {  # noqa: SIM118
            'network', 'optimizer', 'mean', 'random', 'history', 'recorder',
        }  # fmt: skip
    assert facts['epoch'] == 3
    assert facts['history']['epochs'] == history.epochs


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'epochs': 5}, r'what differs: epochs \(then 3, now 5\). Resume with what it was started with'),
        (
            {'learning_rate': 1e-4, 'clip': None},
            r'learning_rate \(then 0.01, now 0.0001\), clip \(then 1.0, now None\)',
        ),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, changed, message):
    options = {'folder': tmp_path, 'epochs': 3, 'checkpoint': True}
    fit(*build(), **options)
    with pytest.raises(CheckpointError, match=message):
        fit(*build(), **(options | changed), resume=True)


def test_a_checkpoint_of_another_network_or_data_is_refused(tmp_path):
    options = {'folder': tmp_path, 'epochs': 3, 'checkpoint': True}
    fit(*build(), **options)
    with pytest.raises(CheckpointError, match='the checkpoint is of another training; what differs: network'):
        fit(*build(make_network(norm=False)), **options, resume=True)
    with pytest.raises(CheckpointError, match=r'what differs: batches per epoch \(then 3, now 4\)'):
        fit(*build(train_dl=Batches(16)), **options, resume=True)


def test_no_checkpoint_or_a_broken_one_is_said(tmp_path):
    options = {'epochs': 3, 'checkpoint': True, 'resume': True}
    with pytest.raises(CheckpointError, match='there is no checkpoint .*last.safetensors to resume; call fit'):
        fit(*build(), folder=tmp_path, **options)
    with pytest.raises(CheckpointError, match='there is no folder to resume from'):
        fit(*build(), **options)
    path = tmp_path / 'checkpoints' / 'last.safetensors'
    path.parent.mkdir()
    for content in (b'', b'junk' * 100):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match='last.safetensors is not a checkpoint of geolearn, or broken'):
            fit(*build(), folder=tmp_path, **options)
    _snapshots.write_snapshot(path, {}, {})
    content = path.read_bytes().replace(b'\\"format\\": 2', b'\\"format\\": 7')
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='has format 7 and this geolearn reads 1 to 2; train anew'):
        fit(*build(), folder=tmp_path, **options)


def test_a_full_disk_keeps_the_last_whole_checkpoint(tmp_path, monkeypatch):
    written = []
    save = _snapshots.save_file

    def full(tensors, path, metadata):
        written.append(path)
        save(tensors, path, metadata=metadata)
        if len(written) > 4:
            os.truncate(path, 100)
            raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(_snapshots, 'save_file', full)
    learner, history = build()
    with pytest.raises(CheckpointError, match='cannot be written .*No space left.*the one before it is whole'):
        fit(learner, history, folder=tmp_path, epochs=4, checkpoint=True, learning_rate=1e-3)
    assert not list(tmp_path.rglob('*.part'))
    monkeypatch.undo()
    again, again_history = build()
    fit(again, again_history, folder=tmp_path, epochs=4, checkpoint=True, learning_rate=1e-3, resume=True)
    assert len(again_history.epochs) == 4


def test_a_folder_that_cannot_be_is_said(tmp_path):
    (tmp_path / 'checkpoints').write_text('a file')
    with pytest.raises(CheckpointError, match=r'cannot be written .*there is none before it. Make room in'):
        fit(*build(), folder=tmp_path, checkpoint=True)


def test_tied_weights_are_kept(tmp_path):
    learner, history = build()
    learner.model[0].register_buffer('twin', learner.model[0].weight.detach())
    after = fit(learner, history, folder=tmp_path, checkpoint=True, one_cycle=False)
    assert torch.equal(after['0.twin'], after['0.weight'])


def test_writing_is_quick_beside_training(tmp_path):
    learner, history = build()
    start = time.perf_counter()
    train(learner, history, FitOptions(10, 1e-3, checkpoint=True, verbose=False), folder=tmp_path)
    assert time.perf_counter() - start < 10
    assert_equal(state(learner.model), state(learner.model))

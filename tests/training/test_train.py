"""What a training does to a network, step by step."""

import io
import math
import os
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from training_tools import Batches, PixelLoss, assert_equal, build, fit, make_network, split_in_two, state

from geolearn import precision, training
from geolearn.errors import UnknownNameError
from geolearn.training import Callback, FitOptions

pytestmark = pytest.mark.usefixtures('one_thread')


def bare_loop(network, *, epochs, rate, clip=1.0, weight_decay=0.01, batches=None):
    """The same training in plain PyTorch."""
    batches = batches or Batches()
    weights = [p for n, p in network.named_parameters() if n.endswith('weight') and p.dim() > 1]
    others = [p for n, p in network.named_parameters() if not (n.endswith('weight') and p.dim() > 1)]
    groups = [{'params': weights, 'weight_decay': weight_decay}, {'params': others, 'weight_decay': 0}]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), eps=1e-5)
    for _ in range(epochs):
        network.train()
        for images, masks in batches:
            optimiser.zero_grad()
            functional.cross_entropy(network(images), masks, ignore_index=255).backward()
            nn.utils.clip_grad_norm_(network.parameters(), clip)
            optimiser.step()
    return state(network)


def test_a_constant_rate_is_a_bare_loop_of_pytorch():
    learner, history = build(make_network(norm=False))
    found = fit(learner, history, epochs=3, one_cycle=False)
    assert_equal(found, bare_loop(make_network(norm=False), epochs=3, rate=1e-2), atol=1e-7, rtol=1e-6)


def test_a_row_for_every_epoch_and_a_loss_for_every_batch():
    learner, history = build()
    fit(learner, history, epochs=3)
    columns = ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'learning_rate', 'seconds']
    assert [list(row) for row in history.epochs] == [columns] * 3
    assert [row['epoch'] for row in history.epochs] == [1, 2, 3]
    assert len(history.batch_losses) == 9
    assert history.batch_losses[2] == pytest.approx(history.epochs[0]['train_loss'])
    assert 0 < history.epochs[2]['learning_rate'] < history.epochs[1]['learning_rate'] < 1e-2
    assert all(isinstance(value, float | int) for row in history.epochs for value in row.values())


def test_validation_is_over_what_counts_not_over_batches():
    valid = Batches(6, shuffle=False, seed=9)
    valid.masks[:4, 1:] = 255
    learner, history = build(valid_dl=valid)
    fit(learner, history, epochs=1)
    with torch.no_grad():
        logits = learner.model.eval()(valid.images)
    assert history.epochs[0]['valid_loss'] == pytest.approx(float(PixelLoss()(logits, valid.masks)), rel=1e-5)


def test_a_second_fit_goes_on_with_the_table():
    learner, history = build()
    fit(learner, history, epochs=1)
    fit(learner, history, epochs=2)
    assert [row['epoch'] for row in history.epochs] == [1, 2, 3]
    assert len(history.batch_losses) == 9


@pytest.mark.parametrize('sizes', [(12, 4, 3), (10, 4, 3), (12, 3, 2)])
def test_accumulated_batches_make_the_step_of_one_large_batch(sizes):
    count, batch_size, accumulate = sizes
    ends = []
    for size, times in ((batch_size, accumulate), (batch_size * accumulate, 1)):
        batches = Batches(count, size)
        batches.masks[: count // 2, 2:] = 255  # so that chips count differently
        learner, history = build(make_network(norm=False), train_dl=batches)
        ends.append((fit(learner, history, epochs=3, one_cycle=False, accumulate=times), history.epochs[-1]))
    assert_equal(ends[0][0], ends[1][0], atol=1e-5, rtol=1e-4)


def test_gradients_are_clipped():
    ends = []
    for clip in (None, 1e-8):
        learner, history = build()
        before = state(learner.model)
        # the second moment forgets nothing, but the step of AdamW is as long for short gradients, but for epsilon
        after = fit(learner, history, epochs=1, clip=clip, weight_decay=0.0)
        ends.append(max(float((after[n] - before[n]).abs().max()) for n, _ in learner.model.named_parameters()))
    assert ends[1] < ends[0] / 100


def test_groups_learn_at_their_own_rates():
    learner, history = build()
    fit(learner, history, epochs=1, learning_rate=[1e-4, 1e-3], one_cycle=False)
    assert [h['lr'] for h in learner.opt.hypers] == [1e-4, 1e-3]
    fit(learner, history, epochs=1, learning_rate=slice(1e-5, 1e-3), one_cycle=False)
    assert [h['lr'] for h in learner.opt.hypers] == pytest.approx([1e-5, 1e-3])


def test_what_is_frozen_stays():
    learner, history = build()
    learner.freeze()
    before = state(learner.model)
    after = fit(learner, history, weight_decay=0.5)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {'4.weight', '4.bias'}


def test_bfloat16_trains_and_leaves_the_weights_in_float32():
    learner, history = build()
    seen = []
    learner.model[0].register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    after = fit(learner, history, mixed_precision='bf16', epochs=3)
    assert set(seen) == {torch.bfloat16}
    assert {tensor.dtype for tensor in after.values()} == {torch.float32, torch.int64}
    assert history.epochs[-1]['train_loss'] < history.batch_losses[0]
    fit(learner, history, epochs=1)
    assert seen[-1] == torch.float32


def test_slow_bfloat16_is_told_of_and_measured_once(capsys, monkeypatch):
    assert 0.01 < precision.bfloat16_slowdown() == precision.bfloat16_slowdown()
    for slowdown, told in ((16.0, True), (0.6, False)):
        monkeypatch.setattr(precision, 'bfloat16_slowdown', lambda slowdown=slowdown: slowdown)
        learner, history = build()
        fit(learner, history, mixed_precision='bf16', epochs=1)
        text = "mixed_precision='bf16' is 16 times as slow as float32 on this CPU"
        assert (text in capsys.readouterr().out) is told


def test_the_numbers_of_numpy_are_taken(tmp_path):
    learner, history = build()
    fit(learner, history, epochs=np.int64(1), seed=np.int64(3), folder=tmp_path, checkpoint=True)
    assert len(history.epochs) == 1


class FloatingTable(nn.Module):
    """Holds a table that is not saved, as Prithvi's positions are, and a tied weight."""

    def __init__(self):
        super().__init__()
        self.inner = make_network()
        self.twin = self.inner[4]
        self.register_buffer('table', torch.ones(()), persistent=False)

    def forward(self, images):
        return self.inner(images) * self.table


@pytest.mark.parametrize('checkpoint', [False, True])
def test_the_mean_is_of_what_is_saved_and_nothing_else(tmp_path, checkpoint):
    learner, history = build(FloatingTable(), splitter=lambda network: [list(network.parameters())])
    after = fit(learner, history, epochs=3, ema=0.5, checkpoint=checkpoint, folder=tmp_path)
    assert float(learner.model.table) == 1
    assert torch.equal(after['twin.weight'], after['inner.4.weight'])
    valid = learner.dls.valid
    with torch.no_grad():
        loss = float(PixelLoss()(learner.model.eval()(valid.images), valid.masks))
    losses = [row['valid_loss'] for row in history.epochs]
    assert loss == pytest.approx(min(losses) if checkpoint else losses[-1], rel=1e-5)
    if checkpoint:
        again, again_history = build(FloatingTable(), splitter=lambda network: [list(network.parameters())])
        fit(again, again_history, epochs=3, ema=0.5, checkpoint=True, folder=tmp_path, resume=True)


def test_float16_on_a_cpu_is_refused_and_true_is_told(capsys):
    learner, history = build()
    with pytest.raises(ValueError, match="mixed_precision='fp16' needs a CUDA device and this is 'cpu'; pass mixed"):
        fit(learner, history, mixed_precision='fp16')
    fit(learner, history, mixed_precision=True, epochs=1)
    assert "mixed precision is for GPUs and this is 'cpu': computing in float32" in capsys.readouterr().out


def test_the_mean_of_the_weights_is_validated_and_kept():
    learner, history = build(make_network(norm=False))
    reference = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    steps = []

    class Follow(Callback):
        def after_step(self):
            steps.append(0)
            decay = min(0.5, (1 + len(steps)) / (10 + len(steps)))
            for name, parameter in self.learn.model.named_parameters():
                reference[name].lerp_(parameter.detach(), 1 - decay)

    after = fit(learner, history, ema=0.5, callbacks=(Follow(),))
    assert len(steps) == 6
    assert_equal(after, reference, atol=1e-6, rtol=1e-5)
    valid = learner.dls.valid
    with torch.no_grad():
        loss = float(PixelLoss()(learner.model.eval()(valid.images), valid.masks))
    assert history.epochs[-1]['valid_loss'] == pytest.approx(loss, rel=1e-5)


def test_early_stopping_and_the_best_weights(tmp_path, capsys):
    learner, history = build()
    kept = []

    class Spoil(Callback):
        order = 20

        def before_epoch(self):
            if self.learn.epoch >= 2:
                for parameter in self.learn.model.parameters():
                    parameter.data.mul_(5)

        def after_epoch(self):
            kept.append(state(self.learn.model))

    after = fit(
        learner,
        history,
        epochs=20,
        folder=tmp_path,
        checkpoint=True,
        early_stopping=True,
        patience=3,
        monitor='accuracy',
        callbacks=(Spoil(),),
    )
    values = [row['accuracy'] for row in history.epochs]
    best = values.index(max(values))
    assert len(values) < 20
    assert_equal(after, kept[best])
    told = capsys.readouterr().out
    assert 'stopped: accuracy has not got better by 0.001 for 3 epochs' in told
    assert f'the weights are those of epoch {best + 1}, whose accuracy {max(values):.4f} was best' in told


def test_an_unknown_monitor_is_refused_with_those_there_are():
    learner, history = build()
    with pytest.raises(UnknownNameError, match="unknown monitor 'f1'; known: accuracy, train_loss, valid_loss"):
        fit(learner, history, monitor='f1')
    assert history.epochs == []
    fit(learner, history, monitor='valid_accuracy', epochs=1)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'epochs': 0}, 'epochs must be a whole number from 1, got 0'),
        ({'epochs': '3'}, "epochs must be a whole number from 1, got '3'"),
        ({'epochs': 2.5}, 'epochs must be a whole number from 1, got 2.5'),
        ({'epochs': None}, 'epochs must be a whole number from 1, got None'),
        ({'accumulate': '2'}, "accumulate must be a whole number from 1, got '2'"),
        ({'one_cycle': 'no'}, "one_cycle must be True or False, got 'no'"),
        ({'early_stopping': 5}, 'early_stopping must be True or False, got 5'),
        ({'deterministic': None}, 'deterministic must be True or False, got None'),
        ({'monitor': 3}, "monitor must be the name of a column such as 'valid_loss', got 3"),
        ({'seed': 'a'}, "seed must be a whole number, or None, got 'a'"),
        ({'seed': 1.5}, 'seed must be a whole number, or None, got 1.5'),
        ({'ema': 'yes'}, "ema must be True, False or a number between 0 and 1, got 'yes'"),
        ({'weight_decay': '0'}, "weight_decay must be a number from 0, got '0'"),
        ({'mixed_precision': ['bf16']}, r"mixed_precision must be 'bf16', 'fp16', a bool or None, got \['bf16'\]"),
        ({'checkpoint': 2}, "checkpoint must be True, False or 'all', got 2"),
        ({'accumulate': 1.5}, 'accumulate must be a whole number from 1'),
        ({'clip': 0}, 'clip must be a number over 0, or None, got 0'),
        ({'ema': 1.0}, 'ema must be True, False or a number between 0 and 1'),
        ({'mixed_precision': 'int8'}, "mixed_precision must be 'bf16', 'fp16', a bool or None, got 'int8'"),
        ({'checkpoint': 'some'}, "checkpoint must be True, False or 'all', got 'some'"),
        ({'weight_decay': math.nan}, 'weight_decay must be a number from 0'),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        FitOptions(**({'epochs': 1, 'learning_rate': 1e-3} | wrong))


def test_what_is_missing_is_said():
    learner, history = build()
    with pytest.raises(ValueError, match='learning_rate is missing'):
        fit(learner, history, learning_rate=None)
    with pytest.raises(ValueError, match='checkpoint=True needs a folder'):
        fit(learner, history, checkpoint=True)


def test_the_same_seed_gives_the_same_weights():
    ends = []
    for seed in (1, 1, 2):
        learner, history = build(make_network(dropout=0.5))
        torch.rand(len(ends))  # the generators are elsewhere each time
        ends.append(fit(learner, history, seed=seed, deterministic=True))
    assert_equal(ends[0], ends[1])
    assert not torch.equal(ends[0]['0.weight'], ends[2]['0.weight'])
    assert not torch.are_deterministic_algorithms_enabled()


class TwoLosses(PixelLoss):
    """A loss of two parts."""

    def forward(self, output, target):
        self.parts = {'pixels': super().forward(output, target), 'size': output.square().mean()}
        return sum(self.parts.values())


@pytest.mark.parametrize('accumulate', [1, 3])
def test_parts_of_a_loss_are_columns(accumulate):
    learner, history = build(loss=TwoLosses())
    fit(learner, history, epochs=2, monitor='train_loss', accumulate=accumulate)
    assert list(history.epochs[0])[3:6] == ['accuracy', 'pixels', 'size']
    row = history.epochs[0]
    first = history.batch_losses[:3]
    assert min(first) * 0.5 < row['pixels'] + row['size'] < max(first) * 1.5
    assert row['size'] > 0


class Given(nn.Module):
    """Takes targets, and gives its losses in training, else a pair of output and losses."""

    def __init__(self):
        super().__init__()
        self.inner = make_network()

    def forward(self, images, masks):
        logits = self.inner(images)
        loss = {'pixels': functional.cross_entropy(logits, masks)}
        return loss if self.training else (logits, loss)


class OfOutput(nn.Module):
    """The losses that the network computed."""

    def forward(self, output):
        self.parts = output if isinstance(output, dict) else output[1]
        return self.parts['pixels']


def test_a_network_may_take_the_targets():
    learner, history = build(
        Given(), loss=OfOutput(), forward_takes_targets=True, splitter=lambda network: split_in_two(network.inner)
    )
    fit(learner, history, epochs=4)
    plain, plain_history = build()
    fit(plain, plain_history, epochs=4)
    assert history.batch_losses == pytest.approx(plain_history.batch_losses, rel=1e-5)
    assert history.epochs[-1]['accuracy'] == plain_history.epochs[-1]['accuracy']


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def fileno(self):
        return 2


def test_a_bar_and_a_table_unless_it_is_to_be_quiet(capsys, monkeypatch):
    learner, history = build()
    fit(learner, history, verbose=True, epochs=2)
    shown = capsys.readouterr()
    rows = shown.out.strip().splitlines()
    assert rows[0].split() == list(history.epochs[0])
    assert [row.split()[0] for row in rows[1:]] == ['1', '2']
    assert shown.err == '', 'without a terminal the rows say enough'
    monkeypatch.setattr(sys, 'stderr', Terminal())
    monkeypatch.setattr(os, 'get_terminal_size', lambda *_: os.terminal_size((100, 24)))
    fit(learner, history, verbose=True, epochs=1)
    bar = sys.stderr.getvalue()
    assert 'epoch 3' in bar
    assert 'batch/s' in bar or 's/batch' in bar or '?batch/s' in bar
    monkeypatch.undo()
    capsys.readouterr()
    fit(learner, history, epochs=1)
    shown = capsys.readouterr()
    assert shown.out == shown.err == ''


@pytest.mark.parametrize('name', training.__all__)
def test_every_name_of_the_package_is_there(name):
    assert getattr(training, name) is not None

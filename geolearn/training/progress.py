"""What a person sees of a training: a bar over the batches, a row for each epoch."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from geolearn import extras, progress
from geolearn.history import History
from geolearn.metrics.scores import LOSSES, Metric, Scores
from geolearn.training import distributed, fastai


def tensorboard_logger(folder: str | Path) -> fastai.Callback:
    """Return fastai's callback that writes losses, rates and scores for TensorBoard.

    Args:
        folder: Of the log; one for each training.

    Raises:
        MissingExtraError: If TensorBoard is not installed.
    """
    extras.require('tensorboard', extra='tensorboard', to='write a TensorBoard log')
    callbacks = extras.require('fastai.callback.tensorboard', extra='tensorboard', to='write a TensorBoard log')
    return callbacks.TensorBoardCallback(log_dir=str(folder), trace_model=False, log_preds=False)


def wandb_logger(project: str) -> fastai.Callback:
    """Return a callback that sends each epoch's row to Weights & Biases.

    Args:
        project: Where a run is begun, if none is.

    Raises:
        MissingExtraError: If wandb is not installed.
    """
    wandb = extras.require('wandb', extra='wandb', to='log to Weights & Biases')
    if wandb.run is None and distributed.process_index() == 0:
        wandb.init(project=project)
    return RowLogger(lambda row, step: wandb.log({**row, 'epoch': step}))


def mlflow_logger(parameters: Mapping[str, Any] | None = None) -> fastai.Callback:
    """Return a callback that logs each epoch's row to MLflow's active run, or to a new one.

    Args:
        parameters: Of the run, such as backbone and learning rate.

    Raises:
        MissingExtraError: If MLflow is not installed.
    """
    mlflow = extras.require('mlflow', extra='mlflow', to='log to MLflow')
    if parameters and distributed.process_index() == 0:
        mlflow.log_params(dict(parameters))
    return RowLogger(lambda row, step: mlflow.log_metrics(row, step=step))


class RowLogger(fastai.QuickCallback):
    """Hands each epoch's row on.

    fastai has no callback for MLflow, and its own for Weights & Biases stumbles over learners whose settings hold lists
    of numbers.

    Args:
        log: Takes a row and the epoch, from 1.
    """

    order = 65  # after the row of the epoch is complete

    def __init__(self, log: Callable[[dict[str, float], int], Any]) -> None:
        self._log = log

    def after_epoch(self) -> None:
        """Log the row."""
        if distributed.process_index() == 0:
            self._log(self.learn.recorder.row, self.learn.epoch + 1)


SMOOTHING = 0.98
"""Share of the running training loss that each batch keeps, as in fastai."""


class LossRecorder(fastai.QuickCallback, fastai.Recorder):
    """fastai's Recorder, except that it reads nothing from the device before the epoch ends.

    Args:
        scores: Of the validation chips.
    """

    name = 'recorder'  # where fastai's other callbacks look for it

    def __init__(self, scores: Scores) -> None:
        super().__init__()
        self.scores = scores
        self._smooth: Tensor | None = None
        self._count = 0
        self.part_names: list[str] = []

    def before_fit(self) -> None:
        """Begin a new list of losses."""
        self.lrs: list[float] = []
        self.iters: list[int] = []
        self.losses: list[Any] = []
        self.values: list[list[float]] = []
        self._smooth, self._count = None, 0
        self.part_names = []
        self._name_columns()

    def before_epoch(self) -> None:
        """Note the time."""
        self.cancel_train = self.cancel_valid = False
        self._started = time.perf_counter()
        self.log: list[Any] = [self.learn.epoch]

    def before_train(self) -> None:
        """Forget the losses' parts."""
        self._parts: dict[str, Tensor] = {}
        self._batches = 0

    def before_validate(self) -> None:
        """Forget what was validated."""
        self.scores.reset()
        self._total = torch.zeros(2, device=self.learn.device)

    def after_batch(self) -> None:
        """Take in a batch."""
        if not self.learn.training:
            weight = self.learn.batch_weight
            loss = self.learn.loss.float()
            self._total += torch.stack([loss, torch.ones_like(loss)]) * weight
            return
        loss = self.learn.loss.float()
        start = torch.zeros_like(loss) if self._smooth is None else self._smooth
        self._smooth, self._count = torch.lerp(loss, start, SMOOTHING), self._count + 1
        self.learn.smooth_loss = self._smooth / (1 - SMOOTHING**self._count)
        self.lrs.append(float(self.learn.opt.opt.param_groups[-1]['lr']))
        self.losses.append(self.learn.smooth_loss)
        for name, part in self.learn.loss_parts.items():
            self._parts[name] = self._parts[name] + part if name in self._parts else part
        self._batches += 1

    def after_train(self) -> None:
        """Read the training loss."""
        self.losses = read_losses(self.losses)
        self.log.append(self.losses[-1] if self._batches else float('nan'))
        if self.part_names != [*self._parts]:
            self.part_names = [*self._parts]
            self._name_columns()

    def after_cancel_validate(self) -> None:
        """Note that nothing was validated, as in a search for a learning rate."""
        self.cancel_valid = True

    def after_validate(self) -> None:
        """Read the validation loss, the scores, and the parts of the training loss."""
        if self.cancel_valid:
            self.log += [float('nan')] * (1 + len(self.scores.columns) + len(self.part_names))
            return
        total, weight = distributed.add_up(self._total).tolist()
        self.scores.reduce()
        values = self.scores.values()
        self.log += [
            total / weight if weight else float('nan'),
            *(float(values[metric.name]) for metric in self.scores.columns),
        ]
        self.log += [float(self._parts[name]) / max(self._batches, 1) for name in self.part_names]

    def after_epoch(self) -> None:
        """Close the row."""
        row = self.log[1:]
        self.learn.final_record = row.copy()
        self.values.append(row)
        self.log.append(f'{time.perf_counter() - self._started:.1f}')
        self.learn.logger(self.log)
        self.iters.append(self._count)

    @property
    def count(self) -> int:
        """Batches so far, over which the loss is smoothed."""
        return self._count

    def state(self) -> dict[str, Tensor]:
        """Return the smoothed loss."""
        return {} if self._smooth is None else {'smooth': self._smooth}

    def load(self, state: dict[str, Tensor], count: int) -> None:
        """Continue smoothing from a loss that was kept."""
        self._smooth, self._count = state.get('smooth'), count
        if self._smooth is not None:
            self._smooth = self._smooth.to(self.learn.device)

    @property
    def row(self) -> dict[str, float]:
        """The epoch's numbers by column: losses, scores, parts of the training loss."""
        return dict(zip(self.metric_names[1:-1], self.values[-1]))

    @property
    def columns(self) -> tuple[Metric, ...]:
        """Losses, scores and parts of the loss, of which less is better."""
        parts = (Metric(name, higher_is_better=False) for name in self.part_names)
        return *LOSSES, *self.scores.columns, *parts

    def _name_columns(self) -> None:
        self.metric_names = ['epoch', *(metric.name for metric in self.columns), 'time']


def read_losses(losses: list[Any]) -> list[float]:
    """Read losses that still are on the device, all at once."""
    waiting = [loss for loss in losses if isinstance(loss, Tensor)]
    read = iter(torch.stack(waiting).tolist() if waiting else [])
    return [next(read) if isinstance(loss, Tensor) else cast(float, loss) for loss in losses]


WHOLE = ('epoch', 'seconds')
"""Columns of whole numbers."""


class ProgressCallback(fastai.QuickCallback):
    """Show one bar over the batches of all epochs, write a row per epoch, and keep both in the history.

    Args:
        history: Extended in place.
        verbose: Show anything at all.
    """

    order = 60  # after the recorder, whose numbers it shows

    def __init__(self, history: History, *, verbose: bool = True) -> None:
        self.history = history
        self._silent = not verbose or distributed.process_index() > 0
        self._bar: progress.ProgressBar | None = None
        self._header: list[str] = []
        self._read = 0

    def before_fit(self) -> None:
        """Begin a new table."""
        self._header, self._read = [], 0

    def before_epoch(self) -> None:
        """Begin the bar, or say which epoch it has reached."""
        self._started = time.perf_counter()
        batches, done = len(self.learn.dls.train), len(self.history.epochs)
        title = f'epoch {done + 1} of {done + self.learn.n_epoch - self.learn.epoch}'
        if self._bar is None:
            # of all epochs: a notebook keeps one output of it, and the time left is that of the whole training
            self._bar = progress.ProgressBar(
                batches * self.learn.n_epoch,
                title,
                'batch',
                initial=batches * self.learn.epoch,
                show=not self._silent,
                lines=False,
            )
        self._bar.update(0, label=title)

    def after_batch(self) -> None:
        """Move the bar."""
        if self.learn.training and self._bar is not None:
            result = self.learn.last_result
            self._bar.update(detail=None if result is None else f'loss={result.loss:.3f}')

    def before_validate(self) -> None:
        """Say that the bar stands still because of the validation."""
        if self._bar is not None:
            self._bar.update(0, label=f'{self._bar.label}, validation')

    def after_epoch(self) -> None:
        """Write the row."""
        recorder = self.learn.recorder
        self.history.batch_losses.extend(read_losses(recorder.losses[self._read :]))
        self._read = len(recorder.losses)
        row: dict[str, float] = {'epoch': len(self.history.epochs) + 1} | recorder.row
        row['learning_rate'] = float(recorder.lrs[-1]) if recorder.lrs else float('nan')
        row['seconds'] = time.perf_counter() - self._started
        self.history.epochs.append(row)
        if not self._silent:
            self._write(row)

    def after_fit(self) -> None:
        """End the bar; a training that stopped early is over too."""
        if self._bar is not None:
            self._bar.update(0, label='training')
            self._bar.finish()

    def close(self) -> None:
        """Take the bar away, where the training broke off too."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _write(self, row: Mapping[str, float]) -> None:
        widths = {name: max(12, len(name) + 2) for name in row}
        if self._header != [*row]:
            self._header = [*row]
            progress.print_line(''.join(f'{name:>{width}}' for name, width in widths.items()))
        progress.print_line(''.join(f'{_number_text(name, value):>{widths[name]}}' for name, value in row.items()))


def print_main_process(text: str) -> None:
    """Write a line above the bar; only the first of several processes does."""
    if distributed.process_index() == 0:
        progress.print_line(text)


def _number_text(name: str, value: float) -> str:
    if name in WHOLE:
        return f'{value:.0f}'
    return f'{value:.2e}' if name == 'learning_rate' else f'{value:.4f}'

"""Run a training, optionally resumed from a checkpoint."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from geolearn.errors import CheckpointError
from geolearn.history import History
from geolearn.training import distributed as processes
from geolearn.training.checkpoints import (
    CheckpointCallback,
    Snapshot,
    checkpoint_path,
    rate_from_json,
    read_snapshot,
    resolve_monitor,
)
from geolearn.training.learner import ChipLearner, PartedLoss
from geolearn.training.optimization import WARM_UP, MeanWeights
from geolearn.training.options import FitOptions, Rate, bfloat16_slowdown
from geolearn.training.progress import ProgressCallback, print_main_process
from geolearn.training.random_state import deterministic_algorithms, seed_all
from geolearn.training.runs import finish_run

SLOW = 1.5
"""From this ratio on a user is told that bfloat16 is slower."""


def train(
    learner: ChipLearner, history: History, options: FitOptions, *, folder: Path | None = None, resume: bool = False
) -> None:
    """Train for some epochs from where the network is now; rows are added to `history`.

    With checkpoints the network ends with the weights of the epoch whose `options.monitor` was best.

    Args:
        learner: From `make_learner`.
        history: Extended in place.
        options: How to train.
        folder: Checkpoints go to ``<folder>/checkpoints``: ``last.safetensors`` and ``best.safetensors``.
        resume: Continue from the last checkpoint, as if the training had never been interrupted.

    Raises:
        TrainingError: If a loss is not finite, or memory does not hold one chip.
        CheckpointError: If a checkpoint cannot be written, or resumed.
        UnknownNameError: If the monitor is not a column.
        ValueError: If the options do not go together.
    """
    snapshot, before = _find_snapshot(options, folder) if resume else None, len(history.epochs)
    if snapshot is not None and options.learning_rate is None:
        options = replace(options, learning_rate=rate_from_json(snapshot.facts['learning_rate']))
    _check(learner, options, folder)
    device = learner.device
    if options.mixed_precision is True and options.precision_on(device) is None:
        print_main_process(f'mixed precision is for GPUs and this is {device.type!r}: computing in float32')
    if options.precision_on(device) == 'bf16' and device.type == 'cpu' and (slowdown := bfloat16_slowdown()) > SLOW:
        print_main_process(
            f"mixed_precision='bf16' is {slowdown:.0f} times as slow as float32 on this CPU, which has no instructions "
            'for it; pass mixed_precision=None'
        )
    processes.take_from_first(learner.model)
    mean = None if options.ema_decay is None else MeanWeights(learner.model, options.ema_decay)
    learner.configure(
        precision=options.precision_on(device), accumulate=options.accumulate, clip=options.clip, mean=mean
    )
    progress = ProgressCallback(history, verbose=options.verbose)
    checkpoints = CheckpointCallback(options, history, folder=folder, mean=mean, resume=snapshot)
    if options.seed is not None or options.deterministic:
        seed_all((options.seed or 0) + processes.process_index())
    try:
        with deterministic_algorithms(options.deterministic), learner.no_logging():
            _run(learner, options, [progress, checkpoints, *options.callbacks])
    except KeyboardInterrupt:
        _say_how_to_resume(
            options, epochs=len(history.epochs), saved=snapshot is not None or len(history.epochs) > before
        )
        raise
    finally:
        progress.close()
        checkpoints.undo_swap()
        learner.configure()
    checkpoints.finish(learner.model)
    if folder is not None and options.checkpoint:
        finish_run(folder)


def _say_how_to_resume(options: FitOptions, *, epochs: int, saved: bool) -> None:
    if options.checkpoint and saved:
        print_main_process(f'interrupted after epoch {epochs}; the same call with resume=True continues from there')
    elif options.checkpoint:
        print_main_process('interrupted before the first epoch was over: there is no checkpoint to resume from')
    else:
        print_main_process('interrupted; without checkpoint=True there is nothing to resume from')


def read_rate(folder: Path) -> Rate:
    """Return the learning rate that the last checkpoint in a folder was trained with.

    Raises:
        CheckpointError: If there is no checkpoint, or it is broken.
    """
    return rate_from_json(read_snapshot(checkpoint_path(folder, 'last')).facts['learning_rate'])


def _find_snapshot(options: FitOptions, folder: Path | None) -> Snapshot:
    if folder is None:
        raise CheckpointError('there is no folder to resume from; pass the one that the training was started with')
    return read_snapshot(checkpoint_path(folder, 'last'))


def _check(learner: ChipLearner, options: FitOptions, folder: Path | None) -> None:
    if options.learning_rate is None:
        raise ValueError('learning_rate is missing; pass one, or find one with find_learning_rate')
    if options.checkpoint and folder is None:
        raise ValueError(f'checkpoint={options.checkpoint!r} needs a folder to write to; pass one, or checkpoint=False')
    # parts of the loss are columns too, but known only after the first batch
    if not isinstance(learner.loss_func, PartedLoss):
        resolve_monitor(options.monitor, learner.recorder.columns)


def _run(learner: ChipLearner, options: FitOptions, callbacks: Sequence[Any]) -> None:
    if learner.opt is None:
        learner.create_opt()
    rate = [*options.learning_rate] if isinstance(options.learning_rate, Sequence) else options.learning_rate
    if options.one_cycle:
        learner.fit_one_cycle(options.epochs, rate, pct_start=WARM_UP, wd=options.weight_decay, cbs=callbacks)
    else:
        learner.fit(options.epochs, rate, wd=options.weight_decay, cbs=callbacks)

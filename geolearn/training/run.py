"""Run a training, optionally resumed from a checkpoint."""

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from geolearn.data import ChipData
from geolearn.errors import CheckpointError
from geolearn.files import lock_file
from geolearn.history import History
from geolearn.networks.spec import ModelSpec
from geolearn.precision import choose_precision, precision_note
from geolearn.training import checkpoints
from geolearn.training import distributed as processes
from geolearn.training.learner import ChipLearner, PartedLoss, fast_layout
from geolearn.training.optimization import WARM_UP, MeanWeights
from geolearn.training.options import FitOptions, Rate, check_rate
from geolearn.training.progress import ProgressCallback, print_main_process

KEPT_RUNS = 3
"""Finished runs of one model whose checkpoints stay on disk; those with ``checkpoint='all'`` stay always."""

_DONE = 'done'

_LOCK = 'lock'

_ID = re.compile(r'\d{8}-\d{6}-[0-9a-f]{6}')


def check_training(data: ChipData, lr: float | slice | None, layer_decay: float | None) -> None:
    """Validate the arguments of fit.

    Raises:
        ValueError: If there are too few chips, or the learning rate is not valid.
    """
    check_rate(lr)
    if layer_decay is not None and isinstance(lr, slice):
        raise ValueError(
            f'lr must be one number where layer_decay ({layer_decay}) sets the rate of each block, got {lr}'
        )
    if len(data.train_ds) < 2:
        others = 'a smaller val_split_pct' if len(data.valid_ds) > 1 else 'another folder to validate on as valid_path='
        raise ValueError(
            f'{len(data.train_ds)} chip is left to train on; at least 2 are needed: export more chips (a smaller '
            f'tile_size or stride), or pass {others} to prepare_data'
        )
    if data.batch_size < 2:
        raise ValueError('batch_size must be at least 2: batch normalization needs several values per channel')


def training_folder(data: ChipData, spec: ModelSpec) -> Path:
    """Return where checkpoints of a model go: beside its data, apart from those of other models and backbones."""
    name = re.sub(r'[^\w.-]+', '_', f'{spec.model}-{spec.backbone}')
    return (data.working_dir or data.path) / 'models' / 'training' / name


def training_identity(data: ChipData, spec: ModelSpec) -> dict[str, str]:
    """Return digests of the chips and of the model, in which a training must agree to be resumed."""
    manifest = {key: value for key, value in spec.to_manifest().items() if key not in ('temperature', 'arguments')}
    chips = data.train_ds.names, data.valid_ds.names, data.train_dl.options.seed
    texts = {'chips': repr(chips), 'model': json.dumps(manifest, sort_keys=True, default=str)}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()}


class Run(NamedTuple):
    """A training on disk.

    Args:
        name: Unique, such as ``'20240131-120000-3fa2c1'``; empty for the layout of older versions.
        folder: Holds its checkpoints.
        facts: Of its last checkpoint.
    """

    name: str
    folder: Path
    facts: Mapping[str, Any]

    @property
    def learning_rate(self) -> Rate:
        """The rate that it is trained with."""
        rate: Rate = checkpoints.rate_from_json(self.facts['learning_rate'])
        return rate

    @property
    def is_finished(self) -> bool:
        """Whether all its epochs were trained, or it was stopped early."""
        return (self.folder / _DONE).is_file() or self.facts['epoch'] >= self.facts['fingerprint']['epochs']

    def describe(self) -> str:
        """Return a line for people."""
        fixed = self.facts['fingerprint']
        state = f'{self.facts["epoch"]} of {fixed["epochs"]} epochs'
        return f'{self.name or "(older layout)"}: {state}, learning rate {_rate_text(fixed["learning_rate"])}'


def new_run(parent: Path) -> Path:
    """Return the folder of a new run, which no other process has; processes of one training get the same."""
    name = f'{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}'
    return parent / processes.from_first(name)


@contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Keep other trainings from resuming a run while it is trained; of several processes the first does.

    Raises:
        CheckpointError: If another training holds it.
    """
    if processes.process_index() != 0:
        yield
        return
    path = folder / _LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open('a')
    except OSError:  # what writes checkpoints says so
        yield
        return
    with file:
        if not lock_file(file):
            raise CheckpointError(
                f'the run in {folder} is being trained at this moment; wait until it ends, or fit without resume=True'
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # it holds checkpoints
                folder.rmdir()


def list_runs(parent: Path) -> list[Run]:
    """Return the runs in a folder that can be read, the oldest first."""
    folders = [parent, *(path for path in sorted(parent.glob('*')) if _ID.fullmatch(path.name))]
    runs = []
    for folder in folders:
        path = checkpoints.checkpoint_path(folder, 'last')
        if path.is_file():
            try:
                runs.append(Run('' if folder == parent else folder.name, folder, checkpoints.read_facts(path)))
            except CheckpointError:
                continue
    return runs


def find_run(parent: Path, learner: Any, options: FitOptions, *, name: str = '') -> Run:
    """Return the run that a training with these options continues.

    Among the runs of the same data, model and arguments it is the one that was not finished, else the only one. A
    learning rate of None agrees with any, and so does the seed None.

    Args:
        parent: Holds the runs.
        learner: Of the model.
        options: Of the training.
        name: A run that the user chose; empty to search.

    Raises:
        CheckpointError: If there is none, or several; the message lists them.
    """
    runs = list_runs(parent)
    if name:
        chosen = [run for run in runs if run.name == name]
        if not chosen:
            raise CheckpointError(f'there is no run {name!r} in {parent}; {_list_runs(runs)}')
        return chosen[0]
    if not runs:
        unreadable = next(iter(parent.glob('**/checkpoints/last.safetensors')), None)
        if unreadable is not None:
            checkpoints.read_facts(unreadable)  # raises, saying why
        raise CheckpointError(f'there is no checkpoint in {parent} to resume; call fit with checkpoint=True first')
    ours = checkpoints.fingerprint(learner, options)
    if options.learning_rate is None:
        del ours['learning_rate']
    differences = [checkpoints.difference(run.facts['fingerprint'], ours) for run in runs]
    same = [run for run, differing in zip(runs, differences) if not differing]
    same = [run for run in same if run.facts.get('seed') == options.seed] or same
    same = [run for run in same if not run.is_finished] or same
    if len(same) == 1:
        return same[0]
    if same:
        raise CheckpointError(
            f'{len(same)} trainings of the same data, model and arguments can be resumed; choose one, as in '
            f"fit(..., resume='{same[-1].name}'): {_list_runs(same)}"
        )
    texts = [f'{run.describe()}; what differs: {", ".join(differing)}' for run, differing in zip(runs, differences)]
    raise CheckpointError(
        f'no checkpoint in {parent} is of this training. Resume with what it was started with, or fit without '
        f'resume=True:\n' + '\n'.join(f'  {text}' for text in texts[-8:])
    )


def finish_run(folder: Path) -> None:
    """Mark a run as finished, and remove the oldest of the finished ones beside it."""
    if processes.process_index() != 0 or not checkpoints.checkpoint_path(folder, 'last').is_file():
        return
    (folder / _DONE).touch()
    if not _ID.fullmatch(folder.name):
        return
    beside = [path for path in sorted(folder.parent.glob('*')) if _ID.fullmatch(path.name)]
    finished = [path for path in beside if (path / _DONE).is_file() and path != folder]
    removable = [path for path in finished if not list(path.glob('checkpoints/epoch-*'))]
    for path in removable[: max(len(removable) - KEPT_RUNS + 1, 0)]:
        shutil.rmtree(path, ignore_errors=True)


def _list_runs(runs: Sequence[Run]) -> str:
    return '; '.join(run.describe() for run in runs) or 'it holds none'


def _rate_text(rate: Any) -> str:
    values = [value for value in rate.values() if value] if isinstance(rate, dict) else rate
    if isinstance(values, list):
        return f'{min(values):.3g} to {max(values):.3g}'
    return f'{values:.3g}'


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
        options = replace(options, learning_rate=checkpoints.rate_from_json(snapshot.facts['learning_rate']))
    _check(learner, options, folder)
    device = learner.device
    if (note := precision_note(options.mixed_precision, device)) is not None:
        print_main_process(note)
    processes.take_from_first(learner.model)
    mean = None if options.ema_decay is None else MeanWeights(learner.model, options.ema_decay)
    learner.configure(
        precision=choose_precision(options.mixed_precision, device),
        accumulate=options.accumulate,
        clip=options.clip,
        mean=mean,
    )
    progress = ProgressCallback(history, verbose=options.verbose)
    saver = checkpoints.CheckpointCallback(options, history, folder=folder, mean=mean, resume=snapshot)
    if options.seed is not None or options.deterministic:
        checkpoints.seed_all((options.seed or 0) + processes.process_index())
    try:
        with (
            checkpoints.deterministic_algorithms(options.deterministic),
            fast_layout(learner.model, device),
            learner.no_logging(),
        ):
            _run(learner, options, [progress, saver, *options.callbacks])
    except KeyboardInterrupt:
        _say_how_to_resume(
            options, epochs=len(history.epochs), saved=snapshot is not None or len(history.epochs) > before
        )
        raise
    finally:
        progress.close()
        saver.undo_swap()
        learner.configure()
    saver.finish(learner.model)
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
    return checkpoints.rate_from_json(
        checkpoints.read_snapshot(checkpoints.checkpoint_path(folder, 'last')).facts['learning_rate']
    )


def _find_snapshot(options: FitOptions, folder: Path | None) -> checkpoints.Snapshot:
    if folder is None:
        raise CheckpointError('there is no folder to resume from; pass the one that the training was started with')
    return checkpoints.read_snapshot(checkpoints.checkpoint_path(folder, 'last'))


def _check(learner: ChipLearner, options: FitOptions, folder: Path | None) -> None:
    if options.learning_rate is None:
        raise ValueError('learning_rate is missing; pass one, or find one with find_learning_rate')
    if options.checkpoint and folder is None:
        raise ValueError(f'checkpoint={options.checkpoint!r} needs a folder to write to; pass one, or checkpoint=False')
    # parts of the loss are columns too, but known only after the first batch
    if options.monitor is not None and not isinstance(learner.loss_func, PartedLoss):
        checkpoints.resolve_monitor(options.monitor, learner.recorder.columns)


def _run(learner: ChipLearner, options: FitOptions, callbacks: Sequence[Any]) -> None:
    if learner.opt is None:
        learner.create_opt()
    rate = [*options.learning_rate] if isinstance(options.learning_rate, Sequence) else options.learning_rate
    if options.one_cycle:
        learner.fit_one_cycle(options.epochs, rate, pct_start=WARM_UP, wd=options.weight_decay, cbs=callbacks)
    else:
        learner.fit(options.epochs, rate, wd=options.weight_decay, cbs=callbacks)

"""Keep the last and the best state of a training on disk, resume from the last, and stop early."""

import hashlib
import json
import math
import os
import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from geolearn import errors, files
from geolearn.history import History
from geolearn.metrics import METRICS, Metric, find_metric
from geolearn.training import distributed as processes
from geolearn.training import fastai, optimization, progress
from geolearn.training.options import FitOptions


def seed_all(seed: int) -> None:
    """Start the generators of Python, numpy and torch anew."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_tensors() -> dict[str, Tensor]:
    """Return the state of torch's generators, and of numpy's long one."""
    tensors = {'cpu': torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f'cuda.{index}': state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    tensors['numpy'] = torch.from_numpy(np.random.get_state(legacy=False)['state']['key'].astype(np.int64))
    return tensors


def random_facts() -> dict[str, Any]:
    """Return the rest of the state, as JSON."""
    state: dict[str, Any] = dict(np.random.get_state(legacy=False))
    version, numbers, gauss = random.getstate()
    return {
        'numpy': {'pos': state['state']['pos'], 'has_gauss': state['has_gauss'], 'gauss': state['gauss']},
        'python': [version, list(numbers), gauss],
    }


def restore_random(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Put the generators back to where `random_tensors` and `random_facts` found them."""
    torch.set_rng_state(tensors['cpu'].to(torch.uint8))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if (state := tensors.get(f'cuda.{index}')) is not None:
                torch.cuda.set_rng_state(state.to(torch.uint8), index)
    numpy = facts['numpy']
    key = tensors['numpy'].numpy().astype(np.uint32)
    np.random.set_state(('MT19937', key, numpy['pos'], numpy['has_gauss'], numpy['gauss']))
    version, numbers, gauss = facts['python']
    random.setstate((version, tuple(numbers), gauss))


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Let torch use only algorithms that give the same numbers each time, until the end of the block."""
    if not wanted:
        yield
        return
    # cuBLAS reads it when it is first used
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


FORMAT = 2
"""1 called the optimizer's state by other names, which are still read."""

_KEY = 'geolearn'


class Snapshot(NamedTuple):
    """What a file held.

    Args:
        tensors: By name, on the CPU.
        facts: The rest, as JSON.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under a name, by what follows it."""
        start = f'{prefix}/'
        return {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}


def write_snapshot(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a snapshot; a crash half way leaves any older one as it was.

    Raises:
        CheckpointError: If it cannot be written, such as on a full disk.
    """
    header = {_KEY: json.dumps({'format': FORMAT, **facts})}
    try:
        with files.atomic_write(path, make_folder=True) as part:
            save_file(_unshared(tensors), part, metadata=header)
    except (OSError, SafetensorError) as error:
        kept = 'the one before it is whole' if path.is_file() else 'there is none before it'
        raise errors.CheckpointError(
            f'the checkpoint {path} cannot be written ({error}); {kept}. Make room in {path.parent}, or pass '
            'checkpoint=False'
        ) from error


def read_snapshot(path: Path) -> Snapshot:
    """Read a snapshot.

    Raises:
        CheckpointError: If it does not exist, is broken, or of a newer geolearn.
    """
    return _read(path, tensors=True)


def _read(path: Path, *, tensors: bool) -> Snapshot:
    if not path.is_file():
        raise errors.CheckpointError(f'there is no checkpoint {path} to resume; call fit with checkpoint=True first')
    try:
        with safe_open(path, framework='pt') as file:
            facts = json.loads((file.metadata() or {})[_KEY])
            read = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise errors.CheckpointError(f'{path} is not a checkpoint of geolearn, or broken: {error}') from error
    if facts.get('format') not in (1, FORMAT):
        raise errors.CheckpointError(
            f'{path} has format {facts.get("format")} and this geolearn reads 1 to {FORMAT}; train anew, or use the '
            'geolearn that wrote it'
        )
    return Snapshot(read, facts)


def read_facts(path: Path) -> dict[str, Any]:
    """Read what a snapshot says besides tensors, which takes no time.

    Raises:
        CheckpointError: If it does not exist, is broken, or of a newer geolearn.
    """
    return _read(path, tensors=False).facts


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors to the CPU; those that share memory are copied, for the format knows no sharing."""
    seen: set[int] = set()
    ready = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        ready[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return ready


def resolve_monitor(name: str, columns: Sequence[Metric]) -> Metric:
    """Return the column that a monitor means; ``'valid_miou'`` is what ArcGIS calls ``'miou'``.

    Raises:
        UnknownNameError: If there is no such column, or neither way is better; the message holds those there are.
    """
    known = {metric.name: metric for metric in columns if metric.higher_is_better is not None}
    for candidate in (name, name.removeprefix('valid_')):
        if candidate in known:
            return known[candidate]
    if name in {metric.name for metric in columns} - METRICS.keys():
        raise errors.ArgumentError(
            f'monitor is {name!r}, which does not say which way is better; pass '
            f'metrics=[CustomMetric({name}, higher_is_better=True)], or False'
        )
    raise errors.UnknownNameError('monitor', name, known)


class Monitor:
    """Follows one column of the epoch table.

    Args:
        metric: The column.
        min_delta: Smaller improvements do not reset `waited`; for `best` every bit counts.
    """

    def __init__(self, metric: Metric, min_delta: float) -> None:
        self.metric, self._min_delta = metric, min_delta
        self.best, self.best_epoch = math.nan, 0
        self._mark, self.waited = math.nan, 0

    def take(self, row: Mapping[str, float]) -> bool:
        """Take in an epoch's row; returns whether it is the best so far."""
        value = row[self.metric.name]
        gain = abs(value - self._mark) if self.metric.is_better(value, self._mark) else 0.0
        if math.isnan(self._mark) or gain > self._min_delta:
            self._mark, self.waited = value, 0
        else:
            self.waited += 1
        if not self.metric.is_better(value, self.best):
            return False
        self.best, self.best_epoch = value, int(row['epoch'])
        return True

    def state(self) -> dict[str, Any]:
        """Return what it has seen, as JSON."""
        return {
            'column': self.metric.name,
            'higher_is_better': self.metric.higher_is_better,
            'best': self.best,
            'best_epoch': self.best_epoch,
            'mark': self._mark,
            'waited': self.waited,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what was seen."""
        self.best, self.best_epoch = state['best'], state['best_epoch']
        self._mark, self.waited = state['mark'], state['waited']


def _saved_metric(state: Mapping[str, Any]) -> Metric:
    """Return the metric of a saved monitor; older checkpoints hold the parts of the loss, not the direction."""
    column = state['column']
    if 'higher_is_better' in state:
        return Metric(column, higher_is_better=state['higher_is_better'])
    return Metric(column, higher_is_better=column not in state['parts'] and bool(find_metric(column).higher_is_better))


FREE_TO_CHANGE = ('callbacks', 'verbose', 'checkpoint', 'seed')
"""Options that a resumed training may differ in: they change nothing that is computed."""


def checkpoint_path(folder: Path, name: str) -> Path:
    """Return where a checkpoint lies: ``'last'``, ``'best'`` or ``'epoch-0003'``."""
    return folder / 'checkpoints' / f'{name}.safetensors'


class CheckpointCallback(fastai.QuickCallback):
    """Keep states, resume, and stop early.

    Args:
        options: How the network is trained.
        history: Saved with the state, and put back.
        folder: Checkpoints go to ``<folder>/checkpoints``; None if there are none.
        mean: The running mean of the weights, if there is one.
        resume: Continue from this state.
    """

    order = 70  # after the row of the epoch is written

    def __init__(
        self,
        options: FitOptions,
        history: History,
        *,
        folder: Path | None,
        mean: optimization.MeanWeights | None,
        resume: Snapshot | None,
    ) -> None:
        self.options, self.history, self.folder, self.mean = options, history, folder, mean
        self._resume = resume
        self.run = secrets.token_hex(8) if resume is None else resume.facts.get('run')
        """Which training it is: each file holds it, so that another's weights are never taken for its own."""
        self._monitor: Monitor | None = None

    def before_fit(self) -> None:
        """Continue from the last checkpoint, if that was asked for."""
        if self._resume is not None:
            self._load(self._resume)
            self._stop_if_due()

    def before_validate(self) -> None:
        """Validate the mean of the weights, and one network in all processes."""
        processes.average_buffers(self.learn.model)
        if self.mean is not None:
            self.mean.swap()

    def after_validate(self) -> None:
        """Train on with the weights themselves."""
        if self.mean is not None:
            self.mean.swap()

    def after_epoch(self) -> None:
        """Write what is to be kept; stop early if that is due."""
        row = self.history.epochs[-1]
        if self._monitor is None and self.options.monitor is not None:
            recorder = self.learn.recorder
            self._monitor = Monitor(resolve_monitor(self.options.monitor, recorder.columns), self.options.min_delta)
        better = self._monitor is not None and self._monitor.take(row)
        if self.folder is not None and self.options.checkpoint:
            self._write(self.folder, better=better)
        self._stop_if_due()

    def finish(self, network: nn.Module) -> None:
        """Put the weights that are to stay into the network: the best ones, else their mean."""
        if self.options.checkpoint and self.folder is not None and self._monitor and self._monitor.best_epoch:
            self._take_best(network, self.folder, self._monitor)
        elif self.mean is not None:
            self.mean.swap()
        processes.take_from_first(network)

    def undo_swap(self) -> None:
        """Leave the weights themselves in the network where a validation was interrupted."""
        if self.mean is not None and self.mean.swapped:
            self.mean.swap()

    def _stop_if_due(self) -> None:
        monitor, options = self._monitor, self.options
        if options.early_stopping and monitor is not None and monitor.waited >= options.patience:
            column = monitor.metric.name
            progress.print_main_process(
                f'stopped: {column} has not got better by {options.min_delta:g} for {monitor.waited} epochs'
            )
            raise fastai.CancelFitException

    # -- writing

    def _write(self, folder: Path, *, better: bool) -> None:
        if processes.process_index() == 0:
            epoch = self.history.epochs[-1]['epoch']
            facts = {'run': self.run, 'epoch': epoch, 'row': self.history.epochs[-1]}
            if better:
                write_snapshot(checkpoint_path(folder, 'best'), _prefixed('network', self._kept()), facts)
            if self.options.checkpoint == 'all':
                name = f'epoch-{int(epoch):04d}'
                write_snapshot(checkpoint_path(folder, name), _prefixed('network', self._kept()), facts)
            # last, so that it never knows of a best one that is not there
            write_snapshot(checkpoint_path(folder, 'last'), self._tensors(), self._facts())
        processes.wait_for_all()

    def _kept(self) -> dict[str, Tensor]:
        """Return the weights that were validated."""
        return self.learn.model.state_dict() | (self.mean.named() if self.mean is not None else {})

    def _tensors(self) -> dict[str, Tensor]:
        learn = self.learn
        tensors = _prefixed('network', learn.model.state_dict())
        for index, parameter in enumerate(p for group in learn.opt.param_lists for p in group):
            state = learn.opt.moments.get(parameter, {})
            tensors |= _prefixed(f'optimizer/{index}', state)
        tensors |= _prefixed('mean', {} if self.mean is None else self.mean.mean)
        tensors |= _prefixed('random', random_tensors())
        tensors['history/batch_losses'] = torch.tensor(self.history.batch_losses, dtype=torch.float64)
        return tensors | _prefixed('recorder', learn.recorder.state())

    def _facts(self) -> dict[str, Any]:
        learn, monitor = self.learn, self._monitor
        return {
            'run': self.run,
            'fingerprint': fingerprint(learn, self.options),
            'seed': self.options.seed,
            'learning_rate': rate_as_json(self.options.learning_rate),
            'epoch': learn.epoch + 1,
            'loader_epoch': learn.dls.train.epoch,
            'random': random_facts(),
            'mean_steps': 0 if self.mean is None else self.mean.steps,
            'monitor': None if monitor is None else monitor.state(),
            'portion': learn.micro_batches.size,
            'scaler': None if learn.scaler is None else learn.scaler.state_dict(),
            'recorded': learn.recorder.count,
            'history': {
                'epochs': self.history.epochs,
                'learning_rate': self.history.learning_rate,
                'loaded': self.history.loaded,
            },
        }

    # -- reading

    def _load(self, snapshot: Snapshot) -> None:
        learn, facts = self.learn, snapshot.facts
        check_same(facts['fingerprint'], fingerprint(learn, self.options))
        learn.model.load_state_dict(snapshot.part('network'))
        for index, parameter in enumerate(p for group in learn.opt.param_lists for p in group):
            state = snapshot.part(f'optimizer/{index}') or _read_old_moments(snapshot.part(f'optimiser/{index}'))
            if state:
                learn.opt.moments[parameter] = {name: tensor.to(parameter.device) for name, tensor in state.items()}
        if self.mean is not None:
            self.mean.load(snapshot.part('mean'), facts['mean_steps'])
        if learn.scaler is not None:
            learn.scaler.load_state_dict(facts['scaler'])
        learn.recorder.load(snapshot.part('recorder'), facts['recorded'])
        learn.micro_batches.size, learn.start_epoch = facts['portion'], facts['epoch']
        learn.dls.train.epoch = facts['loader_epoch']
        kept = facts['history']
        self.history.epochs[:] = kept['epochs']
        self.history.batch_losses[:] = snapshot.tensors['history/batch_losses'].tolist()
        self.history.learning_rate, self.history.loaded = kept['learning_rate'], kept['loaded']
        if (state := facts['monitor']) is not None:
            self._monitor = Monitor(_saved_metric(state), self.options.min_delta)
            self._monitor.load(state)
        restore_random(snapshot.part('random'), facts['random'])
        if processes.process_index():  # the others draw other numbers than the first
            torch.manual_seed(torch.initial_seed() + processes.process_index())
        progress.print_main_process(f'resumed after epoch {facts["epoch"]} of {self.options.epochs}')

    def _take_best(self, network: nn.Module, folder: Path, monitor: Monitor) -> None:
        if monitor.best_epoch == self.history.epochs[-1]['epoch'] and self.mean is None:
            return
        column = monitor.metric.name
        if processes.process_index() == 0:
            best = read_snapshot(checkpoint_path(folder, 'best'))
            if not self._is_own(best, monitor):
                raise errors.CheckpointError(
                    f'{checkpoint_path(folder, "best")} holds the weights of another training, which wrote to the same '
                    f'folder; the weights of epoch {monitor.best_epoch}, whose {column} was best, are lost and the '
                    'network has those of the last epoch. Give each training a folder of its own'
                )
            network.load_state_dict(best.part('network'))
        progress.print_main_process(
            f'the weights are those of epoch {monitor.best_epoch}, whose {column} {monitor.best:.4f} was best'
        )

    def _is_own(self, best: Snapshot, monitor: Monitor) -> bool:
        """Say whether the best weights are of this training: checkpoints of format 1 have no run, but a row."""
        row = best.facts.get('row', {}).get(monitor.metric.name)
        return best.facts.get('run') == self.run and best.facts['epoch'] == monitor.best_epoch and row == monitor.best


def fingerprint(learn: Any, options: FitOptions) -> dict[str, Any]:
    """Return what must be equal for a training to be resumed, as JSON."""
    fixed = {
        name: value for name, value in asdict(replace(options, callbacks=())).items() if name not in FREE_TO_CHANGE
    }
    return {
        **(fixed | {'learning_rate': rate_as_json(options.learning_rate)}),
        'network': _digest(learn.model),
        'learning weights': sum(p.numel() for p in learn.model.parameters() if p.requires_grad),
        'batches per epoch': len(learn.dls.train),
        'batch_size': learn.dls.train.batch_size,
        'processes': processes.process_count(),
        **learn.identity,
    }


def check_same(written: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another training.

    Raises:
        CheckpointError: Naming what differs.
    """
    if texts := difference(written, ours):
        raise errors.CheckpointError(
            f'the checkpoint is of another training; what differs: {", ".join(texts)}. Resume with what it was started '
            'with, or fit without resume=True'
        )


def difference(written: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Return what differs between two fingerprints, for people; what the written one does not know is left out."""
    differing = [name for name in ours if name in written and written[name] != ours[name]]
    return [f'{name} (then {written[name]}, now {ours[name]})' for name in differing]


def rate_as_json(rate: Any) -> Any:
    """Return a learning rate as JSON; a slice becomes a mapping."""
    if isinstance(rate, slice):
        return {'start': rate.start, 'stop': rate.stop}
    return list(map(float, rate)) if isinstance(rate, Sequence) else rate


def rate_from_json(value: Any) -> Any:
    """Undo `rate_as_json`."""
    return slice(value['start'], value['stop']) if isinstance(value, dict) else value


def _read_old_moments(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an optimizer's state of format 1 by torch's names."""
    names = {'step': 'step', 'grad_avg': 'exp_avg', 'sqr_avg': 'exp_avg_sq'}
    return {names[name]: tensor for name, tensor in state.items()}


def _digest(network: nn.Module) -> str:
    shapes = sorted((name, list(tensor.shape)) for name, tensor in network.state_dict().items())
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f'{prefix}/{name}': tensor for name, tensor in tensors.items()}

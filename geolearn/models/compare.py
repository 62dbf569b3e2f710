"""Compare classes of models and backbones on one data set under one budget: the worst are stopped early."""

import hashlib
import inspect
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from geolearn import errors, files
from geolearn.arguments import check_call, encode
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.metrics import Metric, best_epoch, find_monitor
from geolearn.models import base, registry
from geolearn.models.new_spec import require_task
from geolearn.progress import ProgressBar, print_line, report_progress

log = logging.getLogger('geolearn')

MONITORS = {
    Task.PIXELS: 'miou',
    Task.CHANGE: 'miou',
    Task.REGRESSION: 'rmse',
    Task.OBJECTS: 'map',
    Task.INSTANCES: 'map',
    Task.ORIENTED: 'map',
    Task.PANOPTIC: 'pq',
    Task.LABEL: 'accuracy',
    Task.LABELS: 'f1_macro',
}
"""What candidates are compared by, where the caller does not say."""

OVERLAPS = ('', 'bbox', 'segm', 'rotated')
"""What a mAP may be of, the finest last; boxes, masks and oriented boxes give different figures."""

PROBES = ('LinearProbe', 'PixelHead')
"""Classes that serve other ends than the best score, and are compared only where they are named."""

Status = Literal['waiting', 'trained', 'stopped early', 'failed']


@dataclass
class _Row:
    """What is known of a candidate; all of it is kept on disk.

    Args:
        model: Name of its class.
        backbone: Name, or None for the class's own.
        epochs: That were trained.
        seconds: That this took.
        score: The best of them; NaN before the first.
        rate: Highest learning rate.
        parameters: In millions.
        status: Where it stands.
        note: Why it failed.
        begun: Whether a training was begun, and not finished.
    """

    model: str
    backbone: str | None
    epochs: int = 0
    seconds: float = 0.0
    score: float = math.nan
    rate: float | None = None
    parameters: float = math.nan
    status: Status = 'waiting'
    note: str = ''
    begun: bool = False

    @property
    def name(self) -> str:
        """Unique among the candidates."""
        return self.model if self.backbone is None else f'{self.model} on {self.backbone}'


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` returns.

    Args:
        model: The best, with the weights of its best epoch.
        table: A row for each candidate, the best first: model, backbone, status, epochs, seconds, the metric, learning
            rate, millions of parameters, and a note where it failed.
        metric: What it is sorted by.
        folder: Holds the model of each candidate as a .dlpk.
    """

    model: base.Model
    table: pd.DataFrame
    metric: Metric
    folder: Path

    def __repr__(self) -> str:
        return self.table.drop(columns='note').to_string(float_format=lambda value: f'{value:.4g}')

    def _repr_html_(self) -> str:
        html: str = self.table.to_html(float_format=lambda value: f'{value:.4g}')
        return html


@check_call
def compare(
    data: ChipData,
    models: Sequence[str | type[base.Model]] | None = None,
    *,
    backbones: Sequence[str | None] = (None,),
    time_limit: float | None = None,
    epochs: int = 16,
    lr: float | None = None,
    monitor: str | None = None,
    pretrained: bool = True,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    resume: bool = False,
) -> Comparison:
    """Train every class of models on every backbone, stop the worst early, and return a table and the best model.

    All candidates are trained for a few epochs, the better half of them for twice as many, and so on (successive
    halving; Jamieson and Talwalkar 2016, arXiv:1502.07943), until the best alone is trained for all `epochs`. What is
    finished is kept in ``models/compare`` beside the data.

    Args:
        data: Chips to train and validate on.
        models: Names or classes; None takes all classes that the labels allow, besides probes.
        backbones: Names; None among them stands for each class's own.
        time_limit: Minutes for all of it. Each candidate gets a share by its epochs that are left, begins no epoch when
            that is over, and none is trained when all of it is over. None: `epochs` alone decide.
        epochs: Of the best candidate.
        lr: Highest learning rate of all; None searches for one for each.
        monitor: Column of the epoch table to compare by; None takes mean IoU, mAP, RMSE, accuracy or what else is usual
            for the labels.
        pretrained: Fill backbones with their published weights.
        options: Further arguments for the classes that take them, such as ``{'class_balancing': True}``.
        seed: Of new layers and of the trainings.
        resume: Continue the same comparison after an interruption, with the time that is left of its limit.

    Raises:
        ChipFolderError: If a class cannot be trained on the labels.
        UnknownNameError: If there is no such class of models, or no such metric.
        ValueError: If a number is out of its range.
        CheckpointError: If there is nothing to resume.
        TrainingError: If no candidate could be trained.
    """
    if epochs < 1:
        raise ValueError(f'epochs must be at least 1, got {epochs}')
    if time_limit is not None and not 0 < time_limit < math.inf:
        raise ValueError(f'time_limit must be a number of minutes above 0, got {time_limit}')
    classes = choose_classes(data, models)
    if not backbones:
        raise ValueError('backbones is empty; pass names, or leave it out for the own one of each class')
    rows = [
        _Row(cls.__name__, backbone)
        for cls in classes
        for backbone in (backbones if _takes_backbones(cls) else (None,))
    ]
    known = {name for cls in classes for name in inspect.signature(cls).parameters}
    if unknown := sorted(set(options or {}) - known):
        raise errors.ArgumentError(f'none of {[cls.__name__ for cls in classes]} takes {unknown[0]!r}, of options')
    names = [row.name for row in rows]
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise ValueError(f'backbones names {twice[0]} twice; name each once')
    metric = find_monitor(monitor or MONITORS.get(data.task, 'valid_loss'))
    folder = (data.working_dir or data.path) / 'models' / 'compare'
    job = _Comparing(data, rows, metric, folder, epochs, lr, pretrained, dict(options or {}), seed, time_limit)
    job.open(resume=resume)
    job.run()
    return job.result()


def choose_classes(data: ChipData, models: Sequence[str | type[base.Model]] | None) -> list[type[base.Model]]:
    """Return the classes of models to compare.

    Raises:
        ChipFolderError: If one cannot be trained on the labels.
        UnknownNameError: If there is no such class.
    """
    known = registry.load_all()
    if models is None:
        found = [cls for name, cls in sorted(known.items()) if data.task in cls.tasks and name not in PROBES]
        if not found:
            raise errors.ChipFolderError(f'no class of models is trained on labels such as those of {data.path}')
        finest = max(found, key=lambda cls: OVERLAPS.index(_scored_by(cls)))
        return [cls for cls in found if _scored_by(cls) == _scored_by(finest)]
    if not models:
        raise ValueError('models is empty; pass names of classes, or None for all that the labels allow')
    chosen = [registry.find_model(model) if isinstance(model, str) else model for model in models]
    for cls in chosen:
        require_task(data, cls.__name__, cls.tasks)
    kinds = {cls.__name__: _scored_by(cls) for cls in chosen}
    if len(set(kinds.values())) > 1:
        texts = ', '.join(f'{name} by {kind}' for name, kind in kinds.items())
        raise ValueError(f'scores of different overlaps cannot be compared ({texts}); compare classes of one kind')
    if len(set(chosen)) < len(chosen):
        raise ValueError(f'models names a class twice: {", ".join(cls.__name__ for cls in chosen)}')
    return chosen


def _takes_backbones(cls: type[base.Model]) -> bool:
    """Whether a class takes backbones of images; those of a `PixelHead` are of time series."""
    return cls.__name__ != 'PixelHead' and 'backbone' in inspect.signature(cls).parameters


def _scored_by(cls: type[base.Model]) -> str:
    """Return which overlaps the mAP of a detector is of; empty for other models."""
    from geolearn.models.object_detector import ObjectDetector

    return cls.architecture.iou_type if issubclass(cls, ObjectDetector) else ''


def plan_rounds(candidates: int, epochs: int) -> list[tuple[int, int]]:
    """Return how many candidates are trained in each round, and for how many epochs from the start.

    Args:
        candidates: At least one.
        epochs: Of the last round, which one candidate reaches.
    """
    halvings = math.ceil(math.log2(candidates))
    goals = sorted({max(1, round(epochs / 2**step)) for step in range(halvings + 1)})
    last = len(goals) - 1
    return [
        (math.ceil(candidates ** (1 - step / last) - 1e-9) if last else candidates, goal)
        for step, goal in enumerate(goals)
    ]


@dataclass
class _Comparing:
    """A comparison at work; see `compare` for what it is given."""

    data: ChipData
    rows: list[_Row]
    metric: Metric
    parent: Path
    epochs: int
    lr: float | None
    pretrained: bool
    options: dict[str, Any]
    seed: int
    time_limit: float | None
    spent: float = 0.0

    def __post_init__(self) -> None:
        facts = [encode(getattr(self, name)) for name in ('epochs', 'lr', 'pretrained', 'options', 'seed')]
        data = self.data
        loading = data.train_dl.options
        chips = (
            data.fingerprint,
            data.train_ds.names,
            data.valid_ds.names,
            data.chip_size,
            loading.batch_size,
            loading.seed,
        )
        meaning = data.normalization, data.bands, data.class_infos, data.ignored_values, data.task
        made = [[row.name for row in self.rows], self.metric.name, facts, repr(chips), repr(meaning)]
        # another comparison, of other data or arguments, lies elsewhere
        self.folder = self.parent / hashlib.sha256(json.dumps(made, default=str).encode()).hexdigest()[:12]
        self._began = time.monotonic()
        self._new_epochs = 0

    def open(self, *, resume: bool) -> None:
        """Begin anew, or read how far an earlier call came.

        Raises:
            CheckpointError: If there is nothing to resume.
        """
        state = self.folder / 'state.json'
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        try:
            kept = json.loads(state.read_text(encoding='utf-8'))
            self.rows = [_Row(**row) for row in kept['rows']]
            self.spent = float(kept['spent'])
        except FileNotFoundError:
            raise errors.CheckpointError(
                f'{self.parent} holds no comparison of these chips, models and arguments; call it without resume'
            ) from None
        except (ValueError, TypeError, LookupError) as error:
            raise errors.CheckpointError(f'{state} is broken ({error}); call it without resume') from error

    def _keep(self) -> None:
        with files.atomic_write(self.folder / 'state.json', make_folder=True) as part:
            part.write_text(
                json.dumps({'rows': [asdict(row) for row in self.rows], 'spent': self._seconds}), encoding='utf-8'
            )

    @property
    def _seconds(self) -> float:
        """Seconds that were spent, before an interruption too."""
        return self.spent + time.monotonic() - self._began

    @property
    def _left(self) -> float:
        return math.inf if self.time_limit is None else 60 * self.time_limit - self._seconds

    def run(self) -> None:
        """Train what is not trained yet."""
        rounds = plan_rounds(len(self.rows), self.epochs)
        before = [0, *(goal for _, goal in rounds)]
        total = sum(count * (goal - start) for (count, goal), start in zip(rounds, before))
        with ProgressBar(total, 'comparing', 'epoch') as bar:
            for number, (count, goal) in enumerate(rounds):
                going = [row for row in self._ranked() if row.status != 'failed']
                ranked = going[:count] if number else self.rows
                for row in self.rows if number else ():
                    if row not in ranked and row.status != 'failed':
                        row.status = 'stopped early'
                later = sum(
                    count * (goal - start) for (count, goal), start in zip(rounds[number + 1 :], before[number + 1 :])
                )
                for position, row in enumerate(ranked):
                    here = sum(max(0, goal - other.epochs) for other in ranked[position:])
                    if row.epochs < goal and row.status in ('waiting', 'trained') and self._left > 0:
                        share = (goal - row.epochs) / (here + later)
                        self._train(row, goal, share)
                        self._keep()
                    bar.update(goal - before[number], detail=f'{row.name}: {self.metric.label} {row.score:.4g}')
        self._keep()

    def _ranked(self) -> list[_Row]:
        """Return the candidates that have a score, the best first."""
        scored = [row for row in self.rows if not math.isnan(row.score)]
        return sorted(scored, key=lambda row: row.score, reverse=bool(self.metric.higher_is_better))

    def _path(self, row: _Row) -> Path:
        number = next(number for number, other in enumerate(self.rows) if other is row)
        return self.folder / f'{number}_{row.model}.dlpk'

    def _train(self, row: _Row, goal: int, share: float) -> None:
        """Train a candidate on; what goes wrong with it is noted, and the others are trained all the same."""
        began = time.monotonic()
        try:
            model = self._open(row)
            resume, row.begun = row.begun, True
            self._keep()
            finished = self._fit(model, row, goal, share, resume=resume)
        except (errors.GeoLearnError, ValueError) as error:
            if isinstance(error, errors.FileWriteError | errors.CheckpointError):
                raise
            log.warning('%s failed: %s', row.name, error)
            row.status, row.note, finished = 'failed', str(error), False
        row.seconds += time.monotonic() - began
        if not finished:
            return
        row.begun, row.status = False, 'trained'
        new = model.history.epochs[-self._new_epochs :]
        best = best_epoch(new, self.metric)
        score = math.nan if best is None else float(new[best][self.metric.name])
        row.epochs = row.epochs + self._new_epochs if model.trains_by_epochs else goal
        if math.isnan(row.score) or self.metric.is_better(score, row.score):
            row.score = score
            model.save(self._path(row), compute_metrics=False)

    def _open(self, row: _Row) -> base.Model:
        if self._path(row).is_file():
            return base.load_model(self._path(row), self.data)
        cls: Any = registry.find_model(row.model)
        torch.manual_seed(self.seed)  # new layers are drawn from it
        start = {'pretrained': self.pretrained, 'backbone': row.backbone} if _takes_backbones(cls) else {}
        given = self.options | start
        taken = inspect.signature(cls).parameters
        chosen = {name: value for name, value in given.items() if name in taken and value is not None}
        model: base.Model = cls(self.data, **chosen)
        row.backbone = row.backbone or (model.spec.backbone if 'backbone' in taken else None)
        row.parameters = sum(weight.numel() for weight in model.network.parameters()) / 1e6
        return model

    def _fit(self, model: base.Model, row: _Row, goal: int, share: float, *, resume: bool) -> bool:
        """Train a model; returns whether at least one epoch was finished."""
        from geolearn.training.deadline import Deadline, OutOfTime

        before = len(model.history.epochs)
        fit: Callable[..., Any] = model.fit
        self._new_epochs = 0
        print_line(f'{row.name}, epochs {row.epochs + 1} to {goal}' if model.trains_by_epochs else row.name)
        with report_progress(lambda _: None):
            if not model.trains_by_epochs:
                fit(seed=self.seed)
                self._new_epochs = len(model.history.epochs) - before
                return True
            now, left = time.monotonic(), self._left
            given = {
                'monitor': self.metric.name,
                'seed': self.seed,
                'callbacks': (Deadline(now + share * left, now + left),),
            }
            try:
                if not (resume and self._resumed(fit, goal - row.epochs, given)):
                    fit(goal - row.epochs, self.lr if row.rate is None else row.rate, **given)
            except OutOfTime:
                return False
        row.rate = model.history.learning_rate
        self._new_epochs = len(model.history.epochs) - before
        return self._new_epochs > 0

    def _resumed(self, fit: Callable[..., Any], epochs: int, given: Mapping[str, Any]) -> bool:
        """Continue a training that was interrupted in the middle, where an epoch of it was finished."""
        try:
            fit(epochs, self.lr, resume=True, **given)
        except errors.CheckpointError:
            return False
        return True

    def result(self) -> Comparison:
        """Return the table and the best model.

        Raises:
            TrainingError: If no candidate was trained.
        """
        ranked = self._ranked()
        if not ranked:
            notes = '; '.join(f'{row.name}: {row.note or "no time was left"}' for row in self.rows)
            raise errors.TrainingError(
                f'none of {len(self.rows)} candidates finished an epoch with a {self.metric.label}: {notes}; pass a '
                'longer time_limit, or other models or backbones'
            )
        columns = {
            'model': [row.model for row in self.rows],
            'backbone': [row.backbone for row in self.rows],
            'status': [row.status for row in self.rows],
            'epochs': [row.epochs for row in self.rows],
            'seconds': [round(row.seconds, 1) for row in self.rows],
            self.metric.name: [row.score for row in self.rows],
            'learning_rate': [math.nan if row.rate is None else row.rate for row in self.rows],
            'parameters': [row.parameters for row in self.rows],
            'note': [row.note for row in self.rows],
        }
        table = pd.DataFrame(columns).sort_values(
            self.metric.name, ascending=not self.metric.higher_is_better, kind='stable', ignore_index=True
        )
        model = base.load_model(self._path(ranked[0]), self.data)
        return Comparison(model, table, self.metric, self.folder)

"""Grids of trainings: encoders x decoders x starts x shares of the labels x seeds, on one data set.

Each cell is one training through `prepare_data` and `fit`, scored on test chips. Finished cells are kept as files, so
that a grid that was interrupted trains only what is missing, and several processes or machines can each do a part.
"""

import hashlib
import inspect
import itertools
import json
import logging
import platform
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import yaml

from geolearn import errors, files
from geolearn._version import __version__
from geolearn.adaptation import Adaptation
from geolearn.backbones.custom import is_file_name
from geolearn.backbones.describe import describe_backbone
from geolearn.chips.label import Task
from geolearn.chips.splits.divide import KINDS, PUBLISHED
from geolearn.data import ChipData
from geolearn.inference.cluster import run_tasks
from geolearn.models import Model, registry
from geolearn.models.evaluation.pixels import evaluate_pixels, tabulate_metrics
from geolearn.prepare import prepare_data
from geolearn.probe.baselines import BAND_STATISTICS, RANDOM_CONVOLUTIONS
from geolearn.progress import ProgressBar, report_progress
from geolearn.studies.grid_result import Cell, GridResult, Published
from geolearn.training.distributed import started_as, training_alone

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger('geolearn')

Start = Literal['frozen', 'fine-tuned', 'lora', 'random']

STARTS: tuple[Start, ...] = get_args(Start)

BASELINES = (BAND_STATISTICS, RANDOM_CONVOLUTIONS)
"""What every frozen score is to be compared with: pixels by their values, and a frozen random network."""

RANDOM_NETWORK = 'resnet18'
"""Whose random convolutions a linear layer is trained on."""

LEAST_CHIPS = 2
"""That a training needs; a smaller share of the labels is two chips."""

TESTS = 'whole chips'
"""What cells are scored on; finished cells of another way of testing are not used."""

SET_BY_GRID = ('seed', 'label_fraction', 'working_dir', 'path', 'target')
"""Arguments of `prepare_data` that are not those of the data."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is trained; a YAML file has the same keys.

    Args:
        data: ``chips``, a folder or several, and other arguments of `prepare_data`, such as ``chip_size``, ``split``
            and ``test_path``. The chips to test on are those of ``test_path``, the test part that the data set
            publishes, or ``test_split_pct`` of the chips, which is 0.2 if not given. Chips are tested on as a whole,
            those larger than ``chip_size`` in windows.
        encoders: Names of backbones, or files that `geolearn.pretrain` wrote.
        decoders: Names of classes of models for pixels, such as ``UPerNet``.
        starts: ``'frozen'``: the encoder keeps its pretrained weights; ``'fine-tuned'``: they are trained too;
            ``'lora'``: low-rank updates of a transformer are; ``'random'``: all weights are random and trained.
        shares: Of the training labels, over 0 and up to 1.
        seeds: Of weights, order and choice of labels.
        epochs: Of each training.
        lr: Highest learning rate; None searches for one in each training.
        lora_rank: Of the low-rank updates.
        weights: Files of weights by encoder, for machines without internet.
        baselines: Whether to train the two baselines too where something is frozen.
        reports: Whether to write a report for each training.
        published: Scores of papers for the same data, shown in a column of their own.
    """

    data: Mapping[str, Any]
    encoders: Sequence[str]
    decoders: Sequence[str]
    starts: Sequence[Start] = ('frozen', 'fine-tuned')
    shares: Sequence[float] = (1.0,)
    seeds: Sequence[int] = (0,)
    epochs: int = 20
    lr: float | None = None
    lora_rank: int = 8
    weights: Mapping[str, str] = field(default_factory=dict)
    baselines: bool = True
    reports: bool = False
    published: Sequence[Published] = ()

    def __post_init__(self) -> None:
        """Check all names before anything is trained.

        Raises:
            ArgumentError: If a value is not valid or there is nothing to train.
            UnknownNameError: If a decoder, a start or an argument of the data is unknown.
        """
        for name in ('encoders', 'decoders', 'starts', 'shares', 'seeds'):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence) or not value:
                raise errors.ArgumentError(f'{name} must be a list that is not empty, got {value!r}')
            if len(set(map(str, value))) < len(value):
                raise errors.ArgumentError(f'{name} names {_repeated(value)!r} twice')
        for start in self.starts:
            if start not in STARTS:
                raise errors.UnknownNameError('start', str(start), STARTS)
        check_shares(self.shares)
        check_seeds(self.seeds)
        for encoder in self.encoders:
            _check_encoder(encoder)
        for name in ('epochs', 'lora_rank'):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise errors.ArgumentError(f'{name} must be a whole number from 1, got {getattr(self, name)!r}')
        if self.lr is not None and not (isinstance(self.lr, int | float) and self.lr > 0):
            raise errors.ArgumentError(f'lr must be a number above 0, or left out, got {self.lr!r}')
        for decoder in self.decoders:
            find_decoder(decoder)
        if not isinstance(self.data, Mapping) or 'chips' not in self.data:
            raise errors.ArgumentError('data must name the chips, such as data: {chips: folder, chip_size: 224}')
        known = [name for name in inspect.signature(prepare_data).parameters if name not in SET_BY_GRID]
        for name in self.data:
            if name != 'chips' and name not in known:
                raise errors.UnknownNameError('argument of data', str(name), [*known, 'chips'])
        if not isinstance(self.weights, Mapping):
            raise errors.ArgumentError(f'weights must map encoders to files, got {self.weights!r}')
        for name in self.weights:
            if name not in self.encoders:
                raise errors.UnknownNameError('encoder of weights', str(name), self.encoders)
            path = self.weights[name]
            if not isinstance(path, str | Path) or not Path(path).expanduser().exists():
                raise errors.ArgumentError(f'weights of {name} must be a file, and there is none at {path!r}')

    def reading(self) -> dict[str, Any]:
        """Return the arguments of `prepare_data` besides the chips, as they were given."""
        return {name: value for name, value in self.data.items() if name != 'chips'}


def check_shares(shares: Sequence[float]) -> None:
    """Refuse shares of the labels that are none, or that are named twice.

    Raises:
        ArgumentError: If a share is not over 0 and up to 1, or stands twice, such as 1 and 1.0.
    """
    for share in shares:
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
            raise errors.ArgumentError(f'shares must be numbers over 0 and up to 1, got {share!r}')
    if len(set(shares)) < len(shares):
        raise errors.ArgumentError(f'shares names {_repeated(shares)!r} twice')


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse what is no seed.

    Raises:
        ArgumentError: If a seed is no whole number from 0.
    """
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise errors.ArgumentError(f'seeds must be whole numbers from 0, got {seed!r}')


def _check_encoder(name: object) -> None:
    """Refuse a name that no backbone has, and a file that is not there.

    Raises:
        ArgumentError: If it is no text, or names a file that does not exist.
        UnknownNameError: If there is no such backbone; the nearest are named.
    """
    if not isinstance(name, str | Path):
        raise errors.ArgumentError(f'encoders must be names of backbones or files, got {name!r}')
    if is_file_name(name):
        if not Path(name).expanduser().exists():
            raise errors.ArgumentError(f'encoders names the file {name}, which does not exist')
        return
    with suppress(errors.BackboneError):  # of timm, torchvision or the user's own, without a record
        describe_backbone(str(name))


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        encoder: Name or file.
        decoder: Class of models.
        start: What of the encoder is trained.
        share: Of the training labels.
        seed: Of weights, order and choice of labels.
        baseline: Whether it is one.
        weights: Name, size and time of the files that the encoder's weights come from; others make another training.
    """

    encoder: str
    decoder: str
    start: Start
    share: float
    seed: int
    baseline: bool = False
    weights: tuple[tuple[str, int, int], ...] = ()

    @property
    def slug(self) -> str:
        """Name of its file."""
        words = (Path(self.encoder).name, self.decoder, self.start, f'{self.share:g}', str(self.seed))
        text = '_'.join(re.sub(r'[^\w.-]+', '-', word) for word in words)
        # files of one name may lie in several folders
        return f'{text}_{hashlib.sha256(repr(self).encode()).hexdigest()[:8]}'


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The trainings of a grid on chips that were read.

    Args:
        data: All chips, divided as in every training.
        reading: Arguments of `prepare_data` that divide the chips so, whatever the seed.
        root: Folder for tables and figures.
        folder: Of the finished trainings.
        jobs: All trainings.
        mine: Those of the part to do.
    """

    data: ChipData
    reading: Mapping[str, Any]
    root: Path
    folder: Path
    jobs: tuple[Job, ...]
    mine: tuple[Job, ...]

    def path_of(self, job: Job) -> Path:
        """Return where a training is kept when it is finished."""
        return self.folder / f'{job.slug}.json'

    def read_cell(self, job: Job) -> Cell | None:
        """Return a finished training, or None where there is none that can be read, which is said once."""
        path = self.path_of(job)
        try:
            return Cell.from_record(json.loads(path.read_text(encoding='utf-8')))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            _warn_damaged(path, repr(error))
            return None

    def save_cell(self, job: Job, cell: Cell) -> None:
        """Keep what came out of a training."""
        with files.atomic_write(self.path_of(job), make_folder=True) as target:
            target.write_text(json.dumps(cell.as_record()), encoding='utf-8')

    def read_cells(self) -> tuple[Cell, ...]:
        """Return the finished trainings of all parts."""
        return tuple(cell for job in self.jobs if (cell := self.read_cell(job)) is not None)


@cache
def _warn_damaged(path: Path, why: str) -> None:
    log.warning('%s holds no finished training (%s): it is damaged, or of another version; it is done again', path, why)


class _Loader(yaml.SafeLoader):
    """Safe loading that takes ``1e-4`` for a number, as YAML 1.2 does, and PyYAML only with a dot in it."""


_Loader.add_implicit_resolver('tag:yaml.org,2002:float', re.compile(r'[-+]?\d+[eE][-+]?\d+$'), list('-+0123456789'))


def read_grid(path: str | Path) -> Grid:
    """Read a grid from a YAML file.

    Raises:
        ConfigError: If the file cannot be read, or a key or value is not one of a grid.
    """
    place = Path(path)
    try:
        content = yaml.load(place.read_text(encoding='utf-8'), Loader=_Loader)
    except OSError as error:
        raise errors.ConfigError(f'cannot read {place}: {error.strerror or error}') from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise errors.ConfigError(f'{place} is not YAML: {" ".join(str(error).split())}') from error
    if not isinstance(content, dict):
        raise errors.ConfigError(f'{place} must hold the keys of a grid, such as data, encoders and decoders')
    known = [each.name for each in fields(Grid)]
    for key in content:
        if key not in known:
            raise errors.ConfigError(f'{place}: {errors.UnknownNameError("key", str(key), known)}')
    for key in ('data', 'encoders', 'decoders'):
        if key not in content:
            raise errors.ConfigError(f'{place} lacks {key}')
    try:
        published = tuple(Published(**row) for row in content.pop('published', None) or ())
        return Grid(**content, published=published)
    except (TypeError, ValueError) as error:
        raise errors.ConfigError(f'{place}: {error}') from error


def run_grid(
    grid: Grid, out: str | Path, *, part: tuple[int, int] | None = None, client: 'Client | None' = None
) -> GridResult:
    """Train all cells that are not trained yet, score them on the test chips, and write the tables and figures.

    Args:
        grid: What to train.
        out: Folder for the cells, ``grid.csv``, ``grid.parquet``, ``grid.md`` and figures.
        part: Which of several parts of the trainings to do, such as ``(3, 8)``; each may run in a process or on a
            machine of its own, with one folder. The tables hold all that is there. Under torchrun, None is the part of
            this process.
        client: Of ``dask.distributed``, whose workers do the trainings, one at a time each; they must see the chips and
            `out` under the same paths.

    Returns:
        All cells that are finished, those of other parts too.

    Raises:
        ArgumentError: If the part is no part.
        ChipFolderError: If the chips cannot be read or divided, or have no class for each pixel.
        RasterError: If Dask's scheduler is lost.
    """
    plan = plan_grid(grid, out, part=part)
    try:
        if client is None:
            with training_alone():
                _train_missing(grid, plan)
        else:
            _train_on_cluster(grid, plan, client)
    finally:  # also of what is finished when one is interrupted
        result = _save_tables(grid, plan)
    return result


def _train_missing(grid: Grid, plan: Plan) -> None:
    with ProgressBar(len(plan.mine), 'benchmark', 'training') as bar:
        for job in plan.mine:
            cell = plan.read_cell(job)
            if cell is None or cell.failure:  # the reason may be gone
                cell = _train(grid, job, plan)
                plan.save_cell(job, cell)
            bar.update(detail=f'{job.encoder}, {job.decoder}, {job.start}: {cell.describe()}')


def _train_on_cluster(grid: Grid, plan: Plan, client: 'Client') -> None:
    found = {job: plan.read_cell(job) for job in plan.mine}
    missing = [job for job, cell in found.items() if cell is None or cell.failure]
    with ProgressBar(len(missing), 'benchmark', 'training') as bar:
        for outcome in run_tasks(client, ClusterTraining(grid, str(plan.root.absolute())), missing):
            job = outcome.item
            if outcome.error:
                log.warning('%s, %s, %s failed: %s', job.encoder, job.decoder, job.start, outcome.error)
            else:
                plan.save_cell(job, outcome.result)
            bar.update(
                detail=f'{job.encoder}, {job.decoder}, {job.start}: {outcome.error or outcome.result.describe()}'
            )


@dataclass(frozen=True)
class ClusterTraining:
    """One training of a grid on a worker of Dask.

    Args:
        grid: What to train.
        out: Folder of the grid, on a disk that all workers see.
    """

    grid: Grid
    out: str

    def __call__(self, job: Job) -> Cell:
        """Train and test one cell."""
        with _one_training:  # seeds are those of the whole process
            return _train(self.grid, job, plan_grid(self.grid, self.out))


_one_training = threading.Lock()


def _save_tables(grid: Grid, plan: Plan) -> GridResult:
    """Write the tables of all finished cells, again if another part has finished one meanwhile."""
    split = plan.data.split
    counts = len(split.train), len(split.valid), len(split.test)
    while True:
        cells = plan.read_cells()
        result = GridResult(cells, len(plan.jobs), tuple(plan.data.classes), counts, grid.epochs, tuple(grid.published))
        if cells:
            result.save(plan.root)
        if repr(plan.read_cells()) == repr(cells):  # not ==, because IoU may be NaN
            return result


def plan_grid(grid: Grid, out: str | Path, *, part: tuple[int, int] | None = None) -> Plan:
    """Read the chips and list the trainings.

    Args:
        grid: What to train.
        out: Folder for the cells, tables and figures.
        part: Which of several parts of the trainings to do; None for all.

    Raises:
        ArgumentError: If the part is no part.
        ChipFolderError: If the chips cannot be read or divided, or have no class for each pixel.
    """
    if part is not None and not 1 <= part[0] <= part[1]:
        raise errors.ArgumentError(f'part must be (number, of how many) from 1, such as (3, 8), got {part!r}')
    if part is None and started_as()[1] > 1:
        part = started_as()[0] + 1, started_as()[1]
    root = Path(out)
    whole, reading = _read(grid, root)
    if whole.task is not Task.PIXELS:
        raise errors.ChipFolderError('a grid compares models of pixels; the chips hold no class for each pixel')
    jobs = tuple(_list_jobs(grid))
    return Plan(
        data=whole,
        reading=keep_parts(whole, reading),
        root=root,
        folder=root / f'cells_{_digest(grid, whole, reading)}',
        jobs=jobs,
        mine=jobs if part is None else jobs[part[0] - 1 :: part[1]],
    )


def find_decoder(name: str) -> type[Model]:
    """Return a class of models of pixels by its name.

    Raises:
        UnknownNameError: If there is none.
    """
    known = {n: cls for n, cls in registry.load_all().items() if Task.PIXELS in cls.tasks and n != 'PixelHead'}
    if name not in known:
        raise errors.UnknownNameError('decoder', str(name), known)
    return known[name]


def _list_jobs(grid: Grid) -> Iterator[Job]:
    """Yield all trainings, the baselines of a share first."""
    for share in grid.shares:
        if grid.baselines and 'frozen' in grid.starts:
            for name, seed in itertools.product(BASELINES, grid.seeds):
                yield Job(name, 'linear', 'frozen', share, seed, baseline=True)
        for row in itertools.product(grid.encoders, grid.decoders, grid.starts, grid.seeds):
            paths = [row[0], *([grid.weights[row[0]]] if row[0] in grid.weights else [])]
            yield Job(row[0], row[1], row[2], share, row[3], weights=tuple(files.file_states(paths)))


def keep_parts(data: ChipData, reading: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `prepare_data` that divide the chips as they are divided in `data`, whatever the seed.

    Args:
        data: Read with `reading`.
        reading: Arguments of `prepare_data` besides the chips.
    """
    if reading.get('valid_path'):
        return dict(reading)
    names = data.table.names
    parts = {'train': data.split.train, 'valid': data.split.valid}
    parts |= {} if reading.get('test_path') else {'test': data.split.test}
    lists = {name: [names[position] for position in positions] for name, positions in parts.items() if positions}
    dividing = ('split', 'block_size', 'val_split_pct', 'test_split_pct')
    return {name: value for name, value in reading.items() if name not in dividing} | {'split': lists}


def _read(grid: Grid, root: Path) -> tuple[ChipData, dict[str, Any]]:
    """Read the chips; a share of them is tested on only where neither folders nor published parts say on which."""
    given = grid.reading()

    def read(reading: Mapping[str, Any]) -> ChipData:
        with report_progress(lambda _: None):
            return prepare_data(grid.data['chips'], **reading, working_dir=root / 'work')

    if given.get('test_path') or given.get('test_split_pct'):
        return read(given), given
    if given.get('valid_path'):
        raise errors.ArgumentError('data names valid_path, and nothing to test on; add test_path')
    if isinstance(split := given.get('split', PUBLISHED), str) and split in KINDS:
        shared = {'val_split_pct': 0.2, 'test_split_pct': 0.2} | given
        return read(shared), shared
    whole = read(given)
    if whole.test_dl is not None or split != PUBLISHED:
        return whole, given
    # a published validation part stays as it is
    shared = ({} if 'valid' in whole.published_parts else {'val_split_pct': 0.2}) | {'test_split_pct': 0.2} | given
    return read(shared), shared


def read_chips(grid: Grid, job: Job, plan: Plan) -> ChipData:
    """Read the chips of one training: the parts of the plan, the labels that its share and seed choose."""
    least = LEAST_CHIPS / max(len(plan.data.split.train), LEAST_CHIPS)
    with report_progress(lambda _: None):
        return prepare_data(
            grid.data['chips'],
            **plan.reading,
            working_dir=plan.root / 'work',
            seed=job.seed,
            label_fraction=min(1.0, max(job.share, least)),
        )


def _train(grid: Grid, job: Job, plan: Plan) -> Cell:
    """Train and test one cell; one that no model can be made for says why."""
    data = read_chips(grid, job, plan)
    if data.test_dl is None:
        raise errors.ChipFolderError('no chip is left to test on; pass more chips, or data: {test_path: ...}')
    common: dict[str, Any] = {
        'encoder': job.encoder,
        'decoder': job.decoder,
        'start': 'baseline' if job.baseline else job.start,
        'share': job.share,
        'seed': job.seed,
        'chips': len(data.split.train),
        'versions': {'geolearn': __version__, 'torch': torch.__version__, 'python': platform.python_version()},
    }
    torch.manual_seed(job.seed)
    try:
        model = make_model(grid, job, data)
    except (errors.BackboneError, errors.ArgumentError, errors.WeightsError, errors.BandError) as error:
        return _failed(common, error)
    started = time.perf_counter()
    network: Any = model.network  # a segmenter, for decoders are classes of models of pixels
    try:
        with report_progress(lambda _: None):
            if job.encoder == BAND_STATISTICS:
                model.fit(seed=job.seed)  # a linear layer on pixels has steps of its own
            else:
                model.fit(grid.epochs, grid.lr, seed=job.seed)
        seconds = time.perf_counter() - started
        found = evaluate_pixels(network, data.test_dl, data.classes)
    except errors.TrainingError as error:  # the other trainings may go well
        return _failed(common, error)
    iou = tabulate_metrics(found.confusion, data.classes)['iou']
    if grid.reports:
        (plan.root / 'reports').mkdir(parents=True, exist_ok=True)
        model.report(plan.root / 'reports' / f'{job.slug}.html')
    weights = list(model.network.parameters())
    return Cell(
        **common,
        metrics={name: float(value) for name, value in found.metrics.items() if value is not None},
        class_iou={str(name): float(value) for name, value in iou.items()},
        seconds=seconds,
        parameters=sum(weight.numel() for weight in weights),
        trained=sum(weight.numel() for weight in weights if weight.requires_grad),
    )


def _failed(common: Mapping[str, Any], error: Exception) -> Cell:
    log.warning('%s, %s, %s failed: %s', common['encoder'], common['decoder'], common['start'], error)
    return Cell(**common, metrics={}, class_iou={}, seconds=0.0, parameters=0, trained=0, failure=str(error))


def make_model(grid: Grid, job: Job, data: ChipData, *, pretrained: bool = True) -> Model:
    """Make the model of one training.

    Args:
        grid: Of the training.
        job: The training.
        data: Its chips.
        pretrained: Whether starts other than ``'random'`` load their weights; without them the model takes as much time
            and memory.

    Raises:
        BackboneError: If the encoder cannot be trained so, or has no weights.
        WeightsError: If the weights cannot be read or loaded from their host.
    """
    make: Any
    if job.encoder == BAND_STATISTICS:
        make = registry.load_all()['PixelHead']
        return make(data, head='linear')
    if job.baseline:
        make = find_decoder('LinearProbe')
        return make(data, RANDOM_NETWORK, pretrained=False, adapt=Adaptation(freeze='all'))
    make = find_decoder(job.decoder)
    if job.start == 'random':
        return make(data, job.encoder, pretrained=False)
    adapt = {
        'frozen': Adaptation(freeze='all'),
        'fine-tuned': Adaptation(),
        'lora': Adaptation(lora_rank=grid.lora_rank),
    }[job.start]
    if not pretrained:
        return make(data, job.encoder, pretrained=False, adapt=adapt)
    weights = {'weights': grid.weights[job.encoder]} if job.encoder in grid.weights else {}
    return make(data, job.encoder, adapt=adapt, **weights)


def _digest(grid: Grid, data: ChipData, reading: Mapping[str, Any]) -> str:
    """Return what tells cells of other data or another training apart; what the lists of the grid hold may change."""
    facts = [TESTS, data.fingerprint, sorted(reading.items()), list(data.table.names), grid.epochs, grid.lr]
    facts += [grid.lora_rank, sorted(grid.weights.items())]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:12]


def _repeated(values: Sequence[Any]) -> Any:
    return next(value for index, value in enumerate(values) if value in values[:index])

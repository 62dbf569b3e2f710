"""Sections that the reports of all tasks share: training, backbone, settings, how to reproduce."""

import hashlib
import io
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from geolearn import plotting
from geolearn._version import __version__
from geolearn.arguments import find_imports, format_call
from geolearn.backbones import describe_backbone
from geolearn.backbones.adapt import DEFAULT_ADAPTATION
from geolearn.backbones.loading import LoadReport
from geolearn.data import ChipData
from geolearn.errors import BackboneError
from geolearn.history import History
from geolearn.metrics import best_epoch, find_monitor, name_metric
from geolearn.networks.spec import ModelSpec
from geolearn.report import Cell, Code, Facts, Notes, Part, Picture, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def png(figure: 'Figure', *, dpi: float = 100) -> bytes:
    """Return a figure as the bytes of a PNG of `dpi` pixels an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=dpi)
    return buffer.getvalue()


_DENSITY = 1.5

_LIBRARIES = ('torch', 'torchvision', 'timm', 'segmentation_models_pytorch', 'fastai', 'rasterio', 'numpy')

PARTS = {'train': 'training', 'valid': 'validation', 'test': 'test'}
"""What the parts of a split are called."""


def picture(figure: 'Figure', alt: str, caption: str = '', *, name: str = '') -> Picture:
    """Take a figure into a report, sharp enough for print.

    Args:
        figure: From `geolearn.plotting`.
        alt: What it shows, for those who do not see it.
        caption: Below it.
        name: By which a bundle keeps it by itself too; Esri's, such as ``'show_results'``, where there is one.
    """
    return Picture(png(figure, dpi=100 * _DENSITY), alt, caption, _DENSITY, name)


def format_score(score: float, form: str = '.4f') -> str:
    """Return a score as text; a dash where it is undefined."""
    return '\N{EN DASH}' if math.isnan(score) else format(score, form)


def training_section(history: History, *, monitor: str = 'valid_loss') -> Section:
    """Report the training: a row for each epoch, the curves, how long it took.

    Args:
        history: Of the model.
        monitor: The column that says which epoch was best.
    """
    rows = _numbers(history.epochs)
    if not rows:
        return Section('Training', ('The model has not been trained.',))
    facts = [('epochs', str(len(rows))), ('time', training_time(history))]
    if history.learning_rate is not None:
        facts.insert(1, ('highest learning rate', f'{history.learning_rate:.3g}'))
    best = best_epoch(rows, find_monitor(monitor))
    if best is not None:
        facts.append(('best epoch', f'{best + 1}, {name_metric(monitor)} {rows[best][monitor]:.4g}'))
    parts: list[Part] = [Facts(tuple(facts))]
    if history.batch_losses:
        curves = plotting.show_losses(history.batch_losses, rows[history.loaded :], monitor=monitor)
        parts.append(picture(curves, 'Losses and scores by epoch', name='loss_graph'))
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    cells = tuple(tuple(_number(name, row.get(name)) for name in columns) for row in rows)
    parts.append(Table(tuple(name_metric(name) for name in columns), cells, 'Each epoch'))
    return Section('Training', tuple(parts))


def backbone_section(spec: ModelSpec, load_report: LoadReport | None) -> Section:
    """Describe the backbone, where its weights come from and under which license.

    Args:
        spec: Of the model.
        load_report: Of the weights; None for a backbone that started from random ones.
    """
    facts = [('name', spec.backbone)]
    notes: tuple[str, ...] = ()
    try:
        record = describe_backbone(spec.backbone).record
    except BackboneError as error:
        facts.append(('license', f'not known to geolearn: {error}'))
    else:
        facts += [
            ('network', f'{record.family}, width {record.dim}, {record.depth} blocks'),
            ('license of the weights', record.license + (' (no commercial use)' if record.non_commercial else '')),
            ('paper', record.paper),
        ]
        if spec.pretrained and record.sources:
            source = record.sources[0]
            facts.append(('published as', f'{source.file} of huggingface.co/{source.repo}'))
            facts.append(('revision', source.revision))
            facts.append(('sha256', source.sha256))
        notes = (record.note,) if record.note else ()
    started = str(load_report) if load_report else 'published weights' if spec.pretrained else 'random weights'
    facts.append(('started from', started))
    if spec.adaptation != DEFAULT_ADAPTATION:
        facts.append(('adapted by', repr(spec.adaptation)))
    parts = (Facts(tuple(row for row in facts if row[1])),)
    return Section('Backbone and weights', (*parts, Notes(notes)) if notes else parts)


def settings_section(settings: Mapping[str, str]) -> Section:
    """List the settings of the network and its loss.

    Args:
        settings: Texts by label; empty ones are left out.
    """
    return Section('Settings', (Facts(tuple((name, text) for name, text in settings.items() if text)),))


def reproduce_section(spec: ModelSpec, data: ChipData, history: History) -> Section:
    """Give the lines that train the model again, and the fingerprint by which the split can be compared.

    Args:
        spec: Of the model, with the arguments of its constructor.
        data: That it was trained on, with the arguments of `prepare_data`.
        history: Of its training, with the arguments of each `fit`.
    """
    options = data.train_dl.options
    chips = {'chip_size': data.chip_size, 'batch_size': data.batch_size, 'seed': options.seed, **data.arguments}
    given = {'backbone': spec.backbone, **(spec.arguments or {})}
    values = [*data.arguments.values(), *given.values(), *(value for row in history.fits for value in row.values())]
    imports = sorted({line for value in values for line in find_imports(value)})
    lines = (
        f'from geolearn import prepare_data, {spec.model}',
        *imports,
        '',
        f'data = {format_call("prepare_data", [repr(data.path.name)], chips)}',
        f'model = {format_call(spec.model, ["data"], given)}',
        *(format_call('model.fit', [], row) for row in _fits(history)),
    )
    missing = [] if spec.arguments is not None else [f'further arguments of {spec.model}']
    missing += [] if len(history.fits) else ['further arguments of fit']
    note = f'Not kept with this model: {", ".join(missing)}. ' if missing else ''
    marks = tuple((words, fingerprint(data, part)) for part, words in PARTS.items() if getattr(data.split, part))
    return Section(
        'Reproduce',
        (
            Code('\n'.join(lines) + '\n'),
            f'{note}The split is the same if its fingerprints are: the first digits of the SHA-256 of the sorted names '
            'of its chips.',
            Facts(marks),
        ),
    )


def _fits(history: History) -> list[dict[str, Any]]:
    """Return the arguments of each call of fit; for bundles from before they were kept, what is known of them."""
    if history.fits:
        return history.fits
    rate = {} if history.learning_rate is None else {'lr': history.learning_rate}
    return [{'epochs': len(history.epochs), **rate}] if history.epochs else []


def environment_section() -> Section:
    """List the machine and the versions with which the report was made."""
    cuda = torch.cuda.is_available()
    facts = (
        ('geolearn', __version__),
        ('Python', platform.python_version()),
        *((name, version(name)) for name in _LIBRARIES),
        ('system', f'{platform.system()} {platform.machine()}'),
        ('processors', str(os.cpu_count())),
        ('GPU', torch.cuda.get_device_name() if cuda else 'none'),
    )
    return Section('Versions and hardware', (Facts(facts), 'Those of the machine on which this report was made.'))


def fingerprint(data: ChipData, part: str) -> str:
    """Return the first 16 digits of the SHA-256 of the sorted names of the chips in a part, a name a line."""
    names = sorted(data.table.names[position] for position in getattr(data.split, part))
    return hashlib.sha256('\n'.join(names).encode('utf-8', 'surrogatepass')).hexdigest()[:16]


def training_time(history: History) -> str:
    """Return in words how long all epochs took."""
    seconds = [row.get('seconds', math.nan) for row in _numbers(history.epochs)]
    return duration(sum(value for value in seconds if math.isfinite(value)))


def duration(seconds: float) -> str:
    """Return a duration in words: ``'3.2 s'``, ``'12 min 5 s'``, ``'2 h 7 min'``."""
    if seconds < 60:
        return f'{seconds:.1f} s'
    minutes, rest = divmod(round(seconds), 60)
    return f'{minutes} min {rest} s' if minutes < 60 else f'{minutes // 60} h {minutes % 60} min'


def _numbers(rows: Sequence[Mapping[str, object]]) -> list[dict[str, float]]:
    """Return the rows as numbers: bundles hold nothing where a score was NaN, and hostile ones hold anything."""
    return [
        {name: float(value) if isinstance(value, int | float) else math.nan for name, value in row.items()}
        for row in rows
    ]


def _number(name: str, value: float | None) -> Cell:
    if value is None or not math.isfinite(value):
        return None
    return int(value) if name == 'epoch' else round(value, 1) if name == 'seconds' else float(value)

"""The report of a model: the sections of its task between those that all tasks share."""

import hashlib
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from geolearn import arguments, bands, bundle, errors, plotting
from geolearn._version import __version__
from geolearn.adaptation import DEFAULT_ADAPTATION
from geolearn.backbones import describe_backbone, loading
from geolearn.chips.label import Task
from geolearn.chips.meaning import classes as taxonomy
from geolearn.chips.splits.divide import count_leaks, leak_note
from geolearn.data import ChipData
from geolearn.history import History
from geolearn.metrics import Calibration, best_epoch, choose_typical, find_monitor, name_metric, rank_chips
from geolearn.networks.pixel_head import BACKBONE
from geolearn.networks.spec import ModelSpec
from geolearn.report import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def png(figure: 'Figure', *, dpi: float = 100) -> bytes:
    """Return a figure as the bytes of a PNG of `dpi` pixels an inch."""
    from geolearn.plotting.figure import draw_png

    return draw_png(figure, dpi=dpi)


_DENSITY = 1.5

_LIBRARIES = ('torch', 'torchvision', 'timm', 'segmentation_models_pytorch', 'fastai', 'rasterio', 'numpy')

PARTS = {'train': 'training', 'valid': 'validation', 'test': 'test'}
"""What the parts of a split are called."""


def picture(figure: 'Figure', alt: str, caption: str = '', *, name: str = '') -> page.Picture:
    """Take a figure into a report, sharp enough for print.

    Args:
        figure: From `geolearn.plotting`.
        alt: What it shows, for those who do not see it.
        caption: Below it.
        name: By which a bundle keeps it by itself too; Esri's, such as ``'show_results'``, where there is one.
    """
    return page.Picture(png(figure, dpi=100 * _DENSITY), alt, caption, _DENSITY, name)


def format_score(score: float, form: str = '.4f') -> str:
    """Return a score as text; a dash where it is undefined."""
    return '\N{EN DASH}' if math.isnan(score) else format(score, form)


def training_section(history: History, *, monitor: str = 'valid_loss') -> page.Section:
    """Report the training: a row for each epoch, the curves, how long it took.

    Args:
        history: Of the model.
        monitor: The column that says which epoch was best.
    """
    rows = _numbers(history.epochs)
    if not rows:
        return page.Section('Training', ('The model has not been trained.',))
    facts = [('epochs', str(len(rows))), ('time', training_time(history))]
    if history.learning_rate is not None:
        facts.insert(1, ('highest learning rate', f'{history.learning_rate:.3g}'))
    best = best_epoch(rows, find_monitor(monitor))
    if best is not None:
        facts.append(('best epoch', f'{best + 1}, {name_metric(monitor)} {rows[best][monitor]:.4g}'))
    parts: list[page.Part] = [page.Facts(tuple(facts))]
    if history.batch_losses:
        curves = plotting.show_losses(history.batch_losses, rows[history.loaded :], monitor=monitor)
        parts.append(picture(curves, 'Losses and scores by epoch', name='loss_graph'))
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    cells = tuple(tuple(_number(name, row.get(name)) for name in columns) for row in rows)
    parts.append(page.Table(tuple(name_metric(name) for name in columns), cells, 'Each epoch'))
    return page.Section('Training', tuple(parts))


def backbone_section(spec: ModelSpec, load_report: loading.LoadReport | None) -> page.Section:
    """Describe the backbone, where its weights come from and under which license.

    Args:
        spec: Of the model.
        load_report: Of the weights; None for a backbone that started from random ones.
    """
    if spec.backbone == BACKBONE:
        return page.Section('Backbone', ('None: the values of each pixel go to the head as they are.',))
    facts = [('name', spec.backbone)]
    notes: tuple[str, ...] = ()
    try:
        record = describe_backbone(spec.backbone).record
    except (errors.BackboneError, errors.UnknownNameError) as error:
        why = 'it is a network of your own' if 'backbone' in spec.custom else str(error)
        facts.append(('license', f'not known to geolearn: {why}'))
    else:
        facts += [
            ('network', f'{record.family}, width {record.dim}, {record.depth} blocks'),
            ('license of the weights', record.license + (' (no commercial use)' if record.non_commercial else '')),
            *([('terms of the weights', record.terms)] if record.terms else []),
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
    parts = (page.Facts(tuple(row for row in facts if row[1])),)
    return page.Section('Backbone and weights', (*parts, page.Notes(notes)) if notes else parts)


def settings_section(settings: Mapping[str, str]) -> page.Section:
    """List the settings of the network and its loss.

    Args:
        settings: Texts by label; empty ones are left out.
    """
    return page.Section('Settings', (page.Facts(tuple((name, text) for name, text in settings.items() if text)),))


def reproduce_section(spec: ModelSpec, data: ChipData, history: History) -> page.Section:
    """Give the lines that train the model again, and the fingerprint by which the split can be compared.

    Args:
        spec: Of the model, with the arguments of its constructor.
        data: That it was trained on, with the arguments of `prepare_data`.
        history: Of its training, with the arguments of each `fit`.
    """
    options = data.train_dl.options
    chips = {'chip_size': data.chip_size, 'batch_size': data.batch_size, 'seed': options.seed, **data.arguments}
    named = {} if spec.backbone == BACKBONE else {'backbone': spec.backbone}
    given = {**named, **(spec.arguments or {})}
    values = [*data.arguments.values(), *given.values(), *(value for row in history.fits for value in row.values())]
    imports = sorted({line for value in values for line in arguments.find_imports(value)})
    source = data.source or arguments.format_call('prepare_data', [repr(data.path.name)], chips)
    lines = (
        f'from geolearn import {source.partition("(")[0]}, {spec.model}',
        *imports,
        '',
        f'data = {source}',
        f'model = {arguments.format_call(spec.model, ["data"], given)}',
        *(arguments.format_call('model.fit', [], row) for row in _fits(history)),
    )
    missing = [] if spec.arguments is not None else [f'further arguments of {spec.model}']
    missing += [] if len(history.fits) else ['further arguments of fit']
    note = f'Not kept with this model: {", ".join(missing)}. ' if missing else ''
    marks = tuple((words, fingerprint(data, part)) for part, words in PARTS.items() if getattr(data.split, part))
    return page.Section(
        'Reproduce',
        (
            page.Code('\n'.join(lines) + '\n'),
            f'{note}The split is the same if its fingerprints are: the first digits of the SHA-256 of the sorted names '
            'of its chips.',
            page.Facts(marks),
        ),
    )


def _fits(history: History) -> list[dict[str, Any]]:
    """Return the arguments of each call of fit; for bundles from before they were kept, what is known of them."""
    if history.fits:
        return history.fits
    rate = {} if history.learning_rate is None else {'lr': history.learning_rate}
    return [{'epochs': len(history.epochs), **rate}] if history.epochs else []


def environment_section() -> page.Section:
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
    return page.Section(
        'Versions and hardware', (page.Facts(facts), 'Those of the machine on which this report was made.')
    )


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


def _number(name: str, value: float | None) -> page.Cell:
    if value is None or not math.isfinite(value):
        return None
    return int(value) if name == 'epoch' else round(value, 1) if name == 'seconds' else float(value)


FEW_CHIPS = 10
"""Scores of fewer validation chips than this are uncertain."""


def data_section(data: ChipData) -> page.Section:
    """Describe the chips, which are in which part, and where they lie.

    Args:
        data: From `prepare_data`.
    """
    counts = {words: len(getattr(data.split, part)) for part, words in PARTS.items()}
    facts = (
        ('folder', f'{data.path.name} ({data.dataset_type})'),
        ('chips', ', '.join(f'{count:,} {words}' for words, count in counts.items() if count)),
        ('chip size', f'{data.chip_size} pixels, {data.dtype}'),
        ('bands', ', '.join(_band_text(band) for band in data.bands)),
        ('dates', _dates_text(data)),
        ('normalized by', data.normalization.source if data.normalization else "the backbone's own statistics"),
        ('ignored', ', '.join(f'label value {value}' for value in data.ignored_values)),
    )
    parts: list[page.Part] = [page.Facts(tuple(row for row in facts if row[1]))]
    if data.class_infos:
        parts.append(_class_table(data))
    if data.task == Task.REGRESSION:
        parts.append(_value_table(data))
    figure = plotting.show_split_map([data.table.geobox(position) for position in range(len(data.table))], data.split)
    if figure is None:
        parts.append('The chips have no place on the ground, so there is no map of the parts.')
    else:
        parts.append(picture(figure, 'Map of the chips by part', 'Where the chips of each part lie.'))
    return page.Section('Data', (*parts, page.Notes(data.notes)) if data.notes else tuple(parts))


def find_warnings(data: ChipData, spec: ModelSpec) -> tuple[str, ...]:
    """List what makes scores too good or uncertain: leaks between parts, few chips, classes that are not validated."""
    warnings = []
    boxes = [data.table.geobox(position) for position in range(len(data.table))]
    cure = "divide them again with split='blocks'"
    if note := leak_note(count_leaks(boxes, data.split), data.split, cure):
        warnings.append(note)
    count = len(data.split.valid)
    if count < FEW_CHIPS:
        warnings.append(f'The number of validation chips is {count}; scores of fewer than {FEW_CHIPS} are uncertain.')
    if data.class_infos:
        amounts = data.table.amounts([info.value for info in data.class_infos])
        for part, what in (('train', 'was not trained'), ('valid', 'was not evaluated')):
            present = amounts[list(getattr(data.split, part))].sum(axis=0)
            warnings += [
                f'No {PARTS[part]} chip holds the class {info.name!r}, so it {what}.'
                for info, amount in zip(data.class_infos, present.tolist())
                if not amount
            ]
    if spec.pretrained and _forbids_sale(spec.backbone):
        warnings.append(f'The license of the weights of {spec.backbone} forbids commercial use.')
    return tuple(warnings)


def _class_table(data: ChipData) -> page.Table:
    unit = 'pixels' if data.task in taxonomy.RASTER_TASKS else 'labels'
    shown = {part: words for part, words in PARTS.items() if getattr(data.split, part)}
    amounts = data.table.amounts([info.value for info in data.class_infos])
    columns: list[np.ndarray] = [amounts[list(getattr(data.split, part))] for part in shown]
    rows = []
    for index, info in enumerate(data.class_infos):
        cells: list[page.Cell] = [page.Swatch(info.name, info.color), info.value]
        for held in columns:
            cells += [int(held[:, index].sum()), int((held[:, index] > 0).sum())]
        rows.append(tuple(cells))
    header = ['class', 'value', *(f'{words} {what}' for words in shown.values() for what in (unit, 'chips'))]
    return page.Table(tuple(header), tuple(rows), f'Classes: how many {unit}, and how many chips that hold them')


def _value_table(data: ChipData) -> page.Table:
    rows: list[tuple[page.Cell, ...]] = []
    for part, words in PARTS.items():
        found = data.table.target_statistics(getattr(data.split, part))
        if found is not None:
            rows.append((words, found.count, found.minimum, found.maximum, found.mean, found.std))
    header = ('chips', 'pixels', 'lowest', 'highest', 'mean', 'standard deviation')
    return page.Table(header, tuple(rows), 'Regression target')


def _dates_text(data: ChipData) -> str:
    if data.table.dates == 1:
        return ''
    return ', '.join([str(data.table.dates), *(day.isoformat() for day in data.acquired)])


def _band_text(band: bands.Band) -> str:
    if band.is_radar:
        return f'{band.name} (radar)'
    return f'{band.name} ({band.wavelength_um:g} µm)' if band.wavelength_um else band.name


def _forbids_sale(backbone: str) -> bool:
    try:
        return describe_backbone(backbone).record.non_commercial
    except errors.BackboneError:
        return False


SAMPLES = 4
"""Chips in each figure of samples: few and small, because every bundle carries them."""


@dataclass(frozen=True, eq=False)
class TaskReport:
    """The part of a report that depends on the task.

    Args:
        task: In words, such as ``'object detection'``.
        headline: The metrics that matter most, as label and text.
        sections: Metrics and figures, in order. Pictures that have a name are also put into bundles by themselves.
        settings: Of the network and its loss, as label and text; empty texts are left out.
    """

    task: str
    headline: tuple[tuple[str, str], ...]
    sections: tuple[page.Section, ...]
    settings: Mapping[str, str] = field(default_factory=dict)


def make_report(
    spec: ModelSpec,
    data: ChipData,
    history: History,
    task: TaskReport,
    *,
    load_report: loading.LoadReport | None,
    made: date,
) -> page.ReportContents:
    """Lay out data, training, metrics and figures of a model.

    Args:
        spec: Of the model.
        data: That it was trained or evaluated on.
        history: Of its training.
        task: What depends on the task, with the validation results.
        load_report: Of the backbone's weights; None for a backbone that started from random ones.
        made: Day that the report names.
    """
    summary = (
        ('task', task.task),
        ('model', spec.model),
        ('backbone', spec.backbone),
        *task.headline,
        *([('classes', str(data.c))] if data.c else []),
        ('epochs', str(len(history.epochs))),
        ('training time', training_time(history)),
    )
    sections = (
        data_section(data),
        training_section(history),
        *task.sections,
        backbone_section(spec, load_report),
        settings_section(task.settings),
        reproduce_section(spec, data, history),
        environment_section(),
    )
    return page.ReportContents(f'{spec.model} on {data.path.name}', summary, sections, made, find_warnings(data, spec))


def bundle_figures(report: page.ReportContents) -> dict[str, bytes]:
    """Return by name in a bundle the page of a report, and those of its pictures that have a name."""
    pictures = [part for section in report.sections for part in section.parts if isinstance(part, page.Picture)]
    figures = {f'{bundle.FIGURES}{drawn.name}.png': drawn.png for drawn in pictures if drawn.name}
    return figures | {bundle.REPORT: page.render_report(report)}


def sample_sections(
    scores: Sequence[float],
    draw: Callable[[list[int]], 'Figure'],
    *,
    by: str,
    highest_is_worst: bool = False,
    count: int = SAMPLES,
) -> list[page.Section]:
    """Show validation chips from the middle and from the lower end of an order; only the latter where there are few.

    Args:
        scores: Of each validation chip; NaN where undefined.
        draw: Draws the chips at some positions.
        by: Name of the score.
        highest_is_worst: Of errors and losses.
        count: Chips in each figure.
    """
    end = 'highest' if highest_is_worst else 'lowest'
    worst = rank_chips(scores, highest_first=highest_is_worst)[:count]
    shown = [('Worst chips', f'Those of the {end} {by}.', worst)]
    if len(scores) > count and (typical := choose_typical(scores, count)):
        shown.insert(0, ('Typical chips', f'Those in the middle when validation chips are ordered by {by}.', typical))
    names = ['show_results', '']  # a bundle keeps the first by itself too, as Esri's do
    return [
        page.Section(title, (text, picture(draw(indexes), title, name=name)))
        for (title, text, indexes), name in zip(shown, names)
    ]


def calibration_section(calibration: Calibration, *, of: str = 'the predicted class') -> page.Section:
    """Show whether confidences are calibrated.

    Args:
        calibration: Counted over the validation chips.
        of: Whose probability the confidence is.
    """
    figure = plotting.show_reliability(calibration.table())
    text = (
        f'Confidence is the probability of {of}. Bars below the line: the model is overconfident. '
        'The expected calibration error is the mean distance from the line.'
    )
    return page.Section('Calibration', (text, picture(figure, 'Reliability diagram')))

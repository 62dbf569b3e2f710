"""What a detector has to say of itself in its report."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from torch import Tensor

from geolearn.data import ChipData
from geolearn.models.anchor_choice import AnchorChoice, choose_options
from geolearn.models.evaluation.objects import draw_chips
from geolearn.models.reports.report import Findings, sample_sections
from geolearn.models.reports.sections import picture, tell
from geolearn.networks.detection.architecture import DetectorOptions, HeadOptions
from geolearn.plotting.detection import show_precision_recall
from geolearn.report import Cell, Facts, Section, Share, Swatch, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from geolearn.models.object_detector import ObjectDetector


SURE = 0.5
"""Lowest score of objects that are drawn and counted: that from which on `predict` and `detect_objects` return them."""

OVERLAP = 0.5
"""From which on an object counts as found."""


def find_in_objects(model: 'ObjectDetector', data: ChipData, options: DetectorOptions) -> Findings:
    """Say how well a model finds objects.

    Args:
        model: To judge.
        data: Its chips.
        options: Those in its spec, read.
    """
    scores = model.scores()
    values, cases = scores.values(), scores.count_matches(iou=OVERLAP, score=SURE)

    def draw(indexes: Sequence[int]) -> 'Figure':
        titles = [_tell_cases(cases[index]) for index in indexes]
        return draw_chips(model.network, data, model.spec, indexes, titles, threshold=SURE)

    curves = show_precision_recall(scores.precision_recall(iou=OVERLAP), data.class_infos, iou=OVERLAP)
    told = (
        'As the lowest score that counts goes down, more objects are found, and more that are none. The numbers beside '
        'the names are average precision: the area below the line.'
    )
    sections = (
        _score_section(model, values, cases, data),
        Section('Precision and recall', (told, picture(curves, 'Precision over recall', name='precision_recall'))),
        *sample_sections(_f1(cases.sum(1)).tolist(), draw, by='F1'),
    )
    task = 'instance segmentation' if model.architecture.masks else 'object detection'
    headline = (('mAP', tell(values['map'], '.3f')), ('AP50', tell(values['ap50'], '.3f')))
    return Findings(task, headline, sections, _settings(options), _arguments(model, data, options))


def _score_section(model: 'ObjectDetector', values: dict[str, float], cases: Tensor, data: ChipData) -> Section:
    total = cases.sum((0, 1))
    hits, alarms, misses = total.tolist()
    precision, recall, f1 = (part.item() for part in (*_rates(total), _f1(total)))
    overall = (
        ('mAP, mean of overlaps 0.5 to 0.95', tell(values['map'])),
        ('AP50, at overlap 0.5', tell(values['ap50'])),
        ('AP75, at overlap 0.75', tell(values['ap75'])),
        ('average recall', tell(values['recall'])),
        ('with a score of 0.5 or more', f'{hits:,} found, {misses:,} missed, {alarms:,} where there is none'),
        ('precision, recall, F1 of these', ', '.join(tell(value) for value in (precision, recall, f1))),
    )
    shape = 'outlines' if model.architecture.masks else 'boxes'
    told = (
        f'On the validation chips, as in COCO: overlap is intersection over union of {shape}. AP is average precision, '
        'over all scores; precision, recall and F1 are of objects with a score of 0.5 or more, at overlap 0.5.'
    )
    return Section('Scores', (told, Facts(overall), _class_table(model, cases.sum(0), data), _size_table(values)))


def _class_table(model: 'ObjectDetector', cases: Tensor, data: ChipData) -> Table:
    found = model.scores().per_class()
    columns = [found['map'], found['ap50'], found['recall'], *(r.tolist() for r in (*_rates(cases), _f1(cases)))]
    rows: list[tuple[Cell, ...]] = [
        (Swatch(info.name, info.color), int(hits + misses), *map(Share, row))
        for info, (hits, _, misses), row in zip(data.class_infos, cases.tolist(), zip(*columns))
    ]
    header = ('class', 'objects', 'AP', 'AP50', 'average recall', 'precision', 'recall', 'F1')
    return Table(header, tuple(rows), 'By class')


def _size_table(values: dict[str, float]) -> Table:
    sizes = (
        ('small, under 32 x 32 pixels', values['ap_small']),
        ('medium', values['ap_medium']),
        ('large, above 96 x 96 pixels', values['ap_large']),
    )
    return Table(('size', 'AP'), tuple((name, Share(value)) for name, value in sizes), 'By size')


def _rates(cases: Tensor) -> tuple[Tensor, Tensor]:
    """Return precision and recall of (..., 3) hits, false alarms and misses; NaN where undefined."""
    hits, alarms, misses = cases.double().unbind(-1)
    return hits / (hits + alarms), hits / (hits + misses)


def _f1(cases: Tensor) -> Tensor:
    hits, alarms, misses = cases.double().unbind(-1)
    return 2 * hits / (2 * hits + alarms + misses)


def _tell_cases(cases: Tensor) -> str:
    hits, alarms, misses = cases.sum(0).tolist()
    return f'{hits} of {hits + misses} found, {alarms} where there is none'


def _settings(options: DetectorOptions) -> dict[str, str]:
    levels = ' | '.join(', '.join(f'{size:.4g}' for size in row) for row in options.anchor_sizes)
    ratios = ', '.join(f'{ratio:.3g}' for ratio in options.aspect_ratios)
    return {
        'numbers of the head': ', '.join(f'{name}={value!r}' for name, value in _changed(options.head)) or 'the usual',
        'most objects per chip': str(options.head.most),
        'sides of anchors by level': f'{levels} pixels' if levels else '',
        'heights over widths of anchors': ratios if levels else '',
        'chips brought to': f'{options.resize_to} pixels' if options.resize_to else '',
        'side of usual training boxes': f'up to {options.typical_side:.4g} pixels (98 of 100)',
    }


def _changed(head: HeadOptions) -> list[tuple[str, object]]:
    usual = type(head)()
    both = [(f.name, getattr(head, f.name), getattr(usual, f.name)) for f in fields(head)]
    return [(name, value) for name, value, normal in both if value != normal]


def _arguments(model: 'ObjectDetector', data: ChipData, options: DetectorOptions) -> dict[str, object]:
    found: dict[str, object] = {}
    if _changed(options.head):
        found['head'] = options.head
    if options.resize_to is not None:
        found['resize_to'] = options.resize_to
    chosen = choose_options(data, model.architecture, AnchorChoice(), resize_to=options.resize_to, head=options.head)
    if options.anchor_sizes != chosen.anchor_sizes:
        found['anchor_sizes'] = options.anchor_sizes
    if options.aspect_ratios != chosen.aspect_ratios:
        found['ratios'] = options.aspect_ratios
    return found

"""The report of detectors: COCO's metrics, by class and by size, precision and recall, samples."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from torch import Tensor

from geolearn.data import ChipData
from geolearn.models.evaluation.objects import CONFIDENCE, OVERLAP, DetectionEvaluation, draw_chips, f1_score
from geolearn.models.reports.report import TaskReport, sample_sections
from geolearn.models.reports.sections import format_score, picture
from geolearn.networks.detection.architecture import DetectorOptions, HeadOptions
from geolearn.networks.detection.detector import Detector
from geolearn.networks.spec import ModelSpec
from geolearn.plotting import show_precision_recall
from geolearn.report import Cell, Facts, Section, Share, Swatch, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def detection_report(
    spec: ModelSpec,
    network: Detector,
    data: ChipData,
    evaluation: DetectionEvaluation,
    options: DetectorOptions,
    *,
    masks: bool,
) -> TaskReport:
    """Report the validation results of a detector.

    Args:
        spec: Of the model.
        network: Draws the samples.
        data: The chips.
        evaluation: On the validation chips.
        options: Those in the spec, read.
        masks: Whether objects have outlines.
    """
    values, matches = evaluation.metrics, evaluation.matches

    def draw(indexes: Sequence[int]) -> 'Figure':
        titles = [_match_text(matches[index]) for index in indexes]
        return draw_chips(network, data, spec, indexes, titles, threshold=CONFIDENCE)

    curves = show_precision_recall(evaluation.detections.precision_recall(iou=OVERLAP), data.class_infos, iou=OVERLAP)
    text = (
        'As the lowest score that counts goes down, there are more true positives, and more false positives. The '
        'numbers beside the names are average precision: the area below the line.'
    )
    sections = (
        _score_section(evaluation, data, masks=masks),
        Section('Precision and recall', (text, picture(curves, 'Precision over recall', name='precision_recall'))),
        *sample_sections(evaluation.per_chip, draw, by='F1'),
    )
    task = 'instance segmentation' if masks else 'object detection'
    headline = (('mAP', format_score(values['map'], '.3f')), ('AP50', format_score(values['ap50'], '.3f')))
    return TaskReport(task, headline, sections, _settings(options))


def _score_section(evaluation: DetectionEvaluation, data: ChipData, *, masks: bool) -> Section:
    values, total = evaluation.metrics, evaluation.matches.sum((0, 1))
    tp, fp, fn = total.tolist()
    precision, recall, f1 = (part.item() for part in (*_rates(total), f1_score(total)))
    overall = (
        ('mAP, mean of overlaps 0.5 to 0.95', format_score(values['map'])),
        ('AP50, at overlap 0.5', format_score(values['ap50'])),
        ('AP75, at overlap 0.75', format_score(values['ap75'])),
        ('average recall', format_score(values['recall'])),
        ('with a score of 0.5 or more', _counts_text(tp, fp, fn)),
        ('precision, recall, F1 of these', ', '.join(format_score(value) for value in (precision, recall, f1))),
    )
    shape = 'outlines' if masks else 'boxes'
    text = (
        f'On the validation chips, as in COCO: overlap is intersection over union of {shape}. AP is average precision, '
        'over all scores; precision, recall and F1 are of objects with a score of 0.5 or more, at overlap 0.5.'
    )
    return Section('Scores', (text, Facts(overall), _class_table(evaluation, data), _size_table(values)))


def _counts_text(tp: int, fp: int, fn: int) -> str:
    return f'{tp:,} true positives, {fn:,} false negatives, {fp:,} false positives'


def _class_table(evaluation: DetectionEvaluation, data: ChipData) -> Table:
    per_class, matches = evaluation.detections.per_class(), evaluation.matches.sum(0)
    rates = (*_rates(matches), f1_score(matches))
    columns = [per_class['map'], per_class['ap50'], per_class['recall'], *(rate.tolist() for rate in rates)]
    rows: list[tuple[Cell, ...]] = [
        (Swatch(info.name, info.color), int(tp + fn), *map(Share, row))
        for info, (tp, _, fn), row in zip(data.class_infos, matches.tolist(), zip(*columns))
    ]
    header = ('class', 'objects', 'AP', 'AP50', 'average recall', 'precision', 'recall', 'F1')
    return Table(header, tuple(rows), 'By class')


def _size_table(values: Mapping[str, float]) -> Table:
    sizes = (
        ('small, under 32 x 32 pixels', values['ap_small']),
        ('medium', values['ap_medium']),
        ('large, above 96 x 96 pixels', values['ap_large']),
    )
    return Table(('size', 'AP'), tuple((name, Share(value)) for name, value in sizes), 'By size')


def _rates(matches: Tensor) -> tuple[Tensor, Tensor]:
    """Return precision and recall of (..., 3) true positives, false positives and false negatives; NaN if undefined."""
    tp, fp, fn = matches.double().unbind(-1)
    return tp / (tp + fp), tp / (tp + fn)


def _match_text(matches: Tensor) -> str:
    tp, fp, fn = matches.sum(0).tolist()
    return f'{tp} of {tp + fn} detected, {fp} false positives'


def _settings(options: DetectorOptions) -> dict[str, str]:
    levels = ' | '.join(', '.join(f'{size:.4g}' for size in row) for row in options.anchor_sizes)
    ratios = ', '.join(f'{ratio:.3g}' for ratio in options.aspect_ratios)
    return {
        'numbers of the head': ', '.join(f'{name}={value!r}' for name, value in _changed(options.head))
        or 'the defaults',
        'most objects per chip': str(options.head.most),
        'sides of anchors by level': f'{levels} pixels' if levels else '',
        'heights over widths of anchors': ratios if levels else '',
        'chips resized to': f'{options.resize_to} pixels' if options.resize_to else '',
        'side of usual training boxes': f'up to {options.typical_side:.4g} pixels (98 of 100)',
    }


def _changed(head: HeadOptions) -> list[tuple[str, object]]:
    usual = type(head)()
    both = [(f.name, getattr(head, f.name), getattr(usual, f.name)) for f in fields(head)]
    return [(name, value) for name, value, normal in both if value != normal]

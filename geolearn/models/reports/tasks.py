"""The report of pixel classifiers: metrics by class, confusion, samples, calibration."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from geolearn import plotting
from geolearn.data import ChipData
from geolearn.losses import PixelLossOptions, RegressionLossOptions
from geolearn.metrics import Calibration, IouType, rank_chips
from geolearn.models.evaluation import classification, objects, pixels
from geolearn.models.reports import report
from geolearn.networks.classification import ChipOptions
from geolearn.networks.segmentation import PixelOptions, Segmenter
from geolearn.networks.spec import ModelSpec
from geolearn.plotting import show_precision_recall, show_regression_scatter
from geolearn.report.page import Cell, Facts, Notes, Section, Share, Swatch, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from geolearn.models.evaluation import panoptic as segments
    from geolearn.networks.detection import architecture, detector
    from geolearn.networks.detection.panoptic import PanopticNetwork


Loss = TypeVar('Loss', PixelLossOptions, RegressionLossOptions)


def pixel_report(
    spec: ModelSpec, network: Segmenter, data: ChipData, evaluation: pixels.PixelEvaluation, options: PixelOptions
) -> report.TaskReport:
    """Report the validation results of a pixel classifier.

    Args:
        spec: Of the model.
        network: Draws the samples.
        data: The chips.
        evaluation: On the validation chips.
        options: Those in the spec, read.
    """
    matrix, draw = evaluation.confusion, partial(pixels.draw_chips, network, data, spec)
    hardest = rank_chips(evaluation.losses, highest_first=True)[: report.SAMPLES]
    why = 'Those of the highest loss (cross-entropy): confident and wrong, or the label is.'
    return report.TaskReport(
        'pixel classification',
        (
            ('mean IoU', report.format_score(matrix.miou, '.3f')),
            ('accuracy', report.format_score(matrix.accuracy, '.1%')),
        ),
        (
            _score_section(evaluation, data),
            _confusion_section(evaluation, data),
            *report.sample_sections(evaluation.per_chip, draw, by='mean IoU'),
            Section('Hardest chips', (why, report.picture(draw(hardest, losses=True), 'Hardest chips'))),
            report.calibration_section(evaluation.calibration),
        ),
        {
            'decoder': options.decoder,
            'decoder options': format_options(options.decoder_options),
            'loss': spec.custom.get('loss') or format_loss(options.loss, PixelLossOptions()),
            'auxiliary head': 'yes' if options.auxiliary_head else 'no',
            'class balancing': 'yes' if spec.class_balancing else 'no',
        },
    )


def _score_section(evaluation: pixels.PixelEvaluation, data: ChipData) -> Section:
    matrix = evaluation.confusion
    columns = (matrix.precision, matrix.recall, matrix.f1, matrix.iou, evaluation.boundaries.iou)
    scores = zip(*(values.tolist() for values in columns))
    totals = matrix.counts.sum(1).tolist()
    rows: list[tuple[Cell, ...]] = [
        (Swatch(info.name, info.color), total, *map(Share, row))
        for info, total, row in zip(data.class_infos, totals, scores)
    ]
    overall = (
        ('accuracy', report.format_score(matrix.accuracy)),
        ('mean IoU', report.format_score(matrix.miou)),
        ('mean F1', report.format_score(matrix.mean_f1)),
        ('mean recall (balanced accuracy)', report.format_score(matrix.mean_recall)),
        ('kappa', report.format_score(matrix.kappa)),
        ('boundary IoU', report.format_score(evaluation.boundaries.values()['boundary_iou'])),
    )
    header = ('class', 'pixels', 'precision', 'recall', 'F1', 'IoU', 'boundary IoU')
    notes = pixels.describe_undefined(matrix, evaluation.boundaries, data.classes)
    parts = [Notes(tuple(note[0].upper() + note[1:] + '.' for note in notes))] if notes else []
    text = 'On the validation chips, over labelled pixels. Means leave out classes that do not occur.'
    return Section('Scores', (text, *parts, Facts(overall), Table(header, tuple(rows), 'By class')))


def _confusion_section(evaluation: pixels.PixelEvaluation, data: ChipData) -> Section:
    figure = plotting.show_confusion_matrix(evaluation.confusion.counts, data.classes)
    caption = 'Each row is a true class; shares are those of its pixels.'
    return Section('Confusion', (report.picture(figure, 'Confusion matrix', caption, name='confusion_matrix'),))


def format_options(options: Mapping[str, object]) -> str:
    """Return options as they are passed."""
    return ', '.join(f'{name}={value!r}' for name, value in options.items())


def format_loss(loss: Loss, usual: Loss) -> str:
    """Return a loss's name and the options that differ from the defaults."""
    changed = {f.name: getattr(loss, f.name) for f in fields(loss) if getattr(loss, f.name) != getattr(usual, f.name)}
    return ', '.join(filter(None, [loss.loss, format_options({k: v for k, v in changed.items() if k != 'loss'})]))


_RANGES = 5


def regression_report(
    spec: ModelSpec, network: Segmenter, data: ChipData, evaluation: pixels.RegressionEvaluation, options: PixelOptions
) -> report.TaskReport:
    """Report the validation results of a pixel regressor.

    Args:
        spec: Of the model.
        network: Draws the samples.
        data: The chips.
        evaluation: On the validation chips.
        options: Those in the spec, read.
    """
    metrics, draw = evaluation.metrics, partial(pixels.draw_regression_chips, network, data, spec)
    scatter = show_regression_scatter(evaluation.truth, evaluation.predicted)
    figure = report.picture(scatter, 'Prediction against truth', 'Darker where there are more pixels.')
    return report.TaskReport(
        'pixel regression',
        (
            ('RMSE', report.format_score(metrics['rmse'], '.4g')),
            ('MAE', report.format_score(metrics['mae'], '.4g')),
            ('R²', report.format_score(metrics['r2'], '.3f')),
        )
        if 'psnr' not in metrics
        else (
            ('PSNR', f'{report.format_score(metrics["psnr"], ".1f")} dB'),
            ('SSIM', report.format_score(metrics['ssim'], '.3f')),
            ('RMSE', report.format_score(metrics['rmse'], '.4g')),
        ),
        (
            _regression_scores(evaluation),
            Section('Truth and prediction', (figure,)),
            *report.sample_sections(evaluation.per_chip, draw, by='root mean square error', highest_is_worst=True),
        ),
        {
            'decoder': options.decoder,
            'decoder options': format_options(options.decoder_options),
            'loss': spec.custom.get('loss') or format_loss(options.value_loss, RegressionLossOptions()),
        },
    )


def _regression_scores(evaluation: pixels.RegressionEvaluation) -> Section:
    scores = evaluation.metrics
    overall: tuple[tuple[str, str], ...] = (
        ('root mean square error (RMSE)', report.format_score(scores['rmse'], '.4g')),
        ('mean absolute error (MAE)', report.format_score(scores['mae'], '.4g')),
        ('bias (prediction - truth)', report.format_score(scores['bias'], '+.4g')),
        ('R²', report.format_score(scores['r2'])),
    )
    if 'psnr' in scores:
        overall = (
            ('peak signal-to-noise ratio (PSNR)', f'{report.format_score(scores["psnr"], ".2f")} dB'),
            ('structural similarity (SSIM)', report.format_score(scores['ssim'])),
            *overall,
        )
    text = (
        'On the validation chips, over pixels that have a truth, in its units. R² is 1 where all values are right, '
        'and 0 for a model that always says the mean.'
    )
    return Section('Scores', (text, Facts(overall), tabulate_ranges(evaluation)))


def tabulate_ranges(evaluation: pixels.RegressionEvaluation) -> Table:
    """Divide the pixels by their true value into ranges of equal size: a model may be good on the usual ones alone."""
    truth, errors = evaluation.truth.double().numpy(), (evaluation.predicted - evaluation.truth).double().numpy()
    rows: list[tuple[Cell, ...]] = []
    edges = np.unique(np.quantile(truth, np.linspace(0, 1, _RANGES + 1), method='lower')) if len(truth) else np.zeros(0)
    if len(edges) == 1:
        edges = edges.repeat(2)
    for low, high, last in zip(edges, edges[1:], [False] * (len(edges) - 2) + [True]):
        inside = errors[(truth >= low) & ((truth <= high) if last else (truth < high))]
        name = f'{low:.4g} to {high:.4g}'
        rows.append((name, len(inside), inside.mean(), np.abs(inside).mean(), np.sqrt(np.square(inside).mean())))
    header = ('true value', 'pixels', 'bias', 'MAE', 'RMSE')
    return Table(header, tuple(rows), 'By range of the truth, each with about as many pixels (of those drawn below)')


SHOWN = 8
"""Chips in each figure of samples, two rows of them."""


def chip_report(
    spec: ModelSpec, data: ChipData, evaluation: classification.ChipEvaluation, options: ChipOptions
) -> report.TaskReport:
    """Report the validation results of a classifier of chips.

    Args:
        spec: Of the model.
        data: The chips.
        evaluation: On the validation chips.
        options: Those in the spec, read.
    """
    outputs, metrics = evaluation.outputs, evaluation.metrics
    return report.TaskReport(
        'classification of chips' + (', any number of classes each' if options.multi_label else ''),
        (
            ('accuracy', report.format_score(metrics['accuracy'], '.1%')),
            ('mean F1', report.format_score(metrics['f1_macro'], '.3f')),
        ),
        (
            _chip_scores(evaluation, data),
            _chip_confusion(evaluation, data),
            *report.sample_sections(
                evaluation.per_chip,
                lambda indexes: classification.draw_classified_chips(outputs, data, indexes),
                by='loss (cross-entropy)',
                highest_is_worst=True,
                count=SHOWN,
            ),
            _calibration_section(evaluation),
        ),
        {
            'pooling': options.pooling,
            'dropout': f'{options.dropout:g}',
            'loss': spec.custom.get('loss') or _chip_loss(options),
            'label smoothing': f'{options.label_smoothing:g}' if options.label_smoothing else '',
            'mixup': f'{options.mixup:g}' if options.mixup else '',
            'rare classes shown more often': 'yes' if options.oversample else 'no',
            'class balancing': 'yes' if spec.class_balancing else 'no',
        },
    )


def _chip_loss(options: ChipOptions) -> str:
    name = options.loss.replace('_', '-')
    return f'binary {name} of each class' if options.multi_label else name


def _chip_scores(evaluation: classification.ChipEvaluation, data: ChipData) -> Section:
    scores = evaluation.metrics
    overall = [
        ('accuracy', report.format_score(scores['accuracy'])),
        ('mean F1', report.format_score(scores['f1_macro'])),
        ('mean F2', report.format_score(scores['f2_macro'])),
    ]
    if evaluation.outputs.multi_label:
        text = 'A chip counts for accuracy if exactly its classes are predicted, those of a probability of 50% or more.'
        overall += [
            ('precision', report.format_score(scores['precision'])),
            ('recall', report.format_score(scores['recall'])),
            ('F1 over all decisions', report.format_score(scores['f1_micro'])),
            ('F2 over all decisions', report.format_score(scores['f2_micro'])),
            ('hamming loss (share of wrong decisions)', report.format_score(scores['hamming_loss'])),
        ]
    else:
        text = 'The likeliest class counts.'
        matrix = classification.count_confusion(evaluation.outputs)
        overall += [
            ('mean recall (balanced accuracy)', report.format_score(matrix.mean_recall)),
            ('kappa', report.format_score(matrix.kappa)),
        ]
    text = (
        f'On the validation chips. {text} Means leave out classes that do not occur. F2 weighs recall above precision.'
    )
    return Section('Scores', (text, Facts(tuple(overall)), _class_table(evaluation, data)))


def _class_table(evaluation: classification.ChipEvaluation, data: ChipData) -> Table:
    table = evaluation.per_class
    assert table is not None
    shares = zip(*(table[name].tolist() for name in ('precision', 'recall', 'f1', 'f2')))
    rows: list[tuple[Cell, ...]] = [
        (Swatch(info.name, info.color), int(count), *map(Share, row))
        for info, count, row in zip(data.class_infos, table['support'].tolist(), shares)
    ]
    return Table(('class', 'chips', 'precision', 'recall', 'F1', 'F2'), tuple(rows), 'By class')


def _chip_confusion(evaluation: classification.ChipEvaluation, data: ChipData) -> Section:
    if evaluation.outputs.multi_label:
        caption = 'For each class: chips in which it is absent or present (rows), and the prediction (columns).'
    else:
        caption = 'Each row is a true class; shares are those of its chips.'
    drawn = report.picture(
        classification.draw_confusion(evaluation.outputs, data.classes),
        'Confusion matrix',
        caption,
        name='confusion_matrix',
    )
    return Section('Confusion', (drawn,))


def _calibration_section(evaluation: classification.ChipEvaluation) -> Section:
    outputs, calibration = evaluation.outputs, Calibration()
    if outputs.multi_label:
        logits = torch.stack([torch.zeros_like(outputs.logits), outputs.logits], 1)
        calibration.add(logits, outputs.present.long())
        return report.calibration_section(
            calibration, of='the decision on a class: that it is present, or that it is absent'
        )
    calibration.add(outputs.logits, outputs.truth)
    return report.calibration_section(calibration)


def detection_report(
    spec: ModelSpec,
    network: 'detector.Detector',
    data: ChipData,
    evaluation: objects.DetectionEvaluation,
    options: 'architecture.DetectorOptions',
    *,
    kind: IouType,
) -> report.TaskReport:
    """Report the validation results of a detector.

    Args:
        spec: Of the model.
        network: Draws the samples.
        data: The chips.
        evaluation: On the validation chips.
        options: Those in the spec, read.
        kind: What overlaps are computed of.
    """
    values, matches = evaluation.metrics, evaluation.matches

    def draw(indexes: Sequence[int]) -> 'Figure':
        notes = [_match_text(matches[index]) for index in indexes]
        return objects.draw_detected_chips(
            network,
            data,
            spec,
            indexes,
            threshold=objects.CONFIDENCE,
            typical_side=options.typical_side,
            notes=notes,
        )

    curves = show_precision_recall(
        evaluation.detections.precision_recall(iou=objects.OVERLAP), data.class_infos, iou=objects.OVERLAP
    )
    text = (
        'As the lowest score that counts goes down, there are more true positives, and more false positives. The '
        'numbers beside the names are average precision: the area below the line.'
    )
    sections = (
        _object_scores(evaluation, data, kind),
        Section(
            'Precision and recall', (text, report.picture(curves, 'Precision over recall', name='precision_recall'))
        ),
        *report.sample_sections(evaluation.per_chip, draw, by='F1'),
    )
    task = {'segm': 'instance segmentation', 'rotated': 'detection of oriented objects'}.get(kind, 'object detection')
    headline = (
        ('mAP', report.format_score(values['map'], '.3f')),
        ('AP50', report.format_score(values['ap50'], '.3f')),
    )
    return report.TaskReport(task, headline, sections, _settings(options))


def _object_scores(evaluation: objects.DetectionEvaluation, data: ChipData, kind: IouType) -> Section:
    values, total = evaluation.metrics, evaluation.matches.sum((0, 1))
    tp, fp, fn = total.tolist()
    precision, recall, f1 = (part.item() for part in (*_rates(total), objects.f1_score(total)))
    overall: tuple[tuple[str, str], ...] = (
        ('mAP, mean of overlaps 0.5 to 0.95', report.format_score(values['map'])),
        ('AP50, at overlap 0.5', report.format_score(values['ap50'])),
        ('AP75, at overlap 0.75', report.format_score(values['ap75'])),
        ('average recall', report.format_score(values['recall'])),
        ('with a score of 0.5 or more', _counts_text(tp, fp, fn)),
        ('precision, recall, F1 of these', ', '.join(report.format_score(value) for value in (precision, recall, f1))),
    )
    shape = {'segm': 'outlines', 'rotated': 'oriented boxes'}.get(kind, 'boxes')
    text = (
        f'On the validation chips, as in COCO: overlap is intersection over union of {shape}. AP is average precision, '
        'over all scores; precision, recall and F1 are of objects with a score of 0.5 or more, at overlap 0.5.'
    )
    if kind == 'rotated':
        overall = (*overall, ('median angle error', _degrees(values['angle_error'])))
        text += (
            ' The angle error is that of the long side of detections with an overlap above 0.5; of near-squares, whose '
            'length is under 1.2 times their width, that to the next quarter turn.'
        )
    return Section('Scores', (text, Facts(overall), _object_table(evaluation, data), _size_table(values)))


def _degrees(error: float) -> str:
    return '' if math.isnan(error) else f'{error:.1f}°'


def _counts_text(tp: int, fp: int, fn: int) -> str:
    return f'{tp:,} true positives, {fn:,} false negatives, {fp:,} false positives'


def _object_table(evaluation: objects.DetectionEvaluation, data: ChipData) -> Table:
    per_class, matches = evaluation.detections.per_class(), evaluation.matches.sum(0)
    rates = (*_rates(matches), objects.f1_score(matches))
    columns = [per_class['map'], per_class['ap50'], per_class['recall'], *(rate.tolist() for rate in rates)]
    rows: list[tuple[Cell, ...]] = [
        (Swatch(info.name, info.color), int(tp + fn), *map(Share, row))
        for info, (tp, _, fn), row in zip(data.class_infos, matches.tolist(), zip(*columns))
    ]
    header: tuple[str, ...] = ('class', 'objects', 'AP', 'AP50', 'average recall', 'precision', 'recall', 'F1')
    if 'angle_error' in per_class:
        header = (*header, 'AP75', 'angle error')
        more = zip(per_class['ap75'], per_class['angle_error'])
        rows = [(*row, Share(ap75), _degrees(error)) for row, (ap75, error) in zip(rows, more)]
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


def _settings(options: 'architecture.DetectorOptions') -> dict[str, str]:
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


def _changed(head: 'architecture.HeadOptions') -> list[tuple[str, object]]:
    usual = type(head)()
    both = [(f.name, getattr(head, f.name), getattr(usual, f.name)) for f in fields(head)]
    return [(name, value) for name, value, normal in both if value != normal]


def panoptic_report(
    spec: ModelSpec,
    network: 'PanopticNetwork',
    data: ChipData,
    evaluation: 'segments.PanopticEvaluation',
    *,
    typical_side: float,
) -> report.TaskReport:
    """Report the validation results of a panoptic model.

    Args:
        spec: Of the model.
        network: Draws the samples.
        data: The chips.
        evaluation: On the validation chips.
        typical_side: Side in pixels that nearly no object exceeds; windows of large chips overlap by it.
    """
    from geolearn.models.evaluation import panoptic

    values, table = evaluation.metrics, evaluation.per_class
    assert table is not None

    def draw(indexes: Sequence[int]) -> 'Figure':
        notes = [f'PQ {report.format_score(evaluation.per_chip[index], ".2f")}' for index in indexes]
        return panoptic.draw_panoptic_chips(network, data, spec, indexes, typical_side=typical_side, notes=notes)

    text = (
        'On the validation chips: panoptic quality (PQ) is the mean IoU of the segments that were found (SQ) times the '
        'F1 of finding them (RQ); a segment is found where its IoU is over 0.5. Stuff is one segment per chip.'
    )
    overall = (
        ('PQ', report.format_score(values['pq'])),
        ('SQ', report.format_score(values['sq'])),
        ('RQ', report.format_score(values['rq'])),
        ('PQ of things', report.format_score(values['pq_things'])),
        ('PQ of stuff', report.format_score(values['pq_stuff'])),
        ('Labeled pixels with a class', report.format_score(values.get('covered', math.nan), '.1%')),
    )
    rows: list[tuple[Cell, ...]] = [(str(name), *map(float, row)) for name, row in zip(table.index, table.to_numpy())]
    scores = Section('Scores', (text, Facts(overall), Table(('class', 'PQ', 'SQ', 'RQ'), tuple(rows), 'By class')))
    headline = tuple((name.upper(), report.format_score(values[name], '.3f')) for name in ('pq', 'sq', 'rq'))
    return report.TaskReport(
        'panoptic segmentation',
        headline,
        (scores, *report.sample_sections(evaluation.per_chip, draw, by='panoptic quality')),
        {'things': ', '.join(spec.class_infos[index].name for index in network.things)},
    )

"""The report of classifiers of whole chips: metrics by class, confusion, samples, calibration."""

import torch

from geolearn.data import ChipData
from geolearn.metrics import Calibration
from geolearn.models.evaluation.classification import ChipEvaluation, count_confusion, draw_chips, draw_confusion
from geolearn.models.reports.report import TaskReport, calibration_section, sample_sections
from geolearn.models.reports.sections import format_score, picture
from geolearn.networks.classification import ChipOptions
from geolearn.networks.spec import ModelSpec
from geolearn.report import Cell, Facts, Section, Share, Swatch, Table

SHOWN = 8
"""Chips in each figure of samples, two rows of them."""


def chip_report(spec: ModelSpec, data: ChipData, evaluation: ChipEvaluation, options: ChipOptions) -> TaskReport:
    """Report the validation results of a classifier of chips.

    Args:
        spec: Of the model.
        data: The chips.
        evaluation: On the validation chips.
        options: Those in the spec, read.
    """
    outputs, metrics = evaluation.outputs, evaluation.metrics
    return TaskReport(
        'classification of chips' + (', any number of classes each' if options.multi_label else ''),
        (
            ('accuracy', format_score(metrics['accuracy'], '.1%')),
            ('mean F1', format_score(metrics['f1_macro'], '.3f')),
        ),
        (
            _score_section(evaluation, data),
            _confusion_section(evaluation, data),
            *sample_sections(
                evaluation.per_chip,
                lambda indexes: draw_chips(outputs, data, indexes),
                by='loss (cross-entropy)',
                highest_is_worst=True,
                count=SHOWN,
            ),
            _calibration_section(evaluation),
        ),
        {
            'pooling': options.pooling,
            'dropout': f'{options.dropout:g}',
            'loss': 'binary cross-entropy of each class' if options.multi_label else 'cross-entropy',
            'label smoothing': f'{options.label_smoothing:g}' if options.label_smoothing else '',
            'mixup': f'{options.mixup:g}' if options.mixup else '',
            'rare classes shown more often': 'yes' if options.oversample else 'no',
            'class balancing': 'yes' if spec.class_balancing else 'no',
        },
    )


def _score_section(evaluation: ChipEvaluation, data: ChipData) -> Section:
    scores = evaluation.metrics
    overall = [
        ('accuracy', format_score(scores['accuracy'])),
        ('mean F1', format_score(scores['f1_macro'])),
        ('mean F2', format_score(scores['f2_macro'])),
    ]
    if evaluation.outputs.multi_label:
        text = 'A chip counts for accuracy if exactly its classes are predicted, those of a probability of 50% or more.'
        overall += [
            ('precision', format_score(scores['precision'])),
            ('recall', format_score(scores['recall'])),
            ('F1 over all decisions', format_score(scores['f1_micro'])),
            ('F2 over all decisions', format_score(scores['f2_micro'])),
            ('hamming loss (share of wrong decisions)', format_score(scores['hamming_loss'])),
        ]
    else:
        text = 'The likeliest class counts.'
        matrix = count_confusion(evaluation.outputs)
        overall += [
            ('mean recall (balanced accuracy)', format_score(matrix.mean_recall)),
            ('kappa', format_score(matrix.kappa)),
        ]
    text = (
        f'On the validation chips. {text} Means leave out classes that do not occur. F2 weighs recall above precision.'
    )
    return Section('Scores', (text, Facts(tuple(overall)), _class_table(evaluation, data)))


def _class_table(evaluation: ChipEvaluation, data: ChipData) -> Table:
    table = evaluation.per_class
    assert table is not None
    shares = zip(*(table[name].tolist() for name in ('precision', 'recall', 'f1', 'f2')))
    rows: list[tuple[Cell, ...]] = [
        (Swatch(info.name, info.color), int(count), *map(Share, row))
        for info, count, row in zip(data.class_infos, table['support'].tolist(), shares)
    ]
    return Table(('class', 'chips', 'precision', 'recall', 'F1', 'F2'), tuple(rows), 'By class')


def _confusion_section(evaluation: ChipEvaluation, data: ChipData) -> Section:
    if evaluation.outputs.multi_label:
        caption = 'For each class: chips in which it is absent or present (rows), and the prediction (columns).'
    else:
        caption = 'Each row is a true class; shares are those of its chips.'
    drawn = picture(
        draw_confusion(evaluation.outputs, data.classes), 'Confusion matrix', caption, name='confusion_matrix'
    )
    return Section('Confusion', (drawn,))


def _calibration_section(evaluation: ChipEvaluation) -> Section:
    outputs, calibration = evaluation.outputs, Calibration()
    if outputs.multi_label:
        logits = torch.stack([torch.zeros_like(outputs.logits), outputs.logits], 1)
        calibration.add(logits, outputs.present.long())
        return calibration_section(calibration, of='the decision on a class: that it is present, or that it is absent')
    calibration.add(outputs.logits, outputs.truth)
    return calibration_section(calibration)

"""What a classifier of chips has to say of itself in its report."""

from dataclasses import fields
from typing import TYPE_CHECKING

import torch

from geolearn.data import ChipData
from geolearn.metrics import Calibration
from geolearn.models.evaluation.classification import ChipOutputs, draw_chips
from geolearn.models.reports.report import Findings, calibration_section, sample_sections
from geolearn.models.reports.sections import picture, tell
from geolearn.networks.classification import ChipOptions
from geolearn.report import Cell, Facts, Section, Share, Swatch, Table

if TYPE_CHECKING:
    from geolearn.models.feature_classifier import ChipModel


SHOWN = 8
"""Chips in each figure of samples, two rows of them."""


def find_in_chips(model: 'ChipModel', data: ChipData, options: ChipOptions) -> Findings:
    """Say how well a model tells what whole chips hold.

    Args:
        model: To judge.
        data: Its chips.
        options: Those in its spec, read.
    """
    outputs, scores = model.outputs(), model.scores()
    headline = (('accuracy', tell(scores['accuracy'], '.1%')), ('mean F1', tell(scores['f1_macro'], '.3f')))
    sections = (
        _score_section(model, data, options),
        _confusion_section(model, options),
        *sample_sections(
            outputs.losses.tolist(),
            lambda indexes: draw_chips(outputs, data, indexes),
            by='loss (cross-entropy)',
            highest_is_worst=True,
            count=SHOWN,
        ),
        _calibration_section(outputs),
    )
    task = 'classification of chips' + (', any number of classes each' if options.multi_label else '')
    return Findings(task, headline, sections, _settings(model, options), _arguments(options))


def _score_section(model: 'ChipModel', data: ChipData, options: ChipOptions) -> Section:
    scores = model.scores()
    overall = [
        ('accuracy', tell(scores['accuracy'])),
        ('mean F1', tell(scores['f1_macro'])),
        ('mean F2', tell(scores['f2_macro'])),
    ]
    if options.multi_label:
        told = 'A chip counts for accuracy if all its classes are found and no other; a class is found from 50% on.'
        overall += [
            ('precision', tell(scores['precision'])),
            ('recall', tell(scores['recall'])),
            ('F1 over all decisions', tell(scores['f1_micro'])),
            ('F2 over all decisions', tell(scores['f2_micro'])),
            ('hamming loss (share of wrong decisions)', tell(scores['hamming_loss'])),
        ]
    else:
        told = 'The likeliest class counts.'
        matrix = model.confusion()
        overall += [
            ('mean recall (balanced accuracy)', tell(matrix.mean_recall)),
            ('kappa', tell(matrix.kappa)),
        ]
    told = (
        f'On the validation chips. {told} Means leave out classes that do not occur. F2 weighs recall above precision.'
    )
    return Section('Scores', (told, Facts(tuple(overall)), _class_table(model, data)))


def _class_table(model: 'ChipModel', data: ChipData) -> Table:
    table = model.per_class_metrics()
    shares = zip(*(table[name].tolist() for name in ('precision', 'recall', 'f1', 'f2')))
    rows: list[tuple[Cell, ...]] = [
        (Swatch(info.name, info.color), int(count), *map(Share, row))
        for info, count, row in zip(data.class_infos, table['support'].tolist(), shares)
    ]
    return Table(('class', 'chips', 'precision', 'recall', 'F1', 'F2'), tuple(rows), 'By class')


def _confusion_section(model: 'ChipModel', options: ChipOptions) -> Section:
    if options.multi_label:
        caption = 'For each class: chips in which it is absent or present, and what the model said of them.'
    else:
        caption = 'Each row is a true class; shares are those of its chips.'
    drawn = picture(model.plot_confusion_matrix(), 'Confusion matrix', caption, name='confusion_matrix')
    return Section('Confusion', (drawn,))


def _calibration_section(outputs: ChipOutputs) -> Section:
    calibration = Calibration()
    if outputs.multi_label:
        logits = torch.stack([torch.zeros_like(outputs.logits), outputs.logits], 1)
        calibration.add(logits, outputs.there.long())
        return calibration_section(calibration, sure_of='what is said of a class: that it is there, or that it is not')
    calibration.add(outputs.logits, outputs.truth)
    return calibration_section(calibration)


def _settings(model: 'ChipModel', options: ChipOptions) -> dict[str, str]:
    return {
        'pooling': options.pooling,
        'dropout': f'{options.dropout:g}',
        'loss': 'binary cross-entropy of each class' if options.multi_label else 'cross-entropy',
        'label smoothing': f'{options.label_smoothing:g}' if options.label_smoothing else '',
        'mixup': f'{options.mixup:g}' if options.mixup else '',
        'rare classes shown more often': 'yes' if options.oversample else 'no',
        'class balancing': 'yes' if model.spec.class_balancing else 'no',
    }


def _arguments(options: ChipOptions) -> dict[str, object]:
    """Return what the constructor was told besides its defaults."""
    usual = ChipOptions(options.multi_label)
    return {
        f.name: getattr(options, f.name) for f in fields(options) if getattr(options, f.name) != getattr(usual, f.name)
    }

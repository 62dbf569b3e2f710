"""The report of pixel classifiers: metrics by class, confusion, samples, calibration."""

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import TypeVar

from geolearn import plotting
from geolearn.data import ChipData
from geolearn.losses import PixelLossOptions, RegressionLossOptions
from geolearn.metrics import rank_chips
from geolearn.models.evaluation.pixels import PixelEvaluation, describe_undefined, draw_chips
from geolearn.models.reports.report import SAMPLES, TaskReport, calibration_section, sample_sections
from geolearn.models.reports.sections import format_score, picture
from geolearn.networks.segmentation import PixelOptions, Segmenter
from geolearn.networks.spec import ModelSpec
from geolearn.report import Cell, Facts, Notes, Section, Share, Swatch, Table

Loss = TypeVar('Loss', PixelLossOptions, RegressionLossOptions)


def pixel_report(
    spec: ModelSpec, network: Segmenter, data: ChipData, evaluation: PixelEvaluation, options: PixelOptions
) -> TaskReport:
    """Report the validation results of a pixel classifier.

    Args:
        spec: Of the model.
        network: Draws the samples.
        data: The chips.
        evaluation: On the validation chips.
        options: Those in the spec, read.
    """
    matrix, draw = evaluation.confusion, partial(draw_chips, network, data, spec)
    hardest = rank_chips(evaluation.losses, highest_first=True)[:SAMPLES]
    why = 'Those of the highest loss (cross-entropy): confident and wrong, or the label is.'
    return TaskReport(
        'pixel classification',
        (('mean IoU', format_score(matrix.miou, '.3f')), ('accuracy', format_score(matrix.accuracy, '.1%'))),
        (
            _score_section(evaluation, data),
            _confusion_section(evaluation, data),
            *sample_sections(evaluation.per_chip, draw, by='mean IoU'),
            Section('Hardest chips', (why, picture(draw(hardest, losses=True), 'Hardest chips'))),
            calibration_section(evaluation.calibration),
        ),
        {
            'decoder': options.decoder,
            'decoder options': format_options(options.decoder_options),
            'loss': spec.custom.get('loss') or format_loss(options.loss, PixelLossOptions()),
            'auxiliary head': 'yes' if options.auxiliary_head else 'no',
            'class balancing': 'yes' if spec.class_balancing else 'no',
        },
    )


def _score_section(evaluation: PixelEvaluation, data: ChipData) -> Section:
    matrix = evaluation.confusion
    columns = (matrix.precision, matrix.recall, matrix.f1, matrix.iou, evaluation.boundaries.iou)
    scores = zip(*(values.tolist() for values in columns))
    totals = matrix.counts.sum(1).tolist()
    rows: list[tuple[Cell, ...]] = [
        (Swatch(info.name, info.color), total, *map(Share, row))
        for info, total, row in zip(data.class_infos, totals, scores)
    ]
    overall = (
        ('accuracy', format_score(matrix.accuracy)),
        ('mean IoU', format_score(matrix.miou)),
        ('mean F1', format_score(matrix.mean_f1)),
        ('mean recall (balanced accuracy)', format_score(matrix.mean_recall)),
        ('kappa', format_score(matrix.kappa)),
        ('boundary IoU', format_score(evaluation.boundaries.values()['boundary_iou'])),
    )
    header = ('class', 'pixels', 'precision', 'recall', 'F1', 'IoU', 'boundary IoU')
    notes = describe_undefined(matrix, evaluation.boundaries, data.classes)
    parts = [Notes(tuple(note[0].upper() + note[1:] + '.' for note in notes))] if notes else []
    text = 'On the validation chips, over labelled pixels. Means leave out classes that do not occur.'
    return Section('Scores', (text, *parts, Facts(overall), Table(header, tuple(rows), 'By class')))


def _confusion_section(evaluation: PixelEvaluation, data: ChipData) -> Section:
    figure = plotting.show_confusion_matrix(evaluation.confusion.counts, data.classes)
    caption = 'Each row is a true class; shares are those of its pixels.'
    return Section('Confusion', (picture(figure, 'Confusion matrix', caption, name='confusion_matrix'),))


def format_options(options: Mapping[str, object]) -> str:
    """Return options as they are passed."""
    return ', '.join(f'{name}={value!r}' for name, value in options.items())


def format_loss(loss: Loss, usual: Loss) -> str:
    """Return a loss's name and the options that differ from the defaults."""
    changed = {f.name: getattr(loss, f.name) for f in fields(loss) if getattr(loss, f.name) != getattr(usual, f.name)}
    return ', '.join(filter(None, [loss.loss, format_options({k: v for k, v in changed.items() if k != 'loss'})]))

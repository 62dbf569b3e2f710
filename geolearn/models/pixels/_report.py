"""The report of a pixel classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import date
from typing import TYPE_CHECKING

from geolearn import plotting
from geolearn.data import ChipData
from geolearn.errors import NotTrainedError
from geolearn.losses import PixelLossOptions
from geolearn.models._reporting import (
    backbone_section,
    data_section,
    environment_section,
    find_warnings,
    picture,
    reproduce_section,
    training_section,
    training_time,
)
from geolearn.models.pixels._judging import Judgement, look_at
from geolearn.models.pixels.options import PixelOptions
from geolearn.report import Cell, Facts, Picture, ReportContents, Section, Share, Swatch, Table

if TYPE_CHECKING:
    from geolearn.models.pixels.judged import JudgedClassifier

SAMPLES = 4
"""Chips in each figure of samples."""


def report_pixel_classifier(model: 'JudgedClassifier', *, made: date) -> ReportContents:
    """Judge a model on its validation chips and lay out all that there is to say of it.

    Args:
        model: Trained or loaded, with data.
        made: Day that the report names.

    Raises:
        NotTrainedError: If the model was loaded without data.
    """
    data, spec = model.data, model.spec
    if data is None:
        raise NotTrainedError('a report needs the chips; pass data= to load_model or from_model')
    judged = model.judge()
    options = PixelOptions.from_json(spec.options, decoder=model.decoder)
    summary = (
        ('task', 'pixel classification'),
        ('model', spec.model),
        ('backbone', spec.backbone),
        ('mean IoU', f'{judged.confusion.miou:.3f}'),
        ('accuracy', f'{judged.confusion.accuracy:.1%}'),
        ('classes', str(data.c)),
        ('epochs', str(len(model.history.epochs))),
        ('training time', training_time(model.history)),
    )
    sections = (
        data_section(data),
        training_section(model.history),
        _score_section(judged, data),
        _confusion_section(judged, data),
        *_sample_sections(model, data, judged),
        _calibration_section(judged),
        backbone_section(spec, model.network.backbone.load_report),
        _settings_section(options, spec.class_balancing),
        reproduce_section(spec, data, model.history, arguments=_arguments(options)),
        environment_section(),
    )
    return ReportContents(f'{spec.model} on {data.path.name}', summary, sections, made, find_warnings(data, spec))


def _score_section(judged: Judgement, data: ChipData) -> Section:
    matrix = judged.confusion
    columns = (matrix.precision, matrix.recall, matrix.f1, matrix.iou, judged.boundaries.iou)
    scores = zip(*(values.tolist() for values in columns))
    totals = matrix.counts.sum(1).tolist()
    rows: list[tuple[Cell, ...]] = [
        (Swatch(info.name, info.color), total, *map(Share, row))
        for info, total, row in zip(data.class_infos, totals, scores)
    ]
    overall = (
        ('accuracy', f'{matrix.accuracy:.4f}'),
        ('mean IoU', f'{matrix.miou:.4f}'),
        ('mean F1', f'{matrix.mean_f1:.4f}'),
        ('mean recall (balanced accuracy)', f'{matrix.mean_recall:.4f}'),
        ('kappa', f'{matrix.kappa:.4f}'),
        ('boundary IoU', f'{judged.boundaries.values()["boundary_iou"]:.4f}'),
    )
    header = ('class', 'pixels', 'precision', 'recall', 'F1', 'IoU', 'boundary IoU')
    told = 'On the validation chips, over labelled pixels. Means leave out classes that do not occur.'
    return Section('Scores', (told, Facts(overall), Table(header, tuple(rows), 'By class')))


def _confusion_section(judged: Judgement, data: ChipData) -> Section:
    figure = plotting.show_confusion_matrix(judged.confusion.counts, data.classes)
    caption = 'Each row is a true class; shares are those of its pixels.'
    return Section('Confusion', (picture(figure, 'Confusion matrix', caption),))


def _sample_sections(model: 'JudgedClassifier', data: ChipData, judged: Judgement) -> list[Section]:
    worst = plotting.rank_chips(judged.scores, highest_first=False)[:SAMPLES]
    typical = plotting.choose_typical(judged.scores, SAMPLES)
    hard = plotting.rank_chips(judged.losses, highest_first=True)[:SAMPLES]
    if len(judged.scores) <= SAMPLES:
        typical = []  # the worst are all of them
    spec, sections = model.spec, []
    for title, told, indexes in (
        ('Typical chips', 'Those in the middle when validation chips are ordered by IoU.', typical),
        ('Worst chips', 'Those of the lowest mean IoU.', worst),
    ):
        if indexes:
            found = look_at(model.network, data.valid_dl, indexes)
            figure = plotting.show_predictions(
                *found[:3], spec.bands, spec.class_infos, titles=_titles(data, judged, indexes)
            )
            sections.append(Section(title, (told, picture(figure, title))))
    found = look_at(model.network, data.valid_dl, hard)
    figure = plotting.show_hard_examples(*found, spec.bands, spec.class_infos, titles=_titles(data, judged, hard))
    told = 'Those of the highest loss (cross-entropy): here the model is sure and wrong, or the label is.'
    return [*sections, Section('Hardest chips', (told, picture(figure, 'Hardest chips')))]


_ESRI_FIGURES = {
    'loss_graph.png': ('Training',),
    'show_results.png': ('Typical chips', 'Worst chips'),  # of few chips the worst are all
}


def esri_figures(report: ReportContents) -> dict[str, bytes]:
    """Return the figures of a report that Esri's bundles hold too, as PNGs by Esri's names."""
    drawn = [(section.title, part) for section in report.sections for part in section.parts]
    pictures = {title: part.png for title, part in reversed(drawn) if isinstance(part, Picture)}
    found = {name: [pictures[title] for title in titles if title in pictures] for name, titles in _ESRI_FIGURES.items()}
    return {name: shown[0] for name, shown in found.items() if shown}


def _titles(data: ChipData, judged: Judgement, indexes: Sequence[int]) -> list[str]:
    names = [data.table.names[data.valid_ds.positions[index]] for index in indexes]
    return [
        plotting.describe_chip(name, IoU=judged.scores[index], loss=judged.losses[index])
        for name, index in zip(names, indexes)
    ]


def _calibration_section(judged: Judgement) -> Section:
    figure = plotting.show_reliability(judged.calibration.table())
    told = (
        'Confidence is the probability of the predicted class. Bars below the line: the model is surer than it is '
        'right. The expected calibration error is the mean distance from the line.'
    )
    return Section('Calibration', (told, picture(figure, 'Reliability diagram')))


def _settings_section(options: PixelOptions, class_balancing: bool) -> Section:
    facts = {
        'decoder': options.decoder,
        'decoder options': ', '.join(f'{name}={value!r}' for name, value in options.decoder_options.items()),
        'loss': _loss_text(options.loss),
        'class balancing': 'yes' if class_balancing else 'no',
        'auxiliary head': 'yes' if options.auxiliary_head else 'no',
    }
    return Section('Settings', (Facts(tuple((name, text) for name, text in facts.items() if text)),))


def _loss_text(loss: PixelLossOptions) -> str:
    """Return the loss's name and what is not as usual."""
    usual = PixelLossOptions()
    changed = {f.name: getattr(loss, f.name) for f in fields(loss) if getattr(loss, f.name) != getattr(usual, f.name)}
    return ', '.join([loss.loss, *(f'{name}={value!r}' for name, value in changed.items() if name != 'loss')])


def _arguments(options: PixelOptions) -> Mapping[str, object]:
    """Return what the constructor was told besides its defaults."""
    found: dict[str, object] = {}
    loss, default = options.loss, PixelLossOptions()
    if loss == replace(default, dice_fraction=loss.dice_fraction, dice_average=loss.dice_average):
        if loss != default:
            found = {'dice_loss_fraction': loss.dice_fraction, 'dice_loss_average': loss.dice_average}
    else:
        found['loss'] = loss
    if options.auxiliary_head:
        found['auxiliary_head'] = True
    if options.decoder_options:
        found['decoder_options'] = dict(options.decoder_options)
    return found

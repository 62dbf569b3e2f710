"""What a pixel classifier has to say of itself in its report."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

from geolearn import plotting
from geolearn.data import ChipData
from geolearn.losses import PixelLossOptions, RegressionLossOptions
from geolearn.metrics import rank_chips
from geolearn.models.evaluation.pixels import Judgement
from geolearn.models.reports.report import SAMPLES, Findings, calibration_section, sample_sections
from geolearn.models.reports.sections import picture, tell
from geolearn.networks.segmentation import PixelOptions
from geolearn.report import Cell, Facts, Section, Share, Swatch, Table

if TYPE_CHECKING:
    from geolearn.models.segmentation import JudgedClassifier


Loss = TypeVar('Loss', PixelLossOptions, RegressionLossOptions)


def find_in_pixels(model: 'JudgedClassifier', data: ChipData, options: PixelOptions) -> Findings:
    """Say how well a model gives pixels their class.

    Args:
        model: To judge.
        data: Its chips.
        options: Those in its spec, read.
    """
    judged = model.judge()
    headline = (('mean IoU', tell(judged.confusion.miou, '.3f')), ('accuracy', tell(judged.confusion.accuracy, '.1%')))
    sections = (
        _score_section(judged, data),
        _confusion_section(judged, data),
        *sample_sections(judged.scores, model.draw_chips, by='mean IoU'),
        _hard_section(model, judged),
        calibration_section(judged.calibration),
    )
    balancing = {'class balancing': 'yes' if model.spec.class_balancing else 'no'}
    return Findings(
        'pixel classification', headline, sections, tell_pixel_options(options) | balancing, _arguments(options)
    )


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
        ('accuracy', tell(matrix.accuracy)),
        ('mean IoU', tell(matrix.miou)),
        ('mean F1', tell(matrix.mean_f1)),
        ('mean recall (balanced accuracy)', tell(matrix.mean_recall)),
        ('kappa', tell(matrix.kappa)),
        ('boundary IoU', tell(judged.boundaries.values()['boundary_iou'])),
    )
    header = ('class', 'pixels', 'precision', 'recall', 'F1', 'IoU', 'boundary IoU')
    told = 'On the validation chips, over labelled pixels. Means leave out classes that do not occur.'
    return Section('Scores', (told, Facts(overall), Table(header, tuple(rows), 'By class')))


def _confusion_section(judged: Judgement, data: ChipData) -> Section:
    figure = plotting.show_confusion_matrix(judged.confusion.counts, data.classes)
    caption = 'Each row is a true class; shares are those of its pixels.'
    return Section('Confusion', (picture(figure, 'Confusion matrix', caption, name='confusion_matrix'),))


def _hard_section(model: 'JudgedClassifier', judged: Judgement) -> Section:
    hardest = rank_chips(judged.losses, highest_first=True)[:SAMPLES]
    told = 'Those of the highest loss (cross-entropy): here the model is sure and wrong, or the label is.'
    return Section('Hardest chips', (told, picture(model.draw_chips(hardest, losses=True), 'Hardest chips')))


def tell_pixel_options(options: PixelOptions) -> dict[str, str]:
    """Return in words what a model of pixels was told."""
    return {
        'decoder': options.decoder,
        'decoder options': tell_options(options.decoder_options),
        'loss': tell_loss(options.loss, PixelLossOptions()),
        'auxiliary head': 'yes' if options.auxiliary_head else 'no',
    }


def tell_options(options: Mapping[str, object]) -> str:
    """Return options as they are passed."""
    return ', '.join(f'{name}={value!r}' for name, value in options.items())


def tell_loss(loss: Loss, usual: Loss) -> str:
    """Return a loss's name and what is not as usual."""
    changed = {f.name: getattr(loss, f.name) for f in fields(loss) if getattr(loss, f.name) != getattr(usual, f.name)}
    return ', '.join(filter(None, [loss.loss, tell_options({k: v for k, v in changed.items() if k != 'loss'})]))


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

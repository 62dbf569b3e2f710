"""What a pixel regressor has to say of itself in its report."""

from typing import TYPE_CHECKING

import numpy as np

from geolearn.losses import RegressionLossOptions
from geolearn.models.evaluation.regression import ValueJudgement
from geolearn.models.reports.pixels import tell_loss, tell_options
from geolearn.models.reports.report import Findings, sample_sections
from geolearn.models.reports.sections import picture, tell
from geolearn.networks.segmentation import PixelOptions
from geolearn.report import Cell, Facts, Section, Table

if TYPE_CHECKING:
    from geolearn.models.pixel_regressor import PixelRegressor


_RANGES = 5


def find_in_values(model: 'PixelRegressor', options: PixelOptions) -> Findings:
    """Say how near a model's numbers come to the truth.

    Args:
        model: With data.
        options: Those in its spec, read.
    """
    judged = model.judge()
    scores = judged.scores
    headline = (
        ('RMSE', tell(scores['rmse'], '.4g')),
        ('MAE', tell(scores['mae'], '.4g')),
        ('R²', tell(scores['r2'], '.3f')),
    )
    figure = picture(model.plot_scatter(), 'Prediction against truth', 'Darker where there are more pixels.')
    sections = (
        _score_section(judged),
        Section('Truth and prediction', (figure,)),
        *sample_sections(judged.errors, model.draw_chips, by='root mean square error', highest_is_worst=True),
    )
    return Findings('pixel regression', headline, sections, _settings(options), _arguments(options))


def _score_section(judged: ValueJudgement) -> Section:
    scores = judged.scores
    overall = (
        ('root mean square error (RMSE)', tell(scores['rmse'], '.4g')),
        ('mean absolute error (MAE)', tell(scores['mae'], '.4g')),
        ('bias (prediction - truth)', tell(scores['bias'], '+.4g')),
        ('R²', tell(scores['r2'])),
    )
    told = (
        'On the validation chips, over pixels that have a truth, in its units. R² is 1 where all numbers are right, '
        'and 0 for a model that always says the mean.'
    )
    return Section('Scores', (told, Facts(overall), tabulate_ranges(judged)))


def tabulate_ranges(judged: ValueJudgement) -> Table:
    """Part the pixels by their true number into ranges of equal size: a model may be good on the usual ones alone."""
    truth, errors = judged.truth.double().numpy(), (judged.predicted - judged.truth).double().numpy()
    rows: list[tuple[Cell, ...]] = []
    edges = np.unique(np.quantile(truth, np.linspace(0, 1, _RANGES + 1), method='lower')) if len(truth) else np.zeros(0)
    if len(edges) == 1:
        edges = edges.repeat(2)
    for low, high, last in zip(edges, edges[1:], [False] * (len(edges) - 2) + [True]):
        inside = errors[(truth >= low) & ((truth <= high) if last else (truth < high))]
        name = f'{low:.4g} to {high:.4g}'
        rows.append((name, len(inside), inside.mean(), np.abs(inside).mean(), np.sqrt(np.square(inside).mean())))
    header = ('true number', 'pixels', 'bias', 'MAE', 'RMSE')
    return Table(header, tuple(rows), 'By range of the truth, each with about as many pixels (of those drawn below)')


def _settings(options: PixelOptions) -> dict[str, str]:
    return {
        'decoder': options.decoder,
        'decoder options': tell_options(options.decoder_options),
        'loss': tell_loss(options.value_loss, RegressionLossOptions()),
    }


def _arguments(options: PixelOptions) -> dict[str, object]:
    found: dict[str, object] = {'decoder': options.decoder}
    if options.value_loss != RegressionLossOptions():
        found['loss'] = options.value_loss
    if options.decoder_options:
        found['decoder_options'] = dict(options.decoder_options)
    return found

"""The report of pixel regressors: metrics, by range of the truth, scatter, samples."""

from functools import partial

import numpy as np

from geolearn.data import ChipData
from geolearn.losses import RegressionLossOptions
from geolearn.models.evaluation.regression import RegressionEvaluation, draw_chips
from geolearn.models.reports.pixels import format_loss, format_options
from geolearn.models.reports.report import TaskReport, sample_sections
from geolearn.models.reports.sections import format_score, picture
from geolearn.networks.segmentation import PixelOptions, Segmenter
from geolearn.networks.spec import ModelSpec
from geolearn.plotting import show_regression_scatter
from geolearn.report import Cell, Facts, Section, Table

_RANGES = 5


def regression_report(
    spec: ModelSpec, network: Segmenter, data: ChipData, evaluation: RegressionEvaluation, options: PixelOptions
) -> TaskReport:
    """Report the validation results of a pixel regressor.

    Args:
        spec: Of the model.
        network: Draws the samples.
        data: The chips.
        evaluation: On the validation chips.
        options: Those in the spec, read.
    """
    metrics, draw = evaluation.metrics, partial(draw_chips, network, data, spec)
    scatter = show_regression_scatter(evaluation.truth, evaluation.predicted)
    figure = picture(scatter, 'Prediction against truth', 'Darker where there are more pixels.')
    return TaskReport(
        'pixel regression',
        (
            ('RMSE', format_score(metrics['rmse'], '.4g')),
            ('MAE', format_score(metrics['mae'], '.4g')),
            ('R²', format_score(metrics['r2'], '.3f')),
        ),
        (
            _score_section(evaluation),
            Section('Truth and prediction', (figure,)),
            *sample_sections(evaluation.per_chip, draw, by='root mean square error', highest_is_worst=True),
        ),
        {
            'decoder': options.decoder,
            'decoder options': format_options(options.decoder_options),
            'loss': spec.custom.get('loss') or format_loss(options.value_loss, RegressionLossOptions()),
        },
    )


def _score_section(evaluation: RegressionEvaluation) -> Section:
    scores = evaluation.metrics
    overall = (
        ('root mean square error (RMSE)', format_score(scores['rmse'], '.4g')),
        ('mean absolute error (MAE)', format_score(scores['mae'], '.4g')),
        ('bias (prediction - truth)', format_score(scores['bias'], '+.4g')),
        ('R²', format_score(scores['r2'])),
    )
    text = (
        'On the validation chips, over pixels that have a truth, in its units. R² is 1 where all values are right, '
        'and 0 for a model that always says the mean.'
    )
    return Section('Scores', (text, Facts(overall), tabulate_ranges(evaluation)))


def tabulate_ranges(evaluation: RegressionEvaluation) -> Table:
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

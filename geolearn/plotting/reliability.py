"""The reliability diagram: is a model as sure as it is right?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from geolearn.metrics import ReliabilityBin
from geolearn.plotting.canvas import tidy
from geolearn.plotting.palette import BLUE, GREY, VERMILION

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show_reliability(bins: Sequence[ReliabilityBin]) -> 'Figure':
    """Draw accuracy against confidence, and how many predictions have which confidence.

    Bars below the diagonal: the model is surer than it is right. The title gives the expected calibration error.

    Args:
        bins: From `geolearn.metrics.Calibration.table`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5.2), layout='constrained')
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [row for row in bins if row.predictions]
    total = sum(row.predictions for row in filled)
    for ax in (upper, lower):
        tidy(ax)
    for row in filled:
        upper.bar(row.low, row.accuracy, row.high - row.low, align='edge', color=BLUE, edgecolor='white')
        lower.bar(row.low, row.predictions / total, row.high - row.low, align='edge', color=GREY, edgecolor='white')
    upper.plot(
        [row.confidence for row in filled],
        [row.accuracy for row in filled],
        'o',
        color=VERMILION,
        markeredgecolor='white',
        label='accuracy at mean confidence',
    )
    upper.plot([0, 1], [0, 1], '--', color='0.2', linewidth=1.2, label='as sure as right')
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel='accuracy')
    upper.legend(loc='upper left', frameon=False, fontsize=9)
    if total:
        error = sum(row.predictions * abs(row.confidence - row.accuracy) for row in filled) / total
        upper.set_title(f'expected calibration error {error:.3f}', fontsize=11)
    lower.set(xlabel='confidence', ylabel='share')
    lower.yaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    return figure

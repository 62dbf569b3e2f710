"""The confusion matrix, drawn so that up to thirty classes can be read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from geolearn.metrics import ReliabilityBin
from geolearn.plotting.canvas import BLUE, GREY, SHARE, VERMILION, amount, plain, short, tidy, to_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COUNT_LIMIT = 12
"""Up to so many classes each cell holds its count as well as its share."""

TURN_LIMIT = 8
"""With more classes, names below the columns stand upright."""

NUMBER_LIMIT = 30
"""Up to so many classes cells hold numbers; beyond, colour alone."""

_NAME_LENGTH = 22


def show_confusion_matrix(counts: Tensor | np.ndarray, names: Sequence[str], *, unit: str = 'pixels') -> 'Figure':
    """Draw counts of truth (rows) against prediction (columns), coloured by each cell's share of its row.

    Args:
        counts: (classes, classes) whole numbers; see `geolearn.metrics.ConfusionMatrix`.
        names: Of the classes.
        unit: What is counted.

    Raises:
        ValueError: If there are not as many names as rows.
    """
    from matplotlib.figure import Figure

    cells = to_array(counts).astype(np.float64)
    count = len(cells)
    if cells.shape != (len(names), len(names)):
        raise ValueError(f'a matrix of {cells.shape} needs {count} class names, got {len(names)}')
    totals = cells.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, cells / np.maximum(totals, 1), np.nan)
    step = 0.72 if count <= COUNT_LIMIT else 0.36 if count <= NUMBER_LIMIT else max(0.12, 10 / count)
    label = 0.075 * max((len(short(name, _NAME_LENGTH)) for name in names), default=0)
    side = step * max(count, 3)
    figure = Figure(figsize=(side + label + 2.2, side + label * (1 if count > TURN_LIMIT else 0.7) + 0.7))
    figure.set_layout_engine('constrained')
    ax = figure.add_subplot()
    drawn = ax.imshow(shares, cmap=SHARE, vmin=0, vmax=1)
    ax.set_facecolor('#eeeeee')  # rows of classes that the truth does not hold
    _name_classes(ax, names, totals[:, 0], step)
    ax.set(xlabel='prediction', ylabel=f'truth ({unit})')
    if count <= NUMBER_LIMIT:
        _write_numbers(ax, cells, shares)
    figure.colorbar(drawn, ax=ax, shrink=0.7, aspect=30, label='share of the row', format=lambda x, _: f'{x:.0%}')
    return figure


def _name_classes(ax: 'Axes', names: Sequence[str], totals: np.ndarray, step: float) -> None:
    positions, size = range(len(names)), 9 if step > 0.3 else 5
    ax.set_xticks(
        positions,
        [short(name, _NAME_LENGTH) for name in names],
        rotation=90 if len(names) > TURN_LIMIT else 45,
        fontsize=size,
    )
    for label in ax.get_xticklabels():
        label.set_rotation_mode('anchor')
        label.set_horizontalalignment('right')
        label.set_verticalalignment('center' if len(names) > TURN_LIMIT else 'top')
    ax.set_yticks(
        positions, [f'{short(n, _NAME_LENGTH)}  {amount(t)}' for n, t in zip(names, totals.tolist())], fontsize=size
    )
    for label in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        plain(label)
    ax.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    ax.grid(which='minor', color='white', linewidth=1 if step > 0.3 else 0.3)
    ax.tick_params(which='both', length=0)
    ax.spines[:].set_visible(False)


def _write_numbers(ax: 'Axes', cells: np.ndarray, shares: np.ndarray) -> None:
    with_counts = len(cells) <= COUNT_LIMIT
    for (row, column), share in np.ndenumerate(shares):
        count = float(cells[row, column])
        if not count:
            continue
        text = f'{share:.0%}' if share >= 0.005 else '<1%' if with_counts else '·'
        text = f'{text}\n{amount(count)}' if with_counts else text.removesuffix('%')
        color = 'white' if share > 0.55 else '0.1'
        written = ax.text(column, row, text, ha='center', va='center', color=color, fontsize=7.5)
        written.set_in_layout(False)  # hundreds of them take long to measure, and none leaves its cell


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

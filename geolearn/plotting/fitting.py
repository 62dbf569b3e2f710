"""Figures of training: losses and scores by epoch, and the search for a learning rate."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from geolearn.metrics import best_epoch, find_metric, find_monitor, name_metric
from geolearn.plotting.canvas import BLUE, GREEN, GREY, ORANGE, VERMILION, new_chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

SCORE_LIMIT = 3
"""Scores drawn beside the losses; more would hide one another."""

_SCORE_STYLES = ((GREEN, 's', '--'), (VERMILION, '^', '-.'), ('#7b4ea3', 'D', ':'))


def show_losses(
    batch_losses: Sequence[float], epochs: Sequence[Mapping[str, float]], *, monitor: str = 'valid_loss'
) -> 'Figure':
    """Draw the training loss by batch, the validation loss and the scores by epoch, and mark the best epoch.

    Args:
        batch_losses: Smoothed, after each batch.
        epochs: A row each, with ``'epoch'``, ``'valid_loss'`` and scores by name; of scores those are drawn that grow
            as they improve, up to three.
        monitor: The column that says which epoch is best.

    Raises:
        UnknownNameError: If `monitor` has no better side.
    """
    from matplotlib.ticker import MaxNLocator

    figure, ax = new_chart(7.5, 4.2)
    before = int(epochs[0].get('epoch', 1)) - 1 if epochs else 0  # of a model that was loaded
    per_epoch = max(len(batch_losses) / len(epochs), 1e-9) if epochs else 1.0
    steps = before + np.arange(1, len(batch_losses) + 1) / per_epoch
    ax.plot(steps, batch_losses, color=GREY, linewidth=1.2, label='training loss (smoothed)')
    ends = before + np.arange(1, len(epochs) + 1)
    ax.plot(ends, [row.get('valid_loss', math.nan) for row in epochs], 'o-', color=BLUE, label='validation loss')
    ax.set(xlabel='epoch' if epochs else 'batch', ylabel='loss')
    _limit(ax, batch_losses, [row.get('valid_loss', math.nan) for row in epochs])
    lines: list[Line2D] = list(ax.get_lines())
    if names := score_names(epochs):
        lines += _draw_scores(ax, ends, epochs, names)
    best = best_epoch(epochs, find_monitor(monitor))
    if best is not None:
        label = f'best epoch: {ends[best]} (by {name_metric(monitor)})'
        lines.append(ax.axvline(ends[best], color=ORANGE, linestyle=':', linewidth=2, zorder=0, label=label))
    figure.legend(handles=lines, loc='outside lower center', ncols=3, frameon=False, fontsize=9)
    if epochs:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def score_names(epochs: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the columns that are drawn beside the losses."""
    names = dict.fromkeys(name for row in epochs for name, value in row.items() if math.isfinite(value))
    return [name for name in names if find_metric(name).higher_is_better][:SCORE_LIMIT]


def show_rate_test(rates: Sequence[float], losses: Sequence[float], suggestion: float) -> 'Figure':
    """Draw the learning-rate range test with its suggestion."""
    figure, ax = new_chart(6, 4)
    ax.plot(rates, losses, color=BLUE)
    ax.axvline(suggestion, linestyle=':', linewidth=2, color=VERMILION, label=f'suggestion {suggestion:.1e}')
    ax.set(xscale='log', xlabel='learning rate', ylabel='loss')
    ax.legend(frameon=False)
    return figure


def _draw_scores(
    ax: 'Axes', ends: np.ndarray, epochs: Sequence[Mapping[str, float]], names: Sequence[str]
) -> list['Line2D']:
    second = ax.twinx()
    second.spines['top'].set_visible(False)
    for name, (color, marker, dash) in zip(names, _SCORE_STYLES):
        values = [row.get(name, math.nan) for row in epochs]
        second.plot(ends, values, marker + dash, color=color, markersize=5, linewidth=1.2, label=name_metric(name))
    low, high = second.get_ylim()
    if low > -0.3 and high < 1.3:
        second.set_ylim(min(low, 0), 1.02)
    second.set_ylabel('score')
    return list(second.get_lines())


def _limit(ax: 'Axes', batch_losses: Sequence[float], valid: Sequence[float]) -> None:
    """Cut off the peak of the first batches, beside which the rest would lie flat."""
    known = np.array([*batch_losses, *valid])
    known = known[np.isfinite(known)]
    if len(known) < 2:
        return
    ends = [value for value in valid if math.isfinite(value)]
    top, floor = max([float(np.percentile(known, 98)), *ends]), min(0.0, float(known.min()))
    if top > floor:
        ax.set_ylim(floor, floor + 1.08 * (top - floor))

"""Charts: losses by epoch, the learning-rate test, the confusion matrix, reliability, and the map of a split."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from geolearn.chips.splits.overlaps import find_footprints
from geolearn.chips.splits.split import Split
from geolearn.metrics import ReliabilityBin, best_epoch, find_metric, find_monitor, name_metric
from geolearn.plotting import canvas
from geolearn.raster import GeoBox

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


SCORE_LIMIT = 3
"""Scores drawn beside the losses; more would hide one another."""

_SCORE_STYLES = ((canvas.GREEN, 's', '--'), (canvas.VERMILION, '^', '-.'), ('#7b4ea3', 'D', ':'))


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

    figure, ax = canvas.new_chart(7.5, 4.2)
    before = int(epochs[0].get('epoch', 1)) - 1 if epochs else 0  # of a model that was loaded
    per_epoch = max(len(batch_losses) / len(epochs), 1e-9) if epochs else 1.0
    steps = before + np.arange(1, len(batch_losses) + 1) / per_epoch
    ax.plot(steps, batch_losses, color=canvas.GRAY, linewidth=1.2, label='training loss (smoothed)')
    ends = before + np.arange(1, len(epochs) + 1)
    ax.plot(ends, [row.get('valid_loss', math.nan) for row in epochs], 'o-', color=canvas.BLUE, label='validation loss')
    ax.set(xlabel='epoch' if epochs else 'batch', ylabel='loss')
    _limit(ax, batch_losses, [row.get('valid_loss', math.nan) for row in epochs])
    lines: list[Line2D] = list(ax.get_lines())
    if names := score_names(epochs):
        lines += _draw_scores(ax, ends, epochs, names)
    best = best_epoch(epochs, find_monitor(monitor))
    if best is not None:
        label = f'best epoch: {ends[best]} (by {name_metric(monitor)})'
        lines.append(ax.axvline(ends[best], color=canvas.ORANGE, linestyle=':', linewidth=2, zorder=0, label=label))
    figure.legend(handles=lines, loc='outside lower center', ncols=3, frameon=False, fontsize=9)
    if epochs:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def show_pretraining(
    batch_losses: Sequence[float],
    epochs: Sequence[Mapping[str, float]],
    measures: Mapping[str, str],
    *,
    warning: str = '',
) -> 'Figure':
    """Draw the losses of a pretraining, and below them its measures of collapse, each on an axis of its own.

    Args:
        batch_losses: Smoothed, after each batch.
        epochs: A row each, with ``'valid_loss'`` and the measures by name.
        measures: Names of measures, and what people call them; those that no row holds are left out.
        warning: Written above, in red.
    """
    from matplotlib.ticker import MaxNLocator

    from geolearn.plotting.figure import Figure

    shown = {
        name: label for name, label in measures.items() if any(math.isfinite(r.get(name, math.nan)) for r in epochs)
    }
    rows = 1 + -(-len(shown) // 2)
    figure = Figure(figsize=(9, 2.6 * rows + 0.6), layout='constrained')
    grid = figure.add_gridspec(rows, 2)
    ax = figure.add_subplot(grid[0, :])
    ends = np.arange(1, len(epochs) + 1)
    steps = np.arange(1, len(batch_losses) + 1) / max(len(batch_losses) / max(len(epochs), 1), 1e-9)
    ax.plot(steps, batch_losses, color=canvas.GRAY, linewidth=1.2, label='training loss (smoothed)')
    validated = [row.get('valid_loss', math.nan) for row in epochs]
    ax.plot(ends, validated, 'o-', color=canvas.BLUE, markersize=4, label='validation loss')
    _limit(ax, batch_losses, validated)
    ax.set(ylabel='loss')
    ax.legend(frameon=False, fontsize=9)
    axes = [ax]
    for place, (name, label) in enumerate(shown.items()):
        alone = place == len(shown) - 1 and place % 2 == 0
        one = figure.add_subplot(grid[1 + place // 2, :] if alone else grid[1 + place // 2, place % 2])
        values = [row.get(name, math.nan) for row in epochs]
        one.plot(ends, values, 's-', color=canvas.GREEN, markersize=4)
        one.set_title(label, fontsize=10)
        # from 0, because what matters is how near to nothing a measure comes
        one.set_ylim(0, 1.15 * max([value for value in values if math.isfinite(value)] + [1e-9]))
        axes.append(one)
    for one in axes:
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
        canvas.tidy(one)
    for one in axes[-2:] if len(shown) > 1 else axes:
        one.set_xlabel('epoch')
    if warning:
        figure.suptitle(textwrap.fill(warning, 100), color=canvas.VERMILION, fontsize=9)
    return figure


def score_names(epochs: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the columns that are drawn beside the losses."""
    names = dict.fromkeys(name for row in epochs for name, value in row.items() if math.isfinite(value))
    return [name for name in names if find_metric(name).higher_is_better][:SCORE_LIMIT]


def show_rate_test(rates: Sequence[float], losses: Sequence[float], suggestion: float) -> 'Figure':
    """Draw the learning-rate range test with its suggestion."""
    figure, ax = canvas.new_chart(6, 4)
    ax.plot(rates, losses, color=canvas.BLUE)
    ax.axvline(suggestion, linestyle=':', linewidth=2, color=canvas.VERMILION, label=f'suggestion {suggestion:.1e}')
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


COUNT_LIMIT = 12
"""Up to so many classes each cell holds its count as well as its share."""

TURN_LIMIT = 8
"""With more classes, names below the columns stand upright."""

NUMBER_LIMIT = 30
"""Up to so many classes cells hold numbers; beyond, color alone."""

_NAME_LENGTH = 22


def show_confusion_matrix(counts: Tensor | np.ndarray, names: Sequence[str], *, unit: str = 'pixels') -> 'Figure':
    """Draw counts of truth (rows) against prediction (columns), colored by each cell's share of its row.

    Args:
        counts: (classes, classes) whole numbers; see `geolearn.metrics.ConfusionMatrix`.
        names: Of the classes.
        unit: What is counted.

    Raises:
        ValueError: If there are not as many names as rows.
    """
    from geolearn.plotting.figure import Figure

    cells = canvas.to_array(counts).astype(np.float64)
    count = len(cells)
    if cells.shape != (len(names), len(names)):
        raise ValueError(f'a matrix of {cells.shape} needs {count} class names, got {len(names)}')
    totals = cells.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, cells / np.maximum(totals, 1), np.nan)
    step = 0.72 if count <= COUNT_LIMIT else 0.36 if count <= NUMBER_LIMIT else max(0.12, 10 / count)
    label = 0.075 * max((len(canvas.short(name, _NAME_LENGTH)) for name in names), default=0)
    side = step * max(count, 3)
    figure = Figure(figsize=(side + label + 2.2, side + label * (1 if count > TURN_LIMIT else 0.7) + 0.7))
    figure.set_layout_engine('constrained')
    ax = figure.add_subplot()
    drawn = ax.imshow(shares, cmap=canvas.SHARE_CMAP, vmin=0, vmax=1)
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
        [canvas.short(name, _NAME_LENGTH) for name in names],
        rotation=90 if len(names) > TURN_LIMIT else 45,
        fontsize=size,
    )
    for label in ax.get_xticklabels():
        label.set_rotation_mode('anchor')
        label.set_horizontalalignment('right')
        label.set_verticalalignment('center' if len(names) > TURN_LIMIT else 'top')
    ax.set_yticks(
        positions,
        [f'{canvas.short(n, _NAME_LENGTH)}  {canvas.amount(t)}' for n, t in zip(names, totals.tolist())],
        fontsize=size,
    )
    for label in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        canvas.plain(label)
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
        text = f'{text}\n{canvas.amount(count)}' if with_counts else text.removesuffix('%')
        color = 'white' if share > 0.55 else '0.1'
        written = ax.text(column, row, text, ha='center', va='center', color=color, fontsize=7.5)
        written.set_in_layout(False)  # hundreds of them take long to measure, and none leaves its cell


def show_reliability(bins: Sequence[ReliabilityBin]) -> 'Figure':
    """Draw accuracy against confidence, and how many predictions have which confidence.

    Bars below the diagonal: the model is overconfident. The title gives the expected calibration error.

    Args:
        bins: From `geolearn.metrics.Calibration.table`.
    """
    from geolearn.plotting.figure import Figure

    figure = Figure(figsize=(5, 5.2), layout='constrained')
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [row for row in bins if row.predictions]
    total = sum(row.predictions for row in filled)
    for ax in (upper, lower):
        canvas.tidy(ax)
    for row in filled:
        upper.bar(row.low, row.accuracy, row.high - row.low, align='edge', color=canvas.BLUE, edgecolor='white')
        lower.bar(
            row.low, row.predictions / total, row.high - row.low, align='edge', color=canvas.GRAY, edgecolor='white'
        )
    upper.plot(
        [row.confidence for row in filled],
        [row.accuracy for row in filled],
        'o',
        color=canvas.VERMILION,
        markeredgecolor='white',
        label='accuracy at mean confidence',
    )
    upper.plot([0, 1], [0, 1], '--', color='0.2', linewidth=1.2, label='calibrated')
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel='accuracy')
    # below the axes, where it covers no bar
    figure.legend(*upper.get_legend_handles_labels(), loc='outside lower center', ncols=2, frameon=False, fontsize=9)
    if total:
        error = sum(row.predictions * abs(row.confidence - row.accuracy) for row in filled) / total
        upper.set_title(f'expected calibration error {error:.3f}', fontsize=11)
    lower.set(xlabel='confidence', ylabel='share')
    lower.yaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    return figure


CRS_LIMIT = 4
"""Each CRS has a map of its own; so many of them, those with the most chips."""

DOT_SHARE = 1 / 150
"""Chips narrower than this share of the map would not be seen; they are drawn as dots."""

_WORDS = {'train': 'training', 'valid': 'validation', 'test': 'test', 'dropped': 'in no part'}


def show_split_map(geoboxes: Sequence[GeoBox], split: Split) -> 'Figure | None':
    """Draw the outlines of the chips on the ground, colored by part, a map for each CRS.

    Args:
        geoboxes: Place of each chip; those in pixel space have none and are only counted.
        split: Positions of the chips in each part.

    Returns:
        The figure, or None where no chip has a place.
    """
    from matplotlib.patches import Patch

    from geolearn.plotting.figure import Figure

    places = find_footprints(geoboxes)
    parts = {name: np.asarray(getattr(split, name), np.int64) for name in canvas.PART_COLORS}
    members = sorted(places.members(), key=len, reverse=True)
    drawn = [positions for positions in members if len(positions)][:CRS_LIMIT]
    if not drawn:
        return None
    figure = Figure(figsize=(0.6 + 5.2 * len(drawn), 5), layout='constrained')
    for ax, positions in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn):
        groups = {name: places.bounds[np.intersect1d(part, positions)] for name, part in parts.items()}
        _draw_map(ax, groups, title=_crs_name(places.crs[places.groups[positions[0]]]))
    handles = [
        Patch(facecolor=canvas.PART_COLORS[name], alpha=0.6, label=f'{_WORDS[name]}: {_chips(len(part))}')
        for name, part in parts.items()
        if len(part)
    ]
    figure.legend(handles=handles, loc='outside lower center', ncols=2 * len(drawn), frameon=False, fontsize=9)
    if hidden := sum(map(len, parts.values())) - sum(map(len, drawn)):
        figure.suptitle(f'Not shown: {_chips(hidden)} without a place or in other CRSs', fontsize=9)
    return figure


def _draw_map(ax: 'Axes', groups: dict[str, np.ndarray], *, title: str) -> None:
    from matplotlib.collections import PolyCollection
    from matplotlib.ticker import MaxNLocator

    canvas.tidy(ax)
    everything = np.concatenate([*groups.values()])
    extent = max(np.ptp(everything[:, 0::2]), np.ptp(everything[:, 1::2]))
    dots = np.median(everything[:, 2] - everything[:, 0]) < DOT_SHARE * extent
    for name in ('dropped', 'train', 'test', 'valid'):  # what is rare lies on top
        left, bottom, right, top = groups[name].T
        if dots:
            ax.scatter(
                (left + right) / 2, (bottom + top) / 2, s=9, color=canvas.PART_COLORS[name], alpha=0.7, linewidth=0
            )
            continue
        corners = np.stack([left, bottom, right, bottom, right, top, left, top], axis=-1).reshape(-1, 4, 2)
        color = canvas.PART_COLORS[name]
        ax.add_collection(PolyCollection(list(corners), facecolor=color, edgecolor=color, alpha=0.6, linewidth=0.8))
    ax.autoscale_view()
    ax.set_aspect('equal', adjustable='datalim')
    ax.ticklabel_format(style='plain', useOffset=False)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.tick_params(labelsize=8)
    canvas.plain(ax.set_title(title, fontsize=10))


def _chips(count: int) -> str:
    return f'{count:,} chip' if count == 1 else f'{count:,} chips'


def _crs_name(crs: str | None) -> str:
    """Return what a WKT calls itself, which is its first quoted text."""
    if crs is None:
        return 'CRS unknown'
    quoted = crs.split('"')
    return canvas.short(quoted[1] if len(quoted) > 2 else crs, 48)

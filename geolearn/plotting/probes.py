"""Figures of probes: scores as bars, scores by class, classes that occur together, and embeddings in a plane."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from geolearn.plotting import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Bar = tuple[float, float]
"""Value and spread; NaN where there is none."""

BAR_COLORS = (canvas.BLUE, canvas.ORANGE, canvas.GREEN, canvas.VERMILION, '#7b4ea3', canvas.GRAY)
"""One for each kind of vectors."""

PALETTE = (*BAR_COLORS, '#56b4e9', '#cc79a7', '#f0e442', '#8c564b')
"""One for each class of a scatter plot; more classes take markers of other shapes."""

_MARKERS = ('o', '^', 's', 'D', 'v', 'P', 'X', '*')

_NAME_LENGTH = 40


BAR_WIDTH, TITLE_WIDTH, GROUP_GAP = 0.28, 1.05, 0.2
"""Inches that a bar with its number, the title below a group, and the space between two groups take."""


def show_score_bars(
    titles: Sequence[str],
    bars: Mapping[str, Sequence[Bar]],
    *,
    label: str,
    published: Sequence[tuple[str, int, float]] = (),
) -> 'Figure':
    """Draw a group of bars for each title; a bar without a value takes no room, nor does a group without bars.

    Args:
        titles: Of the groups, such as names of classifiers.
        bars: Value and spread in each group, by what the bars of one color are; NaN where there is none.
        label: Of the values.
        published: Values of others, drawn as lines across a bar: color, position of the group, value.
    """
    from matplotlib.lines import Line2D

    stated = {(name, group): value for name, group, value in published}
    drawn = [
        [name for name, values in bars.items() if not math.isnan(values[group][0]) or (name, group) in stated]
        for group in range(len(titles))
    ]
    shown = [group for group, names in enumerate(drawn) if names]
    colors = dict(zip(bars, cycle(PALETTE)))
    # places are in inches, so that the number on each bar and the title below each group have their room
    rooms = [max(BAR_WIDTH * len(drawn[group]), TITLE_WIDTH) + GROUP_GAP for group in shown]
    centers = np.cumsum(rooms) - np.array(rooms) / 2
    beside = max(4 - sum(rooms), 0) / 2
    figure, ax = canvas.new_chart(0.9 + sum(rooms) + 2 * beside, 4)
    for group, center in zip(shown, centers):
        for index, name in enumerate(drawn[group]):
            place = center + (index - (len(drawn[group]) - 1) / 2) * BAR_WIDTH
            if (name, group) in stated:
                ends = place - BAR_WIDTH / 2, place + BAR_WIDTH / 2
                ax.hlines(stated[name, group], *ends, color='black', linewidth=2, linestyle=':', zorder=3)
            value, spread = bars[name][group]
            if math.isnan(value):
                continue
            error = None if math.isnan(spread) else spread
            ax.bar(place, value, BAR_WIDTH * 0.92, yerr=error, color=colors[name], ecolor='0.2', capsize=2)
            top = value + (0 if error is None else error)
            ax.annotate(f'{value:.2f}', (place, top), (0, 2), textcoords='offset points', ha='center', fontsize=8)
    ax.set_xticks(centers, [canvas.wrap(titles[group], 16) for group in shown])
    ax.grid(visible=False, axis='x')
    ax.set(ylabel=label, ylim=(0, None), xlim=(-beside, sum(rooms) + beside))
    handles = _swatches({name: color for name, color in colors.items() if any(name in names for names in drawn)})
    if published:
        handles.append(Line2D([], [], color='black', linewidth=2, linestyle=':', label='published'))
    figure.legend(handles=handles, loc='outside lower center', ncols=4, frameon=False, fontsize=9)
    return figure


def _swatches(colors: Mapping[str, str]) -> list:
    from matplotlib.patches import Patch

    return [Patch(facecolor=color, label=canvas.short(name)) for name, color in colors.items()]


def show_score_lines(
    lines: Mapping[str, Sequence[tuple[float, float, float]]],
    *,
    x_label: str,
    y_label: str,
    log: bool = False,
    ticks: Mapping[float, str] | None = None,
) -> 'Figure':
    """Draw scores against another number, with their spread.

    Args:
        lines: Place, value and spread of each point, by name; a spread of NaN is not drawn.
        x_label: Of the places.
        y_label: Of the values.
        log: Whether places are drawn on a logarithmic scale.
        ticks: Texts at places; None for numbers.
    """
    rows = -(-len(lines) // 2)
    figure, ax = canvas.new_chart(7, 4 + 0.22 * rows)
    for index, ((name, points), color) in enumerate(zip(lines.items(), cycle(PALETTE))):
        places, values, spreads = (np.array(column) for column in zip(*points))
        ax.errorbar(
            places,
            values,
            yerr=np.nan_to_num(spreads),
            color=color,
            marker=_MARKERS[index // len(PALETTE) % len(_MARKERS)],
            capsize=2,
            label=canvas.short(name, _NAME_LENGTH),
        )
    if log:
        ax.set_xscale('log')
    if ticks is not None:
        ax.set_xticks(list(ticks), list(ticks.values()))
        ax.set_xticks([], minor=True)
    ax.set(xlabel=x_label, ylabel=y_label)
    figure.legend(loc='outside lower center', ncols=2, frameon=False, fontsize=8)
    return figure


def show_class_bars(
    names: Sequence[str], counts: Sequence[int] | np.ndarray, bars: Mapping[str, Sequence[Bar]], *, label: str
) -> 'Figure':
    """Draw horizontal bars for each class, the class with the most items first.

    Args:
        names: Of the classes.
        counts: Items of each class, written beside its name.
        bars: Value and spread of each class, by what the bars of one color are; a class whose value is NaN is said to
            have no score.
        label: Of the values.
    """
    order = np.argsort(-np.asarray(counts), kind='stable')
    height = 0.16 * len(bars) + 0.12
    widest = max(len(canvas.short(name, _NAME_LENGTH)) for name in names)
    figure, ax = canvas.new_chart(4.5 + 0.08 * widest, 1.3 + height * len(names))
    width = 0.85 / len(bars)
    for index, (values, color) in enumerate(zip(bars.values(), cycle(PALETTE))):
        for row, position in enumerate(order.tolist()):
            value, spread = values[position]
            place = row + (index - (len(bars) - 1) / 2) * width
            if math.isnan(value):
                ax.text(0.01, place, 'no test item', fontsize=7, color='0.4', va='center')
                continue
            error = None if math.isnan(spread) else spread
            ax.barh(place, value, width * 0.92, xerr=error, color=color, ecolor='0.2', capsize=1.5)
    rows = [f'{canvas.short(names[i], _NAME_LENGTH)}  {canvas.amount(float(counts[i]))}' for i in order.tolist()]
    ax.set_yticks(range(len(names)), rows, fontsize=8)
    for text in ax.get_yticklabels():
        canvas.plain(text)
    ax.grid(visible=False, axis='y')
    ax.set(xlabel=label, xlim=(0, 1.02), ylim=(len(names) - 0.4, -0.6))
    figure.legend(
        handles=_swatches(dict(zip(bars, cycle(PALETTE)))),
        loc='outside lower center',
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    return figure


def show_cooccurrence(counts: np.ndarray, names: Sequence[str]) -> 'Figure':
    """Draw which share of the items of a class (row) has each other class (column).

    Args:
        counts: (classes, classes) items that have both; the diagonal counts the items of a class.
        names: Of the classes.
    """
    from geolearn.plotting.figure import Figure

    cells = np.asarray(counts, np.float64)
    totals = cells.diagonal()
    shares = np.where(totals[:, None] > 0, cells / np.maximum(totals[:, None], 1), np.nan)
    np.fill_diagonal(shares, np.nan)
    count = len(names)
    step = 0.5 if count <= 12 else 0.32 if count <= 25 else 0.2
    label = 0.075 * max(len(canvas.short(name, _NAME_LENGTH)) for name in names)
    side = step * max(count, 4)
    figure = Figure(figsize=(side + label + 2, side + label + 0.6), layout='constrained')
    ax = figure.add_subplot()
    drawn = ax.imshow(shares, cmap=canvas.SHARE_CMAP, vmin=0, vmax=1)
    ax.set_facecolor('#eeeeee')
    size = 8 if step > 0.2 else 6
    ax.set_xticks(range(count), [canvas.short(name, _NAME_LENGTH) for name in names], rotation=90, fontsize=size)
    rows = [
        f'{canvas.short(name, _NAME_LENGTH)}  {canvas.amount(total)}' for name, total in zip(names, totals.tolist())
    ]
    ax.set_yticks(range(count), rows, fontsize=size)
    for text in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        canvas.plain(text)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel='… also has this class', ylabel='of the items of this class …')
    if step >= 0.32:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                color = 'white' if share > 0.55 else '0.1'
                text = ax.text(column, row, f'{100 * share:.0f}', ha='center', va='center', color=color, fontsize=7)
                text.set_in_layout(False)
    figure.colorbar(drawn, ax=ax, shrink=0.7, aspect=30, label='share of the row', format=lambda x, _: f'{x:.0%}')
    return figure


def show_projection(
    points: np.ndarray, indices: np.ndarray, names: Sequence[str], *, axis_labels: tuple[str, str], title: str = ''
) -> 'Figure':
    """Draw items as points in a plane, colored by their class.

    Args:
        points: (items, 2).
        indices: Class of each item (items,).
        names: Of the classes; those that no item has are left out.
        axis_labels: Of the two axes.
        title: Above.
    """
    figure, ax = canvas.new_chart(6.2, 5.4)
    # rare classes lie on top
    shown = sorted(set(indices.tolist()), key=lambda index: -int((indices == index).sum()))
    for index in shown:
        color, marker = PALETTE[index % len(PALETTE)], _MARKERS[index // len(PALETTE) % len(_MARKERS)]
        _scatter(ax, points[indices == index], color=color, marker=marker, label=names[index], total=len(points))
    _finish_projection(figure, ax, axis_labels, title)
    return figure


def show_one_class(
    points: np.ndarray, inside: np.ndarray, name: str, *, axis_labels: tuple[str, str], title: str = ''
) -> 'Figure':
    """Draw the items of one class against all others, in a plane.

    Args:
        points: (items, 2).
        inside: Whether an item has the class (items,) bool.
        name: Of the class.
        axis_labels: Of the two axes.
        title: Above.
    """
    figure, ax = canvas.new_chart(6.2, 5.4)
    _scatter(ax, points[~inside], color='0.75', marker='o', label='all others', total=len(points))
    _scatter(ax, points[inside], color=canvas.VERMILION, marker='o', label=name, total=len(points))
    _finish_projection(figure, ax, axis_labels, title)
    return figure


def _scatter(ax: 'Axes', points: np.ndarray, *, color: str, marker: str, label: str, total: int) -> None:
    size = float(np.clip(12_000 / max(total, 1), 3, 26))
    text = f'{canvas.short(label)} ({canvas.amount(len(points))})'
    ax.scatter(
        points[:, 0],
        points[:, 1],
        s=size,
        c=color,
        marker=marker,
        linewidths=0,
        alpha=0.75,
        label=text,
        rasterized=True,
    )


def _finish_projection(figure: 'Figure', ax: 'Axes', axis_labels: tuple[str, str], title: str) -> None:
    ax.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
    ax.tick_params(labelsize=8)
    if title:
        canvas.plain(ax.set_title(title, fontsize=10))
    handles, labels = ax.get_legend_handles_labels()
    rows = -(-len(handles) // 3)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.18 * rows)
    legend = figure.legend(
        handles, labels, loc='outside lower center', ncols=3, frameon=False, fontsize=8, markerscale=2
    )
    for text in legend.get_texts():
        canvas.plain(text)

"""Figures, legends and texts that stay readable, whatever the number of chips and classes."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from geolearn.classes import ClassInfo
from geolearn.plotting.colors import fractions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

LEGEND_LIMIT = 30
"""A legend names at most so many classes, and says how many more there are."""

_NAME_LENGTH = 28
_NO_COLORS: Mapping[str, str] = MappingProxyType({})


def new_figure(rows: int, columns: int, *, side: float = 3.0) -> tuple['Figure', np.ndarray]:
    """Return a figure and its axes (rows, columns), without frames; each is `side` inches."""
    # no pyplot: it keeps every figure alive; a notebook shows the returned figure, a script saves it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * side, rows * side + 0.3), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure, axes


def new_chart(width: float, height: float) -> tuple['Figure', 'Axes']:
    """Return a figure of so many inches with one framed axes for a chart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    ax = figure.add_subplot()
    tidy(ax)
    return figure, ax


def tidy(ax: 'Axes') -> None:
    """Leave a chart its left and lower line and a light grid."""
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(color='0.9', linewidth=0.8)
    ax.set_axisbelow(True)


def grid(count: int, columns: int) -> tuple['Figure', np.ndarray]:
    """Return a figure and the axes (count,) of so many chips."""
    columns = max(1, min(columns, count))
    figure, axes = new_figure(max(1, -(-count // columns)), columns)
    return figure, axes.ravel()[:count]


def add_legend(
    figure: 'Figure', classes: Sequence[ClassInfo], shown: Iterable[int], *, others: Mapping[str, str] = _NO_COLORS
) -> None:
    """Name the classes that are shown, below the axes, in as many columns as the names leave room for.

    Args:
        figure: Grows by the height of the legend.
        classes: All classes.
        shown: Indices of those that can be seen; others, such as IGNORE_INDEX, are passed over.
        others: Colours of what else can be seen, by name.
    """
    from matplotlib.patches import Patch

    indexes = sorted({index for index in shown if 0 <= index < len(classes)})
    listed = [classes[index] for index in indexes[:LEGEND_LIMIT]]
    colors = [(short(info.name), fractions(info.color)) for info in listed] + list(others.items())
    if not colors:
        return
    handles = [Patch(facecolor=color, edgecolor='0.4', linewidth=0.5, label=name) for name, color in colors]
    if len(indexes) > len(listed):
        handles.insert(len(listed), Patch(facecolor='none', label=f'… and {len(indexes) - len(listed)} more'))
    width, height = figure.get_size_inches()
    widest = 0.75 + 0.066 * max(len(str(handle.get_label())) for handle in handles)
    rows = -(-len(handles) // max(1, int(width / widest)))
    columns = -(-len(handles) // rows)
    figure.set_size_inches(width, height + 0.1 + 0.18 * rows)
    legend = figure.legend(
        handles=handles, loc='outside lower center', ncols=columns, frameon=False, fontsize=9, handlelength=1.4
    )
    for text in legend.get_texts():
        plain(text)


def plain(text: 'Text') -> 'Text':
    """Show a class name as it is: a dollar sign begins no formula."""
    text.set_parse_math(False)
    return text


def short(name: str, length: int = _NAME_LENGTH) -> str:
    """Return a name of one line that is no longer than `length`."""
    line = ' '.join(name.split())
    line = line if len(line) <= length else line[: length - 1] + '…'
    # matplotlib leaves out what begins with an underscore
    return f' {line}' if line.startswith('_') else line


def amount(count: float) -> str:
    """Return a count in four characters or so: 950, 12.3k, 4.5M."""
    for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if count >= size:
            return f'{count / size:.3g}{letter}' if count < 999.5 * size else f'{count / size:.0f}{letter}'
    return f'{count:.0f}'


def wrap(text: str, width: int, lines: int = 3) -> str:
    """Break a text into lines for a title; what does not fit is cut off with '…'."""
    return '\n'.join(textwrap.wrap(text, width, max_lines=lines, placeholder=' …'))

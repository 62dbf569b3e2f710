"""Figures, legends and texts that stay readable, whatever the number of chips and classes."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from geolearn.classes import IGNORE_INDEX, UNLABELLED, ClassInfo
from geolearn.plotting.display import to_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text


BLUE, ORANGE, GREEN, VERMILION, GRAY = '#0072b2', '#e69f00', '#009e73', '#d55e00', '#8c8c8c'
"""From the palette of Okabe and Ito (2008), 'Color Universal Design'."""

RIGHT, WRONG, NOT_LABELLED = '#a6cee3', '#b2340a', '#ffffff'
"""Of the pixels of an error map; their lightness differs too."""

PART_COLORS = {'train': BLUE, 'valid': ORANGE, 'test': GREEN, 'dropped': GRAY}
"""Of the parts of a split."""

LOSS_CMAP = 'magma'
"""Color map of what is small nearly everywhere, such as a loss."""

VALUE_CMAP, DIFFERENCE_CMAP, SHARE_CMAP = 'viridis', 'PuOr', 'Blues'
"""Color maps of values, of differences around 0, and of shares."""


def fractions(color: tuple[int, int, int]) -> tuple[float, float, float]:
    """Return a color in 0..1."""
    return color[0] / 255, color[1] / 255, color[2] / 255


def class_colors(mask: Tensor | np.ndarray, classes: Sequence[ClassInfo]) -> np.ndarray:
    """Color class indices (H, W) as (H, W, 4) in 0..1, transparent where ignored."""
    table = np.zeros((256, 4))
    for index, info in enumerate(classes[:IGNORE_INDEX]):
        table[index] = [*fractions(info.color), 1]
    return table[np.minimum(to_array(mask), IGNORE_INDEX)]


def overlay_colors(mask: Tensor | np.ndarray, classes: Sequence[ClassInfo], *, alpha: float) -> np.ndarray:
    """Color class indices as (H, W, 4) to lie over an image: fills of opacity `alpha`, edges opaque in the true colors.

    The unlabelled class hides nothing of the image.

    Args:
        mask: (height, width) class indices.
        classes: Their colors.
        alpha: Opacity of the fill.
    """
    indices = to_array(mask)
    colors = class_colors(indices, classes)
    for index, info in enumerate(classes):
        if (info.value, info.name) == (UNLABELLED.value, UNLABELLED.name):
            colors[indices == index] = 0
    edges = _edges(indices, -(-max(indices.shape) // _EDGES_PER_SIDE))
    if edges.mean() > _MOST_EDGES:
        edges[:] = False  # scattered labels would hide the image
    colors[..., 3] *= np.where(edges, 1.0, alpha)
    return colors


_EDGES_PER_SIDE = 200
"""Edges are a pixel wide for each so many pixels of an image's side, so that they are seen when it is drawn small."""

_MOST_EDGES = 0.3
"""Share of an image that edges may cover."""


def _edges(indices: np.ndarray, width: int) -> np.ndarray:
    """Return where another class is at most `width` pixels away in a row or a column: (H, W) bool."""
    edges = np.zeros(indices.shape, bool)
    for shift in range(1, width + 1):
        for first, second in ((np.s_[shift:], np.s_[:-shift]), (np.s_[:, shift:], np.s_[:, :-shift])):
            differs = indices[first] != indices[second]
            edges[first] |= differs
            edges[second] |= differs
    return edges


def instance_colors(
    masks: Tensor | np.ndarray, labels: Tensor | np.ndarray, classes: Sequence[ClassInfo], *, alpha: float
) -> np.ndarray:
    """Color outlines as (H, W, 4) in 0..1: fills of opacity `alpha`, edges opaque, later ones over earlier ones.

    Args:
        masks: (n, height, width) bool.
        labels: (n,) class indices.
        classes: Their colors.
        alpha: Opacity of the fill.
    """
    outlines = to_array(masks).astype(bool)
    canvas = np.zeros((*outlines.shape[1:], 4))
    thickness = -(-max(outlines.shape[1:]) // 100)  # so that a line is seen when the image is drawn small
    for mask, label in zip(outlines, to_array(labels).tolist()):
        color = fractions(classes[label].color)
        canvas[mask] = [*color, alpha]
        canvas[mask & ~_eroded(mask, thickness)] = [*color, 1]
    return canvas


def _eroded(mask: np.ndarray, times: int) -> np.ndarray:
    for _ in range(times):
        inner = np.pad(mask, 1)
        mask = mask & inner[2:, 1:-1] & inner[:-2, 1:-1] & inner[1:-1, 2:] & inner[1:-1, :-2]
    return mask


LEGEND_LIMIT = 30
"""A legend names at most so many classes, and says how many more there are."""

_NAME_LENGTH = 28

_NO_COLORS: Mapping[str, str] = MappingProxyType({})


def new_figure(rows: int, columns: int, *, side: float = 3.0) -> tuple['Figure', np.ndarray]:
    """Return a figure and its axes (rows, columns), without frames; each is `side` inches."""
    # no pyplot: it keeps every figure alive; a notebook shows the returned figure, a script saves it
    from geolearn.plotting.figure import Figure

    figure = Figure(figsize=(columns * side, rows * side + 0.3), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure, axes


def new_chart(width: float, height: float) -> tuple['Figure', 'Axes']:
    """Return a figure of so many inches with one framed axes for a chart."""
    from geolearn.plotting.figure import Figure

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
    """Name all classes below the axes, in as many columns as the names leave room for.

    Args:
        figure: Grows by the height of the legend.
        classes: All classes.
        shown: Indices of those that can be seen: where there are too many classes for a legend, it names these;
            others, such as IGNORE_INDEX, are passed over.
        others: Colors of what else can be seen, by name.
    """
    from matplotlib.patches import Patch

    seen = sorted({index for index in shown if 0 <= index < len(classes)})
    indexes = list(range(len(classes))) if len(classes) <= LEGEND_LIMIT else seen[:LEGEND_LIMIT]
    colors = [(short(classes[index].name), '#{:02x}{:02x}{:02x}'.format(*classes[index].color)) for index in indexes]
    colors += others.items()
    handles = [Patch(facecolor=color, edgecolor='0.4', linewidth=0.5, label=name) for name, color in colors]
    if len(indexes) < len(classes):
        handles.insert(len(indexes), Patch(facecolor='none', label=f'… and {len(classes) - len(indexes)} more'))
    if not handles:
        return
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

"""Figures of classified chips: each class by itself, truth beside prediction, and heat maps of where a model looks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from geolearn.bands import Band
from geolearn.plotting.canvas import grid, natural_colors, plain, short, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG = '#1a7f37', '#c02020'


class Verdict(NamedTuple):
    """What a figure says above a chip, and whether the model was right."""

    text: str
    right: bool


def show_cases(counts: np.ndarray, names: Sequence[str], *, columns: int = 4) -> 'Figure':
    """Draw for each class where it was found and where it is, as a matrix of absent and present.

    Args:
        counts: (classes, 2, 2) of truth (rows) against prediction (columns).
        names: Of the classes.
        columns: Matrices per row.
    """
    figure, axes = grid(len(names), columns)
    for ax, cells, name in zip(axes, counts, names):
        _draw_cases(ax, cells)
        plain(ax.set_title(short(name), fontsize=9))
    return figure


def show_verdicts(images: Tensor, verdicts: Sequence[Verdict], bands: Sequence[Band], *, columns: int = 4) -> 'Figure':
    """Draw images (n, bands, height, width) with a verdict above each: green where it is right, red where wrong."""
    figure, axes = grid(len(images), columns)
    for ax, image, verdict in zip(axes, images, verdicts):
        ax.imshow(natural_colors(image, bands))
        _tell(ax, verdict)
    _make_room(figure, len(axes), columns)
    return figure


def show_explained(
    images: Tensor, heats: Sequence[Tensor], verdicts: Sequence[Verdict], bands: Sequence[Band], *, columns: int = 2
) -> 'Figure':
    """Draw images with a verdict above each, and beside each where the model looks.

    Args:
        images: (n, bands, height, width).
        heats: A heat map (height, width) in 0..1 for each.
        verdicts: Above each.
        bands: Of the images.
        columns: Pairs per row.
    """
    figure, axes = grid(2 * len(images), 2 * min(columns, max(len(images), 1)))
    for index, (image, heat, verdict) in enumerate(zip(images, heats, verdicts)):
        shown = natural_colors(image, bands)
        axes[2 * index].imshow(shown)
        axes[2 * index + 1].imshow(shown.mean(-1), cmap='gray', vmin=0, vmax=1)
        axes[2 * index + 1].imshow(heat.numpy(), cmap='inferno', vmin=0, vmax=1, alpha=0.55)
        _tell(axes[2 * index], verdict)
    _make_room(figure, len(axes), 2 * columns)
    return figure


def _draw_cases(ax: 'Axes', cells: np.ndarray) -> None:
    shares = cells / np.maximum(cells.sum(1, keepdims=True), 1)
    ax.set_axis_on()
    ax.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    ax.set_xticks([0, 1], ['absent', 'present'], fontsize=8)
    ax.set_yticks([0, 1], ['absent', 'present'], fontsize=8, rotation=90, va='center')
    ax.set(xlabel='prediction', ylabel='truth')
    for (row, column), share in np.ndenumerate(shares):
        color = 'white' if share > 0.5 else 'black'
        ax.text(column, row, str(int(cells[row, column])), ha='center', va='center', color=color, fontsize=9)


def _tell(ax: 'Axes', verdict: Verdict) -> None:
    text = '\n'.join(wrap(line, width=34) for line in verdict.text.splitlines())
    plain(ax.set_title(text, fontsize=9, color=RIGHT if verdict.right else WRONG))


def _make_room(figure: 'Figure', count: int, columns: int) -> None:
    """Let a figure grow by the titles above its rows."""
    lines = max((ax.get_title().count('\n') + 1 for ax in figure.axes), default=0)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.16 * lines * -(-count // columns))

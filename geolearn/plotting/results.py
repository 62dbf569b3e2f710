"""Figures of what a pixel classifier did to chips."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from geolearn.bands import Band
from geolearn.classes import IGNORE_INDEX, ClassInfo
from geolearn.plotting.canvas import (
    NOT_LABELLED,
    RIGHT,
    SURE,
    WRONG,
    add_legend,
    date_colors,
    natural_colors,
    new_figure,
    plain,
    short,
    to_array,
)
from geolearn.plotting.chips import draw_mask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_NO_LOSS = '#d9d9d9'

_ROW_STYLE: dict[str, Any] = {'fontsize': 10, 'color': '0.25'}


def show_predictions(
    images: Tensor,
    masks: Tensor,
    predictions: Tensor,
    bands: Sequence[Band],
    classes: Sequence[ClassInfo],
    *,
    titles: Sequence[str] = (),
    side: float = 3.0,
) -> 'Figure':
    """Draw image, truth, prediction and where they differ side by side, one row per chip.

    Args:
        images: (n, bands, height, width), NaN where there is no data.
        masks: (n, height, width) class indices, IGNORE_INDEX where nothing is labelled.
        predictions: (n, height, width) class indices.
        bands: Of the images.
        classes: Of masks and predictions.
        titles: Above each row, such as the chip's name and score; see `describe_chip`.
        side: Of each image, in inches.
    """
    figure, axes = new_figure(max(1, len(images)), 4, side=side)
    for row, image, mask, prediction in zip(axes, images, masks, predictions):
        _draw_pair(row, image, mask, prediction, bands, classes)
    others = draw_errors(axes[:, 3], masks, predictions)
    name_rows(axes, ('image', 'truth', 'prediction', 'errors'), titles)
    add_legend(figure, classes, _shown(masks, predictions), others=others)
    return figure


def show_hard_examples(
    images: Tensor,
    masks: Tensor,
    predictions: Tensor,
    losses: Tensor,
    bands: Sequence[Band],
    classes: Sequence[ClassInfo],
    *,
    titles: Sequence[str] = (),
) -> 'Figure':
    """Draw chips with what each of their pixels costs: where the model is sure and wrong, or cannot decide.

    Args:
        images: (n, bands, height, width), NaN where there is no data.
        masks: (n, height, width) class indices, IGNORE_INDEX where nothing is labelled.
        predictions: (n, height, width) class indices.
        losses: (n, height, width) loss of each pixel; grey where nothing is labelled.
        bands: Of the images.
        classes: Of masks and predictions.
        titles: Above each row; see `describe_chip`.
    """
    figure, axes = new_figure(max(1, len(images)), 4)
    for row, image, mask, prediction in zip(axes, images, masks, predictions):
        _draw_pair(row, image, mask, prediction, bands, classes)
    draw_costs(figure, axes[:, 3], masks, losses)
    name_rows(axes, ('image', 'truth', 'prediction', 'loss'), titles)
    add_legend(figure, classes, _shown(masks, predictions))
    return figure


def draw_errors(axes: np.ndarray, masks: Tensor, predictions: Tensor) -> dict[str, str]:
    """Draw in each of the axes (n,) where a prediction is wrong.

    Args:
        axes: One for each chip.
        masks: (n, height, width) class indices, IGNORE_INDEX where nothing is labelled.
        predictions: (n, height, width) class indices.

    Returns:
        Colours by name, for a legend.
    """
    from matplotlib.colors import ListedColormap

    verdicts = ListedColormap([RIGHT, WRONG, NOT_LABELLED])
    for ax, mask, prediction in zip(axes, masks, predictions):
        ax.imshow(error_map(prediction, mask), cmap=verdicts, vmin=0, vmax=2, interpolation='nearest')
        _frame(ax)
    unlabelled = (to_array(masks) == IGNORE_INDEX).any()
    return {'right': RIGHT, 'wrong': WRONG} | ({'not labelled': NOT_LABELLED} if unlabelled else {})


def draw_costs(figure: 'Figure', axes: np.ndarray, masks: Tensor, losses: Tensor) -> None:
    """Draw in each of the axes (n,) what each pixel costs, on one scale.

    Args:
        figure: Of the axes.
        axes: One for each chip.
        masks: (n, height, width) class indices, IGNORE_INDEX where nothing is labelled.
        losses: (n, height, width).
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    costs = np.where(to_array(masks) == IGNORE_INDEX, np.nan, to_array(losses))
    known = costs[np.isfinite(costs)]
    ramp = ScalarMappable(Normalize(0, max(float(np.percentile(known, 99.5)), 1e-6) if known.size else 1.0), SURE)
    for ax, cost in zip(axes, costs):
        ax.imshow(cost, cmap=ramp.cmap, norm=ramp.norm, interpolation='nearest')
        ax.set_facecolor(_NO_LOSS)
        _frame(ax)
    figure.colorbar(ramp, ax=list(axes), shrink=0.6, extend='max', label='loss')


def error_map(prediction: Tensor | np.ndarray, mask: Tensor | np.ndarray) -> np.ndarray:
    """Compare class indices of one shape: 0 where they are equal, 1 where not, 2 where nothing is labelled; uint8."""
    truth = to_array(mask)
    return np.where(truth == IGNORE_INDEX, 2, to_array(prediction) != truth).astype(np.uint8)


def describe_chip(name: str, **scores: float) -> str:
    """Return a row's title: the chip's name and its scores, such as ``'000012 · IoU 0.31'``."""
    texts = [f'{label.replace("_", " ")} {_two_digits(value)}' for label, value in scores.items()]
    return ' · '.join([short(name, 60), *texts])


def _two_digits(value: float) -> str:
    """Return a number with two decimals, or two digits where it is too small for them, as errors in metres may be."""
    return f'{value:.2g}' if 0 < abs(value) < 0.1 else f'{value:.2f}'


def name_rows(axes: np.ndarray, headings: Sequence[str], titles: Sequence[str]) -> None:
    """Write headings above the columns of axes (rows, columns), and a title above each row, over its full width."""
    for ax, heading in zip(axes[0], headings):
        ax.set_title(heading)
    for row, title in zip(axes, titles):
        plain(row[0].set_title(title, loc='left', **_ROW_STYLE))
    if titles:
        # in the first row the title stands above the headings, which all keep one height
        for ax, line in zip(axes[0], [titles[0], *[' '] * (len(headings) - 1)]):
            plain(ax.set_title(f'{line}\n', loc='left', linespacing=1.9, **_ROW_STYLE))


def _draw_pair(
    row: np.ndarray,
    image: Tensor,
    mask: Tensor,
    prediction: Tensor,
    bands: Sequence[Band],
    classes: Sequence[ClassInfo],
) -> None:
    row[0].imshow(natural_colors(image, bands))
    draw_mask(row[1], mask, classes)
    draw_mask(row[2], prediction, classes)


def _frame(ax: 'Axes') -> None:
    ax.set_axis_on()
    ax.set(xticks=[], yticks=[])


def _shown(*masks: Tensor) -> list[int]:
    return [index for mask in masks for index in np.unique(to_array(mask)).tolist()]


def show_changes(
    images: Tensor,
    masks: Tensor,
    predictions: Tensor,
    bands: Sequence[Band],
    classes: Sequence[ClassInfo],
    *,
    titles: Sequence[str] = (),
    losses: Tensor | None = None,
) -> 'Figure':
    """Draw pairs of images with truth, prediction and where they differ, one row per pair.

    Args:
        images: (n, 2, bands, height, width).
        masks: (n, height, width) class indices, IGNORE_INDEX where nothing is labelled.
        predictions: (n, height, width) class indices.
        bands: Of each date.
        classes: Of masks and predictions.
        titles: Above each row; see `describe_chip`.
        losses: (n, height, width) what each pixel costs, shown in place of where it is wrong.
    """
    figure, axes = new_figure(max(1, len(images)), 5, side=2.4)
    for row, pair, mask, prediction in zip(axes, images, masks, predictions):
        for ax, date in zip(row, date_colors(pair, bands)):
            ax.imshow(date)
        draw_mask(row[2], mask, classes)
        draw_mask(row[3], prediction, classes)
    last = 'errors' if losses is None else 'loss'
    if losses is None:
        others = draw_errors(axes[:, 4], masks, predictions)
    else:
        others = {}
        draw_costs(figure, axes[:, 4], masks, losses)
    name_rows(axes, ('before', 'after', 'truth', 'prediction', last), titles)
    seen = [index for part in (masks, predictions) for index in np.unique(to_array(part)).tolist()]
    add_legend(figure, classes, seen, others=others)
    return figure

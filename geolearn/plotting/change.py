"""Figures of changes: before, after, truth and prediction side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from geolearn.bands import Band
from geolearn.classes import ClassInfo
from geolearn.plotting.canvas import add_legend, new_figure
from geolearn.plotting.chips import draw_mask
from geolearn.plotting.colors import date_colors, to_array
from geolearn.plotting.results import draw_costs, draw_errors, name_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

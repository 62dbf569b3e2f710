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

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show_changes(
    images: Tensor, masks: Tensor, predictions: Tensor, bands: Sequence[Band], classes: Sequence[ClassInfo]
) -> 'Figure':
    """Draw pairs of images with truth and prediction, one row per pair.

    Args:
        images: (n, 2, bands, height, width).
        masks: (n, height, width) class indices.
        predictions: The same of the model.
        bands: Of each date.
        classes: Of masks and predictions.
    """
    figure, axes = new_figure(max(1, len(images)), 4)
    for row, pair, mask, prediction in zip(axes, images, masks, predictions):
        for ax, date in zip(row, date_colors(pair, bands)):
            ax.imshow(date)
        draw_mask(row[2], mask, classes)
        draw_mask(row[3], prediction, classes)
    for ax, title in zip(axes[0], ('before', 'after', 'truth', 'prediction')):
        ax.set_title(title)
    seen = [index for part in (masks, predictions) for index in np.unique(to_array(part)).tolist()]
    add_legend(figure, classes, seen)
    return figure

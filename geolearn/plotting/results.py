"""Figures of predictions and of training."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from geolearn.bands import Band
from geolearn.classes import ClassInfo
from geolearn.plotting.canvas import add_legend, new_figure
from geolearn.plotting.chips import draw_mask
from geolearn.plotting.colors import natural_colors, to_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def show_predictions(
    images: Tensor,
    masks: Tensor,
    predictions: Tensor,
    bands: Sequence[Band],
    classes: Sequence[ClassInfo],
    *,
    side: float = 3.0,
) -> 'Figure':
    """Draw image, truth and prediction side by side, one row per image, each `side` inches."""
    figure, axes = new_figure(len(images), 3, side=side)
    for row, image, mask, prediction in zip(axes, images, masks, predictions):
        row[0].imshow(natural_colors(image, bands))
        draw_mask(row[1], mask, classes)
        draw_mask(row[2], prediction, classes)
    for ax, title in zip(axes[0], ('image', 'truth', 'prediction')):
        ax.set_title(title)
    add_legend(
        figure, classes, [index for part in (masks, predictions) for index in np.unique(to_array(part)).tolist()]
    )
    return figure


def show_losses(batch_losses: Sequence[float], epochs: Sequence[Mapping[str, float]]) -> 'Figure':
    """Draw the training loss by batch and the validation loss by epoch."""
    figure, axes = new_figure(1, 1, side=5)
    ax: Axes = axes[0, 0]
    ax.set_axis_on()
    ax.plot(range(1, len(batch_losses) + 1), batch_losses, label='training (smoothed)')
    if epochs:
        per_epoch = len(batch_losses) / len(epochs)
        steps = [per_epoch * (index + 1) for index in range(len(epochs))]
        ax.plot(steps, [row['valid_loss'] for row in epochs], 'o-', label='validation')
    ax.set(xlabel='batch', ylabel='loss')
    ax.legend()
    return figure


def show_rate_test(rates: Sequence[float], losses: Sequence[float], suggestion: float) -> 'Figure':
    """Draw the learning-rate range test with its suggestion."""
    figure, axes = new_figure(1, 1, side=5)
    ax: Axes = axes[0, 0]
    ax.set_axis_on()
    ax.plot(rates, losses)
    ax.axvline(suggestion, linestyle=':', color='tab:red', label=f'suggestion {suggestion:.1e}')
    ax.set(xscale='log', xlabel='learning rate', ylabel='loss')
    ax.legend()
    return figure

"""Figures of chips, results and training. The only place that imports matplotlib, and only when something is drawn."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from geolearn.bands import Band, rgb_indexes
from geolearn.classes import IGNORE_INDEX, ClassInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NODATA_GREY = 0.5


def stretch(image: np.ndarray) -> np.ndarray:
    """Scale each band from its 2nd percentile to its 98th, or less where clouds would leave the land in the dark.

    Args:
        image: (height, width, bands) float, NaN where there is no data.

    Returns:
        The same shape in 0..1; grey where there is no data.
    """
    if not np.isfinite(image).any():
        return np.full(image.shape, NODATA_GREY)
    floor, lower, median, upper, ceiling = np.nanpercentile(image, [2, 25, 50, 75, 98], axis=(0, 1))
    # beyond four interquartile ranges lie clouds, snow and roofs, which may be white
    ceiling = np.where(upper > lower, np.minimum(ceiling, median + 4 * (upper - lower)), ceiling)
    scaled = np.clip((image - floor) / np.maximum(ceiling - floor, 1e-9), 0, 1)
    return np.where(np.isfinite(image), scaled, NODATA_GREY)


def natural_colors(image: Tensor | np.ndarray, bands: Sequence[Band]) -> np.ndarray:
    """Pick red, green and blue by wavelength and stretch them: (bands, H, W) to (H, W, 3) in 0..1."""
    return stretch(np.asarray(image, np.float32)[list(rgb_indexes(bands))].transpose(1, 2, 0))


def _fractions(color: tuple[int, int, int]) -> tuple[float, float, float]:
    return color[0] / 255, color[1] / 255, color[2] / 255


def class_colors(mask: Tensor | np.ndarray, classes: Sequence[ClassInfo]) -> np.ndarray:
    """Colour class indices (H, W) as (H, W, 4) in 0..1, transparent where ignored."""
    table = np.zeros((256, 4))
    for index, info in enumerate(classes):
        table[index] = [*_fractions(info.color), 1]
    return table[np.minimum(np.asarray(mask), IGNORE_INDEX)]


def _figure(rows: int, columns: int, *, side: float = 3.0) -> tuple['Figure', np.ndarray]:
    # no pyplot: it keeps every figure alive; a notebook shows the returned figure, a script saves it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * side, rows * side + 0.6), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure, axes


def _legend(figure: 'Figure', classes: Sequence[ClassInfo]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=_fractions(info.color), label=info.name) for info in classes]
    figure.legend(handles=handles, loc='outside lower center', ncols=min(len(handles), 6), frameon=False)


def show_chips(
    images: Tensor,
    masks: Tensor,
    bands: Sequence[Band],
    classes: Sequence[ClassInfo],
    *,
    columns: int,
    alpha: float,
) -> 'Figure':
    """Draw chips with their labels laid over them: images (N, bands, H, W), masks (N, H, W) of class indices."""
    columns = min(columns, len(images))
    figure, axes = _figure(-(-len(images) // columns), columns)
    for ax, image, mask in zip(axes.flat, images, masks):
        ax.imshow(natural_colors(image, bands))
        ax.imshow(class_colors(mask, classes), alpha=alpha, interpolation='nearest')
    _legend(figure, classes)
    return figure


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
    figure, axes = _figure(len(images), 3, side=side)
    for row, image, mask, prediction in zip(axes, images, masks, predictions):
        row[0].imshow(natural_colors(image, bands))
        row[1].imshow(class_colors(mask, classes), interpolation='nearest')
        row[2].imshow(class_colors(prediction, classes), interpolation='nearest')
    for ax, title in zip(axes[0], ('image', 'truth', 'prediction')):
        ax.set_title(title)
    _legend(figure, classes)
    return figure


def show_losses(batch_losses: Sequence[float], epochs: Sequence[Mapping[str, float]]) -> 'Figure':
    """Draw the training loss by batch and the validation loss by epoch."""
    figure, axes = _figure(1, 1, side=5)
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
    figure, axes = _figure(1, 1, side=5)
    ax: Axes = axes[0, 0]
    ax.set_axis_on()
    ax.plot(rates, losses)
    ax.axvline(suggestion, linestyle=':', color='tab:red', label=f'suggestion {suggestion:.1e}')
    ax.set(xscale='log', xlabel='learning rate', ylabel='loss')
    ax.legend()
    return figure

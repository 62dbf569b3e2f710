"""Figures of predicted numbers per pixel, such as height or biomass."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from geolearn.bands import Band
from geolearn.plotting.canvas import AMOUNT, DIFFERENCE, VERMILION, natural_colors, new_chart, new_figure, to_array
from geolearn.plotting.results import name_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_NO_VALUE = '#d9d9d9'


def show_value_predictions(
    images: Tensor,
    values: Tensor,
    predictions: Tensor,
    bands: Sequence[Band],
    *,
    unit: str = '',
    titles: Sequence[str] = (),
) -> 'Figure':
    """Draw image, truth, prediction and their difference side by side, one row per chip.

    Args:
        images: (n, bands, height, width), NaN where there is no data.
        values: (n, height, width) true numbers, NaN where there is none, which is grey.
        predictions: (n, height, width).
        bands: Of the images.
        unit: Of the numbers.
        titles: Above each row; see `describe_chip`.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    truth, found = to_array(values), to_array(predictions)
    differences = found - truth
    low, high = _range(np.concatenate([truth.ravel(), found.ravel()]), 2, 98)
    largest = max(abs(part) for part in _range(differences, 2, 98)) or 1.0
    ramps = [
        ScalarMappable(Normalize(low, high), AMOUNT),
        ScalarMappable(Normalize(low, high), AMOUNT),
        ScalarMappable(Normalize(-largest, largest), DIFFERENCE),
    ]
    figure, axes = new_figure(max(1, len(images)), 4)
    for row, image, *planes in zip(axes, images, truth, found, differences):
        row[0].imshow(natural_colors(image, bands))
        for ax, plane, ramp in zip(row[1:], planes, ramps):
            ax.imshow(plane, cmap=ramp.cmap, norm=ramp.norm, interpolation='nearest')
            ax.set_axis_on()
            ax.set(xticks=[], yticks=[], facecolor=_NO_VALUE)
    bars: dict[str, Any] = {'location': 'bottom', 'shrink': 0.8, 'pad': 0.02, 'aspect': 30, 'extend': 'both'}
    figure.colorbar(ramps[0], ax=axes[:, 1:3], label=unit or None, **bars)
    figure.colorbar(ramps[2], ax=axes[:, 3], label='prediction - truth' + (f' ({unit})' if unit else ''), **bars)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.6)
    name_rows(axes, ('image', 'truth', 'prediction', 'difference'), titles)
    return figure


def show_value_scatter(values: Tensor | np.ndarray, predictions: Tensor | np.ndarray, *, unit: str = '') -> 'Figure':
    """Draw prediction against truth, darker where there are more pixels, with the line on which both are equal.

    Args:
        values: True numbers of any shape, NaN where there is none.
        predictions: Of the same shape.
        unit: Of the numbers.
    """
    from matplotlib.colors import LogNorm

    truth, found = to_array(values).ravel(), to_array(predictions).ravel()
    known = np.isfinite(truth) & np.isfinite(found)
    truth, found = truth[known].astype(np.float64), found[known].astype(np.float64)
    figure, ax = new_chart(5.4, 4.8)
    suffix = f' ({unit})' if unit else ''
    ax.set(xlabel=f'truth{suffix}', ylabel=f'prediction{suffix}')
    if not len(truth):
        return figure
    low, high = _range(np.concatenate([truth, found]), 0.1, 99.9)
    edges = np.linspace(low, high, 81)
    *_, drawn = ax.hist2d(truth, found, bins=[edges, edges], cmap='viridis_r', norm=LogNorm(vmin=1), cmin=1)
    figure.colorbar(drawn, ax=ax, label='pixels', shrink=0.8)
    ax.plot([low, high], [low, high], '--', color=VERMILION, label='equal')
    ax.set(xlim=(low, high), ylim=(low, high), aspect='equal')
    ax.set_title(_summary(truth, found, unit), fontsize=10)
    ax.legend(loc='upper left', frameon=False)
    return figure


def _range(numbers: np.ndarray, lower: float, upper: float) -> tuple[float, float]:
    known = numbers[np.isfinite(numbers)]
    if not known.size:
        return 0.0, 1.0
    low, high = np.percentile(known, [lower, upper])
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(high) + 0.5)


def _summary(truth: np.ndarray, found: np.ndarray, unit: str) -> str:
    errors = found - truth
    spread = np.square(truth - truth.mean()).sum()
    parts = [f'RMSE {np.sqrt(np.square(errors).mean()):.3g}', f'bias {errors.mean():+.3g}']
    text = ', '.join(part + (f' {unit}' if unit else '') for part in parts)
    return text + (f', R² {1 - np.square(errors).sum() / spread:.3f}' if spread else '')

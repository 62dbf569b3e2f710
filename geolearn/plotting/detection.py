"""Figures of found objects beside true ones, and of precision over recall."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from geolearn.bands import Band
from geolearn.batch import Objects
from geolearn.classes import ClassInfo
from geolearn.metrics import PrecisionRecall, TrueObjects
from geolearn.plotting.canvas import (
    add_legend,
    fractions,
    instance_colors,
    natural_colors,
    new_figure,
    short,
    tidy,
    to_array,
)
from geolearn.plotting.chips import draw_boxes
from geolearn.plotting.results import name_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILL = 0.5


def show_detections(
    images: Tensor,
    truth: Sequence[TrueObjects],
    found: Sequence[TrueObjects],
    bands: Sequence[Band],
    classes: Sequence[ClassInfo],
    *,
    titles: Sequence[str] = (),
    side: float = 4.0,
) -> 'Figure':
    """Draw each image (n, bands, H, W) with its true objects and, beside it, with those that were found.

    Args:
        images: In stored units.
        truth: Objects of each image.
        found: Objects of each image.
        bands: Of the images.
        classes: Of the objects.
        titles: Above each row, such as the chip's name.
        side: Width of each picture in inches.
    """
    figure, axes = new_figure(len(images), 2, side=side)
    for row, image, *both in zip(axes, images, truth, found):
        for ax, objects in zip(row, both):
            ax.imshow(natural_colors(image, bands))
            _draw(ax, Objects(objects.boxes, objects.labels, objects.masks), classes)
    name_rows(axes, ('truth', 'found'), titles)
    shown = [label for part in (*truth, *found) for label in to_array(part.labels).tolist()]
    add_legend(figure, classes, shown)
    return figure


def _draw(ax: 'Axes', objects: Objects, classes: Sequence[ClassInfo]) -> None:
    if objects.masks is None:
        draw_boxes(ax, objects, classes)
    elif len(objects.labels):
        ax.imshow(instance_colors(objects.masks, objects.labels, classes, alpha=FILL), interpolation='nearest')


def show_precision_recall(
    curves: Mapping[int, PrecisionRecall], classes: Sequence[ClassInfo], *, iou: float
) -> 'Figure':
    """Draw precision over recall, a line for each class with its average precision.

    Args:
        curves: By class index.
        classes: All classes.
        iou: Overlap at which they were counted.
    """
    figure, axes = new_figure(1, 1, side=5)
    ax: Axes = axes[0, 0]
    ax.set_axis_on()
    tidy(ax)
    for index, curve in curves.items():
        if curve.precision.isnan().all():
            continue
        info = classes[index]
        label = f'{short(info.name)} ({float(curve.precision.mean()):.2f})'.replace('$', r'\$')
        ax.plot(curve.recall.numpy(), curve.precision.numpy(), color=fractions(info.color), label=label)
    ax.set(xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02), title=f'overlap {iou:g}')
    if ax.get_lines():
        ax.legend()
    return figure

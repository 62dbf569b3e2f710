"""Figures of chips with what is known about them, a function for each kind of label, and one that chooses."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from geolearn.bands import Band
from geolearn.batch import Batch, Objects
from geolearn.classes import ClassInfo
from geolearn.oriented.geometry import corners, from_hulls
from geolearn.plotting import canvas
from geolearn.plotting.display import DisplayStretch, image_target_colors, natural_colors, to_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TAG_LIMIT = 12
"""Boxes carry their class names where an image has at most so many; the legend names them anyway."""


def show_images(
    images: Tensor, bands: Sequence[Band], *, columns: int, stretch: DisplayStretch | None = None
) -> 'Figure':
    """Draw images (n, bands, height, width) that have no label."""
    figure, axes = canvas.grid(len(images), columns)
    for ax, image in zip(axes, natural_colors(images, bands, stretch)):
        ax.imshow(image)
    return figure


def show_chips(
    images: Tensor,
    masks: Tensor,
    bands: Sequence[Band],
    classes: Sequence[ClassInfo],
    *,
    columns: int,
    alpha: float,
    stretch: DisplayStretch | None = None,
) -> 'Figure':
    """Draw chips with their labels laid over them: images (n, bands, H, W), masks (n, H, W) of class indices."""
    figure, axes = canvas.grid(len(images), columns)
    for ax, image, mask in zip(axes, natural_colors(images, bands, stretch), masks):
        ax.imshow(image)
        ax.imshow(canvas.overlay_colors(mask, classes, alpha=alpha), interpolation='nearest')
    canvas.add_legend(figure, classes, np.unique(to_array(masks)).tolist())
    return figure


def show_regression_targets(
    images: Tensor, values: Tensor, bands: Sequence[Band], *, columns: int, stretch: DisplayStretch | None = None
) -> 'Figure':
    """Draw chips with the regression targets beside them: images (n, bands, H, W), values (n, H, W), NaN left white.

    Targets that are images (n, C, H, W) are drawn in their first three bands.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    numbers = to_array(values)
    if numbers.ndim == 4:
        figure, axes = canvas.grid(2 * len(images), 2 * columns)
        targets = image_target_colors(numbers, numbers)
        for index, (image, target) in enumerate(zip(natural_colors(images, bands, stretch), targets)):
            for ax, picture, title in zip(axes[2 * index :], (image, target), ('image', 'target')):
                ax.imshow(picture, interpolation='nearest')
                if index < columns:
                    ax.set_title(title)
        return figure
    known = numbers[np.isfinite(numbers)]
    low, high = np.percentile(known, [2, 98]) if known.size else (0.0, 1.0)
    ramp = ScalarMappable(Normalize(low, high), 'viridis')
    figure, axes = canvas.grid(2 * len(images), 2 * columns)
    for index, (image, number) in enumerate(zip(natural_colors(images, bands, stretch), numbers)):
        axes[2 * index].imshow(image)
        axes[2 * index + 1].imshow(number, cmap=ramp.cmap, norm=ramp.norm, interpolation='nearest')
        if index < columns:
            axes[2 * index].set_title('image')
            axes[2 * index + 1].set_title('target')
    figure.colorbar(ramp, ax=axes, shrink=0.6, extend='both', label='target')
    return figure


def show_boxes(
    images: Tensor,
    objects: Sequence[Objects],
    bands: Sequence[Band],
    classes: Sequence[ClassInfo],
    *,
    columns: int,
    stretch: DisplayStretch | None = None,
) -> 'Figure':
    """Draw images (n, bands, H, W) with the boxes of their objects and the names of their classes."""
    figure, axes = canvas.grid(len(images), columns)
    for ax, image, found in zip(axes, natural_colors(images, bands, stretch), objects):
        ax.imshow(image)
        draw_boxes(ax, found, classes)
    canvas.add_legend(figure, classes, _object_classes(objects))
    return figure


def show_instances(
    images: Tensor,
    objects: Sequence[Objects],
    bands: Sequence[Band],
    classes: Sequence[ClassInfo],
    *,
    columns: int,
    alpha: float,
    masks: Tensor | None = None,
    stretch: DisplayStretch | None = None,
) -> 'Figure':
    """Draw images with the outlines of their objects, filled; objects without outlines get their box.

    Args:
        images: (n, bands, height, width).
        objects: Of each image.
        bands: Of the images.
        classes: Of the objects and of the masks.
        columns: Images per row.
        alpha: Opacity of the fill, 0..1.
        masks: (n, height, width) class indices that are laid under the objects (panoptic labels), or None.
        stretch: Of the data set; None fits one to the images.
    """
    figure, axes = canvas.grid(len(images), columns)
    for index, (ax, image, found) in enumerate(zip(axes, natural_colors(images, bands, stretch), objects)):
        ax.imshow(image)
        if masks is not None:
            ax.imshow(canvas.overlay_colors(masks[index], classes, alpha=alpha), interpolation='nearest')
        if found.masks is None:
            draw_boxes(ax, found, classes)
        else:
            # over a mask the fill would only double its color
            fill = alpha if masks is None else 0.0
            ax.imshow(canvas.instance_colors(found.masks, found.labels, classes, alpha=fill), interpolation='nearest')
    pixels = [] if masks is None else np.unique(to_array(masks)).tolist()
    canvas.add_legend(figure, classes, [*_object_classes(objects), *pixels])
    return figure


def show_pairs(
    images: Tensor,
    masks: Tensor | None,
    bands: Sequence[Band],
    classes: Sequence[ClassInfo],
    *,
    side: float = 3.0,
    stretch: DisplayStretch | None = None,
) -> 'Figure':
    """Draw the dates of each chip side by side and its label after them: before, after, change.

    Args:
        images: (n, dates, bands, height, width).
        masks: (n, height, width) class indices, or None.
        bands: Of each date.
        classes: Of the masks.
        side: Width of each image in inches.
        stretch: Of the data set; None fits one to the images.
    """
    dates = images.shape[1]
    titles = ['before', 'after'] if dates == 2 else [f'date {number}' for number in range(1, dates + 1)]
    if masks is not None:
        titles.append('change' if dates == 2 else 'label')
    figure, axes = canvas.new_figure(max(1, len(images)), len(titles), side=side)
    for index, (row, shown) in enumerate(zip(axes, natural_colors(images, bands, stretch))):
        for ax, date in zip(row, shown):
            ax.imshow(date)
        if masks is not None:
            draw_mask(row[-1], masks[index], classes)
    for ax, title in zip(axes[0], titles):
        ax.set_title(title)
    if masks is not None:
        canvas.add_legend(figure, classes, np.unique(to_array(masks)).tolist())
    return figure


def show_labels(
    images: Tensor,
    labels: Tensor,
    bands: Sequence[Band],
    classes: Sequence[ClassInfo],
    *,
    columns: int,
    stretch: DisplayStretch | None = None,
) -> 'Figure':
    """Draw images with the names of their classes above them.

    Args:
        images: (n, bands, height, width).
        labels: (n,) class indices, or (n, classes) with 1 where a class is present and fractions where labels were
            mixed, which are shown in percent.
        bands: Of the images.
        classes: Of the labels.
        columns: Images per row.
        stretch: Of the data set; None fits one to the images.
    """
    figure, axes = canvas.grid(len(images), columns)
    titles = [canvas.wrap(_label_text(label, classes), width=34) for label in to_array(labels)]
    for ax, image, title in zip(axes, natural_colors(images, bands, stretch), titles):
        ax.imshow(image)
        canvas.plain(ax.set_title(title, fontsize=9))
    width, height = figure.get_size_inches()
    lines = max((title.count('\n') + 1 for title in titles), default=0)
    figure.set_size_inches(width, height + 0.16 * lines * -(-len(titles) // columns))
    return figure


def show_batch(
    batch: Batch,
    bands: Sequence[Band],
    classes: Sequence[ClassInfo],
    *,
    columns: int,
    alpha: float,
    rows: int | None = None,
    stretch: DisplayStretch | None = None,
) -> 'Figure':
    """Draw a batch in the way of its task, which follows from what the batch holds.

    Args:
        batch: On any device.
        bands: Of the images.
        classes: Of masks, objects and labels.
        columns: Chips per row; chips of several dates take a row each, or show the last one beside regression targets.
        alpha: Opacity of masks and outlines, 0..1.
        rows: At most so many rows; None draws the whole batch.
        stretch: Of the data set; None fits one to the images.
    """
    dated = batch.images.ndim == 5
    count = len(batch.images) if rows is None else min(len(batch.images), rows * (1 if dated else columns))
    images = batch.images[:count]
    masks = None if batch.masks is None else batch.masks[:count]
    if dated and batch.regression_targets is None:
        return show_pairs(images, masks, bands, classes, stretch=stretch)
    if batch.objects is not None:
        objects = batch.objects[:count]
        if masks is None and all(found.masks is None for found in objects):
            return show_boxes(images, objects, bands, classes, columns=columns, stretch=stretch)
        return show_instances(
            images, objects, bands, classes, columns=columns, alpha=alpha, masks=masks, stretch=stretch
        )
    if masks is not None:
        return show_chips(images, masks, bands, classes, columns=columns, alpha=alpha, stretch=stretch)
    if batch.regression_targets is not None:
        return show_regression_targets(
            images[:, -1] if dated else images,
            batch.regression_targets[:count],
            bands,
            columns=columns,
            stretch=stretch,
        )
    if batch.labels is not None:
        return show_labels(images, batch.labels[:count], bands, classes, columns=columns, stretch=stretch)
    return show_images(images, bands, columns=columns, stretch=stretch)


def draw_mask(ax: 'Axes', mask: Tensor, classes: Sequence[ClassInfo]) -> None:
    """Draw a mask (height, width) of class indices by itself, framed, so that ignored margins can be seen."""
    ax.imshow(canvas.class_colors(mask, classes), interpolation='nearest')
    ax.set_axis_on()
    ax.set(xticks=[], yticks=[])


def draw_boxes(ax: 'Axes', objects: Objects, classes: Sequence[ClassInfo]) -> None:
    """Draw the boxes of an image's objects with their class names; ignored objects have broken lines."""
    from matplotlib.patches import Polygon, Rectangle
    from matplotlib.patheffects import Normal, Stroke

    boxes, labels = to_array(objects.boxes).tolist(), to_array(objects.labels).tolist()
    halo = [Stroke(linewidth=2.6, foreground='black', alpha=0.6), Normal()]
    turned = from_hulls(objects.boxes) if objects.turned is None else objects.turned
    ignored = [False] * len(boxes) if objects.ignored is None else to_array(objects.ignored).tolist()
    for box, ring, label, passed in zip(boxes, to_array(corners(turned)), labels, ignored):
        left, top = (edge - 0.5 for edge in box[:2])  # imshow centers the first pixel at 0
        style: dict[str, Any] = {
            'linestyle': ':' if passed else '-',
            'linewidth': 1.4,
            'path_effects': [] if passed else halo,
        }
        color = canvas.fractions(classes[label].color)
        if objects.turned is None:
            width, height = box[2] - box[0], box[3] - box[1]
            ax.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=color, **style))
        else:
            ax.add_patch(Polygon(ring - 0.5, closed=True, fill=False, edgecolor=color, **style))
        if len(boxes) <= TAG_LIMIT:
            _draw_tag(ax, left, top, classes[label])


def _draw_tag(ax: 'Axes', left: float, top: float, info: ClassInfo) -> None:
    color = canvas.fractions(info.color)
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 0.55
    height = abs(ax.get_ylim()[0] - ax.get_ylim()[1])
    text = ax.text(
        left,
        top,
        canvas.short(info.name, 16),
        fontsize=6.5,
        color='white' if dark else 'black',
        # at the upper edge there is no room above the box
        verticalalignment='top' if top < 0.08 * height else 'bottom',
        bbox={'facecolor': color, 'edgecolor': 'none', 'pad': 1},
        clip_on=True,
    )
    canvas.plain(text)


def _object_classes(objects: Iterable[Objects]) -> list[int]:
    return [label for found in objects for label in to_array(found.labels).tolist()]


def _label_text(label: np.ndarray, classes: Sequence[ClassInfo]) -> str:
    if label.ndim == 0:
        return canvas.short(classes[int(label)].name)
    present = [(index, float(share)) for index, share in enumerate(label) if share > 0]
    names = [
        canvas.short(classes[index].name) + ('' if share > 0.999 else f'\N{NO-BREAK SPACE}{share:.0%}')
        for index, share in sorted(present, key=lambda pair: -pair[1])
    ]
    return ', '.join(names) or 'no class'

"""Figures of predictions beside the truth: classes and values of pixels, changes, classified chips, detections."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from geolearn.bands import Band
from geolearn.batch import Objects, PanopticMap
from geolearn.classes import IGNORE_INDEX, ClassInfo
from geolearn.metrics import PrecisionRecall, TrueObjects
from geolearn.plotting import canvas, chips
from geolearn.plotting.display import DisplayStretch, image_target_colors, natural_colors, to_array

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
    stretch: DisplayStretch | None = None,
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
        stretch: Of the data set; None fits one to the images.
    """
    figure, axes = canvas.new_figure(max(1, len(images)), 4, side=side)
    for row, image, mask, prediction in zip(axes, natural_colors(images, bands, stretch), masks, predictions):
        _draw_pair(row, image, mask, prediction, classes)
    others = draw_errors(axes[:, 3], masks, predictions)
    name_rows(axes, ('image', 'truth', 'prediction', 'errors'), titles)
    canvas.add_legend(figure, classes, _shown(masks, predictions), others=others)
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
    stretch: DisplayStretch | None = None,
) -> 'Figure':
    """Draw chips with the loss of each pixel: high where the model is confident and wrong.

    Args:
        images: (n, bands, height, width), NaN where there is no data.
        masks: (n, height, width) class indices, IGNORE_INDEX where nothing is labelled.
        predictions: (n, height, width) class indices.
        losses: (n, height, width) loss of each pixel; gray where nothing is labelled.
        bands: Of the images.
        classes: Of masks and predictions.
        titles: Above each row; see `describe_chip`.
        stretch: Of the data set; None fits one to the images.
    """
    figure, axes = canvas.new_figure(max(1, len(images)), 4)
    for row, image, mask, prediction in zip(axes, natural_colors(images, bands, stretch), masks, predictions):
        _draw_pair(row, image, mask, prediction, classes)
    draw_losses(figure, axes[:, 3], masks, losses)
    name_rows(axes, ('image', 'truth', 'prediction', 'loss'), titles)
    canvas.add_legend(figure, classes, _shown(masks, predictions))
    return figure


def draw_errors(axes: np.ndarray, masks: Tensor, predictions: Tensor) -> dict[str, str]:
    """Draw in each of the axes (n,) where a prediction is wrong.

    Args:
        axes: One for each chip.
        masks: (n, height, width) class indices, IGNORE_INDEX where nothing is labelled.
        predictions: (n, height, width) class indices.

    Returns:
        Colors by name, for a legend.
    """
    from matplotlib.colors import ListedColormap

    verdicts = ListedColormap([canvas.RIGHT, canvas.WRONG, canvas.NOT_LABELLED])
    for ax, mask, prediction in zip(axes, masks, predictions):
        ax.imshow(error_map(prediction, mask), cmap=verdicts, vmin=0, vmax=2, interpolation='nearest')
        _frame(ax)
    unlabelled = (to_array(masks) == IGNORE_INDEX).any()
    return {'right': canvas.RIGHT, 'wrong': canvas.WRONG} | (
        {'not labelled': canvas.NOT_LABELLED} if unlabelled else {}
    )


def draw_losses(figure: 'Figure', axes: np.ndarray, masks: Tensor, losses: Tensor) -> None:
    """Draw in each of the axes (n,) the loss of each pixel, on one scale.

    Args:
        figure: Of the axes.
        axes: One for each chip.
        masks: (n, height, width) class indices, IGNORE_INDEX where nothing is labelled.
        losses: (n, height, width).
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    known_losses = np.where(to_array(masks) == IGNORE_INDEX, np.nan, to_array(losses))
    known = known_losses[np.isfinite(known_losses)]
    ramp = ScalarMappable(
        Normalize(0, max(float(np.percentile(known, 99.5)), 1e-6) if known.size else 1.0), canvas.LOSS_CMAP
    )
    for ax, loss in zip(axes, known_losses):
        ax.imshow(loss, cmap=ramp.cmap, norm=ramp.norm, interpolation='nearest')
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
    return ' · '.join([canvas.short(name, 60), *texts])


def _two_digits(value: float) -> str:
    """Return a number with two decimals, or two digits where it is too small for them, as errors in meters may be."""
    return f'{value:.2g}' if 0 < abs(value) < 0.1 else f'{value:.2f}'


def name_rows(axes: np.ndarray, headings: Sequence[str], titles: Sequence[str]) -> None:
    """Write headings above the columns of axes (rows, columns), and a title above each row, over its full width."""
    for ax, heading in zip(axes[0], headings):
        ax.set_title(heading)
    for row, title in zip(axes, titles):
        canvas.plain(row[0].set_title(title, loc='left', **_ROW_STYLE))
    if titles:
        # in the first row the title stands above the headings, which all keep one height
        for ax, line in zip(axes[0], [titles[0], *[' '] * (len(headings) - 1)]):
            canvas.plain(ax.set_title(f'{line}\n', loc='left', linespacing=1.9, **_ROW_STYLE))


def _draw_pair(
    row: np.ndarray, image: np.ndarray, mask: Tensor, prediction: Tensor, classes: Sequence[ClassInfo]
) -> None:
    row[0].imshow(image)
    chips.draw_mask(row[1], mask, classes)
    chips.draw_mask(row[2], prediction, classes)


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
    stretch: DisplayStretch | None = None,
) -> 'Figure':
    """Draw pairs of images with truth, prediction and where they differ, one row per pair.

    Args:
        images: (n, 2, bands, height, width).
        masks: (n, height, width) class indices, IGNORE_INDEX where nothing is labelled.
        predictions: (n, height, width) class indices.
        bands: Of each date.
        classes: Of masks and predictions.
        titles: Above each row; see `describe_chip`.
        losses: (n, height, width) loss of each pixel, shown in place of where it is wrong.
        stretch: Of the data set; None fits one to the images.
    """
    figure, axes = canvas.new_figure(max(1, len(images)), 5, side=2.4)
    for row, pair, mask, prediction in zip(axes, natural_colors(images, bands, stretch), masks, predictions):
        for ax, date in zip(row, pair):
            ax.imshow(date)
        chips.draw_mask(row[2], mask, classes)
        chips.draw_mask(row[3], prediction, classes)
    last = 'errors' if losses is None else 'loss'
    if losses is None:
        others = draw_errors(axes[:, 4], masks, predictions)
    else:
        others = {}
        draw_losses(figure, axes[:, 4], masks, losses)
    name_rows(axes, ('before', 'after', 'truth', 'prediction', last), titles)
    seen = [index for part in (masks, predictions) for index in np.unique(to_array(part)).tolist()]
    canvas.add_legend(figure, classes, seen, others=others)
    return figure


_NO_VALUE = '#d9d9d9'


def show_regression(
    images: Tensor,
    values: Tensor,
    predictions: Tensor,
    bands: Sequence[Band],
    *,
    unit: str = '',
    titles: Sequence[str] = (),
    stretch: DisplayStretch | None = None,
) -> 'Figure':
    """Draw image, truth, prediction and their difference side by side, one row per chip.

    Args:
        images: (n, bands, height, width), NaN where there is no data.
        values: (n, height, width) true values, NaN where there is none, which is gray.
        predictions: (n, height, width).
        bands: Of the images.
        unit: Of the values.
        titles: Above each row; see `describe_chip`.
        stretch: Of the data set; None fits one to the images.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    truth, found = to_array(values), to_array(predictions)
    differences = found - truth
    low, high = _range(np.concatenate([truth.ravel(), found.ravel()]), 2, 98)
    largest = max(abs(part) for part in _range(differences, 2, 98)) or 1.0
    ramps = [
        ScalarMappable(Normalize(low, high), canvas.VALUE_CMAP),
        ScalarMappable(Normalize(low, high), canvas.VALUE_CMAP),
        ScalarMappable(Normalize(-largest, largest), canvas.DIFFERENCE_CMAP),
    ]
    figure, axes = canvas.new_figure(max(1, len(images)), 4)
    for row, image, *planes in zip(axes, natural_colors(images, bands, stretch), truth, found, differences):
        row[0].imshow(image)
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


def show_predicted_images(
    images: Tensor,
    truth: Tensor,
    predictions: Tensor,
    bands: Sequence[Band],
    *,
    titles: Sequence[str] = (),
    stretch: DisplayStretch | None = None,
) -> 'Figure':
    """Draw image, true image, predicted image and where they differ side by side, one row per chip.

    Args:
        images: (n, bands, height, width), NaN where there is no data.
        truth: (n, C, H, W), NaN where there is none; the first three bands are drawn, or the first alone.
        predictions: Of the same shape.
        bands: Of the images.
        titles: Above each row; see `describe_chip`.
        stretch: Of the data set; None fits one to the images.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    true, found = to_array(truth), to_array(predictions)
    shown = image_target_colors(true, true), image_target_colors(found, true)
    apart = np.sqrt(np.nanmean(np.where(np.isfinite(true), np.square(found - true), np.nan), axis=1))
    ramp = ScalarMappable(Normalize(0, _range(apart, 2, 98)[1]), canvas.VALUE_CMAP)
    figure, axes = canvas.new_figure(max(1, len(images)), 4)
    for row, image, one, other, error in zip(axes, natural_colors(images, bands, stretch), *shown, apart):
        for ax, picture in zip(row, (image, one, other)):
            ax.imshow(picture, interpolation='nearest')
        row[3].imshow(error, cmap=ramp.cmap, norm=ramp.norm, interpolation='nearest')
    bars: dict[str, Any] = {'location': 'bottom', 'shrink': 0.8, 'pad': 0.02, 'aspect': 30, 'extend': 'max'}
    figure.colorbar(ramp, ax=axes[:, 3], label='root mean square error', **bars)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.6)
    name_rows(axes, ('image', 'truth', 'prediction', 'error'), titles)
    return figure


def show_regression_scatter(
    values: Tensor | np.ndarray, predictions: Tensor | np.ndarray, *, unit: str = ''
) -> 'Figure':
    """Draw prediction against truth, darker where there are more pixels, with the line on which both are equal.

    Args:
        values: True values of any shape, NaN where there is none.
        predictions: Of the same shape.
        unit: Of the values.
    """
    from matplotlib.colors import LogNorm

    truth, found = to_array(values).ravel(), to_array(predictions).ravel()
    known = np.isfinite(truth) & np.isfinite(found)
    truth, found = truth[known].astype(np.float64), found[known].astype(np.float64)
    figure, ax = canvas.new_chart(5.4, 4.8)
    suffix = f' ({unit})' if unit else ''
    ax.set(xlabel=f'truth{suffix}', ylabel=f'prediction{suffix}')
    if not len(truth):
        return figure
    low, high = _range(np.concatenate([truth, found]), 0.1, 99.9)
    edges = np.linspace(low, high, 81)
    *_, drawn = ax.hist2d(truth, found, bins=[edges, edges], cmap='viridis_r', norm=LogNorm(vmin=1), cmin=1)
    figure.colorbar(drawn, ax=ax, label='pixels', shrink=0.8)
    ax.plot([low, high], [low, high], '--', color=canvas.VERMILION, label='equal')
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


RIGHT_TEXT, WRONG_TEXT = '#1a7f37', '#c02020'


class ChipTitle(NamedTuple):
    """What a figure says above a chip, and whether the model was right."""

    text: str
    right: bool


def show_binary_matrices(counts: np.ndarray, names: Sequence[str], *, columns: int = 4) -> 'Figure':
    """Draw for each class a confusion matrix of absent and present.

    Args:
        counts: (classes, 2, 2) of truth (rows) against prediction (columns).
        names: Of the classes.
        columns: Matrices per row.
    """
    figure, axes = canvas.grid(len(names), columns)
    for ax, cells, name in zip(axes, counts, names):
        _draw_binary_matrix(ax, cells)
        canvas.plain(ax.set_title(canvas.short(name), fontsize=9))
    return figure


def show_classified(
    images: Tensor,
    titles: Sequence[ChipTitle],
    bands: Sequence[Band],
    *,
    columns: int = 4,
    stretch: DisplayStretch | None = None,
) -> 'Figure':
    """Draw images (n, bands, height, width) with a title above each: green if the model is right, else red."""
    figure, axes = canvas.grid(len(images), columns)
    for ax, image, title in zip(axes, natural_colors(images, bands, stretch), titles):
        ax.imshow(image)
        _write_title(ax, title)
    _make_room(figure, len(axes), columns)
    return figure


def show_heat_maps(
    images: Tensor,
    heats: Sequence[Tensor],
    titles: Sequence[ChipTitle],
    bands: Sequence[Band],
    *,
    columns: int = 2,
    stretch: DisplayStretch | None = None,
) -> 'Figure':
    """Draw images with a title above each, and beside each the heat map of an explanation.

    Args:
        images: (n, bands, height, width).
        heats: A heat map (height, width) in 0..1 for each.
        titles: Above each.
        bands: Of the images.
        columns: Pairs per row.
        stretch: Of the data set; None fits one to the images.
    """
    figure, axes = canvas.grid(2 * len(images), 2 * min(columns, max(len(images), 1)))
    for index, (shown, heat, title) in enumerate(zip(natural_colors(images, bands, stretch), heats, titles)):
        axes[2 * index].imshow(shown)
        axes[2 * index + 1].imshow(shown.mean(-1), cmap='gray', vmin=0, vmax=1)
        # opaque where it is hot, so that the image is seen where nothing matters
        opacity = np.clip(0.1 + 0.6 * heat.numpy(), 0, 1)
        axes[2 * index + 1].imshow(heat.numpy(), cmap='inferno', vmin=0, vmax=1, alpha=opacity)
        _write_title(axes[2 * index], title)
    _make_room(figure, len(axes), 2 * columns)
    return figure


def _draw_binary_matrix(ax: 'Axes', cells: np.ndarray) -> None:
    shares = cells / np.maximum(cells.sum(1, keepdims=True), 1)
    ax.set_axis_on()
    ax.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    ax.set_xticks([0, 1], ['absent', 'present'], fontsize=8)
    ax.set_yticks([0, 1], ['absent', 'present'], fontsize=8, rotation=90, va='center')
    ax.set(xlabel='prediction', ylabel='truth')
    for (row, column), share in np.ndenumerate(shares):
        color = 'white' if share > 0.5 else 'black'
        ax.text(column, row, str(int(cells[row, column])), ha='center', va='center', color=color, fontsize=9)


def _write_title(ax: 'Axes', title: ChipTitle) -> None:
    text = '\n'.join(canvas.wrap(line, width=34) for line in title.text.splitlines())
    canvas.plain(ax.set_title(text, fontsize=9, color=RIGHT_TEXT if title.right else WRONG_TEXT))


def _make_room(figure: 'Figure', count: int, columns: int) -> None:
    """Let a figure grow by the titles above its rows."""
    lines = max((ax.get_title().count('\n') + 1 for ax in figure.axes), default=0)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.16 * lines * -(-count // columns))


FILL = 0.5


def show_detections(
    images: Tensor,
    truth: Sequence[TrueObjects],
    detections: Sequence[TrueObjects],
    bands: Sequence[Band],
    classes: Sequence[ClassInfo],
    *,
    titles: Sequence[str] = (),
    side: float = 4.0,
    stretch: DisplayStretch | None = None,
) -> 'Figure':
    """Draw each image (n, bands, H, W) with its true objects and, beside it, with its detections.

    Args:
        images: In stored units.
        truth: Objects of each image.
        detections: Of each image.
        bands: Of the images.
        classes: Of the objects.
        titles: Above each row, such as the chip's name.
        side: Width of each picture in inches.
        stretch: Of the data set; None fits one to the images.
    """
    figure, axes = canvas.new_figure(len(images), 2, side=side)
    for row, image, *both in zip(axes, natural_colors(images, bands, stretch), truth, detections):
        for ax, objects in zip(row, both):
            ax.imshow(image)
            ignored = objects.ignored if isinstance(objects, Objects) else None
            whole = Objects(objects.boxes, objects.labels, objects.masks, objects.turned, ignored)
            _draw_objects(ax, whole, classes)
    name_rows(axes, ('truth', 'detections'), titles)
    shown = [label for part in (*truth, *detections) for label in to_array(part.labels).tolist()]
    canvas.add_legend(figure, classes, shown)
    return figure


def _draw_objects(ax: 'Axes', objects: Objects, classes: Sequence[ClassInfo]) -> None:
    if objects.masks is None:
        chips.draw_boxes(ax, objects, classes)
    elif len(objects.labels):
        ax.imshow(canvas.instance_colors(objects.masks, objects.labels, classes, alpha=FILL), interpolation='nearest')


def show_panoptic(
    images: Tensor,
    truth: Sequence[PanopticMap],
    predictions: Sequence[PanopticMap],
    bands: Sequence[Band],
    classes: Sequence[ClassInfo],
    *,
    titles: Sequence[str] = (),
    stretch: DisplayStretch | None = None,
) -> 'Figure':
    """Draw each image (n, bands, H, W), its true segments and the predicted ones; objects have dark edges.

    Args:
        images: In stored units.
        truth: Segments of each image.
        predictions: The same.
        bands: Of the images.
        classes: Of the segments.
        titles: Above each row, such as the chip's name.
        stretch: Of the data set; None fits one to the images.
    """
    figure, axes = canvas.new_figure(len(images), 3)
    for row, image, *both in zip(axes, natural_colors(images, bands, stretch), truth, predictions):
        row[0].imshow(image)
        for ax, found in zip(row[1:], both):
            ax.imshow(_segment_colors(found, classes), interpolation='nearest')
    name_rows(axes, ('image', 'truth', 'prediction'), titles)
    shown = [label for part in (*truth, *predictions) for label in np.unique(to_array(part.classes)).tolist()]
    others = {'no segment': 'white'} if IGNORE_INDEX in shown else {}
    canvas.add_legend(figure, classes, [label for label in shown if label != IGNORE_INDEX], others=others)
    return figure


def _segment_colors(found: PanopticMap, classes: Sequence[ClassInfo]) -> np.ndarray:
    """Return colors (H, W, 3) in 0..1 of segments: white where there is none, darker along the edges of objects."""
    table = np.ones((IGNORE_INDEX + 1, 3))
    for index, info in enumerate(classes):
        table[index] = np.array(info.color) / 255
    colors: np.ndarray = table[to_array(found.classes)]
    ids = np.pad(to_array(found.ids), 1, 'edge')
    inner = ids[1:-1, 1:-1]
    beside = (ids[:-2, 1:-1], ids[2:, 1:-1], ids[1:-1, :-2], ids[1:-1, 2:])
    edge = (inner > 0) & np.any([other != inner for other in beside], axis=0)
    colors[edge] *= 0.35
    return colors


def show_precision_recall(
    curves: Mapping[int, PrecisionRecall], classes: Sequence[ClassInfo], *, iou: float
) -> 'Figure':
    """Draw precision over recall, a line for each class with its average precision.

    Args:
        curves: By class index.
        classes: All classes.
        iou: Overlap at which they were counted.
    """
    figure, axes = canvas.new_figure(1, 1, side=5)
    ax: Axes = axes[0, 0]
    ax.set_axis_on()
    canvas.tidy(ax)
    for index, curve in curves.items():
        if curve.precision.isnan().all():
            continue
        info = classes[index]
        label = f'{canvas.short(info.name)} ({float(curve.precision.mean()):.2f})'.replace('$', r'\$')
        ax.plot(curve.recall.numpy(), curve.precision.numpy(), color=canvas.fractions(info.color), label=label)
    ax.set(xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02), title=f'overlap {iou:g}')
    if ax.get_lines():
        ax.legend()
    return figure

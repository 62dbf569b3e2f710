"""Make the label of a chip, in the form that a format needs, from features or from class values."""

from typing import Any

import numpy as np

from geolearn.chips.exporting.features import Cut, need_shapely
from geolearn.chips.label import Label, Task, mask_boxes
from geolearn.raster.opening import burn_polygons, group_pixels

TOO_SMALL = 'feature smaller than a pixel, or cut to less'

BELOW_RATIO = 'feature of which less than min_polygon_overlap_ratio is in the chip'

WITHOUT_DATA = 'feature where the raster has no data'


def feature_label(task: Task, cut: Cut, shape: tuple[int, int], mask: np.ndarray | None, ratio: float) -> Label:
    """Return the label of a chip from the features in it.

    Features with less than `ratio` of their area in the chip are no objects of it. A class per pixel is true
    regardless: their pixels keep the class. Where features overlap, pixels take the class of the later one.

    Args:
        task: What the label must hold.
        cut: Features in pixels of the chip.
        shape: Height and width of the chip.
        mask: (height, width), True where the raster has data; None where it has everywhere.
        ratio: 0..1.
    """
    kept = cut.select(cut.shares >= ratio)
    skipped = [BELOW_RATIO] * (len(cut.class_ids) - len(kept.class_ids))
    if task is Task.PIXELS:
        return Label(raster=burn(cut, shape, mask), skipped=tuple(skipped))
    if task is Task.OBJECTS:
        return _boxes(kept, shape, mask, skipped)
    if task in (Task.INSTANCES, Task.PANOPTIC):
        return _instances(kept, shape, mask, skipped, raster=burn(cut, shape, mask) if task is Task.PANOPTIC else None)
    if task in (Task.LABEL, Task.LABELS):
        found = _boxes(kept, shape, mask, skipped)
        if task is Task.LABEL:
            return found
        return Label(class_ids=np.unique(found.class_ids), skipped=found.skipped)
    return Label()


def burn(cut: Cut, shape: tuple[int, int], mask: np.ndarray | None) -> np.ndarray:
    """Return the class value of each pixel (height, width) uint16 whose centre lies in a feature, else 0."""
    raster = burn_polygons(zip(cut.geometry, cut.class_ids.tolist()), shape, dtype=np.uint16)
    return raster if mask is None else np.where(mask, raster, 0).astype(np.uint16)


def _boxes(cut: Cut, shape: tuple[int, int], mask: np.ndarray | None, skipped: list[str]) -> Label:
    height, width = shape
    limits = (width, height, width, height)
    boxes = np.clip(need_shapely().bounds(cut.geometry).reshape(-1, 4), 0, limits).astype(np.float32)
    sides = boxes[:, 2:] - boxes[:, :2]
    # what remains of a feature at the edge of a chip shows nothing if it is thinner than a pixel
    wide = (sides > 0).all(axis=1) & (cut.whole | (sides >= 1).all(axis=1))
    seen = np.array([mask is None or bool(_outline(geometry, mask).any()) for geometry in cut.geometry], bool)
    skipped = [*skipped, *[TOO_SMALL] * int((~wide).sum()), *[WITHOUT_DATA] * int((wide & ~seen).sum())]
    kept = wide & seen
    return Label(class_ids=cut.class_ids[kept], boxes=boxes[kept], skipped=tuple(skipped))


def _outline(geometry: Any, mask: np.ndarray) -> np.ndarray:
    """Return the pixels with data that a geometry touches."""
    burnt = burn_polygons([(geometry, 1)], mask.shape, all_touched=True)
    touched: np.ndarray = mask & (burnt > 0)
    return touched


def _instances(
    cut: Cut, shape: tuple[int, int], mask: np.ndarray | None, skipped: list[str], raster: np.ndarray | None
) -> Label:
    masks, kept, skipped = [], [], list(skipped)
    for position, geometry in enumerate(cut.geometry):
        burnt = _instance(geometry, shape)
        if not burnt.any():
            skipped.append(TOO_SMALL)
            continue
        if mask is not None and not (burnt := burnt & mask).any():
            skipped.append(WITHOUT_DATA)
            continue
        masks.append(burnt)
        kept.append(position)
    return Label(raster, cut.class_ids[kept], mask_boxes(masks), tuple(masks), tuple(skipped))


def _instance(geometry: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return the mask of one geometry, drawn in its own window only: a chip may hold hundreds."""
    left, top, right, bottom = geometry.bounds
    rows = slice(max(0, int(top)), min(shape[0], int(bottom) + 1))
    cols = slice(max(0, int(left)), min(shape[1], int(right) + 1))
    mask = np.zeros(shape, bool)
    window = mask[rows, cols]
    if window.size:
        moved = need_shapely().transform(geometry, lambda points: points - (cols.start, rows.start))
        window[:] = burn_polygons([(moved, 1)], window.shape) > 0
    return mask


def raster_label(task: Task, values: np.ndarray) -> Label:
    """Return the label of a chip from class values (height, width), 0 where unlabelled, or from numbers to learn.

    Objects are groups of pixels of one class that share edges. The class of a whole chip is the one with most pixels.
    """
    if task in (Task.PIXELS, Task.REGRESSION):
        return Label(raster=values)
    if task in (Task.LABEL, Task.LABELS):
        found, counts = np.unique(values[values > 0], return_counts=True)
        found = found[[counts.argmax()]] if task is Task.LABEL and len(found) else found
        return Label(class_ids=found.astype(np.int64))
    if task is Task.UNLABELLED:
        return Label()
    groups = group_pixels(values)
    masks = [burn_polygons([(geometry, 1)], values.shape) > 0 for geometry, _ in groups]
    found = np.array([value for _, value in groups], np.int64)
    if task is Task.OBJECTS:
        return Label(class_ids=found, boxes=mask_boxes(masks))
    return Label(values if task is Task.PANOPTIC else None, found, mask_boxes(masks), tuple(masks))

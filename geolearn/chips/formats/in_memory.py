"""Chips that lie in memory: images and targets as arrays, tensors or items of a torch Dataset."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from geolearn.chips.formats import shapes
from geolearn.chips.label import Label, Task, mask_boxes
from geolearn.chips.meaning.values import as_classes, as_numbers
from geolearn.errors import ChipFolderError

BOX_KEYS = ('boxes', 'bbox_xyxy')
"""Where items of datasets hold boxes left, top, right, bottom; torchgeo's is the second."""

MOST_CHANNELS = 4
"""Images whose last axis is no longer than this, and whose other axes are, hold their bands last."""

LEAST_SIDE = 16


def as_array(value: Any) -> np.ndarray:
    """Return an array, or a tensor as one."""
    array: np.ndarray = np.asarray(value.numpy() if hasattr(value, 'numpy') else value)
    return array


def as_image(value: Any) -> np.ndarray:
    """Return an image (bands, height, width).

    Raises:
        ChipFolderError: If it has other axes, or its bands are the last one.
    """
    image = as_array(value)
    if image.ndim != 3:
        raise ChipFolderError(f'an image must be (bands, height, width), got shape {image.shape}')
    first, second, last = image.shape
    square = first == second and 2 * last <= first
    if min(first, second) >= LEAST_SIDE and (square or last <= MOST_CHANNELS):
        raise ChipFolderError(
            f'an image must be (bands, height, width), and one of shape {image.shape} looks like (height, width, '
            'bands); pass image.transpose(2, 0, 1), of many images images.transpose(0, 3, 1, 2)'
        )
    return image


def dataset_item(dataset: Any, index: int) -> tuple[Any, Any]:
    """Return image and target of an item: a pair, an image alone, or a mapping with the names of torchgeo.

    Raises:
        ChipFolderError: If a mapping holds no image, or boxes in another form than left, top, right, bottom.
    """
    item = dataset[index]
    if not isinstance(item, Mapping):
        return (item[0], item[1] if len(item) > 1 else None) if isinstance(item, tuple | list) else (item, None)
    held = ', '.join(map(str, item))
    if 'image' not in item:
        raise ChipFolderError(
            f"item {index} of the dataset holds {held}, and an image under 'image' is needed; items of several images "
            'need a dataset that joins them'
        )
    if strange := [key for key in item if str(key).startswith('bbox') and key not in BOX_KEYS]:
        raise ChipFolderError(
            f"item {index} of the dataset holds {strange[0]}; give boxes as left, top, right, bottom under 'boxes'"
        )
    boxes = next((item[key] for key in BOX_KEYS if key in item), None)
    if boxes is None:
        return item['image'], next((item[key] for key in ('mask', 'label') if key in item), None)
    values = next((item[key] for key in ('labels', 'label') if key in item), None)
    if values is None:
        raise ChipFolderError(f"item {index} of the dataset holds {held}; boxes need class values under 'labels'")
    masks = next((item[key] for key in ('masks', 'mask') if key in item), None)
    return item['image'], (boxes, values) if masks is None else (boxes, values, masks)


def task_of(target: Any) -> Task:
    """Return the task that a target is for.

    Raises:
        ChipFolderError: If it is for none.
    """
    if isinstance(target, tuple | list) and len(target) in (2, 3) and _may_be_boxes(target[0]):
        if len(target) == 2 and np.shape(target[0])[-1] == 5:
            return Task.ORIENTED
        return Task.OBJECTS if len(target) == 2 else Task.INSTANCES
    label = as_array(target)
    if label.ndim == 2:
        return Task.REGRESSION if label.dtype.kind == 'f' else Task.PIXELS
    if label.ndim == 1:
        return Task.LABELS
    if label.ndim == 0:
        return Task.LABEL
    raise ChipFolderError(
        f'a label of shape {label.shape} is not known; pass (height, width), a class value, (classes,) bool, or '
        '(boxes, class values), where boxes are (n, 4), or (n, 5) of oriented ones'
    )


def _may_be_boxes(value: Any) -> bool:
    """Whether a part of a target may be boxes; an empty list is none of them."""
    return np.ndim(value) == 2 or (np.ndim(value) == 1 and not np.size(value))


def as_label(target: Any, task: Task, unlabelled: Sequence[float], shape: tuple[int, int]) -> Label:
    """Return the label of a chip; objects that cannot be used are left out and counted, as those of files.

    Args:
        target: As `from_arrays` takes it.
        task: From `task_of`.
        unlabelled: Values of label rasters that mean "not labelled".
        shape: Height and width of the image.

    Raises:
        ChipFolderError: If it is no label of this task, or does not fit the image.
    """
    if task == Task.UNLABELLED:
        return Label()
    if task in (Task.OBJECTS, Task.ORIENTED, Task.INSTANCES):
        return _objects(target, task, shape)
    label = as_array(target)
    if task == Task.LABEL:
        if label.size != 1:
            raise ChipFolderError(f'a chip has one class value, as the first does; got {label.ravel()[:8].tolist()}')
        return Label(class_ids=_whole_numbers(label.reshape(1)))
    if task == Task.LABELS:
        if label.ndim != 1 or not np.isin(label, (0, 1)).all():
            raise ChipFolderError(
                f'a label of several classes holds 0 or 1 for each class, got {label.ravel()[:8].tolist()} of shape '
                f'{label.shape}; pass (chips, classes) bool, or (chips,) class values where each chip has one class'
            )
        return Label(class_ids=np.flatnonzero(label).astype(np.int64))
    return raster_label(label, unlabelled, None, 'a label', numbers=task == Task.REGRESSION)


def _objects(target: Any, task: Task, shape: tuple[int, int]) -> Label:
    sides = 5 if task == Task.ORIENTED else 4
    boxes, values = as_array(target[0]), _whole_numbers(as_array(target[1]).reshape(-1))
    if boxes.size and (boxes.ndim != 2 or boxes.shape[1] != sides):
        raise ChipFolderError(f'boxes are of shape {boxes.shape}; those of a chip are (n, {sides}), as in the first')
    boxes = boxes.reshape(-1, sides)
    counts = [len(boxes), len(values), *([len(target[2])] if task == Task.INSTANCES else [])]
    if len(set(counts)) > 1:
        more = f' and {counts[2]} masks' if len(counts) > 2 else ''
        raise ChipFolderError(
            f'found {counts[0]} boxes, {counts[1]} class values{more} of a chip; each object needs one'
        )
    if task == Task.ORIENTED:
        return shapes.oriented_label(values, boxes, shape)
    if task == Task.OBJECTS:
        return shapes.box_label(values.tolist(), [(a, b, c, d) for a, b, c, d in boxes.tolist()], shape)
    masks = [as_array(mask).astype(bool) for mask in target[2]]
    if other := next((mask.shape for mask in masks if mask.shape != shape), None):
        raise ChipFolderError(
            f'the mask of an object is {other} pixels and the image {shape}; masks are (n, height, width)'
        )
    kept = [position for position, mask in enumerate(masks) if mask.any()]
    outlines = tuple(masks[position] for position in kept)
    skipped = (shapes.EMPTY,) * (len(masks) - len(kept))
    return Label(class_ids=values[kept], boxes=mask_boxes(outlines), masks=outlines, skipped=skipped)


def _whole_numbers(values: np.ndarray) -> np.ndarray:
    """Return class values (n,) int64.

    Raises:
        ChipFolderError: If one is no whole number.
    """
    whole = values.dtype.kind in 'biu' or (values.dtype.kind == 'f' and bool((np.rint(values) == values).all()))
    if not whole:
        raise ChipFolderError(
            f'class values are whole numbers, got {values[:8].tolist()}; numbers to predict are learned per pixel: '
            '(chips, height, width) of floats'
        )
    return values.astype(np.int64)


def raster_label(
    pixels: np.ndarray, unlabelled: Sequence[float], valid: np.ndarray | None, shown: str, *, numbers: bool
) -> Label:
    """Return the label of a chip whose pixels (height, width) are class values, or `numbers` to predict."""
    if numbers:
        return Label(raster=as_numbers(pixels, valid, shown, unlabelled))
    raster, unknown = as_classes(pixels, valid, unlabelled, shown)
    return Label(raster=raster, unlabelled=unknown)

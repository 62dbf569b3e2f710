"""Choose how training batches are changed, and find out before training whether that fits the task."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from geolearn import batch, errors
from geolearn.augment import Augmentation, BatchTransform, cloud_brightness
from geolearn.bands import Band
from geolearn.chips.label import BOX_TASKS, Task
from geolearn.chips.meaning.classes import RASTER_TASKS
from geolearn.statistics import BandStatistics

Transforms = BatchTransform | Mapping[str, Any] | bool | None

_KNOWN_FROM_DATA = ('band_std', 'band_mean', 'class_count', 'keep_visible', 'ignore_visible')

_OPTIONS = tuple(f.name for f in dataclasses.fields(Augmentation) if f.name not in _KNOWN_FROM_DATA)


def check_transforms(given: Transforms) -> None:
    """Refuse what cannot be a transform, before any chip is read.

    Raises:
        TypeError: If it is not valid, or names an unknown option.
    """
    if given is None or isinstance(given, bool) or callable(given):
        return
    if not isinstance(given, Mapping):
        raise TypeError(
            'transforms must be None, False, options of geolearn.augment.Augmentation, or a function of a batch and '
            f'a generator, got {given!r}'
        )
    unknown = [name for name in given if name not in _OPTIONS]
    if unknown:
        raise TypeError(f'transforms has no option {unknown[0]!r}; there are {", ".join(_OPTIONS)}')


def choose_transform(
    given: Transforms,
    task: Task,
    bands: Sequence[Band],
    statistics: BandStatistics,
    *,
    class_count: int,
    dates: int,
    dihedral: bool,
    target_shape: tuple[int, int] | None = None,
    visible: tuple[float, float] = (0.7, 0.3),
) -> BatchTransform | None:
    """Make the transform of training batches, and try it on a batch of this task.

    Args:
        given: What the user asked for; see `prepare_data`.
        task: Task of the labels.
        bands: Of the images.
        statistics: Of these bands.
        class_count: Number of trained classes.
        dates: Number of dates.
        dihedral: Whether images may be turned.
        target_shape: Bands of images that are to be predicted, and how many times finer they are; None where labels
            are no images. Brightness is then left as it is: it is what is predicted.
        visible: Shares of an oriented object from which on it is an object, and ignored; as for crops.

    Raises:
        ChipFolderError: If an option has a value that makes no sense, or does not fit the task.
    """
    if given is False:
        return None
    if callable(given):
        return given
    options = dict(given) if isinstance(given, Mapping) else {}
    known: dict[str, Any] = {
        'band_std': statistics.std,
        'band_mean': statistics.mean,
        'class_count': class_count,
        'dihedral': dihedral,
        'keep_visible': visible[0],
        'ignore_visible': visible[1],
    }
    if target_shape is not None:
        known |= {'gain': 0.0, 'offset': 0.0}
    try:
        if options.get('clouds') and 'cloud_brightness' not in options:
            known['cloud_brightness'] = cloud_brightness(bands, statistics)
        transform = Augmentation(**(known | options))
        transform(_example(task, len(bands), class_count, dates, target_shape), torch.Generator().manual_seed(0))
    except (TypeError, ValueError) as error:
        raise errors.ChipFolderError(f'transforms={dict(options)!r} does not fit: {error}') from error
    return transform


def _example(
    task: Task, band_count: int, class_count: int, dates: int, target_shape: tuple[int, int] | None
) -> batch.Batch:
    """Return two images of nothing with the labels of a task."""
    side = 8
    images = torch.zeros((2, dates, band_count, side, side) if dates > 1 else (2, band_count, side, side))
    masks = torch.zeros(2, side, side, dtype=torch.int64) if task in RASTER_TASKS else None
    objects = labels = None
    if task in BOX_TASKS:
        outlined, oriented = task in (Task.INSTANCES, Task.PANOPTIC), task == Task.ORIENTED
        nothing = batch.Objects(
            torch.zeros(0, 4),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, side, side, dtype=torch.bool) if outlined else None,
            torch.zeros(0, 5) if oriented else None,
            torch.zeros(0, dtype=torch.bool) if oriented else None,
        )
        objects = (nothing,) * 2
    elif task == Task.LABEL:
        labels = torch.zeros(2, dtype=torch.int64)
    elif task == Task.LABELS:
        labels = torch.zeros(2, class_count)
    values = torch.zeros(2, side, side) if task == Task.REGRESSION else None
    if target_shape is not None:
        values = torch.zeros(2, target_shape[0], side * target_shape[1], side * target_shape[1])
    return batch.Batch(images, masks, objects, labels, regression_targets=values)

"""Per-pixel regression targets, such as biomass or height: as float32, checked before training."""

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from geolearn.chips.label import Task
from geolearn.chips.packing.table import ChipTable
from geolearn.chips.splits.split import Split
from geolearn.errors import ChipFolderError
from geolearn.raster.nodata import USUAL_NODATA, differs, valid_by_band

log = logging.getLogger('geolearn')

MAX_VALUE = 65535

HUGE = 1e30
"""A lowest or highest number that is such, or as far from 0, is noted: rasters often mark NoData so."""


def as_numbers(pixels: np.ndarray, mask: np.ndarray | None, shown: str, unlabelled: Sequence[float] = ()) -> np.ndarray:
    """Return pixels (height, width) as float32, NaN where there is no truth.

    Args:
        pixels: Numbers of any real type; a new array is returned.
        mask: True where they are valid, NaN and infinity being invalid; None where all are.
        shown: What holds them, for messages.
        unlabelled: Numbers that mean NoData too.

    Raises:
        ChipFolderError: If they are complex, or beyond what float32 holds.
    """
    if pixels.dtype.kind not in 'iuf':
        raise ChipFolderError(f'{shown} holds {pixels.dtype} numbers; only real ones can be learned')
    with np.errstate(over='ignore'):
        numbers = pixels.astype(np.float32)
    if mask is not None:
        numbers[~mask] = np.nan
    for value in unlabelled:
        if (kept := differs(pixels, value)) is not None:
            numbers[~kept] = np.nan
    if np.isinf(numbers).any():
        raise ChipFolderError(
            f'{shown} holds numbers beyond those of float32; mark pixels without truth as NoData or NaN'
        )
    return numbers


def numbers_of(name: str, given: float | Sequence[float] | None) -> tuple[float, ...]:
    """Return the values that an argument names: none, one number, or a list of numbers.

    Raises:
        ChipFolderError: If it is something else.
    """
    listed = () if given is None else (given,) if isinstance(given, Real) else given
    if isinstance(listed, str) or not isinstance(listed, Iterable):
        raise ChipFolderError(f'{name} is {given!r}; pass a number, or a list of numbers such as [-1, 255]')
    values = list(listed)
    if not all(isinstance(value, Real) and not isinstance(value, bool) for value in values):
        raise ChipFolderError(f'{name} is {given!r}; pass a number, or a list of numbers such as [-1, 255]')
    return tuple(float(value) for value in values)


def named_nodata(
    pixels: np.ndarray, masks: Sequence[np.ndarray], nodata: Sequence[float], bands: int, shown: str
) -> np.ndarray | None:
    """Return where pixels hold data, given what the user named as NoData.

    Args:
        pixels: (channels, height, width); the bands of a date lie together.
        masks: Masks of the file, True where valid.
        nodata: One value for all bands, or one for each.
        bands: Bands of a date.
        shown: The image, for messages.

    Returns:
        A mask as `geolearn.raster.nodata` describes them.

    Raises:
        ChipFolderError: If there are neither one nor as many values as bands.
    """
    if len(nodata) not in (1, bands):
        raise ChipFolderError(
            f'nodata= holds {len(nodata)} values, but {shown} holds {bands} bands; pass one number, or one for '
            'each band'
        )
    by_band = [(value,) for value in (nodata if len(nodata) > 1 else [nodata[0]] * bands)]
    return valid_by_band(pixels, by_band * (len(pixels) // bands), masks)


def as_classes(
    pixels: np.ndarray, mask: np.ndarray | None, unlabelled: Sequence[float], shown: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return pixels (height, width) as class values, and where they are none.

    Args:
        pixels: Numbers of any real type.
        mask: True where they are valid, as NoData, masks and NaN say; None where all are.
        unlabelled: Values that mean "not labelled" too.
        shown: What holds them, for messages.

    Returns:
        Class values, uint8 or uint16, 0 where unlabelled; and a mask, True where unlabelled, or None where nothing is.

    Raises:
        ChipFolderError: If others are no whole numbers within 0..65535.
    """
    if pixels.dtype.kind not in 'biuf':
        raise ChipFolderError(f'{shown} holds {pixels.dtype} numbers; class values are whole numbers')
    known = mask
    for value in unlabelled:
        kept = ~np.isnan(pixels) if math.isnan(value) and pixels.dtype.kind == 'f' else differs(pixels, value)
        if kept is not None:
            known = kept if known is None else known & kept
    unknown = None if known is None or known.all() else ~known
    values = pixels if unknown is None else np.where(unknown, 0, pixels).astype(pixels.dtype, copy=False)
    if values.dtype.kind == 'f' and (not (np.abs(values) < 2**53).all() or (np.rint(values) != values).any()):
        raise ChipFolderError(
            f"{shown}: values hold fractions; class values are whole numbers; pass target='values' if they are "
            'numbers, for per-pixel regression'
        )
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if low < 0 or high > MAX_VALUE:
        raise ChipFolderError(
            f'{shown} holds values from {low:.0f} to {high:.0f}; class values lie in 0..{MAX_VALUE}. Where '
            f'{low if low < 0 else high:.0f} means not labelled, pass unlabelled=[{low if low < 0 else high:.0f}], or '
            'declare it as NoData of the label rasters'
        )
    return values.astype(np.uint8 if high < 256 else np.uint16, copy=False), unknown


LOSSY = 'save labels again from their source as PNG or TIFF without lossy compression'


def refuse_lossy(src: Any, shown: str) -> None:
    """Refuse a label raster whose compression changes values: mixtures of classes at their edges are no classes.

    Args:
        src: Dataset of the labels.
        shown: What it is called in messages.

    Raises:
        ChipFolderError: If it is a JPEG, or says that its compression is one, or lossy.
    """
    structure = src.tags(ns='IMAGE_STRUCTURE')
    compression = structure.get('COMPRESSION', '').upper()
    jpeg = src.driver == 'JPEG' or ('JPEG' in compression and 'JPEG2000' not in compression)
    error = structure.get('MAX_Z_ERROR', '0')  # of LERC; less than 0.5 leaves whole numbers as they are
    coarse = re.fullmatch(r'[0-9.e+-]+', error) is not None and float(error) >= 0.5
    if jpeg or coarse or structure.get('COMPRESSION_REVERSIBILITY', '').upper() == 'LOSSY':
        raise ChipFolderError(
            f'{shown} has lossy compression ({compression or "lossy"}), which changes class values at the edges of '
            f'areas; {LOSSY}'
        )


def refuse_unlabelled(task: Task, unlabelled: Sequence[float]) -> None:
    """Refuse values that mean "not labelled" where labels are no rasters.

    Args:
        task: Task of the labels.
        unlabelled: The values.

    Raises:
        ChipFolderError: If there are such values.
    """
    if unlabelled and task not in (Task.PIXELS, Task.CHANGE, Task.PANOPTIC, Task.REGRESSION):
        raise ChipFolderError(
            f'unlabelled={list(unlabelled)} names values of label rasters, but the task of these labels is '
            f'{task}; leave it out, or ignore classes with ignore_classes='
        )


def refuse_class_options(task: Task, given: Mapping[str, object]) -> None:
    """Refuse options that are about classes where labels hold numbers.

    Args:
        task: Task of the labels.
        given: Such options by name; what is empty or False was not given.

    Raises:
        ChipFolderError: If one was given.
    """
    named = [name for name, value in given.items() if value]
    if task == Task.REGRESSION and named:
        raise ChipFolderError(
            f'{named[0]} is about classes, but these labels hold a number per pixel; leave it out, or pass '
            "target='classes' if the numbers are class values"
        )


def check_values(table: ChipTable, split: Split) -> list[str]:
    """Refuse regression targets that nothing can be learned from.

    Returns:
        Notes on numbers that look like NoData.

    Raises:
        ChipFolderError: If training or validation chips hold no number, or training chips a single one.
    """
    for name, part in (('training', split.train), ('validation', split.valid)):
        found = table.target_statistics(part)
        if found is None:
            raise ChipFolderError(
                f'no pixel of {len(part)} {name} chips has a number: their labels, or the images there, are NoData or '
                'NaN; pass another seed or split, or more chips'
            )
        if name == 'training' and found.minimum == found.maximum:
            raise ChipFolderError(f'all {found.count:,} pixels to train on are {found.mean:g}; nothing can be learned')
    whole = table.target_statistics(range(len(table)))
    ends = dict.fromkeys((whole.minimum, whole.maximum)) if whole else {}
    notes = [
        f'labels hold {value:g}, which often means NoData; if it does here, declare it in the label rasters'
        for value in ends
        if value in USUAL_NODATA or abs(value) >= HUGE
    ]
    for note in notes:
        log.warning(note)
    return notes

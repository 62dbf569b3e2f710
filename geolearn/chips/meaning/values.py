"""Per-pixel regression targets, such as biomass or height: as float32, checked before training."""

import logging
from collections.abc import Mapping

import numpy as np

from geolearn.chips.label import Task
from geolearn.chips.packing.table import ChipTable
from geolearn.chips.splits.split import Split
from geolearn.errors import ChipFolderError

log = logging.getLogger('geolearn')

USUAL_NODATA = frozenset({-99, -999, -9999, -99999, -32767, -32768, 65535})

HUGE = 1e30
"""A lowest or highest number that is such, or as far from 0, is noted: rasters often mark NoData so."""


def as_numbers(pixels: np.ndarray, mask: np.ndarray | None, shown: str) -> np.ndarray:
    """Return pixels (height, width) as float32, NaN where there is no truth.

    Args:
        pixels: Numbers of any real type; a new array is returned.
        mask: True where they are valid, NaN and infinity being invalid; None where all are.
        shown: What holds them, for messages.

    Raises:
        ChipFolderError: If they are complex, or beyond what float32 holds.
    """
    if pixels.dtype.kind not in 'iuf':
        raise ChipFolderError(f'{shown} holds {pixels.dtype} numbers; only real ones can be learned')
    with np.errstate(over='ignore'):
        numbers = pixels.astype(np.float32)
    if mask is not None:
        numbers[~mask] = np.nan
    if np.isinf(numbers).any():
        raise ChipFolderError(
            f'{shown} holds numbers beyond those of float32; mark pixels without truth as NoData or NaN'
        )
    return numbers


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

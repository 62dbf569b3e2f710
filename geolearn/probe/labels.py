"""The labels of a probe: one class for each item, or any number of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

UNKNOWN = 'labels must be whole numbers or texts; leave out items whose class is not known'


@dataclass(frozen=True, eq=False)
class ProbeLabels:
    """Which classes each item has.

    Args:
        presence: (items, classes) bool.
        names: Of the classes.
        multi_label: Whether an item may have several classes, or none.
    """

    presence: np.ndarray
    names: tuple[str, ...]
    multi_label: bool

    @cached_property
    def indices(self) -> np.ndarray:
        """Class of each item (items,) int64, where an item has one; of several, the first."""
        return self.presence.argmax(axis=1)

    @property
    def counts(self) -> np.ndarray:
        """Items of each class (classes,)."""
        return self.presence.sum(axis=0)

    @property
    def cooccurrence(self) -> np.ndarray:
        """Items that have both of two classes (classes, classes) int64; the diagonal counts the items of a class."""
        held = self.presence.astype(np.float64)
        return np.rint(held.T @ held).astype(np.int64)

    def take(self, items: np.ndarray) -> 'ProbeLabels':
        """Return the labels of some items, by positions or as bool."""
        return ProbeLabels(self.presence[items], self.names, self.multi_label)


def read_labels(labels: Any, count: int, *, class_names: Sequence[str] = ()) -> ProbeLabels:
    """Read labels of one class for each item (items,), or of several (items, classes).

    Args:
        labels: Integers, texts or bool for one class; 0 and 1, or bool, for several.
        count: How many items there are.
        class_names: Of the columns of (items, classes); of single labels, a name for each value in sorted order, or for
            each of the values 0, 1, 2, ... where there are more names than values.

    Raises:
        ValueError: If the labels do not fit the items, the names or each other.
    """
    values = np.asarray(labels)
    columns = getattr(labels, 'columns', None)  # of a table
    if values.dtype.kind == 'U' and not isinstance(labels, np.ndarray):
        values = np.asarray(labels, object)  # of a list of texts NumPy makes 'nan' and 'None' of what is missing
    names = tuple(map(str, columns if columns is not None and not len(class_names) else class_names))
    if len(set(names)) < len(names):
        raise ValueError(f'class_names must differ from each other, got {", ".join(names)}')
    if values.ndim not in (1, 2) or len(values) != count:
        raise ValueError(
            f'{count:,} embeddings need as many labels, (items,) or (items, classes); got an array of {values.shape}'
        )
    if values.ndim == 2 and values.shape[1] == 1:
        raise ValueError('labels of one column (items, 1) are one class for each item; pass labels as (items,)')
    found = _read_presence(values, names) if values.ndim == 2 else _read_indices(values, names)
    if len(found.names) < 2:
        require_two(found)
    return found


def is_missing(value: Any) -> bool:
    """Whether a value says that there is none: None, NaN, pandas' NA and NaT, and an empty text."""
    if value is None or type(value).__name__ in ('NAType', 'NaTType'):
        return True
    if isinstance(value, str):
        return not value.strip()
    return isinstance(value, float | np.floating) and not np.isfinite(value)


def require_two(labels: ProbeLabels) -> None:
    """Refuse items of one class, which any classifier predicts.

    Raises:
        ValueError: If all items have the same class.
    """
    if labels.multi_label:
        return
    held = np.flatnonzero(labels.counts)
    if len(held) < 2:
        raise ValueError(f'all items have the class {labels.names[held[0]]!r}; a probe needs two classes at least')


def _read_presence(values: np.ndarray, names: tuple[str, ...]) -> ProbeLabels:
    if values.dtype.kind not in 'biuf' or not np.isin(values, (0, 1)).all():
        raise ValueError('labels of several classes (items, classes) are 0 or 1, whether an item has a class')
    names = names or tuple(f'class {index}' for index in range(values.shape[1]))
    if len(names) != values.shape[1]:
        raise ValueError(f'labels of {values.shape[1]} classes need as many class_names, got {len(names)}')
    return ProbeLabels(values.astype(bool), names, multi_label=True)


def _read_indices(values: np.ndarray, names: tuple[str, ...]) -> ProbeLabels:
    if values.dtype.kind == 'O':
        values = _read_objects(values.tolist())
    if values.dtype.kind == 'f':
        if not (np.isfinite(values) & (values == np.floor(values))).all():
            raise ValueError(UNKNOWN)
        values = values.astype(np.int64)
    if values.dtype.kind == 'U' and not all(map(str.strip, np.unique(values).tolist())):
        raise ValueError(UNKNOWN)
    if values.dtype.kind not in 'biuU':
        raise ValueError(f'labels must be whole numbers or texts, got an array of {values.dtype}')
    known, indices = np.unique(values, return_inverse=True)
    if names and len(names) != len(known):
        numbers = values.dtype.kind in 'iu'
        if not numbers or known[0] < 0 or known[-1] >= len(names):
            raise ValueError(f'the labels hold {len(known)} classes, but {len(names)} class_names are given')
        indices = values.astype(np.int64)
    presence = np.zeros((len(values), len(names) or len(known)), bool)
    presence[np.arange(len(values)), indices.ravel()] = True
    return ProbeLabels(presence, names or tuple(str(value) for value in known.tolist()), multi_label=False)


def _read_objects(values: list[Any]) -> np.ndarray:
    """Return an array of numbers or of texts: 1 and 1.0 are one class, 1 and '1' two kinds of labels."""
    if any(map(is_missing, values)):
        raise ValueError(UNKNOWN)
    texts = [isinstance(value, str) for value in values]
    if any(texts) and not all(texts):
        found = values[texts.index(False)]
        raise ValueError(f'labels must be all whole numbers or all texts, got texts and {found!r}')
    return np.array(values)

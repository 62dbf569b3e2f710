"""Large arrays that are used again: the system clears fresh memory, which takes longer than filling it with chips."""

import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

KEPT = 12
"""So many arrays are kept at most: a few for each batch that is on its way."""


def _references(arrays: Sequence[np.ndarray], place: int) -> int:
    """Count who refers to an array of a list, with the list and this function's own part of it."""
    array = arrays[place]
    return sys.getrefcount(array)


_UNUSED = _references([np.empty(0)], 0)
"""The count where nobody else refers to it; it differs between versions of Python."""


class Buffers:
    """Arrays to fill with batches; one is given out again once nothing else refers to it, neither array nor tensor.

    Threads may share one. A copy, also in another process, begins without any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[np.ndarray] = []

    def __reduce__(self) -> tuple[type['Buffers'], tuple[()]]:
        return Buffers, ()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return an array of any content, as `numpy.empty` does."""
        with self._lock:
            for place, (kept_shape, kept_dtype) in enumerate([(kept.shape, kept.dtype) for kept in self._kept]):
                if kept_shape == shape and kept_dtype == dtype and _references(self._kept, place) <= _UNUSED:
                    return self._kept[place]
            fresh = np.empty(shape, dtype)
            self._kept = [*self._kept[-KEPT + 1 :], fresh]
            return fresh

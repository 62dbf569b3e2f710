"""Large arrays that are used again: the system clears fresh memory, which takes longer than filling it with chips."""

import sys
import threading
from typing import Any

import numpy as np

KEPT = 12
"""So many arrays are kept at most: a few for each batch that is on its way."""


class Buffers:
    """Arrays to fill with batches; one is given out again once nothing else refers to it, neither array nor tensor."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[np.ndarray] = []

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return an array of any content, as `numpy.empty` does."""
        with self._lock:
            for place in range(len(self._kept)):
                array = self._kept[place]
                # the list, the name here and the call's own reference
                if array.shape == shape and array.dtype == dtype and sys.getrefcount(array) <= 3:
                    return array
            fresh = np.empty(shape, dtype)
            self._kept = [*self._kept[-KEPT + 1 :], fresh]
            return fresh

"""Which epoch was best, and whether it is time to stop."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from geolearn.errors import UnknownNameError
from geolearn.metrics.scores import higher_is_better


def resolve_monitor(name: str, columns: Sequence[str]) -> str:
    """Return the column that a monitor means; ``'valid_miou'`` is what ArcGIS calls ``'miou'``.

    Raises:
        UnknownNameError: If there is no such column; the message holds those there are.
    """
    for candidate in (name, name.removeprefix('valid_')):
        if candidate in columns:
            return candidate
    raise UnknownNameError('monitor', name, columns)


class Monitor:
    """Follows one column of the epoch table.

    Args:
        column: Its name.
        min_delta: By less than this is not better, for `waited`; for `best` every bit counts.
        parts: Columns that are parts of the loss, of which less is better.

    Raises:
        UnknownNameError: If the column has no better side.
    """

    def __init__(self, column: str, min_delta: float, *, parts: Sequence[str] = ()) -> None:
        self.column = column
        self._sign = 1.0 if column not in parts and higher_is_better(column) else -1.0
        self._min_delta, self._parts = min_delta, parts
        self.best, self.best_epoch = math.nan, 0
        self._mark, self.waited = math.nan, 0

    def take(self, row: Mapping[str, float]) -> bool:
        """Look at an epoch's row; returns whether it is the best so far."""
        value = row[self.column]
        gain = self._sign * (value - self._mark)
        if math.isnan(self._mark) or gain > self._min_delta:
            self._mark, self.waited = value, 0
        else:
            self.waited += 1
        if math.isnan(value) or self._sign * (value - self.best) <= 0:
            return False
        self.best, self.best_epoch = value, int(row['epoch'])
        return True

    def state(self) -> dict[str, Any]:
        """Return what it has seen, as JSON."""
        return {
            'column': self.column,
            'parts': [*self._parts],
            'best': self.best,
            'best_epoch': self.best_epoch,
            'mark': self._mark,
            'waited': self.waited,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what was seen."""
        self.best, self.best_epoch = state['best'], state['best_epoch']
        self._mark, self.waited = state['mark'], state['waited']

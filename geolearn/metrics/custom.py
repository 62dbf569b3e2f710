"""Metrics of the user's own beside those of a task: functions of the network's output and the targets of a batch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from geolearn.errors import ArgumentError
from geolearn.metrics.scores import Metric, Scores, sum_over_processes

MetricFunction = Callable[[Any, Any], Any]
"""Takes what the network returns for a batch and its targets, and returns one number."""


class ScoresAndFunctions:
    """The metrics of a task, and functions whose means over the chips become further columns; see `Scores`.

    Args:
        scores: Of the task.
    """

    def __init__(self, scores: Scores) -> None:
        self.scores = scores
        self.functions: dict[str, MetricFunction] = {}
        self._sums = torch.zeros(0)

    def use(self, functions: Sequence[MetricFunction]) -> None:
        """Compute these functions from now on, and no others.

        Args:
            functions: Their column is called as they are.

        Raises:
            ArgumentError: If one cannot be called, or is called as another column.
        """
        named: dict[str, MetricFunction] = {}
        for function in functions:
            if not callable(function):
                raise ArgumentError(f'metrics must be functions of output and targets, got {function!r}')
            name = getattr(function, '__name__', type(function).__name__)
            if name in named or name in {metric.name for metric in self.scores.columns}:
                raise ArgumentError(f'there is a metric {name!r} already; give the function another name')
            named[name] = function
        self.functions = named

    @property
    def columns(self) -> tuple[Metric, ...]:
        """The metrics, in the order in which they are shown."""
        return (*self.scores.columns, *(Metric(name) for name in self.functions))

    def reset(self) -> None:
        """Forget all batches."""
        self.scores.reset()
        self._sums = torch.zeros(1 + len(self.functions), dtype=torch.float64)

    def add(self, output: Any, target: Any) -> None:
        """Count a batch: what the network returned, and the truth."""
        self.scores.add(output, target)
        count = float(len(target[0] if isinstance(target, tuple) else target))
        values = []
        for name, function in self.functions.items():
            value = function(output, target)
            if torch.is_tensor(value) and value.numel() != 1:
                raise ArgumentError(f'metric {name} must return one number for a batch, got {tuple(value.shape)}')
            values.append(count * float(value))
        self._sums += torch.tensor([count, *values], dtype=torch.float64)

    def reduce(self) -> None:
        """Take in what other processes counted."""
        self.scores.reduce()
        self._sums = sum_over_processes(self._sums)

    def values(self) -> dict[str, float]:
        """Return the value of each metric by name; NaN where it is undefined."""
        count, *sums = self._sums.tolist()
        means = {name: total / count if count else math.nan for name, total in zip(self.functions, sums)}
        return {**self.scores.values(), **means}

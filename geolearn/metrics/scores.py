"""The interface between metrics and the training loop, and what counting batch by batch needs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, distributed

from geolearn.batch import Objects
from geolearn.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of the epoch table.

    Args:
        name: Unique, such as ``'miou'``.
        label: For people, such as ``'mean IoU'``; empty for the name with blanks in place of underscores.
        higher_is_better: Which way it improves; None where neither way is better, as for a bias.
    """

    name: str
    label: str = ''
    higher_is_better: bool | None = None

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, 'label', self.name.replace('_', ' '))

    def is_better(self, value: float, than: float) -> bool:
        """Whether a value is better than another one; a number is better than NaN.

        Raises:
            ValueError: If neither way is better.
        """
        if self.higher_is_better is None:
            raise ValueError(f'{self.name!r} is best at 0: no value of it is better for being higher or lower')
        if math.isnan(value) or math.isnan(than):
            return not math.isnan(value)
        return value > than if self.higher_is_better else value < than


LOSSES = (Metric('train_loss', 'training loss', False), Metric('valid_loss', 'validation loss', False))
"""The first columns of every epoch table."""


class Scores(Protocol):
    """Metrics that are counted batch by batch."""

    @property
    def columns(self) -> tuple[Metric, ...]:
        """The metrics, in the order in which they are shown."""

    def reset(self) -> None:
        """Forget all batches."""

    def add(self, output: Any, target: Any) -> None:
        """Count a batch: what the network returned, and the truth."""

    def reduce(self) -> None:
        """Take in what other processes counted: all must call it, once, after their last batch."""

    def values(self) -> dict[str, float]:
        """Return the value of each metric by name, in the order of `columns`; NaN where it is undefined."""


def best_epoch(rows: Sequence[Mapping[str, float]], metric: Metric) -> int | None:
    """Return the position of the best row by a metric, the first of equals; None where no row has a number there.

    Args:
        rows: Of the epoch table, values by column.
        metric: Which must have a better side.
    """
    best = None
    for index, row in enumerate(rows):
        if metric.is_better(row.get(metric.name, math.nan), math.nan if best is None else rows[best][metric.name]):
            best = index
    return best


def main_output(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the logits that count: the first where a network returns those of an auxiliary head too."""
    return output if isinstance(output, Tensor) else output[0]


def predict_classes(logits: Tensor, target: Tensor, *, ignored: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return predicted indices, the target, and how many of its entries have NaN or infinite logits.

    A class whose logit is NaN would count as the largest: such entries are ignored in the target that is returned, and
    scores of batches with some are undefined.

    Args:
        logits: (N, classes, ...).
        target: (N, ...) indices or `ignored`.
        ignored: Index of what takes no part.
    """
    highest, predicted = logits.max(1)
    invalid = ~highest.isfinite() & (target != ignored)
    return predicted, target.masked_fill(invalid, ignored), invalid.sum()


def undefined(scores: 'Scores') -> dict[str, float]:
    """Return NaN for each metric."""
    return {metric.name: math.nan for metric in scores.columns}


def widest(device: torch.device) -> torch.dtype:
    """Return the type to sum in: float64, but float32 on Apple's devices, which have nothing wider."""
    return torch.float32 if device.type == 'mps' else torch.float64


def count_indices(indices: Tensor, size: int) -> Tensor:
    """Count how often each of 0..size-1 occurs, as int64 (size,).

    Args:
        indices: int64 of any shape, within 0..size-1.
        size: Number of counters.
    """
    flat = indices.flatten()
    if flat.device.type == 'cpu':
        return torch.bincount(flat, minlength=size)
    # bincount waits for the device, to learn the largest index
    return flat.new_zeros(size).scatter_add_(0, flat, torch.ones_like(flat))


def sum_by_index(values: Tensor, indices: Tensor, size: int) -> Tensor:
    """Sum values by their index 0..size-1, as float64 (size,) where the device has it."""
    wide = widest(values.device)
    sums = torch.zeros(size, dtype=wide, device=values.device)
    return sums.index_add_(0, indices.flatten(), values.flatten().to(wide))


def add_to(total: Tensor, more: Tensor) -> Tensor:
    """Add to a running total, which moves to the device of what is added; after the first batch it is there."""
    return total.to(more.device) + more


def is_shared() -> bool:
    """Whether this is one of several processes that train together."""
    return distributed.is_available() and distributed.is_initialized()


def sum_over_processes(total: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, each of which must call this; alone, the tensor itself."""
    if not is_shared():
        return total
    # NCCL knows only its own devices, and a process without a batch still has its zeros on the CPU
    device = torch.device('cuda') if distributed.get_backend() == 'nccl' else torch.device('cpu')
    shared = total.to(device, copy=True)
    distributed.all_reduce(shared)
    return shared.to(total.device)


class JoinedScores:
    """The metrics of several scores, one after the other; see `Scores`.

    Args:
        parts: Of the same outputs and targets.
    """

    def __init__(self, *parts: Scores) -> None:
        self.parts = parts

    @property
    def columns(self) -> tuple[Metric, ...]:
        """The metrics, in the order in which they are shown."""
        return tuple(column for part in self.parts for column in part.columns)

    def reset(self) -> None:
        """Forget all batches."""
        for part in self.parts:
            part.reset()

    def add(self, output: Any, target: Any) -> None:
        """Count a batch: what the network returned, and the truth."""
        for part in self.parts:
            part.add(output, target)

    def reduce(self) -> None:
        """Take in what other processes counted."""
        for part in self.parts:
            part.reduce()

    def values(self) -> dict[str, float]:
        """Return the value of each metric by name; NaN where it is undefined."""
        return {name: value for part in self.parts for name, value in part.values().items()}


MetricFunction = Callable[[Any, Any], Any]
"""Takes what the network returns for a batch and its targets, and returns one number."""


@dataclass(frozen=True, slots=True)
class CustomMetric:
    """A function of the user's own as a column of the epoch table; ``fit(monitor=...)`` takes its name.

    Args:
        function: Takes the network's output and the targets of a validation batch, and returns one number.
        name: Of the column; empty for the name of the function.
        higher_is_better: Which way it improves, needed to monitor it; None takes what the function says by an attribute
            of this name, as metrics of torchmetrics do.
    """

    function: MetricFunction
    name: str = ''
    higher_is_better: bool | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ArgumentError(f'metrics must be functions of output and targets, got {self.function!r}')
        name = self.name or getattr(self.function, '__name__', type(self.function).__name__)
        if not name.isidentifier():
            raise ArgumentError(f'a metric needs a name, and {name!r} is none: CustomMetric(function, name=...)')
        object.__setattr__(self, 'name', name)
        if self.higher_is_better is None:
            object.__setattr__(self, 'higher_is_better', getattr(self.function, 'higher_is_better', None))


class ScoresAndFunctions:
    """The metrics of a task, and functions whose means over the chips become further columns; see `Scores`.

    Args:
        scores: Of the task.
    """

    def __init__(self, scores: Scores) -> None:
        self.scores = scores
        self.functions: dict[str, CustomMetric] = {}
        self._sums = torch.zeros(0)

    def use(self, functions: Sequence[MetricFunction | CustomMetric]) -> None:
        """Compute these functions from now on, and no others.

        Args:
            functions: Their column is called as they are.

        Raises:
            ArgumentError: If one cannot be called, or is called as another column.
        """
        named: dict[str, CustomMetric] = {}
        for function in functions:
            metric = function if isinstance(function, CustomMetric) else CustomMetric(function)
            if metric.name in named or metric.name in {column.name for column in (*LOSSES, *self.scores.columns)}:
                raise ArgumentError(
                    f'there is a metric {metric.name!r} already; give yours a name: CustomMetric(function, name=...)'
                )
            named[metric.name] = metric
        self.functions = named

    @property
    def columns(self) -> tuple[Metric, ...]:
        """The metrics, in the order in which they are shown."""
        return (
            *self.scores.columns,
            *(Metric(own.name, higher_is_better=own.higher_is_better) for own in self.functions.values()),
        )

    def reset(self) -> None:
        """Forget all batches."""
        self.scores.reset()
        self._sums = torch.zeros(1 + len(self.functions), dtype=torch.float64)

    def add(self, output: Any, target: Any) -> None:
        """Count a batch: what the network returned, and the truth."""
        self.scores.add(output, target)
        # the truth of detectors is a tuple of the objects in each image, other tuples hold a tensor of all images
        several = isinstance(target, tuple) and not isinstance(target[0], Objects)
        count = float(len(target[0] if several else target))
        values = []
        for name, own in self.functions.items():
            value = own.function(output, target)
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

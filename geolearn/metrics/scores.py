"""What the training loop asks of metrics: to see every validation batch, and to return a row of the epoch's table."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, distributed

from geolearn.errors import UnknownNameError


class Scores(Protocol):
    """Metrics that are counted batch by batch.

    Args:
        names: Of the values, in the order in which they are shown.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values, in the order in which they are shown."""

    def reset(self) -> None:
        """Forget all batches."""

    def add(self, output: Any, target: Any) -> None:
        """Count a batch: what the network returned, and the truth."""

    def reduce(self) -> None:
        """Take in what other processes counted: all must call it, once, after their last batch."""

    def values(self) -> dict[str, float]:
        """Return each name's value, in the order of `names`; NaN where it is undefined."""


HIGHER_IS_BETTER: Mapping[str, bool] = MappingProxyType(
    {
        'train_loss': False,
        'valid_loss': False,
        'accuracy': True,
        'miou': True,
        'dice': True,
        'kappa': True,
        'boundary_iou': True,
        'ece': False,
        'rmse': False,
        'mae': False,
        'r2': True,
        'f1': True,
        'f1_micro': True,
        'f1_macro': True,
        'f2_micro': True,
        'f2_macro': True,
        'precision': True,
        'recall': True,
        'hamming_loss': False,
        'map': True,
        'ap50': True,
        'ap75': True,
        'ap_small': True,
        'ap_medium': True,
        'ap_large': True,
    }
)
"""Which way each value improves. `bias` is missing: it is best at 0."""


def higher_is_better(name: str) -> bool:
    """Tell whether a value improves as it grows, for those who keep the best epoch.

    Args:
        name: One of `HIGHER_IS_BETTER`.

    Raises:
        UnknownNameError: If there is no such value, or it has no better side.
    """
    try:
        return HIGHER_IS_BETTER[name]
    except KeyError:
        raise UnknownNameError('value to monitor', name, HIGHER_IS_BETTER) from None


def main_output(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the logits that count: the first where a network returns those of an auxiliary head too."""
    return output if isinstance(output, Tensor) else output[0]


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

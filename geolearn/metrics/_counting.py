"""Count and sum on the device where the values are, without waiting for it, and over several processes."""

import torch
from torch import Tensor, distributed


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

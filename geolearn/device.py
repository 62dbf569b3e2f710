"""Which device to compute on, and what becomes of the memory of tensors there."""

import ctypes
import sys
from itertools import chain
from typing import Any

import torch
from torch import nn

from geolearn.errors import UnknownNameError


def is_out_of_memory(error: RuntimeError) -> bool:
    """Say whether torch found no memory, on whatever device."""
    text = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or 'out of memory' in text or "can't allocate memory" in text


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network, which may hold buffers alone; the CPU where it holds nothing."""
    return next((tensor.device for tensor in chain(network.parameters(), network.buffers())), torch.device('cpu'))


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device asked for, or CUDA where there is one, else the CPU.

    Raises:
        UnknownNameError: If there is no such kind of device.
        ValueError: If this machine has none of that kind, or not that many.
    """
    cuda = torch.cuda.is_available()
    if device is None:
        return torch.device('cuda' if cuda else 'cpu')
    here = ['cpu', *(f'cuda:{index}' for index in range(torch.cuda.device_count() if cuda else 0))]
    if torch.backends.mps.is_available():
        here.append('mps')
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UnknownNameError('device', str(device), sorted({'cpu', 'cuda', *here})) from error
    numbered = f'{chosen.type}:{chosen.index or 0}' if chosen.type == 'cuda' else chosen.type
    if chosen.type in ('cpu', 'cuda', 'mps') and numbered not in here:
        raise ValueError(f'device {str(device)!r} is not on this machine; it has {", ".join(here)}')
    return chosen


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_HEAP = 64 * 2**20
"""Of glibc: the largest piece that is no mapping of its own, and the size of the heaps of threads."""


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors freed, for the next tensors, where the C library is glibc.

    By default glibc hands large pieces back to the kernel, which zeroes each page when it is taken again: a tile of
    512 px took a Unet on ResNet-18 0.92 s so, 0.84 s with what was freed kept, and 1.6 s where Dask's nanny sets the
    threshold of its workers to 64 KiB (MALLOC_TRIM_THRESHOLD_). `give_back_freed_memory` undoes what was kept.
    """
    mallopt = _glibc('mallopt')
    if mallopt is not None:
        # glibc before 2.35 takes half a heap at most; a limit to trimming alone would switch its own threshold off
        if not any(mallopt(_M_MMAP_THRESHOLD, size) for size in (_HEAP, _HEAP // 2)):
            return
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        # heaps of threads other than the first are unmapped whole once they are empty, but for this margin
        mallopt(_M_TOP_PAD, _HEAP)


def give_back_freed_memory() -> None:
    """Hand memory that is not in use back to the kernel, where the C library is glibc."""
    trim = _glibc('malloc_trim')
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Any:
    """Return a function of glibc; None where the C library is another, as musl."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == 'linux' else None

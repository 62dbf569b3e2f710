"""In which precision a network computes. Torch is imported where it is used: `geolearn.onnx` runs without it."""

import math
import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal['bf16', 'fp16']

SLOW = 1.5
"""Times as long as in float32 that bfloat16 may take before it is told of."""


def check_precision(wish: object) -> None:
    """Raise ValueError unless mixed precision is ``'bf16'``, ``'fp16'``, a bool or None."""
    if not isinstance(wish, str | bool | None) or wish not in (None, True, False, 'bf16', 'fp16'):
        raise ValueError(f"mixed_precision must be 'bf16', 'fp16', a bool or None, got {wish!r}")


def choose_precision(wish: Precision | bool | None, device: 'torch.device') -> Precision | None:
    """Return what to compute in on a device, None for float32.

    Args:
        wish: What the caller asks for; True for the better of them on a GPU.
        device: That computes.

    Raises:
        ValueError: If the device has no float16.
    """
    if wish == 'fp16' and device.type != 'cuda':
        raise ValueError(
            f"mixed_precision='fp16' needs a CUDA device and this is {device.type!r}; pass mixed_precision='bf16', or "
            'mixed_precision=None for float32'
        )
    if wish is True:
        import torch

        if device.type != 'cuda':
            return None  # on CPUs it is slower without special hardware
        return 'bf16' if torch.cuda.is_bf16_supported(including_emulation=False) else 'fp16'
    return wish or None


def casting(precision: Precision | None, device: 'torch.device') -> AbstractContextManager[Any]:
    """Return a context in which matrix products and convolutions are in half precision; None changes nothing."""
    if precision is None:
        return nullcontext()
    import torch

    return torch.autocast(device.type, torch.bfloat16 if precision == 'bf16' else torch.float16)


def precision_note(wish: Precision | bool | None, device: 'torch.device') -> str | None:
    """Say what mixed precision does not bring on a device: float32 after all, or a slower run; None where all is well.

    Raises:
        ValueError: If the device has no float16.
    """
    precision = choose_precision(wish, device)
    if wish is True and precision is None:
        return f'mixed precision is for GPUs and this is {device.type!r}: computing in float32'
    if precision == 'bf16' and device.type == 'cpu' and (slowdown := bfloat16_slowdown()) > SLOW:
        return (
            f"mixed_precision='bf16' is {slowdown:.0f} times as slow as float32 on this CPU, which has no instructions "
            'for it; pass mixed_precision=None'
        )
    return None


@cache
def bfloat16_slowdown() -> float:
    """Measure how many times as long a convolution takes in bfloat16 as in float32 on this CPU; takes about 0.1 s."""
    import torch

    # no random numbers: a training must be the same whether or not this was measured before it
    images, kernels = torch.full((1, 32, 48, 48), 0.5), torch.full((32, 32, 3, 3), 0.01)
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    with torch.no_grad():
        for _ in range(4):
            for dtype in seconds:
                given = images.to(dtype), kernels.to(dtype)
                started = time.perf_counter()
                torch.conv2d(*given)
                seconds[dtype] = min(seconds[dtype], time.perf_counter() - started)
    return seconds[torch.bfloat16] / seconds[torch.float32]

"""Numbers from the device, read a little later so that the device never waits for this process."""

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

GPU_DELAY = 2
"""So many batches later numbers are read from a GPU: by then it has long computed them."""


class Reading(NamedTuple):
    """What one batch came to.

    Args:
        loss: Its mean loss.
        gradient: Norm of the gradient before it was clipped; NaN where no step was due.
        spoilt: Whether either is no number.
        context: What was handed in with it.
    """

    loss: float
    gradient: float
    spoilt: bool
    context: Any


class Readings:
    """Numbers on their way from the device, in order.

    Args:
        device: Where they come from.
    """

    def __init__(self, device: torch.device) -> None:
        self.delay = GPU_DELAY if device.type == 'cuda' else 0
        self._waiting: deque[tuple[Tensor, torch.cuda.Event | None, Any]] = deque()

    def put(self, numbers: Tensor, context: Any) -> list[Reading]:
        """Hand in loss, gradient norm and spoilt (3,) of a batch; returns what is ready by now."""
        event = None
        if numbers.is_cuda:
            numbers = numbers.to('cpu', non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._waiting.append((numbers, event, context))
        return self._take(self.delay)

    def drain(self) -> list[Reading]:
        """Return all that is left, waiting for it."""
        return self._take(0)

    def clear(self) -> None:
        """Forget what was not read."""
        self._waiting.clear()

    def _take(self, left: int) -> list[Reading]:
        ready = []
        while len(self._waiting) > left:
            numbers, event, context = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            loss, gradient, spoilt = numbers.tolist()
            ready.append(Reading(loss, gradient, bool(spoilt), context))
        return ready

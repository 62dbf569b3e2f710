"""Losses that are no numbers: keep the weights from them, and name the batch they came from."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geolearn.chips.batches.loader import ChipLoader
from geolearn.errors import TrainingError

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


SHOWN_NAMES = 16


class Seen(NamedTuple):
    """A batch whose numbers are not known yet.

    Args:
        epoch: From 1.
        number: Of the batch in its epoch, from 1.
        images: (N, bands, H, W).
        statistics: Running statistics as they were before the batch, flat.
    """

    epoch: int
    number: int
    images: Tensor
    statistics: Tensor | None


def running_statistics(network: nn.Module) -> list[Tensor]:
    """Return the buffers that a forward pass in training changes: the norms' running means and variances."""
    return [
        buffer
        for name, buffer in network.named_buffers()
        if buffer.is_floating_point() and name.split('.')[-1].startswith('running_')
    ]


def copy_statistics(buffers: Sequence[Tensor]) -> Tensor | None:
    """Copy running statistics into one flat tensor; None if there are none."""
    return torch.cat([buffer.flatten() for buffer in buffers]) if buffers else None


def put_back_statistics(buffers: Sequence[Tensor], flat: Tensor | None) -> None:
    """Undo what batches since `copy_statistics` did to running statistics."""
    if flat is not None:
        for buffer, kept in zip(buffers, flat.split([buffer.numel() for buffer in buffers])):
            buffer.copy_(kept.view_as(buffer))


def spoilt_error(seen: Seen, loss: float, *, loader: Any, network: nn.Module, before: float) -> TrainingError:
    """Say which batch's loss or gradient is no number, and what is known of it.

    Args:
        seen: The batch.
        loss: Its loss.
        loader: Where it came from.
        network: Whose gradients are looked at.
        before: Norm of the gradient one step earlier.
    """
    holes = float(seen.images.isnan().float().mean())
    infinite = float(seen.images.isinf().float().mean())
    found = f'the loss is {loss:.4g}' + (', but its gradient is no number' if math.isfinite(loss) else '')
    lines = [
        f'{found} at batch {seen.number} of epoch {seen.epoch}; the weights are those before it',
        f'  chips     {_name_chips(loader, seen.number)}',
        f'  images    {holes:.1%} of the pixels without data (NaN), {infinite:.1%} infinite',
        f'  gradient  {_largest_gradient(network)}; norm one step earlier {before:.3g}',
        'take a smaller learning rate, or look at these chips; mixed precision, if on, may be the cause',
    ]
    return TrainingError('\n'.join(lines))


def _name_chips(loader: Any, number: int) -> str:
    if not isinstance(loader, ChipLoader):
        return 'of no name'
    names = loader.batch_names(number - 1)
    left = len(names) - SHOWN_NAMES
    return ', '.join(names[:SHOWN_NAMES]) + (f' and {left} more' if left > 0 else '')


def _largest_gradient(network: nn.Module) -> str:
    largest = {n: float(p.grad.abs().max()) for n, p in network.named_parameters() if p.grad is not None}
    broken = [name for name, value in largest.items() if not math.isfinite(value)]
    if broken:
        return f'of no number in {len(broken)} of {len(largest)} weights, the first {broken[0]}'
    if not largest:
        return 'gone by now'
    name = max(largest, key=lambda key: largest[key])
    return f'largest in {name}: {largest[name]:.3g}'

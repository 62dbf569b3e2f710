"""Losses and gradients that are NaN or infinite: keep the weights from them, and name the batch they came from."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geolearn.chips.batches.loader import ChipLoader
from geolearn.errors import TrainingError

GPU_DELAY = 2
"""So many batches later numbers are read from a GPU: by then it has long computed them."""

MAX_NAMES = 16
"""Chips that a message names."""


class BatchResult(NamedTuple):
    """What was computed of one batch.

    Args:
        loss: Its mean loss.
        gradient: Norm of the gradient before it was clipped; NaN where no step was due.
        nonfinite: Whether either is NaN or infinite.
        context: What was handed in with it.
    """

    loss: float
    gradient: float
    nonfinite: bool
    context: Any


class DeferredScalars:
    """Numbers on their way from the device, in order: waiting for each would hold up a GPU.

    Args:
        device: Where they come from.
    """

    def __init__(self, device: torch.device) -> None:
        self.delay = GPU_DELAY if device.type == 'cuda' else 0
        self._waiting: deque[tuple[Tensor, torch.cuda.Event | None, Any]] = deque()

    def put(self, numbers: Tensor, context: Any) -> list[BatchResult]:
        """Hand in loss, gradient norm and the non-finite flag (3,) of a batch; returns what is ready by now."""
        event = None
        if numbers.is_cuda:
            numbers = numbers.to('cpu', non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._waiting.append((numbers, event, context))
        return self._take(self.delay)

    def drain(self) -> list[BatchResult]:
        """Return all that is left, waiting for it."""
        return self._take(0)

    def clear(self) -> None:
        """Forget what was not read."""
        self._waiting.clear()

    def _take(self, left: int) -> list[BatchResult]:
        ready = []
        while len(self._waiting) > left:
            numbers, event, context = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            loss, gradient, nonfinite = numbers.tolist()
            ready.append(BatchResult(loss, gradient, bool(nonfinite), context))
        return ready


class BatchContext(NamedTuple):
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


def check_outputs(output: Any, names: Callable[[], Sequence[str]]) -> None:
    """Refuse outputs that are NaN or infinite: metrics would count them as some class.

    Args:
        output: (n, ...) of n chips, or a tuple or mapping of such.
        names: Returns the names of these chips; called only where they are needed.

    Raises:
        TrainingError: Naming the chips.
    """
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else (output,)
    for part in parts:
        if not isinstance(part, Tensor):
            continue
        wrong = part.detach().isfinite().logical_not().reshape(len(part), -1).any(1)
        if bool(wrong.any()):
            known = names()
            broken = [known[row] for row in wrong.nonzero().flatten().tolist()]
            what = 'NaN' if bool(part.detach().isnan().any()) else 'infinite values'
            raise TrainingError(
                f'the network returns {what} for {"chip" if len(broken) == 1 else "chips"} {_few(broken)}. Its weights '
                'are broken, or it computes beyond the range of its precision: train with a smaller learning rate or '
                'without mixed precision, or look at these chips'
            )


def predict_batches(network: nn.Module, chips: ChipLoader) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield images, truth and output of each batch of a loader that does not shuffle.

    Raises:
        TrainingError: If an output is NaN or infinite, naming the chips.
    """
    for number, (images, truth) in enumerate(chips):
        output = network(images)
        check_outputs(output, partial(chips.batch_names, number))
        yield images, truth, output


def check_weights(network: nn.Module) -> None:
    """Refuse a network with weights or statistics that are NaN or infinite.

    Raises:
        TrainingError: Naming the first of them.
    """
    broken = [n for n, t in network.state_dict().items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if broken:
        raise TrainingError(
            f'{len(broken)} weights of the network are NaN or infinite, the first {broken[0]}: train again with a '
            'smaller learning rate, or load another checkpoint'
        )


@contextmanager
def checked_maps(network: nn.Module, names: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Check the outputs of a module that runs in the block: detectors leave out what is NaN without a word.

    Args:
        network: Whose outputs are (n, ...), or tuples or mappings of such.
        names: Returns the names of the n chips.

    Raises:
        TrainingError: If any is NaN or infinite.
    """

    def check(module: nn.Module, given: Any, output: Any) -> None:
        check_outputs(tuple(output) if isinstance(output, list) else output, names)

    hook = network.register_forward_hook(check)
    try:
        yield
    finally:
        hook.remove()


def nonfinite_error(
    context: BatchContext, loss: float, *, loader: Any, network: nn.Module, before: float
) -> TrainingError:
    """Say which batch's loss or gradient is NaN or infinite, and what is known of it.

    Args:
        context: The batch.
        loss: Its loss.
        loader: Where it came from.
        network: Whose gradients are described.
        before: Norm of the gradient one step earlier.
    """
    missing = float(context.images.isnan().float().mean())
    infinite = float(context.images.isinf().float().mean())
    what = f'the loss is {loss:.4g}' + (', but its gradient is not finite' if math.isfinite(loss) else '')
    lines = [
        f'{what} at batch {context.number} of epoch {context.epoch}; the weights are those before it',
        f'  chips     {_name_chips(loader, context.number)}',
        f'  images    {missing:.1%} of the pixels without data (NaN), {infinite:.1%} infinite',
        f'  gradient  {_largest_gradient(network)}; norm one step earlier {before:.3g}',
        'take a smaller learning rate, or look at these chips; mixed precision, if on, may be the cause',
    ]
    return TrainingError('\n'.join(lines))


def _name_chips(loader: Any, number: int) -> str:
    if not isinstance(loader, ChipLoader):
        return 'unnamed'
    return _few(loader.batch_names(number - 1))


def _few(names: Sequence[str]) -> str:
    left = len(names) - MAX_NAMES
    return ', '.join(names[:MAX_NAMES]) + (f' and {left} more' if left > 0 else '')


def _largest_gradient(network: nn.Module) -> str:
    largest = {n: float(p.grad.abs().max()) for n, p in network.named_parameters() if p.grad is not None}
    broken = [name for name, value in largest.items() if not math.isfinite(value)]
    if broken:
        return f'non-finite in {len(broken)} of {len(largest)} parameters, the first {broken[0]}'
    if not largest:
        return 'freed'
    name = max(largest, key=lambda key: largest[key])
    return f'largest in {name}: {largest[name]:.3g}'

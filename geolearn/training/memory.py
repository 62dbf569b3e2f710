"""Where memory runs out: compute a batch in micro-batches, and measure how many chips fit."""

import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from geolearn import errors, progress
from geolearn.device import device_of, is_out_of_memory

Result = TypeVar('Result')


class MicroBatches:
    """How many chips are computed at once: the whole batch, until memory runs out, and then halves of it.

    Args:
        size: At most so many; None for whole batches.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def run(self, count: int, compute: Callable[[Sequence[slice]], Result]) -> Result:
        """Compute a batch of `count` chips in as many micro-batches as it takes.

        Args:
            count: Chips in the batch.
            compute: Takes the micro-batches and starts over each time it is called.

        Raises:
            TrainingError: If memory does not even hold one chip.
        """
        while True:
            size = min(self.size or count, count)
            try:
                return compute([slice(start, start + size) for start in range(0, count, size)])
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise errors.TrainingError(
                        'memory ran out with one chip at a time; take a smaller chip_size or backbone, or '
                        "mixed_precision='bf16'"
                    ) from error
            # only here, past the handler, does the error no longer hold what the attempt had computed
            self._halve(size)

    def _halve(self, size: int) -> None:
        self.size = (size + 1) // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        progress.print_line(
            f'out of memory with {size} chips at once: from here on {self.size} at a time, with the same steps'
        )


MEASURED = (2, 3)
"""Batches that are measured; batch normalization after a global pooling refuses a single chip."""

KEPT_FREE = 0.1
"""Share of the free memory that is left for whatever is not measured."""

BACKWARD_SHARE = 1.3
"""On a CPU, memory of a step over what is kept for the backward pass."""


class BatchSize(NamedTuple):
    """How many chips fit into memory.

    Args:
        recommended: The largest power of two that fits.
        maximum: The most that fit.
    """

    recommended: int
    maximum: int


def estimate_batch_size(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    mode: Literal['train', 'eval'] = 'train',
    loss: Callable[[Any], Tensor] | None = None,
    free_bytes: int | None = None,
) -> BatchSize:
    """Measure the memory of two small batches and say how large a batch may be.

    On a GPU the peak of a step is measured. On a CPU it is what the step keeps for the backward pass, and a third more.

    Args:
        network: On its device; it is left as it was.
        image_shape: (bands, height, width) of a chip.
        mode: ``'train'`` counts gradients and the optimizer; ``'eval'`` does not.
        loss: Of the network's output; None for the mean of it.
        free_bytes: Memory to fill; None for what is free now.

    Raises:
        TrainingError: If not even two chips fit, or the free memory is not known.
    """
    if mode not in ('train', 'eval'):
        raise ValueError(f"mode must be 'train' or 'eval', got {mode!r}")
    device = device_of(network)
    too_large = f'not even {MEASURED[1]} chips of {image_shape} fit into memory'
    shapes = [(n, *image_shape) for n in MEASURED]
    few, more = _measure(network, shapes, loss, train=mode == 'train', too_large=too_large)
    per_chip = max((more - few) / (MEASURED[1] - MEASURED[0]), 1.0)
    trained = sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)
    fixed = max(few - MEASURED[0] * per_chip, 0) + (2 * trained if mode == 'train' else 0)
    free = free_memory(device) if free_bytes is None else free_bytes
    maximum = int((free * (1 - KEPT_FREE) - fixed) / per_chip)
    if maximum < 1:
        raise errors.TrainingError(
            f'a chip of {image_shape} needs {per_chip + fixed:.3g} bytes and {free:.3g} are free'
        )
    return BatchSize(recommended=1 << (maximum.bit_length() - 1), maximum=maximum)


def estimate_step_memory(network: nn.Module, images_shape: Sequence[int]) -> int:
    """Measure the memory of a training step: weights, gradients, AdamW's two moments, and what the backward pass needs.

    On a CPU what the step keeps for the backward pass is counted, and a third more.

    Args:
        network: On its device; what of it is trained is marked so. It is left as it was.
        images_shape: (chips, bands, height, width) of a batch.

    Returns:
        Bytes.

    Raises:
        TrainingError: If the batch does not fit.
    """
    shape = tuple(images_shape)
    (step,) = _measure(network, [shape], None, train=True, too_large=f'a batch of {shape} does not fit into memory')
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    trained = sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)
    return int(step + weights + 2 * trained)


def free_memory(device: torch.device) -> int:
    """Return the bytes that a program may still take on a device.

    Raises:
        TrainingError: If the system does not say.
    """
    if device.type == 'cuda':
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if sys.platform != 'linux':
        raise errors.TrainingError('this system does not say how much memory is free; pass free_bytes')
    lines = dict(line.split(':', 1) for line in Path('/proc/meminfo').read_text().splitlines())
    free = int(lines['MemAvailable'].split()[0]) * 1024
    group = Path('/sys/fs/cgroup')
    if (group / 'memory.max').is_file() and (limit := (group / 'memory.max').read_text().strip()) != 'max':
        free = min(free, int(limit) - int((group / 'memory.current').read_text()))
    return max(free, 0)


def _measure(
    network: nn.Module,
    shapes: Sequence[tuple[int, ...]],
    loss: Callable[[Any], Tensor] | None,
    *,
    train: bool,
    too_large: str,
) -> list[float]:
    """Return the bytes that batches of some shapes take beside the weights, and leave the network as it was.

    Raises:
        TrainingError: With `too_large`, if one does not fit.
    """
    device = device_of(network)
    measure = _peak_on_gpu if device.type == 'cuda' else _kept_on_cpu
    training, state = network.training, {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train(train)
    try:
        with torch.random.fork_rng([device] if device.type == 'cuda' else []):
            return [measure(network, shape, loss, train=train) for shape in shapes]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise errors.TrainingError(too_large) from error
    finally:
        network.load_state_dict(state)
        network.zero_grad()
        network.train(training)


def _step(network: nn.Module, shape: tuple[int, ...], loss: Callable[[Any], Tensor] | None) -> Tensor:
    device = device_of(network)
    output = network(torch.rand(shape, device=device))
    return loss(output) if loss is not None else _mean_of(output)


def _mean_of(output: Any) -> Tensor:
    """Return a number that depends on every tensor in an output."""
    if isinstance(output, Tensor):
        return output.float().mean()
    values = output.values() if isinstance(output, dict) else output
    return torch.stack([_mean_of(value) for value in values]).sum()


def _peak_on_gpu(
    network: nn.Module, shape: tuple[int, ...], loss: Callable[[Any], Tensor] | None, *, train: bool
) -> float:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.set_grad_enabled(train):
        value = _step(network, shape, loss)
    if train:
        value.backward()
    network.zero_grad()
    return float(torch.cuda.max_memory_allocated() - before)


def _kept_on_cpu(
    network: nn.Module, shape: tuple[int, ...], loss: Callable[[Any], Tensor] | None, *, train: bool
) -> float:
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = _step(network, shape, loss)  # held until all is counted, so that no memory is used twice
    gradients = sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad) if train else 0
    del value
    return BACKWARD_SHARE * sum(kept.values()) + gradients

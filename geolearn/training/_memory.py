"""What to do where memory runs out: compute fewer chips at once, and say how many fit."""

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from tqdm.auto import tqdm

from geolearn.errors import TrainingError

Result = TypeVar('Result')


def is_out_of_memory(error: RuntimeError) -> bool:
    """Say whether torch found no memory, on whatever device."""
    text = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or 'out of memory' in text or "can't allocate memory" in text


class Portions:
    """How many chips are computed at once: the whole batch, until memory runs out, and then halves of it.

    Args:
        size: At most so many; None for whole batches.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def run(self, count: int, compute: Callable[[Sequence[slice]], Result]) -> Result:
        """Compute a batch of `count` chips in as many portions as it takes.

        Args:
            count: Chips in the batch.
            compute: Takes the portions and starts over each time it is called.

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
                    raise TrainingError(
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
        tqdm.write(f'out of memory with {size} chips at once: from here on {self.size} at a time, with the same steps')

"""What the training loop asks of losses and splitters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

Splitter = Callable[[Any], Sequence[list[nn.Parameter]]]


@runtime_checkable
class CountingLoss(Protocol):
    """A loss that says how much its mean is over, such as the labelled pixels; otherwise it counts by chips."""

    def counted(self, *targets: Any) -> Tensor:
        """Return the sum of the weights that the loss of these targets was divided by."""


@runtime_checkable
class PartedLoss(Protocol):
    """A loss made of several."""

    parts: Mapping[str, Tensor]
    """What each came to in the last call; empty before the first."""

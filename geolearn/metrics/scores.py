"""What the training loop asks of metrics: to see every validation batch, and to return a row of the epoch's table."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor

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

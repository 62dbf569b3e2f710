"""A loss of the user's own: any torch.nn.Module of the network's output and the targets."""

from typing import Any

from torch import Tensor, nn

from geolearn.classes import IGNORE_INDEX
from geolearn.errors import ArgumentError


class CustomLoss(nn.Module):
    """Call a module with outputs and targets, for an auxiliary head too; batches weigh by their number of chips.

    Args:
        module: Takes logits (N, classes, H, W) and indices (N, H, W), IGNORE_INDEX (255) where nothing is labelled; for
            regression values (N, 1, H, W) and (N, H, W), NaN where there is no truth. Returns one number.
        auxiliary_weight: Of the loss of an auxiliary head.
    """

    def __init__(self, module: nn.Module, auxiliary_weight: float = 0.4) -> None:
        super().__init__()
        self.module, self.auxiliary_weight = module, auxiliary_weight

    def forward(self, output: Tensor | tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        """Return the loss of the output, or of (main, auxiliary)."""
        if isinstance(output, Tensor):
            return self._one(output, target)
        main, auxiliary = output
        return self._one(main, target) + self.auxiliary_weight * self._one(auxiliary, target)

    def _one(self, output: Tensor, target: Tensor) -> Tensor:
        ignored: Any = getattr(self.module, 'ignore_index', IGNORE_INDEX)
        name = type(self.module).__name__
        if ignored != IGNORE_INDEX and not target.is_floating_point() and bool((target == IGNORE_INDEX).any()):
            raise ArgumentError(
                f'pixels without a label have the index {IGNORE_INDEX}, and {name} ignores {ignored}; make it with '
                f'ignore_index={IGNORE_INDEX}'
            )
        loss = self.module(output, target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ArgumentError(f'{name} must return a tensor of one number for a batch, got {found}')
        return loss.reshape(())

"""Losses made of other losses."""

from typing import Any, cast

from torch import Tensor, nn

Logits = Tensor | tuple[Tensor, Tensor]
"""What a network returns: the main logits, or these and those of an auxiliary head."""


class Mixed(nn.Module):
    """(1 - fraction) * base + fraction * dice, which ArcGIS calls `dice_loss_fraction`.

    Args:
        base: Loss of logits and indices.
        dice: Another one.
        fraction: Share of the latter, 0..1.
    """

    def __init__(self, base: nn.Module, dice: nn.Module, fraction: float) -> None:
        super().__init__()
        self.base, self.dice, self.fraction = base, dice, fraction

    def counted(self, target: Tensor) -> Tensor:
        """Return what the base's mean is over."""
        return cast(Any, self.base).counted(target)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mix for logits (N, classes, H, W) and indices (N, H, W)."""
        return (1 - self.fraction) * self.base(logits, target) + self.fraction * self.dice(logits, target)


class WithAuxiliary(nn.Module):
    """Add the loss of an auxiliary head, where the network has one and is in training.

    Args:
        base: Loss of logits and targets.
        weight: Of the auxiliary loss, >= 0 (0.4: Zhao et al. 2017, arXiv:1612.01105).
    """

    def __init__(self, base: nn.Module, weight: float = 0.4) -> None:
        super().__init__()
        self.base, self.weight = base, weight

    def counted(self, target: Tensor) -> Tensor:
        """Return what the base's mean is over."""
        return cast(Any, self.base).counted(target)

    def forward(self, logits: Logits, target: Tensor) -> Tensor:
        """Return the loss of logits, or of (main, auxiliary), all of the target's height and width."""
        if isinstance(logits, Tensor):
            return self.base(logits, target)
        main, auxiliary = logits
        return self.base(main, target) + self.weight * self.base(auxiliary, target)

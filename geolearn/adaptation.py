"""What of a backbone is trained and how, and how its maps of several dates become one: plain values without torch."""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

Temporal = Literal['mean', 'concat', 'ltae']
"""How the maps of several dates become one."""

FREEZE_WORDS = ('none', 'all', 'all but norms')


def is_whole(value: object) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Adaptation:
    """How a backbone's trunk is trained; pyramid and decoder always learn fully.

    Args:
        freeze: ``'none'``; ``'all'`` of the trunk; ``'all but norms'``; or how many blocks from the first on, with the
            patch embedding (0 freezes nothing).
        layer_decay: Factor on the learning rate from each block to the one before it, as in ViTDet (0.7 for base, 0.8
            for large, 0.9 for huge; Li et al. 2022, arXiv:2203.16527); None for one rate.
        lora_rank: Rank of low-rank updates (Hu et al. 2021, arXiv:2106.09685) of attention and perceptron; with one,
            the rest of the trunk is frozen, but for the norms with ``freeze='all but norms'``. 0 for none.
        lora_alpha: Strength of the updates, which are multiplied by lora_alpha / lora_rank; None means twice the rank.
        drop_path: Rate of stochastic depth at the last block, 0..1.
        checkpointing: Whether training computes activations again instead of keeping them: less memory, more time.

    Raises:
        ValueError: If a value makes no sense.
    """

    freeze: str | int = 'none'
    layer_decay: float | None = None
    lora_rank: int = 0
    lora_alpha: float | None = None
    drop_path: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if not (_is_number(self.drop_path) and 0 <= self.drop_path < 1):
            raise ValueError(f'drop_path must lie in 0..1, got {self.drop_path!r}')
        counted = is_whole(self.freeze) and int(self.freeze) >= 0
        if not counted and self.freeze not in FREEZE_WORDS:
            raise ValueError(f'freeze must be one of {FREEZE_WORDS} or a number of blocks, got {self.freeze!r}')
        if self.layer_decay is not None and not (_is_number(self.layer_decay) and 0 < self.layer_decay <= 1):
            raise ValueError(f'layer_decay must lie over 0 and up to 1, got {self.layer_decay!r}')
        if not is_whole(self.lora_rank) or self.lora_rank < 0:
            raise ValueError(f'lora_rank must be a whole number from 0, got {self.lora_rank!r}')
        if self.lora_alpha is not None and not (_is_number(self.lora_alpha) and 0 < self.lora_alpha < math.inf):
            raise ValueError(f'lora_alpha must be a number over 0, got {self.lora_alpha!r}')
        if self.lora_alpha is not None and not self.lora_rank:
            raise ValueError('lora_alpha goes with lora_rank; pass lora_rank=8 or so')


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


DEFAULT_ADAPTATION = Adaptation()
"""Everything learns, at one rate."""

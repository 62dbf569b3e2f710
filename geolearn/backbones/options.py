"""How a backbone is to be built: the arguments of `create_backbone`, and what networks make of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from geolearn.backbones.pyramid import STRIDES
from geolearn.errors import BackboneError

Form = Literal['pyramid', 'layers', 'tokens']
"""What a backbone returns: ``'pyramid'`` and ``'layers'`` feature maps, finest first; ``'tokens'`` native tokens."""


@dataclass(frozen=True, slots=True)
class BackboneOptions:
    """How to build a backbone; the arguments of `create_backbone`, checked as far as no network is needed for it."""

    pretrained: bool = True
    weights: str | Path | None = None
    form: Form = 'pyramid'
    window: int | None = None
    drop_path: float = 0.0
    strides: tuple[int, ...] | None = STRIDES
    layers: tuple[int, ...] | None = None
    relative_positions: bool = False
    checkpointing: bool = False

    def __post_init__(self) -> None:
        forms = get_args(Form)
        if self.form not in forms:
            raise ValueError(f'form must be {", ".join(map(repr, forms[:-1]))} or {forms[-1]!r}, got {self.form!r}')
        if self.window is not None and self.window < 0:
            raise ValueError(f'window must be None, 0 for global attention, or a side in tokens, got {self.window}')
        if not 0 <= self.drop_path < 1:
            raise ValueError(f'drop_path must lie in 0..1, got {self.drop_path}')
        if self.layers is not None and self.form == 'pyramid':
            raise ValueError("layers goes with the forms 'layers' and 'tokens'; the pyramid stands on the last layer")
        if self.relative_positions and self.form == 'tokens':
            raise ValueError("relative_positions go with the forms 'pyramid' and 'layers'; native tokens have none")

    @property
    def wants_weights(self) -> bool:
        """Whether the trunk is to be filled with pretrained weights."""
        return self.pretrained or self.weights is not None


def choose_strides(name: str, asked: Sequence[int] | None, offered: Sequence[int] = STRIDES) -> tuple[int, ...]:
    """Return the strides that are asked for, finest first; all that a network offers where None are.

    Raises:
        BackboneError: If one is not offered, or they are out of order; the message names what is offered.
    """
    offered = tuple(offered)
    if asked is None:
        return offered
    strides = tuple(asked)
    if not strides or strides != tuple(stride for stride in offered if stride in strides):
        raise BackboneError(
            f'{name} has no such maps: strides must be some of {offered}, finest first, got {strides}; '
            'strides=None takes all of them'
        )
    return strides


def end_at_coarsest(strides: Sequence[int], offered: Sequence[int]) -> tuple[int, ...]:
    """Put a network's own last map in place of the last stride, where that is 16 or more.

    A network of several resolutions was made to end in its coarsest map; what comes before sees too little.
    """
    return (*strides[:-1], max(offered)) if strides[-1] >= STRIDES[-2] else tuple(strides)


def refuse_transformer_options(name: str, options: BackboneOptions) -> None:
    """Raise BackboneError where options ask a network of several resolutions for what plain transformers have.

    Its own maps serve as ``'pyramid'`` and as ``'layers'``.
    """
    if options.form == 'tokens':
        raise BackboneError(
            f"{name} is a network of several resolutions without tokens; form must be 'pyramid' or 'layers'"
        )
    if options.layers is not None or options.relative_positions or options.window:
        raise BackboneError(f'{name} is no plain transformer; layers, window and relative_positions do not apply')

"""The losses of pixel classification by name, and their choice as plain values that a bundle can keep."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor, nn

from geolearn import classes, errors
from geolearn.losses.centerline import CenterlineDice

Average = Literal['micro', 'macro']
"""Whether pixels of all classes are summed before dividing, or each class is divided and then counts the same."""

Logits = Tensor | tuple[Tensor, Tensor]
"""What a network returns: the main logits, or these and those of an auxiliary head."""


MOST_CLDICE, MOST_CLDICE_STEPS = 0.5, 64
"""Largest share of centerline dice, and most pixels to the middle of a line."""


@dataclass(frozen=True, kw_only=True)
class PixelLossOptions:
    """The loss of pixel classification; `dataclasses.asdict` makes JSON of it.

    Args:
        loss: One of `pixel_loss_names()`.
        focal_gamma: How strongly focal loss discounts easy pixels, >= 0.
        tversky_beta: Weight of false negatives in Tversky loss, 0..1; false positives weigh 1 - `tversky_beta`.
        dice_fraction: Share of dice that is mixed in, 0..1.
        cldice_fraction: Share of centerline dice that is mixed in, for lines such as roads, 0..0.5: it sees whether
            lines are connected and not how wide they are, so it never stands alone (Shit et al. 2021,
            arXiv:2003.07311).
        cldice_steps: Pixels from the edge of the widest line to its middle, at least; each takes time.
        cldice_values: Label values of the classes that are lines; empty for all but 0.
        dice_average: `'micro'` or `'macro'`, for dice, mixed in or alone, and Tversky.
        label_smoothing: Share of the target that cross-entropy spreads over all classes, 0..1 without 1.
        hard_fraction: Share of the pixels, the hardest, that cross-entropy and focal loss average; 1 takes all.
        auxiliary_weight: Weight of the auxiliary head's loss, >= 0, where the decoder has such a head.

    Raises:
        UnknownNameError: If there is no such loss.
        ValueError: If a number is out of its range, or an option does not apply to the loss.
    """

    loss: str = 'cross_entropy'
    focal_gamma: float = 2.0
    tversky_beta: float = 0.7
    dice_fraction: float = 0.0
    cldice_fraction: float = 0.0
    cldice_steps: int = 5
    cldice_values: tuple[int, ...] = ()
    dice_average: Average = 'micro'
    label_smoothing: float = 0.0
    hard_fraction: float = 1.0
    auxiliary_weight: float = 0.4

    def __post_init__(self) -> None:
        object.__setattr__(self, 'cldice_values', tuple(self.cldice_values))
        if self.loss not in _BUILDERS:
            raise errors.UnknownNameError('loss', self.loss, _BUILDERS)
        if self.dice_average not in ('micro', 'macro'):
            raise ValueError(f"dice_average must be 'micro' or 'macro', got {self.dice_average!r}")
        self._check_ranges()
        if self.dice_fraction and self.loss == 'dice':
            raise ValueError(f"dice_fraction is {self.dice_fraction}, but loss is 'dice' already; leave one out")
        applies = _BUILDERS[self.loss].options
        if self.label_smoothing and 'label_smoothing' not in applies:
            raise ValueError(f'label_smoothing works with {_having("label_smoothing")} alone, not with {self.loss!r}')
        if self.hard_fraction < 1 and 'hard_fraction' not in applies:
            raise ValueError(f'hard_fraction needs a loss per pixel, {_having("hard_fraction")}, not {self.loss!r}')

    def _check_ranges(self) -> None:
        for name in ('focal_gamma', 'auxiliary_weight'):
            check_not_negative(name, getattr(self, name))
        for name in ('tversky_beta', 'dice_fraction'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} must lie in 0..1, got {getattr(self, name)}')
        if not 0 <= self.cldice_fraction <= MOST_CLDICE:
            raise ValueError(
                f'cldice_fraction must lie in 0..{MOST_CLDICE}, got {self.cldice_fraction}: it is blind to the width '
                'of lines, so another loss must weigh at least as much'
            )
        if isinstance(self.cldice_steps, bool) or not 1 <= self.cldice_steps <= MOST_CLDICE_STEPS:
            raise ValueError(f'cldice_steps must be in 1..{MOST_CLDICE_STEPS} pixels, got {self.cldice_steps}')
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f'label_smoothing must be at least 0 and below 1, got {self.label_smoothing}')
        if not 0 < self.hard_fraction <= 1:
            raise ValueError(f'hard_fraction must be above 0 and at most 1, got {self.hard_fraction}')


PixelLossBuilder = Callable[[PixelLossOptions, Tensor | None], nn.Module]
"""Builds a loss of logits (N, classes, H, W) and indices (N, H, W) from options and the weight of each class."""


@dataclass(frozen=True)
class _Entry:
    build: PixelLossBuilder
    options: tuple[str, ...]


_BUILDERS: dict[str, _Entry] = {}


def register_pixel_loss(name: str, *, options: Sequence[str] = ()) -> Callable[[PixelLossBuilder], PixelLossBuilder]:
    """Decorate the function that builds the loss `name`: it is then known to models and the command line.

    Args:
        name: Unique.
        options: Of `'label_smoothing'` and `'hard_fraction'` those that apply; others are refused with this loss.
    """

    def add(build: PixelLossBuilder) -> PixelLossBuilder:
        if name in _BUILDERS:
            raise ValueError(f'loss {name!r} is already registered by {_BUILDERS[name].build.__module__}')
        _BUILDERS[name] = _Entry(build, tuple(options))
        return build

    return add


def pixel_loss_names() -> tuple[str, ...]:
    """Return the names of all registered losses of pixel classification."""
    return tuple(_BUILDERS)


def find_lines(options: PixelLossOptions, class_values: Sequence[int]) -> tuple[int, ...]:
    """Return the indices of the classes that are lines; none where no centerline dice is asked for.

    Args:
        options: Of the loss.
        class_values: Label value of each class.

    Raises:
        ValueError: If it is not clear which classes are lines.
    """
    if not options.cldice_fraction:
        return ()
    values = list(class_values)
    if missing := sorted(set(options.cldice_values) - set(values)):
        raise ValueError(f'cldice_values has {missing[0]}, which is no class; classes have the label values {values}')
    if not options.cldice_values and 0 not in values:
        raise ValueError(
            f'cldice_fraction needs to know which classes are lines: none of the label values {values} is 0, which '
            'would be the others; pass cldice_values='
        )
    lines = options.cldice_values or [value for value in values if value]
    return tuple(values.index(value) for value in lines)


def make_pixel_loss(
    options: PixelLossOptions, class_weights: Tensor | None = None, *, class_values: Sequence[int] = ()
) -> nn.Module:
    """Build the loss of logits (N, classes, H, W), alone or with those of an auxiliary head, and indices (N, H, W).

    Args:
        options: Which loss.
        class_weights: (classes,) weight of each class, or None.
        class_values: Label value of each class, which centerline dice needs.

    Raises:
        ValueError: If it is not clear which classes are lines.
    """
    loss = _BUILDERS[options.loss].build(options, class_weights)
    if options.dice_fraction:
        loss = Mixed(loss, _BUILDERS['dice'].build(options, class_weights), options.dice_fraction)
    if lines := find_lines(options, class_values):
        loss = Mixed(loss, CenterlineDice(lines, options.cldice_steps), options.cldice_fraction)
    return WithAuxiliary(loss, options.auxiliary_weight)


class Mixed(nn.Module):
    """(1 - fraction) * base + fraction * dice, which ArcGIS calls `dice_loss_fraction`.

    Args:
        base: Loss of logits and indices.
        dice: Another one, such as dice or centerline dice.
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


def check_not_negative(name: str, value: float) -> None:
    """Raise ValueError unless a number is finite and 0 or more."""
    if not 0 <= value < math.inf:
        raise ValueError(f'{name} must be 0 or more, got {value}')


def _having(option: str) -> str:
    names = [f'loss={name!r}' for name, entry in _BUILDERS.items() if option in entry.options]
    return ' or '.join(names)


class FunctionLoss(nn.Module):
    """A function of the user's own, as a module that is called like it.

    Args:
        function: Of output and targets.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Any) -> Tensor:
        """Call the function."""
        return self.function(*given)


def as_loss_module(loss: nn.Module | Callable[..., Tensor]) -> nn.Module:
    """Return a loss of the user's own as a module.

    Raises:
        ArgumentError: If it cannot be called with outputs and targets.
    """
    if isinstance(loss, type):
        raise errors.ArgumentError(f'loss is the class {loss.__name__}; pass {loss.__name__}(...), a module of it')
    if not callable(loss):
        raise errors.ArgumentError(f'loss must be a name, a module or a function, got {loss!r}')
    return loss if isinstance(loss, nn.Module) else FunctionLoss(loss)


def loss_name(module: nn.Module) -> str:
    """Return what a loss of the user's own is called in code."""
    named = module.function if isinstance(module, FunctionLoss) else type(module)
    return str(getattr(named, '__qualname__', type(named).__qualname__))


def check_loss_value(loss: Any, name: str) -> Tensor:
    """Return the loss of a batch without dimensions.

    Raises:
        ArgumentError: If it is not a tensor of one number.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise errors.ArgumentError(f'{name} must return a tensor of one number for a batch, got {found}')
    return loss.reshape(())


class CustomLoss(nn.Module):
    """Call a module with outputs and targets, for an auxiliary head too; batches weigh by their number of chips.

    Args:
        module: Takes logits (N, classes, H, W) and indices (N, H, W), IGNORE_INDEX (255) where nothing is labelled; for
            regression values (N, 1, H, W) and (N, H, W), NaN where there is no truth; for whole chips logits
            (N, classes) and indices (N,), or shares of the classes (N, classes). Returns one number.
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
        ignored: Any = getattr(self.module, 'ignore_index', classes.IGNORE_INDEX)
        name = loss_name(self.module)
        if (
            ignored != classes.IGNORE_INDEX
            and not target.is_floating_point()
            and target.dim() > 1
            and bool((target == classes.IGNORE_INDEX).any())
        ):
            raise errors.ArgumentError(
                f'pixels without a label have the index {classes.IGNORE_INDEX}, and {name} ignores {ignored}; '
                f'make it with ignore_index={classes.IGNORE_INDEX}'
            )
        return check_loss_value(self.module(output, target), name)

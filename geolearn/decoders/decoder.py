"""What every decoder promises, and the registry of decoders by name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones.backbone import STRIDES, Form
from geolearn.errors import BackboneError, UnknownNameError

Option = bool | int | float | str | None | Sequence[int]
"""What an option of a decoder may be; lists of JSON serve as sequences."""


def check_whole(name: str, value: object, low: int, high: int, *, step: int = 1) -> int:
    """Return a whole number of `low` to `high` that is a multiple of `step`.

    Raises:
        ValueError: If it is anything else, a bool included.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high or value % step:
        multiple = f', a multiple of {step}' if step > 1 else ''
        raise ValueError(f'{name} must be a whole number in {low}..{high}{multiple}, got {value!r}')
    return value


def check_wholes(name: str, values: object, low: int, high: int, *, counts: range) -> tuple[int, ...]:
    """Return several whole numbers of `low` to `high`, as many as `counts` allows.

    Raises:
        ValueError: If they are anything else.
    """
    if not isinstance(values, list | tuple) or len(values) not in counts:
        many = str(counts[0]) if len(counts) == 1 else f'{counts[0]} to {counts[-1]}'
        raise ValueError(f'{name} must be a list of {many} whole numbers, got {values!r}')
    return tuple(check_whole(name, value, low, high) for value in values)


def check_rate(name: str, value: object) -> float:
    """Return a rate of dropout, in 0..1 and below 1.

    Raises:
        ValueError: If it is anything else, a bool or NaN included.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f'{name} must be a number of 0 or more and below 1, got {value!r}')
    return float(value)


Module = TypeVar('Module', bound=nn.Module)


class PooledBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that, where a batch has one value per channel, trains with its running statistics.

    A map pooled to one pixel of a batch of one has no spread, and PyTorch refuses to train on it. The last batch of
    an epoch is often such a batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize maps (N, C, h, w); the shape is kept."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def take_single_values(module: Module) -> Module:
    """Put `PooledBatchNorm2d` in place of every batch norm of a module just built; names and values are kept."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            safe = PooledBatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum)
            safe.load_state_dict(child.state_dict())
            setattr(module, name, safe)
        else:
            take_single_values(child)
    return module


def fill_levels(maps: Sequence[Tensor], strides: Sequence[int], levels: Sequence[int]) -> list[Tensor]:
    """Return a map for each stride of `levels`; one of no channels stands for those that are not there.

    smp's decoders read the sizes of maps that they have no use for.

    Args:
        maps: Maps (N, C_i, H / strides[i], W / strides[i]).
        strides: Of the maps.
        levels: Strides wanted, in the order wanted.
    """
    by_stride, first = dict(zip(strides, maps)), maps[0]
    n, _, h, w = first.shape
    height, width = h * strides[0], w * strides[0]
    return [
        by_stride[level] if level in by_stride else first.new_empty(n, 0, height // level, width // level)
        for level in levels
    ]


def enlarge_to(coarse: Tensor, stride: int, wanted: int) -> Tensor:
    """Enlarge a map (N, C, h, w) of a stride to that of a finer one; the same where it is not coarser."""
    if stride <= wanted:
        return coarse
    return F.interpolate(coarse, scale_factor=stride / wanted, mode='bilinear', align_corners=False)


NO_OPTIONS: Mapping[str, Option] = MappingProxyType({})
"""Every option at its default."""


class Decoder(nn.Module):
    """A network that turns the feature maps of an image, finest first, into outputs per pixel.

    Called with maps (N, channels[i], H / strides[i], W / strides[i]) of an image whose sides are multiples of 32, it
    returns raw outputs (N, output_count, H / s, W / s), such as logits, at a stride s of its own. Whoever calls it
    enlarges them to the image.

    Subclasses take their options as keywords that JSON can hold; see `create_decoder`.

    Args:
        channels: Channels of each map.
        strides: Stride of each map, in pixels, ascending.
        output_count: Outputs per pixel: classes, or 1 for a continuous target.

    Raises:
        BackboneError: If these are not maps that the decoder can take.
        ValueError: If `output_count` is below 1.
    """

    form: ClassVar[Form] = 'pyramid'
    """The form of a plain transformer that fits; networks of several resolutions have but one."""

    strides: ClassVar[tuple[int, ...] | None] = STRIDES
    """Maps to ask a backbone for; None for all that it offers.

    The last may come coarser than asked for, and one map alone at any stride.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], output_count: int) -> None:
        super().__init__()
        _check_maps(type(self), channels, strides)
        self.output_count = check_whole('output_count', output_count, 1, 65536)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute outputs (N, output_count, H / s, W / s) from maps, finest first."""
        raise NotImplementedError


DECODERS: dict[str, type[Decoder]] = {}
"""Every decoder by name; fill it with `register_decoder`."""


def register_decoder(name: str) -> Callable[[type[Decoder]], type[Decoder]]:
    """Decorate the class of decoder `name`."""

    def add(decoder: type[Decoder]) -> type[Decoder]:
        if name in DECODERS:
            raise ValueError(f'decoder {name!r} is already registered by {DECODERS[name].__module__}')
        DECODERS[name] = decoder
        return decoder

    return add


def get_decoder(name: str) -> type[Decoder]:
    """Find the class of a decoder, whose `form` and `strides` say what to ask a backbone for.

    Raises:
        UnknownNameError: If there is none of that name.
    """
    if not isinstance(name, str) or name not in DECODERS:
        raise UnknownNameError('decoder', str(name), DECODERS)
    return DECODERS[name]


def decoder_options(name: str) -> dict[str, Option]:
    """List a decoder's options with their defaults.

    Raises:
        UnknownNameError: If there is no such decoder.
    """
    parameters = inspect.signature(get_decoder(name).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def create_decoder(
    name: str,
    channels: Sequence[int],
    strides: Sequence[int],
    output_count: int,
    *,
    options: Mapping[str, Option] = NO_OPTIONS,
) -> Decoder:
    """Build a decoder for maps of these channels and strides.

    Args:
        name: One of `DECODERS`.
        channels: Channels of each map, as a `Backbone` states them.
        strides: Stride of each map, in pixels.
        output_count: Outputs per pixel: classes, or 1 for a continuous target.
        options: Of this decoder, by name, as JSON holds them; see `decoder_options`.

    Raises:
        UnknownNameError: If there is no such decoder, or it has no such option.
        ValueError: If an option has a value that it cannot have.
        BackboneError: If the decoder cannot take such maps.
    """
    decoder, known = get_decoder(name), decoder_options(name)
    for option in options:
        if not known:
            raise ValueError(f'decoder {name!r} takes no options, got {option!r}; leave it out')
        if option not in known:
            raise UnknownNameError(f'option of decoder {name!r}:', str(option), known)
    return decoder(channels, strides, output_count, **options)


def _check_maps(decoder: type[Decoder], channels: Sequence[int], strides: Sequence[int]) -> None:
    wanted, given = decoder.strides, tuple(strides)
    doubling = all(s in (1, 2, 4, 8, 16, 32) for s in given) and list(given) == sorted(set(given))
    fits = wanted is None or _fits(given, wanted)
    if not (given and doubling and fits and len(channels) == len(given)):
        needed = 'any of strides 1 to 32, finest first' if wanted is None else f'those of strides {wanted}'
        raise BackboneError(
            f'{decoder.__name__} cannot take maps of strides {given} with channels {tuple(channels)}; it needs {needed}'
        )


def _fits(given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    # backbones give their coarsest map where they have none of the stride asked for
    coarse_enough = len(wanted) == 1 or given[-1:] >= wanted[-1:]
    return len(given) == len(wanted) and given[:-1] == wanted[:-1] and coarse_enough

"""What every decoder promises, and the registry of decoders by name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor, nn

from geolearn.backbones import Form
from geolearn.backbones.pyramid import STRIDES
from geolearn.decoders._options import Option, check_whole
from geolearn.errors import BackboneError, UnknownNameError

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

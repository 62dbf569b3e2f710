"""Load weights: read the file without running code, find the state dict in it, load it strictly with a report."""

import logging
import pickle
import re
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from geolearn.errors import WeightsError

log = logging.getLogger('geolearn')

# Damaged pickles fail in whatever step first meets the damage.
_BROKEN_FILE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
    *(ArithmeticError, MemoryError, struct.error, pickle.UnpicklingError, SafetensorError),
)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a strict load did, as names of parameters and buffers.

    Args:
        matched: Loaded.
        missing: Not in the file; left at their initial values, as declared.
        unexpected: In the file and not used by the network; dropped, as declared.
        resized: Loaded after being resampled to another shape.
        source: Where the weights came from.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    source: str = ''

    def __str__(self) -> str:
        """Say it in a line for the reader of a log."""
        text = f'{len(self.matched)} tensors loaded' + (f' from {self.source}' if self.source else '')
        for label in ('missing', 'unexpected', 'resized'):
            names = getattr(self, label)
            text += f'; {len(names)} {label}: {_some(names)}' if names else ''
        return text


def load_weights_file(path: str | Path) -> dict[str, Any]:
    """Read a .pth, .pt, .ckpt, .bin or .safetensors file; pickled code is refused, never run.

    Returns:
        The dict that the file holds: tensors on the CPU by name, or wrappers around them that `unwrap` opens.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise WeightsError(f'{path} is a folder; name the file in it that holds the weights')
    if not path.exists():
        raise WeightsError(f'there is no file at {path}; weights must be a file, or a .dlpk of geolearn')
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        with warnings.catch_warnings():  # damaged files look like those of old protocols; the error says what is wrong
            warnings.filterwarnings('ignore', 'Detected pickle protocol', UserWarning)
            content = torch.load(path, map_location='cpu', weights_only=True)
    except _BROKEN_FILE as error:
        # torch's own first line advises to run the pickled code
        found = re.search(r'WeightsUnpickler error: (.*)', str(error))
        reason = (found[1].strip() or 'it is no file of torch') if found else str(error).split('\n')[0]
        raise WeightsError(
            f'{path} cannot be read as weights; it is truncated or holds more than tensors ({reason})'
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f'{path} must hold a dict of tensors by name, found {type(content).__name__}')
    return content


def unwrap(
    content: Mapping[str, Any], *, wrappers: Sequence[str] = (), prefixes: Sequence[str] = (), drop: Sequence[str] = ()
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Reduce a file's content to a flat state dict.

    Args:
        content: What `load_weights_file` returned.
        wrappers: Keys that may hold the state dict.
        prefixes: Prefixes to take off names that have them, each once, in order.
        drop: Shell patterns of names to leave out, matched after the prefixes are off.

    Returns:
        Tensors by name, and the names that were left out.
    """
    while inner := [content[key] for key in wrappers if isinstance(content.get(key), Mapping)]:
        content = inner[0]
    state: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key)
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        if name in state:
            raise WeightsError(f'two tensors of the file come out as {name!r} once prefixes {list(prefixes)} are off')
        state[name] = value
    dropped = tuple(name for name in state if _matches(name, drop))
    state = {name: value for name, value in state.items() if name not in set(dropped)}
    if strange := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise WeightsError(f'the file must hold tensors by name; these are none: {_some(strange)}')
    return state, dropped


Built = TypeVar('Built', bound=nn.Module)

WRAPPERS = ('module', '_orig_mod')
"""What DistributedDataParallel and torch.compile put in front of every name."""

FIRST_CHOICES = ('teacher', 'encoder_q', 'base_encoder', 'online_encoder', 'state_dict_ema', 'model_ema')
"""Where a file holds several copies of one network, as self-supervised methods save them, which one is for use."""

LAST_CHOICES = ('target_encoder',)
"""What was only there to train the network beside it."""

HEADS = re.compile(
    r'(head|heads|\w*_head|head_\w+|fc|fc_norm|classifier|\w*classifier|aux\w*|decode\w*|project\w*|predict\w*|'
    r'prototypes?|last_layer|queue\w*|mask_token|mask_embed|logit_\w+|loss\w*|criterion|metrics?|\w*_metrics?)(\.|$)'
)
"""Names of parameters that only tasks other than encoding use: heads, decoders of masked autoencoders, queues."""

SMALL = 0.1
"""A file with less than this share of a network's numbers is refused at once."""

LARGE = 1_000_000
"""Networks of fewer numbers are built whatever the file holds, so that the error can name what is missing."""

ENOUGH = 0.5
"""Share of a network's names that a part of a file must hold to be taken for its weights."""


@dataclass(frozen=True, slots=True)
class FoundState:
    """The part of a file that holds the weights of one network.

    Args:
        state: Tensors by name, prefix off.
        ignored: Names, as in the file, of tensors beside it.
        note: Where in the file it was, for reports; empty where the file holds nothing else.
    """

    state: Mapping[str, Any]
    ignored: tuple[str, ...] = ()
    note: str = ''


class _Part(NamedTuple):
    """Tensors of a file under one key and one prefix, and how many of the names needed are among them."""

    matches: int
    place: tuple[str, ...]
    prefix: str
    tensors: Mapping[str, Tensor]

    @property
    def first_choice(self) -> bool:
        return not {*self.place, *self.prefix.split('.')}.isdisjoint(FIRST_CHOICES)

    @property
    def last_choice(self) -> bool:
        return not {*self.place, *self.prefix.split('.')}.isdisjoint(LAST_CHOICES)


def find_state(
    content: Mapping[str, Any], needed: Collection[str], source: str, *, prefixes: Sequence[str] = ()
) -> FoundState:
    """Find a network's weights in what a file holds, under whatever keys and whatever prefix of the names.

    Of all nested dicts and prefixes the one with most of the names needed is taken, if it has at least half of them.
    Else the largest dict of tensors is returned, with only the prefixes of `WRAPPERS` off: its names may be those of
    a published layout.

    Args:
        content: What `load_weights_file` returned.
        needed: Names of the network's tensors.
        source: The file, for errors.
        prefixes: What may stand in front of the names in `state`.

    Raises:
        WeightsError: If there are no tensors, or two parts fit equally well.
    """
    places = {place: tensors for place, tensors in _walk(content) if tensors}
    if not places:
        raise WeightsError(f'{source} holds no tensors by name, found {_some([str(key) for key in content])}')
    names = {prefix + name for name in needed for prefix in ('', *prefixes)}
    best = _choose_part([part for place, tensors in places.items() for part in _split(place, tensors, names)], source)
    if best is None or best.matches < ENOUGH * len(needed):
        place, tensors = max(places.items(), key=lambda item: len(item[1]))
        prefix = ''
        while (first := {name[len(prefix) :].partition('.')[0] for name in tensors}) <= {*WRAPPERS} and len(first) == 1:
            prefix += f'{first.pop()}.'
        best = _Part(0, place, prefix, tensors)
    state = {n.removeprefix(best.prefix): v for n, v in best.tensors.items() if n.startswith(best.prefix)}
    ignored = tuple(name for name in best.tensors if not name.startswith(best.prefix))
    notes = [f'under {".".join(best.place)!r}'] if best.place else []
    notes += [f'without the prefix {best.prefix!r}'] if best.prefix else []
    note = ', '.join(notes)
    if note:
        log.info('%s: %d tensors found %s', source, len(state), note)
    return FoundState(state, ignored, note)


def _walk(
    content: Mapping[str, Any], place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Go through the dicts of a file up to four deep, states of optimizers left out: place, and the tensors by name."""
    yield place, {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    for key, value in content.items():
        if isinstance(value, Mapping) and 'optim' not in str(key).lower() and len(place) < 4:
            yield from _walk(value, (*place, str(key)))


def _split(place: tuple[str, ...], tensors: Mapping[str, Tensor], needed: Collection[str]) -> Iterator[_Part]:
    """Count for every prefix how many of the names needed follow it."""
    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split('.')
        for depth in range(len(parts)):
            if '.'.join(parts[depth:]) in needed:
                counts[''.join(f'{part}.' for part in parts[:depth])] += 1
    for prefix, count in counts.items():
        yield _Part(count, place, prefix, tensors)


def _choose_part(parts: list[_Part], source: str) -> _Part | None:
    most = max((part.matches for part in parts), default=0)
    best = [part for part in parts if part.matches == most]
    best = [part for part in best if part.first_choice] or best
    best = [part for part in best if not part.last_choice] or best
    # of the parts 'encoder.' and 'encoder.encoder.', which may hold the same, the outer one
    best = [part for part in best if not any(other is not part and _holds(other, part) for other in best)]
    if len(best) > 1:
        where = [repr('.'.join((*part.place, part.prefix)).rstrip('.')) for part in best]
        raise WeightsError(f'{source} holds several weights that fit: {", ".join(where)}; save one of them alone')
    return best[0] if best else None


def _holds(outer: _Part, inner: _Part) -> bool:
    return outer.place == inner.place and inner.prefix.startswith(outer.prefix)


def is_head(name: str) -> bool:
    """Whether a parameter belongs to a head, a decoder of pretraining or the like; see `HEADS`."""
    return HEADS.match(name) is not None


class _WithoutValues(TorchFunctionMode):
    """Skip what only fills tensors of the meta device: there torch works out in Python what it would have done."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _FILLING and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


_FILLING = {
    *(Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.fill_, Tensor.zero_),
    *(Tensor.mul_, Tensor.add_, Tensor.clamp_, Tensor.copy_),
}


@contextmanager
def without_values() -> Iterator[None]:
    """Let networks be built on the meta device: names and shapes, but no values and no memory."""
    with torch.device('meta'), _WithoutValues():
        yield


def build_filled(build: Callable[[], Built], weights: Mapping[str, Tensor], source: str) -> Built:
    """Build a network and load all its weights strictly; where they do not fit, nothing is allocated for it.

    Args:
        build: Makes the network, at any values; called first on the meta device, to compare names and shapes.
        weights: Tensors by name.
        source: Where they came from, for errors.

    Raises:
        WeightsError: If a name or a shape differs, or a value is not finite.
    """
    with without_values():
        refuse_misfits(build().state_dict(), weights, source)
    network = build()
    load_strict(network, weights, source=source)
    return network


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    may_be_missing: Sequence[str] = (),
    dropped: Collection[str] = (),
    resized: Collection[str] = (),
    source: str = '',
) -> LoadReport:
    """Load every tensor of `state`, or none and raise `WeightsError` saying which names or shapes do not fit.

    Args:
        module: Network to fill.
        state: Tensors by name.
        may_be_missing: Shell patterns of names that `state` may lack.
        dropped: Names that were left out of `state` on purpose, for the report.
        resized: Names whose tensors were resampled on purpose, for the report.
        source: Where the weights came from, for the report and errors.
    """
    needed = module.state_dict()
    missing = refuse_misfits(needed, state, source or 'given', may_be_missing)
    refuse_nonfinite(state, source or 'given')
    module.load_state_dict(dict(state), strict=False)
    matched = tuple(name for name in needed if name in state)
    return LoadReport(matched, missing, tuple(dropped), tuple(resized), source)


def refuse_misfits(
    needed: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str, may_be_missing: Sequence[str] = ()
) -> tuple[str, ...]:
    """Compare names and shapes of weights with those of a network, which may lie on the meta device.

    Returns:
        Names that are missing, as declared.

    Raises:
        WeightsError: Listing what is missing, unexpected or of another shape.
    """
    missing = tuple(name for name in needed if name not in state)
    undeclared = [name for name in missing if not _matches(name, may_be_missing)]
    unexpected = [name for name in state if name not in needed]
    shapes = [
        f'{name}: found {tuple(state[name].shape)}, needed {tuple(value.shape)}'
        for name, value in needed.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems := list_names((('missing', undeclared), ('unexpected', unexpected), ('of another shape', shapes))):
        raise WeightsError(f'weights {source} do not fit the network; {problems}')
    return missing


def refuse_small(state: Mapping[str, Tensor], needed: Mapping[str, Tensor], source: str) -> None:
    """Raise WeightsError where a file holds far fewer numbers than the network, before the network is built.

    Args:
        state: Tensors of the file.
        needed: Those of the network; they may be on the meta device.
        source: The file, for the error.
    """
    held, wanted = (sum(value.numel() for value in tensors.values()) for tensors in (state, needed))
    if wanted > LARGE and held < SMALL * wanted:
        raise WeightsError(
            f'weights {source} do not fit the network; they hold {held:,} numbers in {len(state)} tensors, it has '
            f'{wanted:,} in {len(needed)}'
        )


def refuse_nonfinite(state: Mapping[str, Tensor], source: str) -> None:
    """Raise WeightsError naming the tensors that hold NaN or infinite values."""
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise WeightsError(
            f'weights {source} hold NaN or infinite values in {len(bad)} of {len(state)} tensors: {_some(bad)}; the '
            'training that wrote them diverged, take an earlier checkpoint'
        )


def list_names(groups: Sequence[tuple[str, Collection[str]]]) -> str:
    """List what is wrong with weights, by kind; empty where nothing is."""
    return '; '.join(f'{len(names)} {label}: {_some(names)}' for label, names in groups if names)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: Collection[str], most: int = 8) -> str:
    return ', '.join(list(names)[:most]) + (f', ... ({len(names)} in all)' if len(names) > most else '')

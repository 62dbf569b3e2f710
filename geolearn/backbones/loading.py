"""Load weights: read the file without running code, find the state dict in it, load it strictly with a report."""

import pickle
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from geolearn.errors import WeightsError

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
    path = Path(path)
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        content = torch.load(path, map_location='cpu', weights_only=True)
    except _BROKEN_FILE as error:
        reason = str(error).split('\n')[0]
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
    missing = tuple(name for name in needed if name not in state)
    undeclared = [name for name in missing if not _matches(name, may_be_missing)]
    unexpected = [name for name in state if name not in needed]
    matched = tuple(name for name in needed if name in state)
    shapes = [
        f'{name}: found {tuple(state[name].shape)}, needed {tuple(needed[name].shape)}'
        for name in matched
        if state[name].shape != needed[name].shape
    ]
    labels = (('missing', undeclared), ('unexpected', unexpected), ('of another shape', shapes))
    if problems := [f'{len(names)} {label}: {_some(names)}' for label, names in labels if names]:
        raise WeightsError(f'weights {source or "given"} do not fit the network; ' + '; '.join(problems))
    module.load_state_dict(dict(state), strict=False)
    return LoadReport(matched, missing, tuple(dropped), tuple(resized), source)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: Collection[str], most: int = 8) -> str:
    return ', '.join(list(names)[:most]) + (f', ... ({len(names)} in all)' if len(names) > most else '')

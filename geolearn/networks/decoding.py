"""Decode the JSON of bundles into values: one checked schema for every field, one error for whatever does not fit."""

import unicodedata
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
import numpy as np

from geolearn.errors import BundleError, GeoLearnError

T = TypeVar('T')

MAX_DEPTH = 32
"""Of lists and objects in one another; geolearn writes six at most."""
MAX_WHOLE = 2**53
"""Beyond it JSON readers differ on whole numbers."""
MAX_NUMBER = float(np.finfo(np.float32).max)
"""Networks compute in float32, where larger numbers are infinite."""
UNPRINTABLE = ('Cc', 'Cs')
"""Unicode's categories of control characters and lone surrogates: neither logs, files nor figures can show these."""


def decode(kind: type[T], value: Any, what: str) -> T:
    """Decode JSON into a type, such as a dataclass of `geolearn`; nothing is converted but lists to tuples.

    Args:
        kind: What the value must be. Dataclasses check their own ranges.
        value: Of a bundle, as `json.loads` returns it.
        what: The value is, for the error.

    Raises:
        BundleError: If a field is missing or unknown, of another type, non-finite or out of its range.
    """
    try:
        check_json(value)
        _check_names(kind, value)
        return msgspec.convert(value, kind)
    except KeyError as error:
        raise BundleError(f'the manifest lacks {error} ({what}); the bundle is broken') from error
    except (msgspec.ValidationError, GeoLearnError, TypeError, ValueError, OverflowError) as error:
        raise BundleError(f'the manifest is broken: {what}: {_brief(error)}') from error


def check_json(value: Any, *, depth: int = 0) -> None:
    """Check that all numbers and texts in a JSON value are such as geolearn writes.

    Raises:
        ValueError: If a number is non-finite or too large, a text holds control characters or half a character, or
            lists lie too deep in one another.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f'lists lie more than {MAX_DEPTH} deep in one another')
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_text(key)
            check_json(item, depth=depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            check_json(item, depth=depth + 1)
    elif isinstance(value, int):
        if abs(value) > MAX_WHOLE:
            raise ValueError(f'a whole number of {len(str(abs(value) // 10**9)) + 9} digits is too large')
    elif isinstance(value, float) and not abs(value) <= MAX_NUMBER:
        raise ValueError(f'{value} is not a finite number of 32 bits')


def check_text(text: str) -> None:
    """Check that a text can be shown and written.

    Raises:
        ValueError: If it holds a control character or half of a surrogate pair.
    """
    for character in text:
        if unicodedata.category(character) in UNPRINTABLE:
            raise ValueError(f'the text {text[:60]!a} holds the character U+{ord(character):04X}, which is no text')


def replace_unprintable(text: str) -> str:
    """Return a text with U+FFFD in the place of what `check_text` refuses."""
    return ''.join('\N{REPLACEMENT CHARACTER}' if unicodedata.category(c) in UNPRINTABLE else c for c in text)


def _check_names(kind: Any, value: Any) -> None:
    """Check that objects have the fields that their dataclass needs, and no other, which would be passed over."""
    for part in get_args(kind):
        for inner in value if isinstance(value, list | tuple) else [value]:
            _check_names(part, inner)
    if not is_dataclass(kind) or not isinstance(value, Mapping):
        return
    hints, known = get_type_hints(kind), {item.name: item for item in fields(kind)}
    if unknown := sorted(set(map(str, value)) - known.keys()):
        raise ValueError(f'unknown field {unknown[0]!r}; known are {", ".join(sorted(known))}')
    for name, item in known.items():
        if name not in value and item.default is MISSING and item.default_factory is MISSING:
            raise KeyError(name)
    for name, inner in value.items():
        _check_names(hints[name], inner)


def _brief(error: Exception) -> str:
    return str(error)[:500]

"""Arguments of a call as JSON, so that a bundle keeps them and a report can print the call again."""

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

CLASS = 'class'
"""Key of the JSON objects that stand for what JSON has no word for."""

_HOME = re.compile(r'geolearn(\.[a-z]\w*)+\.[A-Z]\w*')
"""The dotted name of a class of geolearn."""


def record_arguments(call: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the optional arguments of a call that differ from their defaults, as JSON.

    Args:
        call: A function or a class.
        values: What it was called with by name, such as its ``locals()``; names that it does not take are ignored.
    """
    return {
        name: encode(values[name])
        for name, parameter in inspect.signature(call).parameters.items()
        if name in values and parameter.default is not parameter.empty and not _same(values[name], parameter.default)
    }


def encode(value: Any) -> Any:
    """Return a value as JSON.

    Options of geolearn keep their class and the fields that differ from their defaults, mappings whose keys are no
    texts their pairs, and whatever else there may be its class and its `repr`.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float | str):
        return value if _is_plain(value) else {CLASS: f'builtins.{type(value).__name__}', 'text': ascii(value)}
    if isinstance(value, slice):
        return {CLASS: 'builtins.slice', 'text': f'slice({value.start!r}, {value.stop!r})'}
    if isinstance(value, PurePath):
        return encode(str(value))
    if isinstance(value, np.generic | np.ndarray):
        return encode(value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: encode(getattr(value, f.name)) for f in fields(value) if f.init and _changed(value, f)}
        return {CLASS: _name(type(value)), 'arguments': changed}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key != CLASS for key in value):
            return {key: encode(item) for key, item in value.items()}
        return {CLASS: 'dict', 'items': [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, Sequence | Set) and not isinstance(value, bytes):
        return [encode(item) for item in value]
    return {CLASS: _name(value if isinstance(value, type) else type(value)), 'text': _one_line(repr(value))}


def format_call(name: str, first: Sequence[str], arguments: Mapping[str, Any]) -> str:
    """Return the Python text of a call.

    Args:
        name: What is called.
        first: Text of the arguments without a name.
        arguments: The others, as `record_arguments` returns them. Names that are none are ignored.
    """
    named = [f'{key}={format_value(value)}' for key, value in arguments.items() if key.isidentifier()]
    return f'{name}({", ".join([*first, *named])})'


def format_value(value: Any) -> str:
    """Return the Python text of a value that `encode` returned."""
    if isinstance(value, Mapping):
        kind, given = value.get(CLASS), value.get('arguments')
        if _is_option(kind) and isinstance(given, Mapping):
            return format_call(str(kind).rpartition('.')[2], [], given)
        if kind is not None and isinstance(value.get('text'), str):
            text = _one_line(value['text'])
            return (
                f'float({text!r})'
                if kind == 'builtins.float'
                else text
                if kind in ('builtins.str', 'builtins.slice')
                else f'<{text}>'
            )
        pairs = value.get('items') if kind == 'dict' else [[key, item] for key, item in value.items()]
        rows = [row for row in pairs if isinstance(row, list) and len(row) == 2] if isinstance(pairs, list) else []
        return '{' + ', '.join(f'{format_value(key)}: {format_value(item)}' for key, item in rows) + '}'
    if isinstance(value, list | tuple):
        return '[' + ', '.join(map(format_value, value)) + ']'
    return repr(value)


def find_imports(value: Any) -> Iterator[str]:
    """Yield the import lines that the text of a value needs."""
    if isinstance(value, Mapping):
        kind = value.get(CLASS)
        if _is_option(kind) and isinstance(value.get('arguments'), Mapping):
            home, _, name = str(kind).rpartition('.')
            yield f'from {home} import {name}'
        for item in value.values():
            yield from find_imports(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from find_imports(item)


def _is_option(name: object) -> bool:
    return isinstance(name, str) and _HOME.fullmatch(name) is not None


def _is_plain(value: float | str) -> bool:
    """Tell whether a bundle's manifest can hold a value as it is."""
    return value.isprintable() if isinstance(value, str) else math.isfinite(value) and abs(value) < 2**53


def _one_line(text: str) -> str:
    return ' '.join(text.split())[:200]


def _name(kind: type) -> str:
    return f'{kind.__module__}.{kind.__qualname__}'


def _changed(value: Any, item: 'Field[Any]') -> bool:
    default = item.default_factory() if item.default_factory is not MISSING else item.default
    return default is MISSING or not _same(getattr(value, item.name), default)


def _same(value: Any, default: Any) -> bool:
    if value is default:
        return True
    return type(value) is type(default) and not isinstance(value, np.ndarray) and bool(value == default)

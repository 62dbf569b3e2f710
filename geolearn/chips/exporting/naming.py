"""Find the class of each feature: fields that ArcGIS looks for, text or numbers, or one class for all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from geolearn.bands import Band
from geolearn.classes import ClassInfo, default_color
from geolearn.errors import ChipFolderError

VALUE_FIELDS = ('classvalue', 'class_value', 'value')
NAME_FIELDS = ('classname', 'class_name')
MAX_VALUE = 65535
_UNNAMED = '1'


@dataclass(frozen=True)
class Naming:
    """Where classes come from.

    Args:
        value_field: Field of class values or texts; None looks for `VALUE_FIELDS`, then `NAME_FIELDS`.
        name_field: Field of class names; None looks for `NAME_FIELDS`.
        classes: Names and colours that go before those found; None takes what is found.
    """

    value_field: str | None = None
    name_field: str | None = None
    classes: tuple[ClassInfo, ...] | None = None


def class_values(
    parts: Sequence[tuple[Any, np.ndarray]], naming: Naming, counts: dict[str, int]
) -> tuple[np.ndarray, tuple[ClassInfo, ...]]:
    """Return the class value of each feature, 0 for those left out, and the classes in order of value.

    Args:
        parts: Layers (name, frame, shown), each with the rows used.
        naming: Where classes come from.
        counts: What was left out is counted here.

    Raises:
        ChipFolderError: If a field is missing or holds no class values.
    """
    values: list[np.ndarray] = []
    names: dict[int, str] = {}
    if parts[0][0].name is not None:
        table = _numbers([layer.name for layer, _ in parts], naming)
        values = [np.full(len(rows), table[layer.name], np.int64) for layer, rows in parts]
        names = {value: name for name, value in table.items()}
    else:
        for layer, rows in parts:
            found, named = _field_values(layer.frame.iloc[rows], layer.shown, naming, counts)
            values.append(found)
            names |= named
    return np.concatenate(values), _classes(names, naming)


def _classes(names: dict[int, str], naming: Naming) -> tuple[ClassInfo, ...]:
    if naming.classes is not None:
        if missing := sorted(names.keys() - {info.value for info in naming.classes}):
            raise ChipFolderError(
                f'labels hold the class values {missing[:10]}, which classes= does not list: '
                f'{[info.value for info in naming.classes][:20]}'
            )
        return naming.classes
    return tuple(ClassInfo(value, names[value], default_color(at)) for at, value in enumerate(sorted(names)))


def _numbers(texts: Sequence[str], naming: Naming) -> dict[str, int]:
    """Give each text its class value: as `classes=` says, else 1, 2, 3, ... in the order given."""
    if naming.classes is None:
        if len(texts) > MAX_VALUE:
            raise ChipFolderError(
                f'labels name {len(texts)} classes, at most {MAX_VALUE} can be told apart; merge some'
            )
        return {text: value for value, text in enumerate(texts, 1)}
    known = {info.name: info.value for info in naming.classes}
    if unknown := sorted(set(texts) - known.keys()):
        raise ChipFolderError(
            f'labels name the classes {unknown[:10]}, which classes= does not list: {sorted(known)[:20]}'
        )
    return {text: known[text] for text in texts}


def _field_values(frame: Any, shown: str, naming: Naming, counts: dict[str, int]) -> tuple[np.ndarray, dict[int, str]]:
    field = _find(frame, naming.value_field, (*VALUE_FIELDS, *NAME_FIELDS), shown)
    if field is None:
        found = _fields(frame)
        fields = ', '.join(found[:8]) + (', ...' if len(found) > 8 else '') or 'none'
        counts[f'features are one class, as no field is called classvalue or classname; fields: {fields}'] = len(frame)
        only = naming.classes[0].value if naming.classes and len(naming.classes) == 1 else 1
        return np.full(len(frame), only, np.int64), {only: _UNNAMED} if len(frame) else {}
    column = frame[field]
    empty = column.isna().to_numpy()
    if empty.any():
        what = f'features without a class in {field} were left out'
        counts[what] = counts.get(what, 0) + int(empty.sum())
    if column.dtype.kind in 'iufb':
        values = _whole(column, empty, f'{shown}: field {field}')
        return values, _names(frame, values, shown, naming, field)
    texts = [str(text) for text in column[~empty]]
    table = _numbers(sorted(set(texts)), naming)
    values = np.zeros(len(frame), np.int64)
    values[~empty] = [table[text] for text in texts]
    return values, {value: text for text, value in table.items()}


def _whole(column: Any, empty: np.ndarray, shown: str) -> np.ndarray:
    numbers = column.fillna(0).to_numpy(np.float64)
    wrong = ~empty & ~((numbers >= 1) & (numbers <= MAX_VALUE) & (numbers == np.rint(numbers)))
    if wrong.any():
        raise ChipFolderError(
            f'{shown} holds {numbers[wrong][0]:g}; class values are whole numbers from 1 to {MAX_VALUE}, as 0 means '
            'unlabelled'
        )
    return numbers.astype(np.int64)


def _names(frame: Any, values: np.ndarray, shown: str, naming: Naming, field: str) -> dict[int, str]:
    name_field = _find(frame, naming.name_field, NAME_FIELDS, shown)
    if name_field is None or name_field == field:
        return {int(value): str(value) for value in np.unique(values[values > 0])}
    names: dict[int, str] = {}
    for value, name in zip(values.tolist(), frame[name_field]):
        if value and names.setdefault(value, text := str(name) if isinstance(name, str) else str(value)) != text:
            raise ChipFolderError(
                f'{shown}: class value {value} is called {names[value]!r} and {text!r} in {name_field}; a value has '
                'one name'
            )
    return names


def _fields(frame: Any) -> list[str]:
    return [str(column) for column in frame.columns if column != frame.geometry.name]


def _find(frame: Any, wanted: str | None, usual: Sequence[str], shown: str) -> str | None:
    fields = _fields(frame)
    if wanted is not None:
        if wanted not in fields:
            raise ChipFolderError(f'{shown} has no field {wanted!r}; it has {", ".join(fields) or "none"}')
        return wanted
    lowered = {field.lower(): field for field in reversed(fields)}
    return next((lowered[name] for name in usual if name in lowered), None)


def sensor_notes(sensor: str, bands: Sequence[Band], shown: str) -> list[str]:
    """Tell where a sensor is named that says nothing about the bands of a raster."""
    unknown = [band.name for band in bands if band.wavelength_um is None and not band.is_radar]
    if sensor == 'Undefined' or not unknown:
        return []
    named = ', '.join(unknown[:8]) + (', ...' if len(unknown) > 8 else '')
    return [f'{sensor} has no band called {named}; name the bands in {shown}, or pass bands=']

"""Checks of options that come from a user or from a bundle: plain values of JSON, within bounds."""

from collections.abc import Sequence

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

"""Match the classes of chips to those of a model, by name: folders may give the same class another label value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from geolearn import errors
from geolearn.chips.label import Task
from geolearn.chips.meaning.classes import is_all_change
from geolearn.chips.packing.table import ChipTable
from geolearn.classes import ClassInfo, ModelClasses, is_default_name, tidy_name

_RANGE = 65536
"""Label values are 0..65535."""


@dataclass(frozen=True, eq=False)
class MatchedClasses:
    """The label values of chips in terms of a model's.

    Args:
        values: (65536,) int64; for each label value of the chips the model's.
        ignored: Label values that take no part, among those of `values`, in ascending order.
    """

    values: np.ndarray
    ignored: tuple[int, ...]

    def renumber(self, table: ChipTable) -> ChipTable:
        """Return facts about chips by the model's label values."""
        return replace(
            table,
            label_values=self.values[table.label_values] if len(table.label_values) else table.label_values,
            object_values=self.values[table.object_values] if len(table.object_values) else table.object_values,
        )


def match_classes(
    task: Task,
    listed: Sequence[ClassInfo],
    renamed: Mapping[int, str],
    model: ModelClasses,
    ignored: Sequence[int],
    counts: Mapping[int, int],
) -> MatchedClasses:
    """Match classes by name, and by label value where one side has no name for it.

    Args:
        task: Of the labels.
        listed: Classes of the chips.
        renamed: The user's class_mapping.
        model: Classes of the model, and the values that it ignores.
        ignored: Label values of the chips that the user leaves out.
        counts: How often each label value occurs in the chips.

    Raises:
        ChipFolderError: If labels hold a class that the model does not have, or two classes that match the same one.
    """
    names = {info.value: tidy_name(info.name) for info in listed}
    names |= {int(value): tidy_name(name) for value, name in renamed.items()}
    own = {info.value: tidy_name(info.name) for info in model.infos}
    by_name = {name: value for value, name in own.items()}
    held = {value: names.get(value, str(value)) for value in {*names, *counts} if value not in ignored}
    found = {value: by_name[name] for value, name in held.items() if name in by_name}
    for value, name in held.items():
        if value in own and value not in found and (is_default_name(value, name) or is_default_name(value, own[value])):
            found[value] = value
    if task == Task.CHANGE and is_all_change(task, listed) and is_all_change(task, model.infos):
        # any value but 0 means change
        change = [value for value in own if value]
        found |= {value: change[0] for value in held if value and value not in found and value not in names and change}
    _check_one_each(found, held, all_change=task == Task.CHANGE)
    left_out = {value for value in held if value not in found and value in model.ignored}
    unknown = {value: name for value, name in held.items() if value not in found and value not in left_out}
    if present := {value: name for value, name in unknown.items() if counts.get(value)}:
        value, name = next(iter(sorted(present.items())))
        raise errors.ChipFolderError(
            f'labels hold {_texts(present)}, which the model does not have: its classes are {_texts(own)}; pass '
            f'ignore_classes={sorted(present)[:20]} to leave them out, or class_mapping={{{value}: ...}} with the name '
            f'that the model has for {name!r}'
        )
    return _number(found, own, left_out | {int(value) for value in ignored}, unknown, model.ignored)


def _check_one_each(found: Mapping[int, int], held: Mapping[int, str], *, all_change: bool) -> None:
    homes: dict[int, int] = {}
    for value, target in sorted(found.items()):
        other = homes.setdefault(target, value)
        if other != value and not all_change:
            raise errors.ChipFolderError(
                f"label values {other} ({held[other]!r}) and {value} ({held[value]!r}) both match the model's class of "
                f'value {target}; pass class_mapping={{{other}: ..., {value}: ...}} with the name that the model has '
                'for each, or ignore_classes='
            )


def _number(
    found: Mapping[int, int],
    own: Mapping[int, str],
    left_out: set[int],
    unknown: Mapping[int, str],
    ignored: Sequence[int],
) -> MatchedClasses:
    """Move what matches no class off the model's values; all that is left out is ignored."""
    values = np.arange(_RANGE)
    taken = {*own, *found, *left_out, *unknown, *ignored}
    spare = iter(value for value in range(_RANGE - 1, 0, -1) if value not in taken)
    moved = {value: next(spare) if value in own else value for value in sorted(left_out)}
    for value in {*own, *unknown} - found.keys() - moved.keys():
        moved[value] = next(spare)  # no label holds it
    for value, target in {**moved, **found}.items():
        values[value] = target
    kept = {moved[value] for value in left_out} | {value for value in ignored if value not in own}
    return MatchedClasses(values, tuple(sorted(kept)))


def _texts(names: Mapping[int, str]) -> str:
    texts = [name if name == str(value) else f'{value} ({name})' for value, name in sorted(names.items())]
    return ', '.join(texts[:20]) + (f' and {len(texts) - 20} more' if len(texts) > 20 else '')

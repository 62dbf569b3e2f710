"""Decide which classes are trained and which label values take no part; never by guessing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral

import numpy as np

from geolearn import classes, errors
from geolearn.chips.formats.styles import ClassStyle, styled_classes
from geolearn.chips.label import Task
from geolearn.chips.packing.table import ChipTable
from geolearn.chips.splits.split import Split

RASTER_TASKS = frozenset({Task.PIXELS, Task.CHANGE, Task.PANOPTIC})

NO_CHANGE = classes.ClassInfo(0, 'NoChange', (0, 0, 0))

MAX_OBJECT_CLASSES = 2**15 - 1

_FEWEST = {Task.PIXELS: 2, Task.LABEL: 2, Task.CHANGE: 2, Task.UNLABELLED: 0, Task.REGRESSION: 0}


def check_mapping(renamed: Mapping[int, str]) -> None:
    """Raise ChipFolderError unless `renamed` goes from label values to names."""
    hint = "class_mapping is {value: name}, such as {1: 'water', 2: 'forest'}"
    if not isinstance(renamed, Mapping):
        raise errors.ChipFolderError(f'{hint}; got {renamed!r}')
    for value, name in renamed.items():
        if not str(value).strip().isdecimal() or not isinstance(name, str) or not name.strip():
            raise errors.ChipFolderError(f'{hint}; got {value!r}: {name!r}')


def unite_classes(
    lists: Mapping[str, Sequence[classes.ClassInfo]], renamed: Mapping[int, str]
) -> tuple[classes.ClassInfo, ...]:
    """Unite the classes of several folders by value.

    Args:
        lists: Classes of each folder, by its path.
        renamed: The user's class_mapping, which settles what a value is called.

    Raises:
        ChipFolderError: If folders call one value by different names and `renamed` does not settle it.
    """
    united: dict[int, classes.ClassInfo] = {}
    homes: dict[int, str] = {}
    settled = {int(value) for value in renamed}
    for folder, infos in lists.items():
        for info in infos:
            known = united.setdefault(info.value, info)
            home = homes.setdefault(info.value, folder)
            if known.name != info.name and info.value not in settled:
                raise errors.ChipFolderError(
                    f'label value {info.value} is {known.name!r} in {home} but {info.name!r} in {folder}; '
                    f'pass class_mapping={{{info.value}: ...}} with its name if both mean the same'
                )
    return tuple(united.values())


def list_found(task: Task, counts: Mapping[int, int], style: Mapping[str, ClassStyle]) -> tuple[classes.ClassInfo, ...]:
    """Make classes of the values that label rasters hold, where nothing lists them; a style names and colors them."""
    found = sorted(value for value in counts if value)
    if task == Task.CHANGE:
        return (NO_CHANGE, *(classes.ClassInfo(value, 'Change', (255, 0, 0)) for value in found[-1:]))
    named = [0] if '0' in style and style['0'].name and 0 in counts else []
    return styled_classes(named + found, style)


def ignored_values(
    given: Sequence[int | str],
    listed: Sequence[classes.ClassInfo],
    renamed: Mapping[int, str],
    counts: Mapping[int, int],
) -> tuple[int, ...]:
    """Return the label values to leave out, given as values or class names, in ascending order.

    Raises:
        ChipFolderError: If neither .emd nor labels hold one, or `given` is no list.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise errors.ChipFolderError(f'ignore_classes is {given!r}; pass a list, such as [{given!r}]')
    names = {info.value: info.name for info in listed}
    names |= {int(value): classes.tidy_name(name) for value, name in renamed.items()}
    by_name = {name: value for value, name in [(0, classes.UNLABELLED.name), *names.items()]}
    values: set[int] = set()
    for item in given:
        value = by_name.get(item) if isinstance(item, str) else item
        if (
            not isinstance(value, Integral)
            or isinstance(value, bool)
            or (value and value not in names and value not in counts)
        ):
            known = [f'{v} ({names[v]})' if v in names else str(v) for v in sorted({*names, *counts})]
            raise errors.ChipFolderError(
                f'ignore_classes holds {item!r}, which neither .emd nor labels hold: {_few(known)}'
            )
        values.add(int(value))
    return tuple(sorted(values))


def _few(texts: Sequence[str]) -> str:
    """Show the first texts and how many more there are."""
    return (', '.join(texts[:20]) or 'none') + (f' and {len(texts) - 20} more' if len(texts) > 20 else '')


def choose_classes(
    task: Task,
    listed: Sequence[classes.ClassInfo],
    renamed: Mapping[int, str],
    ignored: Sequence[int],
    counts: Mapping[int, int],
    find_chip: Callable[[int], str],
) -> tuple[classes.ClassInfo, ...]:
    """Return the classes to train, in the order listed; value 0 of a class raster comes first where it is trained.

    Args:
        task: Task of the labels.
        listed: Classes of the folder.
        renamed: The user's class_mapping; a legend may name classes that no label holds.
        ignored: Values to leave out.
        counts: How often each value occurs.
        find_chip: Returns the name of a chip that holds a value, for messages.

    Raises:
        ChipFolderError: If labels hold values that are no class, or too few classes are left to train.
    """
    names = {int(value): classes.tidy_name(name) for value, name in renamed.items()}
    rows = [(info.value, info.name, info.color) for info in (_renamed(i, names.get(i.value)) for i in listed)]
    held = {value for value, _, _ in rows}
    more = [(value, name, None) for value, name in names.items() if value not in held]
    infos = {info.value: info for info in classes.color_classes([*rows, *more])}
    listing = _few(list(map(str, sorted(infos))))
    unknown = sorted(set(counts) - set(infos) - {0, *ignored})
    if unknown and not is_all_change(task, tuple(infos.values())):
        raise errors.ChipFolderError(
            f'labels hold values {unknown[:10]} that are no class ({listing}), first in {find_chip(unknown[0])}; '
            f'name them with class_mapping= or leave them out with ignore_classes='
        )
    if task in RASTER_TASKS and (0 in counts or 0 in infos):
        infos = {0: infos.get(0, NO_CHANGE if task == Task.CHANGE else classes.UNLABELLED)} | infos
    trained = tuple(info for info in infos.values() if info.value not in ignored)
    check_trainable(task, trained)
    _check_names(trained)
    return trained


def _renamed(info: classes.ClassInfo, name: str | None) -> classes.ClassInfo:
    """Give a class another name; a class that was called by its value alone takes the usual color of the name."""
    if name is None or name == info.name:
        return info
    usual = classes.named_color(name) if info.name == str(info.value) else None
    return replace(info, name=name, color=usual or info.color)


def _check_names(infos: Iterable[classes.ClassInfo]) -> None:
    homes: dict[str, int] = {}
    for info in infos:
        other = homes.setdefault(classes.tidy_name(info.name), info.value)
        if other != info.value:
            raise errors.ChipFolderError(
                f'label values {other} and {info.value} are both called {info.name!r}, and classes are not merged; '
                f'pass class_mapping={{{other}: ..., {info.value}: ...}} with a name for each'
            )


def is_all_change(task: Task, listed: Sequence[classes.ClassInfo]) -> bool:
    """Whether any value but 0 means change, as in ArcGIS: one class at most is listed beside NoChange."""
    return task == Task.CHANGE and sum(info.value != 0 for info in listed) <= 1


def check_trainable(task: Task, infos: Sequence[classes.ClassInfo]) -> None:
    """Raise ChipFolderError unless enough classes are left, two to tell apart or one to find, and not too many."""
    fewest = _FEWEST.get(task, 1)
    most = classes.MAX_CLASSES if task in RASTER_TASKS else MAX_OBJECT_CLASSES
    if len(infos) > most:
        raise errors.ChipFolderError(f'found {len(infos)} classes, but at most {most} can be trained; merge some')
    if len(infos) < fewest:
        named = ', '.join(info.name for info in infos) or 'none'
        needed = 'at least two classes are needed to tell apart' if fewest > 1 else 'at least one class is needed'
        raise errors.ChipFolderError(f'{needed}, found {len(infos)}: {named}')


def make_table(
    task: Task, infos: Sequence[classes.ClassInfo], ignored: Iterable[int], counts: Mapping[int, int]
) -> np.ndarray:
    """Return the int64 lookup from label value to class index; what takes no part is `ignored_index(task)`."""
    if task in RASTER_TASKS:
        table = classes.index_table(infos, ignored)
        if is_all_change(task, infos):
            change = next((index for index, info in enumerate(infos) if info.value), classes.IGNORE_INDEX)
            for value in counts:
                table[value] = change if value and value not in set(ignored) else table[value]
    else:
        table = classes.index_table(infos, ignored, max_classes=MAX_OBJECT_CLASSES, ignored_index=ignored_index(task))
    return table.astype(np.int64)


def ignored_index(task: Task) -> int:
    """Return what the table of a task holds for values that take no part."""
    return classes.IGNORE_INDEX if task in RASTER_TASKS else -1


def part_notes(table: ChipTable, infos: Sequence[classes.ClassInfo], split: Split, *, stratified: bool) -> list[str]:
    """Say which classes are in no training or in no validation chip, as they cannot be learned or measured.

    Args:
        table: Facts about the chips.
        infos: Trained classes.
        split: Which chips are in which part.
        stratified: Whether the split already saw to classes.
    """
    amounts = table.amounts([info.value for info in infos])
    present = amounts.sum(axis=0) > 0
    notes = []
    more = 'export more chips that show them' if stratified else "pass split='stratified', another seed or more chips"
    for name, part, effect in (
        ('training', split.train, 'cannot be learned'),
        ('validation', split.valid, 'have no metrics, and means are over the other classes'),
        ('test', split.test, 'have no metrics on the test chips'),
    ):
        if not part or not infos:
            continue
        held = amounts[list(part)].sum(axis=0) > 0
        lacking = [info.name for info, known, here in zip(infos, present, held) if known and not here]
        if not held.any():
            notes.append(f'nothing is labelled in {len(part)} {name} chips, so no metric of them is defined; {more}')
        elif lacking:
            notes.append(f'classes in no {name} chip {effect}: {_few(lacking)}; {more}')
    return notes


DOMINANT = 0.5
"""Share of pixels from which class `UNLABELLED` is warned of at once: labels are sparse then."""


def unlabelled_warning(infos: Sequence[classes.ClassInfo], counts: Mapping[int, int]) -> str | None:
    """Return what to warn of where most pixels are trained as class `UNLABELLED`, or None."""
    total = sum(counts.values())
    if classes.UNLABELLED not in infos or not total or counts.get(0, 0) / total < DOMINANT:
        return None
    return (
        f'label value 0 covers {counts[0] / total:.1%} of pixels and is trained as class {classes.UNLABELLED.name!r}; '
        'pass ignore_classes=[0] if it means unlabelled'
    )


USUAL_UNLABELLED = (255, 65535)
"""Label values that often mean "not labelled" where nothing says so."""


def apart_warning(task: Task, infos: Sequence[classes.ClassInfo], counts: Mapping[int, int]) -> str | None:
    """Return what to warn of where a nameless class has the value that often means "not labelled", far above others.

    Of two values, as in masks of 0 and 255, both are classes.
    """
    if task not in RASTER_TASKS:
        return None
    for info in infos:
        others = [value for value in counts if value != info.value]
        apart = len(others) > 1 and max(others) < info.value // 2
        if info.value in USUAL_UNLABELLED and counts.get(info.value) and info.name == str(info.value) and apart:
            return (
                f'label value {info.value} ({counts[info.value] / sum(counts.values()):.1%} of pixels) is trained as a '
                f'class, and the others lie in {min(others)}..{max(others)}; pass unlabelled=[{info.value}] if it '
                'means not labelled'
            )
    return None


def class_notes(task: Task, infos: Sequence[classes.ClassInfo], counts: Mapping[int, int]) -> list[str]:
    """Tell about value 0 and about classes that do not occur."""
    notes, total = [], sum(counts.values())
    if any(info == classes.UNLABELLED for info in infos):
        notes.append(
            f'label value 0 ({counts[0] / total:.1%} of pixels) is trained as class {classes.UNLABELLED.name!r}; '
            'pass ignore_classes=[0] if it means unlabelled'
        )
    if apart := apart_warning(task, infos, counts):
        notes.append(apart)
    if empty := empty_classes(task, infos, counts):
        notes.append(empty)
    return notes


def empty_classes(task: Task, infos: Sequence[classes.ClassInfo], counts: Mapping[int, int]) -> str | None:
    """Name the classes that no label holds; None where there is none."""
    empty = [info.name for info in infos if not counts.get(info.value)]
    if not empty:
        return None
    what = 'no pixel of' if task in RASTER_TASKS else 'no label of'
    return f'{what}: {_few(empty)}'

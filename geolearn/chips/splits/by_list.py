"""Divide chips by lists of their names, in Python or in text files."""

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path, PurePosixPath

from geolearn.chips.splits.split import Split
from geolearn.errors import ChipFolderError, UnknownNameError

PARTS = ('train', 'valid', 'test')

_SPELLINGS = {
    'train': 'train',
    'training': 'train',
    'valid': 'valid',
    'val': 'valid',
    'validation': 'valid',
    'test': 'test',
}

NameList = Sequence[str] | str | Path
"""Names of chips, or a text file that holds one on each line."""


def split_list(names: Sequence[str], given: Mapping[str, NameList] | str | Path) -> Split:
    """Divide chips by name.

    Args:
        names: Names of all chips, such as ``'000000001'`` or ``'forest/000000001'``.
        given: ``{'train': ..., 'valid': ..., 'test': ...}``, each a sequence of names or a text file with one name on
            each line; or one CSV file of two columns, name and part. A name may carry its file's suffix. ``'valid'`` is
            needed; without ``'train'`` all other chips are trained on; chips that no list names are dropped.

    Raises:
        ChipFolderError: If a file cannot be read, a name is unknown or in two parts, or a part is empty.
        UnknownNameError: If a part is called otherwise.
    """
    wanted = _read_table(Path(given)) if isinstance(given, str | Path) else _read_lists(given)
    found = {part: _find(names, listed, part) for part, listed in wanted.items()}
    for one, other in combinations(found, 2):
        both = sorted(found[one] & found[other])
        if both:
            raise ChipFolderError(
                f'{_few([names[i] for i in both])} in both {one!r} and {other!r}; name each chip in one part'
            )
    held = found.get('valid', set()) | found.get('test', set())
    train = found.get('train', set(range(len(names))) - held)
    for part, chips in (('valid', found.get('valid')), ('train', train)):
        if not chips:
            raise ChipFolderError(f'the lists name no chip for {part!r}; at least 1 is needed')
    parts = (train, found.get('valid', set()), found.get('test', set()), set(range(len(names))) - train - held)
    return Split(*(tuple(sorted(chips)) for chips in parts))


def _read_lists(given: Mapping[str, NameList]) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    for spelling, listed in given.items():
        if isinstance(listed, str | Path):
            lines = _read_text(Path(listed)).splitlines()
            listed = [line.strip() for line in lines if line.strip()]
        wanted.setdefault(_part(spelling), []).extend(listed)
    return wanted


def _read_table(path: Path) -> dict[str, list[str]]:
    """Read a file of two columns, name and part, divided by comma, semicolon or tab; a heading is passed over."""
    text = _read_text(path)
    divider = max(',;\t', key=text.partition('\n')[0].count)
    wanted: dict[str, list[str]] = {}
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text, newline=''), delimiter=divider)]
    except csv.Error as error:
        raise ChipFolderError(f'{path} is no CSV file: {error}') from error
    for number, row in enumerate(rows, 1):
        if not any(row):
            continue
        if len(row) != 2:
            raise ChipFolderError(f'line {number} of {path} has {len(row)} columns; 2 are needed, name and part')
        part = _SPELLINGS.get(row[1].lower())
        if part:
            wanted.setdefault(part, []).append(row[0])
        elif number > 1:
            raise ChipFolderError(f'line {number} of {path} names the part {row[1]!r}; needed is one of {PARTS}')
    return wanted


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise ChipFolderError(f'cannot read the list of chips {path}: {error}') from error


def _part(spelling: str) -> str:
    if spelling.lower() not in _SPELLINGS:
        raise UnknownNameError('part', spelling, PARTS)
    return _SPELLINGS[spelling.lower()]


def _find(names: Sequence[str], listed: Sequence[str], part: str) -> set[int]:
    positions = {name: i for i, name in enumerate(names)}
    found = [positions.get(name, positions.get(_without_suffix(name), -1)) for name in listed]
    unknown = [name for name, position in zip(listed, found) if position < 0]
    if unknown:
        raise ChipFolderError(
            f'the list for {part!r} names {_few(unknown)}, which no chip bears; names look like {_few(names[:2])}'
        )
    return set(found)


def _without_suffix(name: str) -> str:
    """Drop the suffix of a file: 'forest/001.tif' -> 'forest/001'."""
    path = PurePosixPath(name.replace('\\', '/'))
    return str(path.parent / path.stem) if path.name else name


def _few(names: Sequence[str]) -> str:
    """Show the first names and how many more there are."""
    return ', '.join(map(repr, names[:5])) + (f' and {len(names) - 5:,} more' if len(names) > 5 else '')

"""Divide a collection's chips into training, validation and test, as the user asked."""

import csv
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from numbers import Real
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from affine import Affine

from geolearn.chips.packing.table import ChipTable
from geolearn.chips.splits.overlaps import find_footprints, find_overlaps
from geolearn.chips.splits.split import Split, split_blocks, split_latitude, split_random, split_stratified, take_share
from geolearn.errors import ChipFolderError, UnknownNameError
from geolearn.files import decode_text
from geolearn.raster import GeoBox

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
        return decode_text(path.read_bytes())
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


class Leaks(NamedTuple):
    """How many chips of each part overlap a training chip; `unplaced` chips of all parts have no place to compare."""

    valid: int
    test: int
    unplaced: int

    @property
    def total(self) -> int:
        """Chips of both parts that overlap a training chip."""
        return self.valid + self.test


def count_leaks(geoboxes: Sequence[GeoBox], split: Split) -> Leaks:
    """Count validation and test chips whose footprint shares area with that of a training chip.

    Chips of several CRSs, such as UTM zones, are compared too, and rotated ones by their hull. Chips without a place
    (pixel space) are counted apart: whether they leak is unknown.
    """
    places = find_footprints(geoboxes)
    valid, test = (int(find_overlaps(places, part, split.train).sum()) for part in (split.valid, split.test))
    return Leaks(valid, test, sum(int(places.groups[p] < 0) for p in (*split.train, *split.valid, *split.test)))


def leak_note(leaks: Leaks, split: Split, advice: str) -> str | None:
    """Return the warning about chips that share ground, with what to do about it, or None where none do."""
    found = [
        f'{count:,} of {len(part):,} {name} chips'
        for name, count, part in (('validation', leaks.valid, split.valid), ('test', leaks.test, split.test))
        if count
    ]
    if not found:
        return None
    return f'{" and ".join(found)} share ground with training chips, so scores will be too good; {advice}'


log = logging.getLogger('geolearn')

KINDS = ('random', 'stratified', 'blocks', 'latitude')

SplitChoice = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class Division:
    """What the user asked for.

    Args:
        split: One of `KINDS`, lists of chip names by part, or a file of such lists.
        valid_fraction: Share of the chips to validate on.
        test_fraction: Share to test on.
        block_size: Side of a block in map units, for ``'blocks'``.
        label_fraction: Share of the training chips to train on; None for all.
        seed: Chooses the chips.
    """

    split: SplitChoice = 'random'
    valid_fraction: float = 0.1
    test_fraction: float = 0.0
    block_size: float | None = None
    label_fraction: float | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        if not isinstance(self.split, str | Path) and not _are_lists(self.split):
            raise ChipFolderError(
                f"split must be one of {KINDS}, a file of names, or lists of names by part such as {{'valid': [...]}}, "
                f'got {self.split!r}'
            )
        if isinstance(self.split, str) and self.split not in KINDS and not Path(self.split).suffix:
            raise UnknownNameError('split', self.split, KINDS)
        if self.block_size is not None and self.split != 'blocks':
            raise ChipFolderError(
                f"block_size={self.block_size} has no effect without split='blocks'; pass both or neither"
            )
        numbers = {
            'val_split_pct': self.valid_fraction,
            'test_split_pct': self.test_fraction,
            'label_fraction': 1 if self.label_fraction is None else self.label_fraction,
            'block_size': 1 if self.block_size is None else self.block_size,
        }
        for name, value in numbers.items():
            if not isinstance(value, Real) or isinstance(value, bool):
                raise ChipFolderError(f'{name} must be a number, got {value!r}')

    def check_folders(self, *, valid: bool, test: bool) -> None:
        """Refuse shares and kinds of split that folders for validation or for testing leave without effect.

        Args:
            valid: Whether there are folders to validate on.
            test: Whether there are folders to test on.

        Raises:
            ChipFolderError: If one part would come from two places.
        """
        if test and self.test_fraction:
            raise ChipFolderError(
                f'test_path and test_split_pct={self.test_fraction} both say what to test on; pass one'
            )
        if valid and self.test_fraction:
            raise ChipFolderError(
                f'test_split_pct={self.test_fraction} has no effect beside valid_path; pass the chips to test on as '
                'test_path'
            )
        if valid and self.split != 'random':
            raise ChipFolderError(f'valid_path and split={self.split!r} both say what to validate on; pass one')


DEFAULT_VALID = 0.1
"""Share of the chips to validate on where the user names none."""

PUBLISHED = 'published'
"""The split that a data set states, a random one where it states none."""


def published_division(parts: Mapping[str, Sequence[str]], wanted: Division) -> Division:
    """Divide chips as a data set publishes it; parts that it does not publish are shares of its training part.

    Args:
        parts: Names of the chips of each part.
        wanted: Seed, and shares of what is not published.

    Raises:
        ChipFolderError: If `wanted` asks for a share of what is published, or no part is to be trained on.
    """
    lists = {part: list(names) for part, names in parts.items()}
    if wanted.test_fraction and 'test' in lists:
        raise ChipFolderError(
            f'test_split_pct={wanted.test_fraction} has no effect beside the published test part of '
            f"{len(lists['test'])} chips; leave it out, or pass split='random'"
        )
    if 'valid' in lists and wanted.valid_fraction != DEFAULT_VALID:
        raise ChipFolderError(
            f'val_split_pct={wanted.valid_fraction} has no effect beside the published validation part of '
            f"{len(lists['valid'])} chips; leave it out, or pass split='random'"
        )
    if 'train' not in lists:
        raise ChipFolderError(
            f"the published parts {', '.join(lists)} hold nothing to train on; download it too, or pass split='random'"
        )
    drawn = {'valid': 0.0 if 'valid' in lists else wanted.valid_fraction or DEFAULT_VALID, 'test': wanted.test_fraction}
    lists |= _draw(lists['train'], {part: share for part, share in drawn.items() if share}, wanted.seed)
    log.info('parts as published: %s', ', '.join(f'{len(names)} {part}' for part, names in lists.items()))
    return replace(wanted, split=lists, test_fraction=0.0)


def _draw(names: Sequence[str], shares: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    """Divide chips at random into those to train on and the parts named; none where there are none."""
    if not shares:
        return {}
    first, *more = shares.values()
    split = split_random(len(names), seed=seed, fraction=first, test_fraction=sum(more))
    positions = zip(('train', *shares), (split.train, split.valid, split.test))
    return {part: [names[position] for position in chosen] for part, chosen in positions if chosen}


def _are_lists(given: object) -> bool:
    return isinstance(given, Mapping) and all(
        isinstance(part, str)
        and (isinstance(names, str | Path) or (isinstance(names, Sequence) and all(isinstance(n, str) for n in names)))
        for part, names in given.items()
    )


def divide(
    table: ChipTable,
    presence: np.ndarray,
    wanted: Division,
    part_of: np.ndarray | None,
    *,
    whole: bool = False,
    folders: np.ndarray | None = None,
    labels_apart: bool = False,
) -> tuple[Split, list[str]]:
    """Divide chips.

    Args:
        table: Facts about them.
        presence: (chips, classes) bool.
        wanted: How.
        part_of: For each chip 0 to divide, 1 for validation and 2 for test, where folders say so; None to divide all.
        whole: Whether a chip has one class as a whole; then those of ignored classes are in no part.
        folders: For each chip the position of its folder; None for one folder.
        labels_apart: Whether parts share no labelled pixel even where their chips share ground.

    Returns:
        The parts, and what a person should know about them.

    Raises:
        ChipFolderError: If the chips cannot be divided so.
    """
    positions = np.arange(len(table)) if part_of is None else np.flatnonzero(part_of == 0)
    places = [table.geobox(position) for position in range(len(table))]
    if part_of is not None and (part_of == 1).any():
        split = Split(
            tuple(positions.tolist()),
            tuple(np.flatnonzero(part_of == 1).tolist()),
            tuple(np.flatnonzero(part_of == 2).tolist()),
        )
    else:
        split = _moved(_divide(table.names, places, positions, presence, wanted), positions)
        if part_of is not None:
            split = replace(split, test=tuple(np.flatnonzero(part_of == 2).tolist()))
    notes = []
    if whole:
        split, unused = _of_trained_classes(split, presence)
        notes = [f'{unused} chips of ignored classes were left out'] if unused else []
    if wanted.label_fraction is not None:
        train = take_share(split.train, wanted.label_fraction, seed=wanted.seed, presence=presence)
        notes.append(
            f'label_fraction={wanted.label_fraction:g}: trained on {len(train)} of {len(split.train)} training chips'
        )
        split = replace(split, train=train)
    if labels_apart:
        return split, notes
    return split, notes + _ground_notes(_by_image(places, folders), split, wanted, part_of)


def _of_trained_classes(split: Split, presence: np.ndarray) -> tuple[Split, int]:
    """Return the chips of trained classes, and how many others there are."""
    kept: np.ndarray = np.logical_or.reduce(presence, axis=1)
    train, valid, test = (tuple(p for p in part if kept[p]) for part in (split.train, split.valid, split.test))
    if not train or not valid:
        raise ChipFolderError('no chip of a trained class is left to train or to validate on; ignore fewer classes')
    unused = sum(map(len, (split.train, split.valid, split.test))) - len(train) - len(valid) - len(test)
    return replace(split, train=train, valid=valid, test=test), unused


def _divide(
    names: Sequence[str], places: Sequence[GeoBox], positions: np.ndarray, presence: np.ndarray, wanted: Division
) -> Split:
    """Divide the chips at some positions of all; the split counts these alone."""
    shares = {'fraction': wanted.valid_fraction, 'test_fraction': wanted.test_fraction}
    if not isinstance(wanted.split, str) or wanted.split not in KINDS:
        return split_list([names[p] for p in positions.tolist()], wanted.split)
    if wanted.split == 'random':
        return split_random(len(positions), seed=wanted.seed, **shares)
    if wanted.split == 'stratified':
        return split_stratified(presence[positions], seed=wanted.seed, **shares)
    chosen = [places[p] for p in positions.tolist()]
    if wanted.split == 'blocks':
        return split_blocks(chosen, block_size=wanted.block_size, seed=wanted.seed, **shares)
    return split_latitude(chosen, fraction=wanted.valid_fraction, test_fraction=wanted.test_fraction)


def _moved(split: Split, positions: np.ndarray) -> Split:
    """Return a split of some chips in positions of all."""
    parts = (split.train, split.valid, split.test, split.dropped)
    return Split(*(tuple(positions[list(part)].tolist()) for part in parts))


def _by_image(places: Sequence[GeoBox], folders: np.ndarray | None) -> list[GeoBox]:
    """Keep chips without a CRS from being compared across images, each of which counts from its own corner.

    Chips of several folders are of several images. Where two chips of a folder lie in exactly one place they are of
    several images too, and which is which is not known: then they have no place.
    """
    homes = np.zeros(len(places), np.int64) if folders is None else folders
    keys = [(home, box.shape, tuple(box.transform)) for home, box in zip(homes.tolist(), places)]
    counts = Counter(keys)
    mixed = {home for (home, *_), count in counts.items() if count > 1}
    found = []
    for home, box in zip(homes.tolist(), places):
        if box.crs is not None:
            found.append(box)
        elif home in mixed:
            found.append(GeoBox(box.shape, Affine.identity(), None))
        else:
            found.append(GeoBox(box.shape, box.transform, f'image {home}'))
    return found


def _ground_notes(places: Sequence[GeoBox], split: Split, wanted: Division, part_of: np.ndarray | None) -> list[str]:
    """Tell about chips in no part, and warn where the parts share ground."""
    notes = []
    named = isinstance(wanted.split, str) and wanted.split in KINDS
    if split.dropped:
        why = 'share ground with another part' if named else 'are in no list'
        notes.append(f'{len(split.dropped)} chips {why} and were left out')
    leaks = count_leaks(places, split)
    if leak := leak_note(leaks, split, _leak_cure(leaks, part_of, named=named)):
        log.warning(leak)
        notes.append(leak)
    return notes


def _leak_cure(leaks: Leaks, part_of: np.ndarray | None, *, named: bool) -> str:
    given = set() if part_of is None else set(part_of.tolist())
    found = (('valid_path', 1, leaks.valid), ('test_path', 2, leaks.test))
    if folders := [name for name, part, count in found if count and part in given]:
        return f'pass folders of other land as {" and ".join(folders)}'
    return "pass split='blocks' to hold out whole blocks of land" if named else 'list chips of one place in one part'

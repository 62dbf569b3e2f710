"""Divide a collection's chips into training, validation and test, as the user asked."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from geolearn.chips.leaks import count_leaks, leak_note
from geolearn.chips.lists import split_list
from geolearn.chips.splits import Split, split_blocks, split_latitude, split_random, split_stratified, take_share
from geolearn.chips.table import ChipTable
from geolearn.errors import ChipFolderError, UnknownNameError
from geolearn.raster import GeoBox

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
        if isinstance(self.split, str) and self.split not in KINDS and not Path(self.split).suffix:
            raise UnknownNameError('split', self.split, KINDS)
        if self.block_size is not None and self.split != 'blocks':
            raise ChipFolderError(
                f"block_size={self.block_size} has no effect without split='blocks'; pass both or neither"
            )


def divide(table: ChipTable, presence: np.ndarray, wanted: Division, part_of: np.ndarray | None) -> Split:
    """Divide chips.

    Args:
        table: Facts about them.
        presence: (chips, classes) bool.
        wanted: How.
        part_of: For each chip 0 to divide, 1 for validation and 2 for test, where folders say so; None to divide all.

    Raises:
        ChipFolderError: If the chips cannot be divided so.
    """
    positions = np.arange(len(table)) if part_of is None else np.flatnonzero(part_of == 0)
    if part_of is not None and (part_of == 1).any():
        split = Split(
            tuple(positions.tolist()),
            tuple(np.flatnonzero(part_of == 1).tolist()),
            tuple(np.flatnonzero(part_of == 2).tolist()),
        )
    else:
        split = _moved(_divide(table, positions, presence, wanted), positions)
        if part_of is not None:
            split = replace(split, test=tuple(np.flatnonzero(part_of == 2).tolist()))
    if wanted.label_fraction is not None:
        train = take_share(split.train, wanted.label_fraction, seed=wanted.seed, presence=presence)
        split = replace(split, train=train)
    return split


def _divide(table: ChipTable, positions: np.ndarray, presence: np.ndarray, wanted: Division) -> Split:
    shares = {'fraction': wanted.valid_fraction, 'test_fraction': wanted.test_fraction}
    if not isinstance(wanted.split, str) or wanted.split not in KINDS:
        return split_list([table.names[p] for p in positions.tolist()], wanted.split)
    if wanted.split == 'random':
        return split_random(len(positions), seed=wanted.seed, **shares)
    if wanted.split == 'stratified':
        return split_stratified(presence[positions], seed=wanted.seed, **shares)
    places = _places(table, positions.tolist())
    if wanted.split == 'blocks':
        return split_blocks(places, block_size=wanted.block_size, seed=wanted.seed, **shares)
    return split_latitude(places, fraction=wanted.valid_fraction, test_fraction=wanted.test_fraction)


def _places(table: ChipTable, positions: Sequence[int]) -> list[GeoBox]:
    return [table.geobox(position) for position in positions]


def _moved(split: Split, positions: np.ndarray) -> Split:
    """Return a split of some chips in positions of all."""
    parts = (split.train, split.valid, split.test, split.dropped)
    return Split(*(tuple(positions[list(part)].tolist()) for part in parts))


def division_notes(table: ChipTable, split: Split, wanted: Division) -> list[str]:
    """Tell about chips in no part, about a share of the labels, and warn where the parts share ground."""
    notes = []
    if split.dropped:
        named = isinstance(wanted.split, str) and wanted.split in KINDS
        why = 'share ground with another part' if named else 'are in no list'
        notes.append(f'{len(split.dropped)} chips {why} and were left out')
    if wanted.label_fraction is not None:
        notes.append(f'trained on {len(split.train)} chips, {wanted.label_fraction:.3g} of the training chips')
    leak = leak_note(count_leaks(_places(table, range(len(table))), split), split)
    if leak:
        log.warning(leak)
        notes.append(leak)
    return notes

"""Which items are tested together: stratified by their classes, or by the land that they lie on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from geolearn.chips.splits.split import assign_parts
from geolearn.probe.labels import ProbeLabels, is_missing

MANY_ITEMS = 20_000
"""From so many items of several classes on, folds are dealt by sets of classes: one by one takes 40 µs each, and the
shares of the classes are even by themselves."""

NEVER_TESTED = -1

BLOCK_SPACINGS = 4
"""Side of a block, where none is given, in distances of a place to its nearest neighbor."""


@dataclass(frozen=True, eq=False)
class Folds:
    """Of one seed.

    Args:
        number: Fold that each item is tested in (items,) int64; -1 for items that are only trained on.
        tested: Numbers of the folds that are tested.
        text: What they are, in words.
    """

    number: np.ndarray
    tested: tuple[int, ...]
    text: str


@dataclass(frozen=True, eq=False)
class FoldPlan:
    """How items are divided, for any seed.

    Args:
        labels: Of the items.
        count: Number of folds; or fold of each item (items,), -1 for items that are only trained on.
        groups: Group of each item (items,) as whole numbers, which no fold divides; None for items on their own.
        text: What groups are, in words.
        single: Whether one fold is tested for each seed, instead of all.
    """

    labels: ProbeLabels
    count: int | np.ndarray
    groups: np.ndarray | None = None
    text: str = ''
    single: bool = False

    def divide(self, seed: int) -> Folds:
        """Return the folds of a seed."""
        if isinstance(self.count, np.ndarray):
            tested = np.unique(self.count[self.count != NEVER_TESTED])
            training = ', other items trained on alone' if (self.count == NEVER_TESTED).any() else ''
            return Folds(self.count, tuple(tested.tolist()), f'{_folds(len(tested))} as given{training}')
        if self.groups is None:
            number, text = _stratify(self.labels, self.count, seed), 'stratified by class'
        else:
            number, text = _deal_groups(self.labels.presence, self.groups, self.count, seed), self.text
        if self.single:
            return Folds(number, (0,), f'1 of {self.count} parts tested for each seed, {text}')
        return Folds(number, tuple(range(self.count)), f'{_folds(self.count)}, {text}')


def _folds(count: int) -> str:
    return f'{count} fold' if count == 1 else f'{count} folds'


def plan_folds(
    labels: ProbeLabels,
    *,
    folds: Any,
    groups: Any = None,
    positions: Any = None,
    block_size: float | None = None,
    single: bool = False,
) -> FoldPlan:
    """Check how items are to be divided.

    Args:
        labels: Of the items.
        folds: A number from 2 on; or the fold of each item (items,), -1 for items that are only trained on.
        groups: Group of each item (items,), such as the name of its scene: no fold divides a group.
        positions: Map coordinates of each item (items, 2): whole blocks of land are tested.
        block_size: Side of a block in units of `positions`; None for four times the distance from a place to the
            nearest other one (median).
        single: Whether one fold is tested for each seed, instead of all.

    Raises:
        ValueError: If arguments exclude each other or do not fit the items, or there are fewer groups than folds.
    """
    count = len(labels.presence)
    given = [name for name, value in (('groups', groups), ('positions', positions)) if value is not None]
    if len(given) == 2:
        raise ValueError('groups and positions both say what folds must not divide; pass one')
    if block_size is not None and positions is None:
        raise ValueError(f'block_size={block_size:g} has no effect without positions')
    if not isinstance(folds, int | np.integer):
        if given:
            raise ValueError(f'folds already says where each item is tested; leave {given[0]} out')
        return FoldPlan(labels, _check_given(np.asarray(folds), count))
    if folds < 2:
        raise ValueError(f'folds must be 2 or more, got {folds}')
    if count < folds:
        raise ValueError(f'{count} items are too few for folds={folds}')
    if not given:
        return FoldPlan(labels, int(folds), single=single)
    if groups is not None:
        found, text, advice = _read_groups(groups, count), 'whole groups', 'pass fewer folds'
    else:
        found, side = find_blocks(positions, count, block_size)
        text, advice = f'whole blocks of land {side:g} map units wide', 'pass fewer folds or a smaller block_size'
    if (many := len(np.unique(found))) < folds:
        raise ValueError(f'{many} {text} are too few for folds={folds}; {advice}')
    return FoldPlan(labels, int(folds), found, text, single)


def _check_given(number: np.ndarray, count: int) -> np.ndarray:
    if number.shape != (count,) or number.dtype.kind not in 'iu':
        raise ValueError(
            f'folds must be a whole number, or the fold of each of {count:,} items; got {number.dtype} '
            f'of shape {number.shape}'
        )
    number = number.astype(np.int64)
    if number.min() < NEVER_TESTED:
        raise ValueError(f'the fold of an item is 0 or more, or -1 for training alone; got {number.min()}')
    tested = np.unique(number[number != NEVER_TESTED])
    if not len(tested) or (len(tested) == 1 and not (number == NEVER_TESTED).any()):
        raise ValueError('folds name no items to test, or none to train on; give two folds, or -1 for training items')
    return number


def _read_groups(groups: Any, count: int) -> np.ndarray:
    values = np.asarray(groups)
    if values.dtype.kind == 'U' and not isinstance(groups, np.ndarray):
        values = np.asarray(groups, object)  # NumPy would make texts of what is missing
    if values.shape != (count,):
        raise ValueError(f'groups must name one group for each of {count:,} items, got an array of {values.shape}')
    if values.dtype.kind in 'fO' and (missing := sum(map(is_missing, values.tolist()))):
        raise ValueError(f'{missing:,} of {count:,} items have no group; leave them out, or name a group for each')
    found: np.ndarray = np.unique(values.astype(str) if values.dtype.kind == 'O' else values, return_inverse=True)[1]
    return found


def find_blocks(positions: Any, count: int, block_size: float | None = None) -> tuple[np.ndarray, float]:
    """Return the block that each position lies in (items,) as whole numbers, and the side of a block.

    Raises:
        ValueError: If the positions are not (items, 2) finite numbers, or all the same.
    """
    places = np.asarray(positions, np.float64)
    if places.shape != (count, 2) or not np.isfinite(places).all():
        raise ValueError(
            f'positions must be finite map coordinates of shape ({count}, 2), got an array of {places.shape}'
        )
    distinct = np.unique(places, axis=0)
    if len(distinct) < 2:
        raise ValueError('all items lie at one place; folds of land need several places')
    if block_size is None:
        from scipy.spatial import KDTree

        distances, _ = KDTree(distinct).query(distinct, k=2)
        block_size = BLOCK_SPACINGS * float(np.median(distances[:, 1]))
    if not 0 < block_size < np.inf:
        raise ValueError(f'block_size must be a positive number of map units, got {block_size}')
    cells = np.floor((places - places.min(axis=0)) / block_size).astype(np.int64)
    return np.unique(cells, axis=0, return_inverse=True)[1].ravel(), block_size


def _stratify(labels: ProbeLabels, count: int, seed: int) -> np.ndarray:
    """Give each item a fold, so that all folds see the classes in about the same proportions."""
    if labels.multi_label and len(labels.presence) <= MANY_ITEMS:
        return assign_parts(labels.presence, [1 / count] * count, seed=seed)
    rng = np.random.default_rng(seed)
    rarest_last = np.argsort(-labels.counts, kind='stable')
    shuffled = rng.permutation(len(labels.presence))
    # items of one set of classes follow each other, those with a rare class first, and are dealt in turn
    order = shuffled[np.lexsort(labels.presence[shuffled][:, rarest_last].T)]
    number = np.empty(len(order), np.int64)
    number[order] = (np.arange(len(order)) + rng.integers(count)) % count
    return number


def _deal_groups(presence: np.ndarray, groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Give whole groups to folds, the largest first, each to the fold that then is nearest to even in all classes."""
    total = int(groups.max()) + 1
    # a last column counts the items themselves
    table = np.concatenate([presence, np.ones((len(presence), 1), bool)], axis=1)
    held = np.zeros((total, table.shape[1]))
    np.add.at(held, groups, table)
    wanted = np.maximum(held.sum(axis=0) / count, 1e-9)
    filled = np.zeros((count, table.shape[1]))
    fold_of = np.empty(total, np.int64)
    shuffled = np.random.default_rng(seed).permutation(total)
    order = shuffled[np.argsort(-held[shuffled, -1], kind='stable')]
    for left, group in zip(range(total, 0, -1), order.tolist()):
        empty = np.flatnonzero(filled[:, -1] == 0)
        # the last groups go to folds that have none
        choices: Sequence[int] | np.ndarray = empty if len(empty) >= left else np.arange(count)
        excess = ((filled[choices] + held[group]) / wanted) ** 2 - (filled[choices] / wanted) ** 2
        fold = int(choices[int(np.argmin(excess.mean(axis=1)))])
        filled[fold] += held[group]
        fold_of[group] = fold
    return fold_of[groups]

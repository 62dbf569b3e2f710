"""Share chips out so that every part sees every class, by iterative stratification (Sechidis et al. 2011)."""

from collections.abc import Sequence

import numpy as np


def assign_parts(presence: np.ndarray, shares: Sequence[float], *, seed: int) -> np.ndarray:
    """Give each chip a part, the rarest classes first.

    A class that occurs in one chip goes to the first part; one in fewer chips than there are parts goes to the first
    parts; any other to every part, unless chips hold classes together in a way that forbids it.

    Args:
        presence: (chips, classes) bool, True where a chip holds a class.
        shares: Wanted share of the chips in each part; they add up to 1. The first part is the one to train on.
        seed: Decides between chips that are equally fit.

    Returns:
        (chips,) int index of the part of each chip. No part is empty where there are chips enough.
    """
    rng = np.random.default_rng(seed)
    parts = _assign_rarest_first(presence, np.asarray(shares, float), rng)
    _spread_classes(presence, parts, len(shares))
    _fill_empty_parts(presence, parts, len(shares), rng)
    return parts


def order_rarest_first(presence: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the chips in an order whose every beginning holds the classes in about the proportions of the whole.

    A chip counts for the rarest of its classes. First comes one chip of each class, the rarest class first; chips
    without a class count as one class more.

    Args:
        presence: (chips, classes) bool.
        seed: Decides between chips that are equally fit.

    Returns:
        (chips,) int positions.
    """
    chips = len(presence)
    table = np.concatenate([presence, ~presence.any(axis=1, keepdims=True)], axis=1)
    counts = table.sum(axis=0)
    by_rarity = np.argsort(counts, kind='stable')
    rank = np.argmax(table[:, by_rarity], axis=1)  # of the rarest class that each chip holds
    shuffled = np.random.default_rng(seed).permutation(chips)
    order = shuffled[np.argsort(rank[shuffled], kind='stable')]
    sizes = np.bincount(rank, minlength=len(counts))
    place = np.arange(chips) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[np.lexsort((rank[order], place / sizes[rank[order]]))]


def _assign_rarest_first(presence: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    chips = len(presence)
    parts = np.full(chips, -1)
    wanted = np.array([_quota(int(count), shares) for count in presence.sum(axis=0)]).reshape(-1, len(shares))
    room = _quota(chips, shares)
    left = presence.sum(axis=0)
    while left.any():
        rarest = int(np.argmin(np.where(left > 0, left, chips + 1)))
        for chip in rng.permutation(np.flatnonzero(presence[:, rarest] & (parts < 0))):
            part = _neediest(wanted[rarest], room)
            parts[chip] = part
            held = np.flatnonzero(presence[chip])
            wanted[held, part] -= 1
            left[held] -= 1
            room[part] -= 1
    for chip in rng.permutation(np.flatnonzero(parts < 0)):
        part = int(np.argmax(room))
        parts[chip] = part
        room[part] -= 1
    return parts


def _quota(count: int, shares: np.ndarray) -> np.ndarray:
    """Divide `count` chips by `shares`, but give no part less than one chip while there are enough."""
    if count < len(shares):
        return (np.arange(len(shares)) < count).astype(float)
    quota = np.maximum(shares * count, 1.0)
    quota[np.argmax(quota)] -= quota.sum() - count
    return quota


def _neediest(wanted: np.ndarray, room: np.ndarray) -> int:
    """Return the part that wants most chips of a class; among equals the one that wants most chips at all."""
    best = np.flatnonzero(wanted >= wanted.max() - 1e-9)
    return int(best[np.argmax(room[best])])


def _spread_classes(presence: np.ndarray, parts: np.ndarray, count: int) -> None:
    """Move chips to parts that lack one of their classes, where that takes no class's last chip from another part."""
    held = np.stack([presence[parts == part].sum(axis=0) for part in range(count)], axis=1)
    total = held.sum(axis=1)
    for kind in np.argsort(total, kind='stable'):
        for part in range(min(count, int(total[kind]))):
            if held[kind, part]:
                continue
            for chip in np.flatnonzero(presence[:, kind]):
                classes, home = presence[chip], parts[chip]
                if (held[classes, home] > 1).all():
                    held[classes, home] -= 1
                    held[classes, part] += 1
                    parts[chip] = part
                    break


def _fill_empty_parts(presence: np.ndarray, parts: np.ndarray, count: int, rng: np.random.Generator) -> None:
    """Move a chip to each empty part: one that takes the fewest classes from the part it leaves."""
    for part in range(count):
        sizes = np.bincount(parts, minlength=count)
        if sizes[part]:
            continue
        held = np.stack([presence[parts == home].sum(axis=0) for home in range(count)])
        spare = rng.permutation(np.flatnonzero(sizes[parts] > 1))
        if len(spare):
            shared = presence[spare] & (presence.sum(axis=0) > 1)
            parts[spare[np.argmin((shared & (held[parts[spare]] == 1)).sum(axis=1))]] = part

"""Divide chips into training, validation and test."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError
from rasterio.warp import transform

from geolearn.chips.splits.overlaps import Footprints, find_footprints, find_overlaps
from geolearn.errors import ChipFolderError
from geolearn.raster import GeoBox


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


@dataclass(frozen=True)
class Split:
    """Positions of the chips in each part, sorted.

    `dropped` are in none: they straddle a border, or the given lists do not name them.
    """

    train: tuple[int, ...]
    valid: tuple[int, ...]
    test: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()


def split_random(count: int, *, fraction: float, seed: int, test_fraction: float = 0.0) -> Split:
    """Put random shares of the chips into validation and test.

    Args:
        count: Number of chips.
        fraction: Share of the chips to validate on.
        seed: Chooses the chips.
        test_fraction: Share of the chips to test on; 0 for none.

    Raises:
        ChipFolderError: If a share makes no sense or there are too few chips for the parts.
    """
    _check(count, fraction, test_fraction)
    order = np.random.default_rng(seed).permutation(count)
    valid, test = _sizes(count, fraction, test_fraction)
    return Split(_sorted(order[valid + test :]), _sorted(order[:valid]), _sorted(order[valid : valid + test]))


def split_stratified(presence: np.ndarray, *, fraction: float, seed: int, test_fraction: float = 0.0) -> Split:
    """Divide chips so that each part sees the classes in about the same proportions, and rare ones at all.

    A class in two chips or more is in training and validation, one in three or more also in test, unless chips hold
    classes together in a way that forbids it. A class in a single chip is in training.

    Args:
        presence: (chips, classes) bool, True where a chip holds a class.
        fraction: Share of the chips to validate on, reached about.
        seed: Decides between chips that are equally fit.
        test_fraction: Share of the chips to test on; 0 for none.

    Raises:
        ChipFolderError: If a share makes no sense or there are too few chips for the parts.
    """
    held = np.asarray(presence, bool)
    _check(len(held), fraction, test_fraction)
    shares = [1 - fraction - test_fraction, fraction, *([test_fraction] if test_fraction else [])]
    parts = assign_parts(held, shares, seed=seed)
    return Split(*(_sorted(np.flatnonzero(parts == part)) for part in range(3)))


def split_blocks(
    geoboxes: Sequence[GeoBox],
    *,
    fraction: float,
    block_size: float | None,
    seed: int,
    test_fraction: float = 0.0,
) -> Split:
    """Put whole square blocks of land into validation and test; chips that would straddle are dropped.

    Chips of one scene resemble their neighbors, and overlapping chips share pixels: accuracy measured on chips drawn
    at random is too good (Ploton et al. 2020, Nature Communications 11:4540). Chips of different CRSs are never
    compared: each CRS has its own blocks.

    Args:
        geoboxes: Place of each chip.
        fraction: Share of the chips to validate on, reached as nearly as whole blocks allow.
        block_size: Side of a block in map units of each CRS; None means four chips.
        seed: Chooses the blocks.
        test_fraction: Share of the chips to test on; 0 for none.

    Raises:
        ChipFolderError: If the chips have no distinct places, or there are fewer blocks than parts.
    """
    _check(len(geoboxes), fraction, test_fraction)
    if block_size is not None and not 0 < block_size < np.inf:
        raise ChipFolderError(f'block_size must be positive, got {block_size}')
    places = _require_places(geoboxes, 'blocks')
    blocks = _find_blocks(places, block_size)
    if len(blocks) < 2 + bool(test_fraction):
        raise ChipFolderError(_too_few_blocks(places, block_size, len(blocks), 2 + bool(test_fraction)))
    order = [blocks[i] for i in np.random.default_rng(seed).permutation(len(blocks))]
    # a block is kept for training, and one for the test where there is one
    valid = _choose_blocks(order, round(len(geoboxes) * fraction), keep=1 + bool(test_fraction))
    rest = [block for i, block in enumerate(order) if i not in valid]
    test = _choose_blocks(rest, round(len(geoboxes) * test_fraction), keep=1) if test_fraction else []
    held = [position for i in valid for position in order[i]], [position for i in test for position in rest[i]]
    return _without_straddlers(places, *held, unit='block', advice='pass a larger block_size')


def split_latitude(
    geoboxes: Sequence[GeoBox], *, fraction: float = 0.2, test_fraction: float = 0.2, stripes: int = 1
) -> Split:
    """Divide the land from north to south into stripes, and each stripe into bands: training, validation, test.

    Bands are bounded by latitudes that are chosen so that each holds its share of the chips. With one stripe the parts
    lie far apart, which is the hardest test; with more, each part sees more of the land. Chips that would straddle
    two bands are dropped. Nothing is random.

    Args:
        geoboxes: Place of each chip. Where none names its CRS, northing stands for latitude.
        fraction: Share of the chips to validate on.
        test_fraction: Share of the chips to test on; 0 for none.
        stripes: How often the sequence of bands repeats.

    Raises:
        ChipFolderError: If a share makes no sense, the chips have no distinct places, or bands are narrower than chips.
    """
    _check(len(geoboxes), fraction, test_fraction)
    if stripes < 1:
        raise ChipFolderError(f'stripes must be at least 1, got {stripes}')
    places = _require_places(geoboxes, 'latitude')
    northing = _latitudes(places)
    rank = np.searchsorted(np.sort(-northing), -northing)  # equal latitudes share a rank, so that they stay together
    within = rank * stripes % len(geoboxes) / len(geoboxes)
    # rounding: 0.6 must not be more than 1 - 0.2 - 0.2
    valid_from, test_from = round(1 - fraction - test_fraction, 9), round(1 - test_fraction, 9)
    valid = np.flatnonzero((within >= valid_from) & (within < test_from))
    test = np.flatnonzero(within >= test_from)
    if not len(valid) or bool(len(test)) != bool(test_fraction):
        fewer = 'fewer stripes, or ' if stripes > 1 else ''
        raise ChipFolderError(
            f'{len(np.unique(northing))} latitudes are too few for {stripes} stripes of '
            f"{3 if test_fraction else 2} bands; pass {fewer}split='random'"
        )
    fewer = 'fewer stripes or ' if stripes > 1 else ''
    return _without_straddlers(
        places, valid.tolist(), test.tolist(), unit='band', advice=f'pass {fewer}a larger share (val_split_pct)'
    )


def take_share(
    train: Sequence[int], fraction: float, *, seed: int, presence: np.ndarray | None = None
) -> tuple[int, ...]:
    """Keep a share of the training chips; for one seed, smaller shares lie inside larger ones.

    Args:
        train: Positions of the training chips.
        fraction: Share to keep, over 0 and up to 1; at least one chip is kept.
        seed: Chooses the chips.
        presence: (all chips, classes) bool. Given, chips of rare classes come early and shares keep the proportions.

    Returns:
        Positions, sorted.

    Raises:
        ChipFolderError: If the share makes no sense.
    """
    if not 0 < fraction <= 1:
        raise ChipFolderError(f'label_fraction must be over 0 and at most 1, got {fraction}')
    positions = np.sort(np.asarray(train, np.int64))
    if presence is None:
        order = np.random.default_rng(seed).permutation(len(positions))
    else:
        order = order_rarest_first(np.asarray(presence, bool)[positions], seed=seed)
    return _sorted(positions[order[: max(round(len(positions) * fraction), 1)]])


def _require_places(geoboxes: Sequence[GeoBox], kind: str) -> Footprints:
    places = find_footprints(geoboxes)
    # chips without a place all lie at the origin, so they are distinguished from others only where there are others
    if len(np.unique(np.column_stack([places.groups, places.centers]), axis=0)) == 1:
        raise ChipFolderError(f'split={kind!r} needs georeferenced chips, but all of these lie at one place')
    lost = int((places.groups < 0).sum())
    if lost:
        raise ChipFolderError(
            f'split={kind!r} needs georeferenced chips, but {lost} of {len(geoboxes)} have no place; '
            "leave them out, or pass split='random'"
        )
    return places


def _find_blocks(places: Footprints, block_size: float | None) -> list[list[int]]:
    blocks: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for group, members in enumerate(places.members()):
        bounds, side = places.bounds[members], _block_side(places, members, block_size)
        cells = np.floor((places.centers[members] - bounds[:, :2].min(axis=0)) / side).astype(int)
        for position, (col, row) in zip(members.tolist(), cells.tolist()):
            blocks[group, col, row].append(position)
    return list(blocks.values())


def _block_side(places: Footprints, members: np.ndarray, block_size: float | None) -> float:
    bounds = places.bounds[members]
    return block_size or 4 * float(np.median(bounds[:, 2] - bounds[:, 0]))


def _too_few_blocks(places: Footprints, block_size: float | None, found: int, needed: int) -> str:
    if found > 1:
        return f'all chips lie in {found} blocks, but {needed} are needed; pass a smaller block_size'
    side = _block_side(places, np.arange(len(places.bounds)), block_size)
    return f'all chips lie in one block of {side:g} map units; pass a smaller block_size'


def _choose_blocks(blocks: list[list[int]], wanted: int, *, keep: int) -> list[int]:
    """Take blocks in order while they bring the number of chips nearer to `wanted`, but leave `keep` of them."""
    chosen: list[int] = []
    count = 0
    for index, block in enumerate(blocks):
        nearer = abs(count + len(block) - wanted) < abs(count - wanted)
        if len(chosen) < len(blocks) - keep and (not chosen or nearer):
            chosen.append(index)
            count += len(block)
    return chosen


def _without_straddlers(places: Footprints, valid: list[int], test: list[int], *, unit: str, advice: str) -> Split:
    """Drop validation chips that overlap test chips, then training chips that overlap either."""
    shared = find_overlaps(places, valid, test)
    kept = [position for position, hit in zip(valid, shared) if not hit]
    rest = sorted(set(range(len(places.bounds))) - set(valid) - set(test))
    hits = find_overlaps(places, rest, kept + test)
    train = tuple(position for position, hit in zip(rest, hits) if not hit)
    if not train:
        raise ChipFolderError(f'every training chip overlaps a validation {unit}; {advice}')
    if not kept:
        raise ChipFolderError(f'every validation chip overlaps a test {unit}; {advice}')
    dropped = set(range(len(places.bounds))) - {*train, *kept, *test}
    return Split(train, tuple(sorted(kept)), tuple(sorted(test)), tuple(sorted(dropped)))


def _latitudes(places: Footprints) -> np.ndarray:
    """Return how far north each chip's center is: degrees, or map units where no chip names its CRS."""
    unnamed = [crs is None for crs in places.crs]
    if all(unnamed):
        return places.centers[:, 1]
    if any(unnamed):
        raise ChipFolderError("some chips name no CRS, so their latitude is unknown; give it, or pass split='random'")
    found = np.empty(len(places.bounds))
    for crs, members in zip(places.crs, places.members()):
        xs, ys = places.centers[members].T
        try:
            found[members] = transform(crs, 'EPSG:4326', xs.tolist(), ys.tolist())[1]
        except (CRSError, CPLE_BaseError) as error:
            raise ChipFolderError(f"latitudes cannot be had from {crs}: {error}; pass split='blocks'") from error
    if not (np.abs(found) <= 90).all():
        raise ChipFolderError("some chips lie outside the area of their CRS; correct it, or pass split='random'")
    return found


def _check(count: int, fraction: float, test_fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ChipFolderError(f'val_split_pct must lie between 0 and 1, got {fraction}; 20 % is 0.2')
    if not 0 <= test_fraction < 1 or fraction + test_fraction >= 1:
        raise ChipFolderError(
            f'test_split_pct must lie between 0 and 1 and leave chips to train on, got {test_fraction} '
            f'beside val_split_pct={fraction}'
        )
    if count < 2:
        raise ChipFolderError(
            f'found {count} chip; at least 3 are needed, two to train on and one to validate: export more chips '
            '(a smaller tile_size or stride)'
        )
    if test_fraction and count < 3:
        raise ChipFolderError(
            f'found {count} chips; at least 4 are needed, two to train on, one to validate, one to test: export more '
            'chips (a smaller tile_size or stride), or pass folders as valid_path= and test_path='
        )


def _sizes(count: int, fraction: float, test_fraction: float) -> tuple[int, int]:
    """Return how many chips validate and how many test; one at least is left to train."""
    test = max(round(count * test_fraction), 1) if test_fraction else 0
    valid = min(max(round(count * fraction), 1), count - 1 - min(test, count - 2))
    return valid, min(test, count - 1 - valid)


def _sorted(positions: np.ndarray) -> tuple[int, ...]:
    return tuple(sorted(positions.tolist()))

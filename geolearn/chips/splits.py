"""Divide chips into training and validation."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geolearn.errors import ChipFolderError
from geolearn.raster import GeoBox


@dataclass(frozen=True)
class Split:
    """Positions of the chips in each part; `dropped` are in neither because they straddle the border."""

    train: tuple[int, ...]
    valid: tuple[int, ...]
    dropped: tuple[int, ...] = ()


def split_random(count: int, *, fraction: float, seed: int) -> Split:
    """Put a random share of the chips into validation.

    Raises:
        ChipFolderError: If there are too few chips for two parts.
    """
    _check(count, fraction)
    order = np.random.default_rng(seed).permutation(count)
    held_out = min(max(round(count * fraction), 1), count - 1)
    return Split(tuple(sorted(order[held_out:].tolist())), tuple(sorted(order[:held_out].tolist())))


def split_blocks(geoboxes: Sequence[GeoBox], *, fraction: float, block_size: float | None, seed: int) -> Split:
    """Put whole square blocks of land into validation; training chips that overlap them are dropped.

    Chips of one scene resemble their neighbours, and overlapping chips share pixels: accuracy measured on chips drawn
    at random is too good (Ploton et al. 2020, Nature Communications 11:4540).

    Args:
        geoboxes: Place of each chip.
        fraction: Share of the chips to validate on, reached as nearly as whole blocks allow.
        block_size: Side of a block in map units; None means four chips.
        seed: Chooses the blocks.

    Raises:
        ChipFolderError: If the chips have no distinct places, or all of them lie in one block.
    """
    _check(len(geoboxes), fraction)
    bounds = np.array([box.bounds for box in geoboxes])
    centres = np.stack([(bounds[:, 0] + bounds[:, 2]) / 2, (bounds[:, 1] + bounds[:, 3]) / 2], axis=1)
    if len(np.unique(centres, axis=0)) == 1:
        raise ChipFolderError("split='blocks' needs georeferenced chips, but all of these lie at one place")
    side = 4 * float(np.median(bounds[:, 2] - bounds[:, 0])) if block_size is None else block_size
    if side <= 0:
        raise ChipFolderError(f'block_size must be positive, got {side}')
    blocks: dict[tuple[int, int], list[int]] = defaultdict(list)
    for position, (col, row) in enumerate(np.floor((centres - bounds[:, :2].min(axis=0)) / side).astype(int).tolist()):
        blocks[col, row].append(position)
    if len(blocks) == 1:
        raise ChipFolderError(f'all chips lie in one block of {side:g} map units; pass a smaller block_size')
    valid = _choose_blocks(list(blocks.values()), round(len(geoboxes) * fraction), seed)
    rest = sorted(set(range(len(geoboxes))) - set(valid))
    overlapping = _overlap_any(bounds[rest], bounds[valid])
    train = tuple(position for position, hit in zip(rest, overlapping) if not hit)
    dropped = tuple(position for position, hit in zip(rest, overlapping) if hit)
    if not train:
        raise ChipFolderError('every training chip overlaps a validation block; pass a larger block_size')
    return Split(train, tuple(valid), dropped)


def _choose_blocks(blocks: list[list[int]], wanted: int, seed: int) -> list[int]:
    """Add blocks in random order while they bring the number of chips nearer to `wanted`; keep one for training."""
    chosen: list[int] = []
    for index in np.random.default_rng(seed).permutation(len(blocks)):
        block = blocks[index]
        remaining = sum(map(len, blocks)) - len(chosen) - len(block)
        if remaining and (not chosen or abs(len(chosen) + len(block) - wanted) < abs(len(chosen) - wanted)):
            chosen.extend(block)
    return sorted(chosen)


def _overlap_any(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Tell for each box (left, bottom, right, top) whether it shares area with any of the others."""
    width = np.minimum(boxes[:, None, 2], others[None, :, 2]) - np.maximum(boxes[:, None, 0], others[None, :, 0])
    height = np.minimum(boxes[:, None, 3], others[None, :, 3]) - np.maximum(boxes[:, None, 1], others[None, :, 1])
    # neighbours touch; rounding of coordinates must not make that an overlap
    slack = 1e-6 * (boxes[:, 2] - boxes[:, 0])[:, None]
    return ((width > slack) & (height > slack)).any(axis=1)


def _check(count: int, fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ChipFolderError(f'val_split_pct must lie between 0 and 1, got {fraction}')
    if count < 2:
        raise ChipFolderError(f'found {count} chip; at least 2 are needed, one to train and one to validate')

"""Collate chips into whole batches: cropped, padded, in class indices."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from geolearn.batch import Batch, Objects
from geolearn.chips.label import BOX_TASKS, Label, Task, mask_boxes
from geolearn.chips.meaning.classes import RASTER_TASKS
from geolearn.chips.packing.read_chip import Chip, ChipStore
from geolearn.chips.packing.table import ChipTable
from geolearn.classes import IGNORE_INDEX
from geolearn.errors import ChipFolderError
from geolearn.oriented.geometry import hulls, moved
from geolearn.oriented.overlap import visible_shares
from geolearn.raster.nodata import valid_in_all_bands


def class_weights(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return a weight for each class: total / count, scaled so that the classes that occur weigh 1 on average.

    Args:
        counts: Pixels, objects or chips of each class, in order of class index.

    Returns:
        (classes,) float64; 0 for a class that does not occur.

    Raises:
        ValueError: If a count is negative or none is positive.
    """
    found = np.asarray(counts, np.float64)
    if not (np.isfinite(found) & (found >= 0)).all() or not (found > 0).any():
        raise ValueError(f'counts must be at least 0, and one of them over 0, got {found.tolist()}')
    inverse = np.divide(1.0, found, out=np.zeros_like(found), where=found > 0)
    return inverse / inverse[found > 0].mean()


def repeat_factors(presence: np.ndarray, *, threshold: float = 0.1) -> np.ndarray:
    """Tell how often to show each chip in an epoch, so that rare classes are seen more (Gupta et al. 2019, LVIS).

    A class in a share f of the chips counts max(1, sqrt(threshold / f)), and a chip as much as its rarest class.

    Args:
        presence: (chips, classes) bool, True where a chip holds a class.
        threshold: Classes in a smaller share of the chips than this are repeated.

    Returns:
        (chips,) float64, at least 1.

    Raises:
        ValueError: If `threshold` is no share.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f'threshold must be over 0 and at most 1, got {threshold}')
    held = np.asarray(presence, bool)
    share = held.sum(axis=0) / max(len(held), 1)
    factor = np.ones(len(share))
    rare = (share > 0) & (share < threshold)
    factor[rare] = np.sqrt(threshold / share[rare])
    return np.where(held, factor, 1.0).max(axis=1, initial=1.0)


def oversample_order(factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return positions of an epoch's chips, shuffled, each as often as its factor says.

    A fraction is a chance: a chip of factor 2.3 comes twice, and in three of ten epochs once more.

    Args:
        factors: (chips,) from `repeat_factors`.
        rng: Draws the chances and the order; give each epoch its own.
    """
    whole = np.floor(factors)
    times = whole + (rng.random(len(factors)) < factors - whole)
    return rng.permutation(np.repeat(np.arange(len(factors)), times.astype(np.int64)))


def rare_values(counts: Mapping[int, int], *, share: float = 0.05) -> tuple[int, ...]:
    """Return the class values that hold a smaller share of all counted pixels than `share`, but some; rarest first."""
    total = sum(counts.values())
    found = [value for value, count in counts.items() if 0 < count < share * total]
    return tuple(sorted(found, key=lambda value: (counts[value], value)))


def rare_class_corner(
    label: np.ndarray, values: Collection[int], size: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int] | None:
    """Choose a crop that holds a pixel of a rare class: one of the classes, one of its pixels, one of the crops.

    Args:
        label: (height, width) class values.
        values: Class values to look for.
        size: Height and width of the crop; where the label is smaller, the crop begins at 0.
        rng: Draws class, pixel and crop, each evenly.

    Returns:
        Top row and left column, or None where the label holds none of the classes.
    """
    present = np.intersect1d(label, np.fromiter(values, np.int64, len(values)))
    if not len(present):
        return None
    rows, cols = np.nonzero(label == rng.choice(present))
    pixel = rng.integers(len(rows))
    return (
        _start(int(rows[pixel]), size[0], label.shape[0], rng),
        _start(int(cols[pixel]), size[1], label.shape[1], rng),
    )


def _start(pixel: int, size: int, length: int, rng: np.random.Generator) -> int:
    """Draw the beginning of a range of `size` that holds `pixel` and lies within `length`."""
    low, high = max(pixel - size + 1, 0), min(pixel, max(length - size, 0))
    return int(rng.integers(low, high + 1))


LEAST_VISIBLE = 0.3
"""Objects of which a crop leaves less than this share are left out."""

RARE_CROP_SHARE = 0.5
"""Share of the random crops that are drawn around a rare class where such are asked for."""

VALID_ATTEMPTS = 10
"""Random crops that are drawn where NoData is to be avoided; that with most data is taken if none has enough."""


@dataclass(frozen=True, eq=False)
class CollateConfig:
    """How chips become items of one size.

    Args:
        task: The label type.
        channels: Planes to take, 0-based; those of one date lie together.
        dates: Number of dates.
        class_count: Number of trained classes.
        table: Class index of each label value, from `index_table`.
        ignored_index: What the table says of values that take no part.
        chip_size: Side of the items in pixels; larger chips are cropped, smaller ones padded.
        random_crop: Crop at random places (training) instead of the center.
        rare_values: Label values around which half of the random crops are drawn.
        min_valid: Share of valid pixels that a random crop should have; several are drawn until one has it.
        seed: Makes crops repeatable.
        stored: Leave images in their stored dtype and masks in bytes, to be cast on a GPU: fewer bytes go there.
        visible: Which oriented objects at a chip's edge count.
    """

    task: Task
    channels: tuple[int, ...]
    dates: int
    class_count: int
    table: np.ndarray
    chip_size: int
    ignored_index: int = IGNORE_INDEX
    random_crop: bool = False
    rare_values: tuple[int, ...] = ()
    min_valid: float = 0.0
    seed: int = 0
    stored: bool = False
    visible: 'VisibleShares' = field(default_factory=lambda: VisibleShares())

    @cached_property
    def shift(self) -> int | None:
        """What label values are over their indices, modulo 256, if it is one number for all: subtracting is fastest."""
        known = np.flatnonzero(self.table >= 0)
        shifts = np.unique((known - self.table[known]) % 256)
        return int(shifts[0]) if len(shifts) == 1 and known[-1] < 256 else None


@dataclass(frozen=True, slots=True)
class VisibleShares:
    """What becomes of oriented objects that the edge of a chip cuts, by the share of their area that is visible.

    A box that is clipped would have another angle, so objects stay whole or take no part.

    Args:
        keep: From this share on, the whole rectangle is an object; its corners may lie outside of the chip.
        ignore: From this share on, what is less visible is ignored: its places are neither object nor background, and
            metrics pass it over. Below, it is background.

    Raises:
        ChipFolderError: Unless 0 <= ignore <= keep <= 1.
    """

    keep: float = 0.7
    ignore: float = LEAST_VISIBLE

    def __post_init__(self) -> None:
        if not 0 <= self.ignore <= self.keep <= 1:
            raise ChipFolderError(
                'shares of an object must be 0 <= ignore_visible <= keep_visible <= 1, got '
                f'ignore_visible={self.ignore} and keep_visible={self.keep}'
            )


def check_rare_crops(task: Task, chip_size: int, largest: int) -> None:
    """Raise ChipFolderError where crops around rare classes cannot be drawn: by task, or as chips are not cropped.

    Args:
        task: The label type.
        chip_size: Side of the items in pixels.
        largest: Longest side of all chips.
    """
    if task not in RASTER_TASKS:
        cure = (
            'leave it out'
            if task == Task.REGRESSION
            else 'pass oversample=True to show chips of rare classes more often'
        )
        raise ChipFolderError(f'rare_class_crops needs a class for each pixel, but the label type is {task}; {cure}')
    if chip_size >= largest:
        raise ChipFolderError(
            f'rare_class_crops has no effect without crops, and chips of {largest} pixels are not cropped to '
            f'chip_size={chip_size}; pass a smaller chip_size, or oversample=True'
        )


class _Crop(NamedTuple):
    """Rows and columns of a chip that go to the upper left of an item."""

    top: int
    left: int
    height: int
    width: int

    @property
    def part(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def collate(
    store: ChipStore,
    positions: Sequence[int],
    config: CollateConfig,
    *,
    epoch: int = 0,
    repeats: Sequence[int] | None = None,
) -> Batch:
    """Copy chips into a batch on the CPU.

    Args:
        store: The chips.
        positions: Which of them.
        config: What to make of them.
        epoch: Random crops follow from it, the position and the config's seed, whatever batch a chip is in.
        repeats: How often each chip was in the epoch before; None counts within the batch.
    """
    if repeats is None:
        repeats = [list(positions[:row]).count(position) for row, position in enumerate(positions)]
    side, count = config.chip_size, len(positions)
    # numpy gets large arrays in large pages, which torch.empty does not
    dtype = np.dtype(store.table.dtype if config.stored else np.float32)
    images = np.empty((count, len(config.channels), side, side), dtype)
    nodata = np.zeros((count, side, side), bool) if config.stored else None
    mask_type = np.dtype(np.uint8 if config.stored else np.int64)
    masks = np.empty((count, side, side), mask_type) if config.task in RASTER_TASKS else None
    values = _empty_targets(store.table, count, side) if config.task == Task.REGRESSION else None
    labels = []
    for row, (position, repeat) in enumerate(zip(positions, repeats)):
        chip = store.chip(position)
        valid = valid_pixels(chip, config)
        crop = _choose_crop(chip, valid, config, (config.seed, epoch, position, repeat))
        _fill_image(images[row], None if nodata is None else nodata[row], chip, valid, crop, config)
        if masks is not None:
            _fill_mask(masks[row], chip, valid, crop, config)
        if values is not None:
            _fill_values(values[row], chip, valid, crop)
        if config.task == Task.ORIENTED:
            labels.append(_cut_oriented(chip.label, crop, config.visible))
            continue
        labels.append(
            chip.label if crop[:2] == (0, 0) and crop[2:] == chip.pixels.shape[1:] else _cut(chip.label, crop)
        )
    shape = (count, config.dates, -1, side, side) if config.dates > 1 else images.shape
    batch = Batch(
        torch.from_numpy(images.reshape(shape)),
        None if masks is None else torch.from_numpy(masks),
        nodata=torch.from_numpy(nodata) if nodata is not None and nodata.any() else None,
        regression_targets=None if values is None else torch.from_numpy(values),
    )
    return _with_labels(batch, labels, config)


def _empty_targets(table: ChipTable, count: int, side: int) -> np.ndarray:
    """Return room for regression targets: (n, side, side), or of images (n, bands, side * times, side * times)."""
    if not table.has_image_targets:
        return np.empty((count, side, side), np.float32)
    return np.empty((count, table.target_bands, side * table.target_times, side * table.target_times), np.float32)


def _choose_crop(chip: Chip, valid: np.ndarray | None, config: CollateConfig, key: tuple[int, ...]) -> _Crop:
    height, width = chip.pixels.shape[1:]
    size = min(height, config.chip_size), min(width, config.chip_size)
    spare = height - size[0], width - size[1]
    if not any(spare):
        return _Crop(0, 0, *size)
    if not config.random_crop:
        return _Crop(spare[0] // 2, spare[1] // 2, *size)
    rng = np.random.default_rng(key)
    top, left, lot = int(rng.integers(spare[0] + 1)), int(rng.integers(spare[1] + 1)), rng.random()
    seed = int(rng.integers(2**32))
    if config.rare_values and lot < RARE_CROP_SHARE and chip.label.raster is not None:
        raster = chip.label.raster
        if chip.label.unlabelled is not None:
            valid = ~chip.label.unlabelled if valid is None else valid & ~chip.label.unlabelled
        seen = raster if valid is None else np.where(valid, raster, np.int32(-1))
        found = rare_class_corner(seen, config.rare_values, size, np.random.default_rng(seed))
        top, left = found if found is not None else (top, left)
    elif config.min_valid and valid is not None:
        top, left = _valid_corner(valid, (top, left), size, config.min_valid, np.random.default_rng(seed))
    return _Crop(top, left, *size)


def _valid_corner(
    valid: np.ndarray, first: tuple[int, int], size: tuple[int, int], share: float, rng: np.random.Generator
) -> tuple[int, int]:
    """Return the first corner, or another one if its crop holds too little data: that with most data of a few."""
    best, most = first, -1.0
    for attempt in range(VALID_ATTEMPTS):
        spare = [whole - side for whole, side in zip(valid.shape, size)]
        corner = first if not attempt else (int(rng.integers(spare[0] + 1)), int(rng.integers(spare[1] + 1)))
        held = float(valid[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]].mean())
        if held >= share:
            return corner
        if held > most:
            best, most = corner, held
    return best


def _fill_image(
    image: np.ndarray,
    nodata: np.ndarray | None,
    chip: Chip,
    valid: np.ndarray | None,
    crop: _Crop,
    config: CollateConfig,
) -> None:
    rows, cols = crop.part
    whole = crop.height == crop.width == config.chip_size
    if not whole:
        image[...] = np.nan if nodata is None else 0
        if nodata is not None:
            nodata[crop.height :] = nodata[:, crop.width :] = True
    target = image if whole else image[:, : crop.height, : crop.width]
    if config.channels == tuple(range(len(chip.pixels))):
        target[...] = chip.pixels[:, rows, cols]
    else:
        for index, channel in enumerate(config.channels):
            target[index] = chip.pixels[channel, rows, cols]
    if valid is None:
        return
    if nodata is None:
        target[:, ~valid[rows, cols]] = np.nan
    else:
        nodata[: crop.height, : crop.width] = ~valid[rows, cols]


def valid_pixels(chip: Chip, config: CollateConfig) -> np.ndarray | None:
    """Return where a chip (height, width) is valid in all channels that are used, or None where it is everywhere."""
    return valid_in_all_bands(chip.mask, config.channels)


def _fill_mask(mask: np.ndarray, chip: Chip, valid: np.ndarray | None, crop: _Crop, config: CollateConfig) -> None:
    if crop[2:] != mask.shape:
        mask[...] = IGNORE_INDEX
    raster = chip.label.raster
    assert raster is not None
    target = mask[: crop.height, : crop.width]
    if raster.dtype == np.uint8 and config.shift is not None:
        target[...] = raster[crop.part] - np.uint8(config.shift)
    else:
        target[...] = np.take(config.table, raster[crop.part])
    if chip.label.unlabelled is not None:
        target[chip.label.unlabelled[crop.part]] = IGNORE_INDEX
    if valid is not None:
        target[~valid[crop.part]] = IGNORE_INDEX


def _fill_values(values: np.ndarray, chip: Chip, valid: np.ndarray | None, crop: _Crop) -> None:
    assert chip.label.raster is not None
    times = chip.label.raster.shape[-1] // chip.pixels.shape[-1]
    if (crop.height * times, crop.width * times) != values.shape[-2:]:
        values[...] = np.nan
    target = values[..., : crop.height * times, : crop.width * times]
    rows, cols = (slice(part.start * times, part.stop * times) for part in crop.part)
    target[...] = chip.label.raster[..., rows, cols]
    if valid is not None:
        absent = ~valid[crop.part]
        target[..., absent if times == 1 else np.repeat(np.repeat(absent, times, 0), times, 1)] = np.nan


def _cut(label: Label, crop: _Crop) -> Label:
    """Return the part of a label's objects that a crop shows; labels of whole chips stay."""
    if label.boxes is None or not len(label.boxes):
        return label
    place = np.array([crop.left, crop.top, crop.left, crop.top], np.float32)
    limit = np.array([crop.width, crop.height, crop.width, crop.height], np.float32)
    shown = np.clip(label.boxes - place, 0, limit)
    whole = _areas(label.boxes)
    if label.masks is None:
        kept = (_areas(shown) >= LEAST_VISIBLE * whole) & (_areas(shown) > 0)
        return _select(label, kept, boxes=shown)
    cut = [mask[crop.part] for mask in label.masks]
    seen = np.array([np.count_nonzero(mask) for mask in cut])
    kept = (seen >= LEAST_VISIBLE * np.array([np.count_nonzero(mask) for mask in label.masks])) & (seen > 0)
    # what is left of an outline may be smaller than what is left of its box
    for row in np.flatnonzero(kept & (_areas(shown) < whole)).tolist():
        shown[row] = mask_boxes([cut[row]])[0]
    return _select(label, kept, boxes=shown, masks=tuple(mask for mask, keep in zip(cut, kept) if keep))


def _select(label: Label, kept: np.ndarray, *, boxes: np.ndarray, masks: tuple[np.ndarray, ...] | None = None) -> Label:
    """Return the objects of a label that a crop keeps; what crops do to oriented boxes, `_cut_oriented` knows."""
    ignored = None if label.ignored is None else label.ignored[kept]
    return replace(label, class_ids=label.class_ids[kept], boxes=boxes[kept], masks=masks, turned=None, ignored=ignored)


def _cut_oriented(label: Label, crop: _Crop, visible: VisibleShares) -> Label:
    """Return the oriented objects that a crop shows, each whole; the boxes around them end at the crop's edges."""
    if label.turned is None or not len(label.turned):
        return label
    turned = moved(label.turned.astype(np.float64), -crop.left, -crop.top)
    shares = visible_shares(turned, (crop.height, crop.width))
    boxes = np.clip(hulls(turned), 0, (crop.width, crop.height, crop.width, crop.height)).astype(np.float32)
    kept = (shares >= visible.ignore) & (shares > 0) & (_areas(boxes) > 0)
    ignored = shares < visible.keep
    if label.ignored is not None:
        ignored |= label.ignored
    return replace(
        label,
        class_ids=label.class_ids[kept],
        boxes=boxes[kept],
        masks=None,
        turned=turned[kept].astype(np.float32),
        ignored=ignored[kept],
    )


def _areas(boxes: np.ndarray) -> np.ndarray:
    areas: np.ndarray = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


def _with_labels(batch: Batch, labels: Sequence[Label], config: CollateConfig) -> Batch:
    if config.task in BOX_TASKS:
        return replace(batch, objects=tuple(_objects(label, config) for label in labels))
    if config.task == Task.LABEL:
        return replace(
            batch, labels=torch.from_numpy(config.table[np.array([label.class_ids[0] for label in labels])]).long()
        )
    if config.task == Task.LABELS:
        present = torch.zeros(len(labels), config.class_count)
        for row, label in zip(present, labels):
            indexes = config.table[label.class_ids]
            row[torch.from_numpy(indexes[_takes_part(indexes, config)]).long()] = 1
        return replace(batch, labels=present)
    return batch


def _takes_part(indexes: np.ndarray, config: CollateConfig) -> np.ndarray:
    kept: np.ndarray = (indexes != config.ignored_index) & (indexes >= 0)
    return kept


def _objects(label: Label, config: CollateConfig) -> Objects:
    indexes = config.table[label.class_ids]
    kept = _takes_part(indexes, config)
    boxes = label.boxes if label.boxes is not None else np.zeros((0, 4), np.float32)
    masks = turned = None
    if config.task == Task.ORIENTED:
        whole = np.zeros((0, 5), np.float32) if label.turned is None else label.turned
        turned = torch.from_numpy(whole[kept].copy())
    elif config.task != Task.OBJECTS:
        side = config.chip_size
        outlines = np.zeros((int(kept.sum()), side, side), bool)
        for target, mask in zip(outlines, (mask for mask, keep in zip(label.masks or (), kept) if keep)):
            target[: mask.shape[0], : mask.shape[1]] = mask
        masks = torch.from_numpy(outlines)
    ignored = np.zeros(len(kept), bool) if label.ignored is None else label.ignored
    return Objects(
        torch.from_numpy(boxes[kept].copy()),
        torch.from_numpy(indexes[kept]).long(),
        masks,
        turned,
        torch.from_numpy(ignored[kept].copy()) if config.task == Task.ORIENTED else None,
    )

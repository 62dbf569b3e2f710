"""prepare_data from memory: arrays or a torch Dataset, without a folder of chips."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from geolearn import data, errors, prepare
from geolearn.arguments import check_names, format_call, record_arguments
from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats import OpenedFolder, in_memory
from geolearn.chips.label import ChipSource, Label, Listing, Task
from geolearn.chips.meaning.augmentation import Transforms
from geolearn.chips.meaning.bands import BandChoice
from geolearn.chips.meaning.values import numbers_of, refuse_unlabelled
from geolearn.chips.packing.collection import GivenChips
from geolearn.chips.splits.divide import SplitChoice
from geolearn.classes import color_classes
from geolearn.raster import EmbeddingProduct, GeoBox
from geolearn.raster.nodata import valid_by_band

Item = Callable[[int], tuple[Any, Any]]
"""Returns image and target of a chip."""


@check_names
def from_arrays(
    images: Sequence[np.ndarray] | np.ndarray,
    labels: Sequence[Any] | np.ndarray | None = None,
    *,
    bands: BandChoice = None,
    class_mapping: Mapping[int, str] | None = None,
    chip_size: int | None = None,
    val_split_pct: float = 0.1,
    batch_size: int | None = prepare.DEFAULT_BATCH_SIZE,
    transforms: Transforms = None,
    seed: int = 42,
    working_dir: str | Path | None = None,
    ignore_classes: Sequence[int | str] = (),
    unlabelled: Sequence[float] = (),
    nodata: float | Sequence[float] | None = None,
    split: SplitChoice = 'random',
) -> data.ChipData:
    """Prepare chips that lie in memory; nothing is written to disk.

    Args:
        images: (chips, bands, height, width), or a list of (bands, height, width).
        labels: By task: (chips, height, width) of whole numbers for a class per pixel, of floats for regression;
            (chips,) class values, one for each chip; (chips, classes) bool for several classes of each; a list of
            (boxes, class values) or (boxes, class values, masks) for objects, boxes (n, 4) in pixels; None for images
            alone.
        bands: Names of the bands, or a sensor, as in `prepare_data`.
        class_mapping: Names of classes by label value.
        chip_size: Side of the training images; None takes that of the images.
        val_split_pct: Share of the chips to validate on.
        batch_size: Chips per batch.
        transforms: As in `prepare_data`.
        seed: Fixes split, order, crops and augmentation.
        working_dir: Models go to ``<working_dir>/models``; None means the current folder.
        ignore_classes: Label values or names to leave out.
        unlabelled: Label values that mean "not labelled".
        nodata: Value that means NoData in the images; NaN always does.
        split: As in `prepare_data`; arrays have no place on the ground, so that overlaps are not noticed.

    Raises:
        ChipFolderError: If images and labels do not fit together.
    """
    arguments = data_arguments(from_arrays, locals())
    if len(images) == 0:
        raise errors.ChipFolderError('images hold no chip; pass (chips, bands, height, width)')
    if labels is not None and len(labels) != len(images):
        raise errors.ChipFolderError(f'found {len(images)} images and {len(labels)} labels; each image needs one')
    listing = _listing(
        lambda index: (images[index], None if labels is None else labels[index]),
        len(images),
        class_mapping=class_mapping or {},
        unlabelled=numbers_of('unlabelled', unlabelled),
        nodata=numbers_of('nodata', nodata),
        has_labels=labels is not None,
    )
    return prepare_listing(
        Path('arrays'), 'from_arrays', ['images', 'labels'], arguments, listing,
        bands=bands, class_mapping=class_mapping, val_split_pct=val_split_pct, seed=seed,
        chip_size=chip_size or max(np.shape(images[0])[-2:]), batch_size=batch_size, transforms=transforms,
        working_dir=working_dir, ignore_classes=ignore_classes, split=split,
    )  # fmt: skip


@check_names
def from_dataset(
    dataset: Any,
    *,
    bands: BandChoice = None,
    class_mapping: Mapping[int, str] | None = None,
    chip_size: int | None = None,
    val_split_pct: float = 0.1,
    batch_size: int | None = prepare.DEFAULT_BATCH_SIZE,
    transforms: Transforms = None,
    seed: int = 42,
    working_dir: str | Path | None = None,
    ignore_classes: Sequence[int | str] = (),
    unlabelled: Sequence[float] = (),
    nodata: float | Sequence[float] | None = None,
    split: SplitChoice = 'random',
) -> data.ChipData:
    """Prepare the chips of a torch Dataset; they are read from it whenever they are needed.

    Args:
        dataset: Has a length and items by number: pairs of image and target, or mappings with ``'image'`` and
            ``'mask'``, ``'label'``, or ``'boxes'`` and ``'labels'``, as torchgeo's. Images are (bands, height, width);
            targets are those of `from_arrays`.
        bands: Names of the bands, or a sensor, as in `prepare_data`.
        class_mapping: Names of classes by label value.
        chip_size: Side of the training images; None takes that of the first image.
        val_split_pct: Share of the chips to validate on.
        batch_size: Chips per batch.
        transforms: As in `prepare_data`; the dataset's own should change nothing at random.
        seed: Fixes split, order, crops and augmentation.
        working_dir: Models go to ``<working_dir>/models``; None means the current folder.
        ignore_classes: Label values or names to leave out.
        unlabelled: Label values that mean "not labelled".
        nodata: Value that means NoData in the images; NaN always does.
        split: As in `prepare_data`; chips have no place on the ground, so that overlaps are not noticed.

    Raises:
        ChipFolderError: If images and targets do not fit together.
    """
    arguments = data_arguments(from_dataset, locals())
    if len(dataset) == 0:
        raise errors.ChipFolderError('the dataset holds no item')
    listing = _listing(
        partial(in_memory.dataset_item, dataset),
        len(dataset),
        class_mapping=class_mapping or {},
        unlabelled=numbers_of('unlabelled', unlabelled),
        nodata=numbers_of('nodata', nodata),
        has_labels=in_memory.dataset_item(dataset, 0)[1] is not None,
    )
    side = max(in_memory.as_image(in_memory.dataset_item(dataset, 0)[0]).shape[-2:])
    return prepare_listing(
        Path('dataset'), 'from_dataset', ['dataset'], arguments, listing,
        bands=bands, class_mapping=class_mapping, val_split_pct=val_split_pct, seed=seed,
        chip_size=chip_size or side, batch_size=batch_size, transforms=transforms, working_dir=working_dir,
        ignore_classes=ignore_classes, split=split,
    )  # fmt: skip


def data_arguments(call: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that say what the data are; where models go is none of them."""
    found = record_arguments(call, values)
    return {name: value for name, value in found.items() if name not in ('working_dir', 'labels')}


def prepare_listing(
    place: Path,
    call: str,
    subjects: Sequence[str],
    arguments: Mapping[str, Any],
    listing: Listing,
    *,
    bad_bands: frozenset[int] = frozenset(),
    embedded: EmbeddingProduct | None = None,
    apart: bool = False,
    working_dir: str | Path | None,
    **options: Any,
) -> data.ChipData:
    """Prepare chips that are listed and lie in no folder; `options` are those of `prepare_data`."""
    metadata = replace(ExportMetadata.empty(), bad_bands=bad_bands, product=embedded)
    opened = OpenedFolder(place, 'Classified_Tiles', metadata, listing, ())
    made = prepare.prepare_data(
        GivenChips(str(place), opened, labels_apart=apart), working_dir=working_dir or '.', pack=False, **options
    )
    return replace(made, source=format_call(call, subjects, arguments), arguments=dict(arguments))


def _listing(
    item: Item,
    count: int,
    *,
    class_mapping: Mapping[int, str],
    unlabelled: Sequence[float],
    nodata: tuple[float, ...],
    has_labels: bool,
) -> Listing:
    first = item(0)
    task = in_memory.task_of(first[1]) if has_labels else Task.UNLABELLED
    refuse_unlabelled(task, unlabelled)
    band_count = len(in_memory.as_image(first[0]))
    values, lengths = set[int](), set[int]()
    if task in (Task.LABEL, Task.LABELS, Task.OBJECTS, Task.ORIENTED, Task.INSTANCES):
        for index in range(count):
            image, target = item(index)
            shape = in_memory.as_image(image).shape[1:]
            values |= set(in_memory.as_label(target, task, unlabelled, shape).class_ids.tolist())
            lengths |= {len(target)} if task == Task.LABELS else set()
        values |= set(class_mapping)
    if len(lengths) > 1:
        raise errors.ChipFolderError(
            f'labels hold from {min(lengths)} to {max(lengths)} classes; each needs a 0 or 1 for every class'
        )
    classes = color_classes((value, class_mapping.get(value, str(value)), None) for value in sorted(values))
    chips = tuple(
        ChipSource(
            name=f'{index:09d}',
            dates=((Path(f'chip-{index}'),),),
            labels=(),
            read_label=partial(_item_label, item, index, task, tuple(unlabelled)),
            nodata=nodata,
            read_image=partial(_item_image, item, index),
        )
        for index in range(count)
    )
    names = tuple(f'band_{number}' for number in range(1, band_count + 1))
    return Listing(task, chips, classes or None, band_names=names)


def _item_image(item: Item, index: int) -> tuple[np.ndarray, np.ndarray | None, GeoBox]:
    pixels = in_memory.as_image(item(index)[0])
    return pixels, valid_by_band(pixels, ()), GeoBox(pixels.shape[1:], Affine.identity(), None)


def _item_label(item: Item, index: int, task: Task, unlabelled: tuple[float, ...], shape: tuple[int, int]) -> Label:
    label = in_memory.as_label(item(index)[1], task, unlabelled, shape)
    if label.raster is not None and label.raster.shape != shape:
        raise errors.ChipFolderError(f'chip {index}: the label is {label.raster.shape} pixels and the image {shape}')
    return label

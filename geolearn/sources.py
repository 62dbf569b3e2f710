"""prepare_data from memory: arrays, a torch Dataset, or windows of rasters, without a folder of chips."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.windows import Window

from geolearn import data, errors, prepare
from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats import OpenedFolder
from geolearn.chips.label import ChipSource, Label, Listing, Task, mask_boxes
from geolearn.chips.meaning.augmentation import Transforms
from geolearn.chips.meaning.bands import BandChoice
from geolearn.chips.packing.collection import GivenChips
from geolearn.chips.splits.divide import SplitChoice
from geolearn.classes import ClassInfo
from geolearn.raster import GeoBox, open_raster, raster_geobox, read_window

Item = Callable[[int], tuple[Any, Any]]
"""Returns image and target of a chip."""

_COLORS = ((230, 25, 75), (60, 180, 75), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240), (240, 50, 230))


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
    nodata: float | None = None,
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
    if len(images) == 0:
        raise errors.ChipFolderError('images hold no chip; pass (chips, bands, height, width)')
    if labels is not None and len(labels) != len(images):
        raise errors.ChipFolderError(f'found {len(images)} images and {len(labels)} labels; each image needs one')
    listing = _listing(
        lambda index: (images[index], None if labels is None else labels[index]),
        len(images),
        class_mapping=class_mapping or {},
        unlabelled=unlabelled,
        nodata=() if nodata is None else (nodata,),
        has_labels=labels is not None,
    )
    return _prepare(
        'arrays', listing, bands=bands, class_mapping=class_mapping, val_split_pct=val_split_pct, seed=seed,
        chip_size=chip_size or max(np.shape(images[0])[-2:]), batch_size=batch_size, transforms=transforms,
        working_dir=working_dir, ignore_classes=ignore_classes, split=split,
    )  # fmt: skip


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
    nodata: float | None = None,
    split: SplitChoice = 'random',
) -> data.ChipData:
    """Prepare the chips of a torch Dataset; they are read from it whenever they are needed.

    Args:
        dataset: Has a length and items by number: pairs of image and target, or mappings with ``'image'`` and
            ``'mask'`` or ``'label'``, as torchgeo's. Images are (bands, height, width); targets are those of
            `from_arrays`.
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
    if len(dataset) == 0:
        raise errors.ChipFolderError('the dataset holds no item')
    listing = _listing(
        partial(_dataset_item, dataset),
        len(dataset),
        class_mapping=class_mapping or {},
        unlabelled=unlabelled,
        nodata=() if nodata is None else (nodata,),
        has_labels=_dataset_item(dataset, 0)[1] is not None,
    )
    side = max(_as_image(_dataset_item(dataset, 0)[0]).shape[-2:])
    return _prepare(
        'dataset', listing, bands=bands, class_mapping=class_mapping, val_split_pct=val_split_pct, seed=seed,
        chip_size=chip_size or side, batch_size=batch_size, transforms=transforms, working_dir=working_dir,
        ignore_classes=ignore_classes, split=split,
    )  # fmt: skip


def from_rasters(
    raster: str | Path,
    labels: str | Path,
    *,
    bands: BandChoice = None,
    class_mapping: Mapping[int, str] | None = None,
    chip_size: int = 224,
    val_split_pct: float = 0.2,
    batch_size: int | None = prepare.DEFAULT_BATCH_SIZE,
    transforms: Transforms = None,
    seed: int = 42,
    working_dir: str | Path | None = None,
    ignore_classes: Sequence[int | str] = (),
    unlabelled: Sequence[float] = (),
    nodata: float | None = None,
    split: SplitChoice = 'blocks',
    block_size: float | None = None,
) -> data.ChipData:
    """Prepare windows of a raster and of the label raster on its grid; no chip is written to disk.

    The windows lie side by side. They are divided by blocks, so that neighbors of a validation chip are not trained
    on.

    Args:
        raster: The image.
        labels: Raster of the same grid: whole numbers for a class per pixel, floats for regression. Its NoData is
            unlabelled, and windows without any label are left out.
        bands: Names of the bands, or a sensor; None takes what the raster says.
        class_mapping: Names of classes by label value.
        chip_size: Side of the windows in pixels.
        val_split_pct: Share of the windows to validate on.
        batch_size: Chips per batch.
        transforms: As in `prepare_data`.
        seed: Fixes split, order and augmentation.
        working_dir: Models go to ``<working_dir>/models``; None means the folder of the raster.
        ignore_classes: Label values or names to leave out.
        unlabelled: Label values that mean "not labelled", beside NoData of the labels.
        nodata: Value that means NoData in the image, beside what the file declares.
        split: As in `prepare_data`.
        block_size: Side of a block in map units; None means four windows, or fewer where the raster is small.

    Raises:
        ChipFolderError: If the grids differ, or no window holds a label.
        RasterError: If a raster cannot be read.
    """
    raster, labels = Path(raster), Path(labels)
    with open_raster(raster) as image, open_raster(labels) as truth:
        geobox, other = raster_geobox(image), raster_geobox(truth)
        if (
            geobox.shape != other.shape
            or not geobox.transform.almost_equals(other.transform)
            or geobox.crs != other.crs
        ):
            raise errors.ChipFolderError(
                f'{labels} lies on another grid than {raster} ({other.shape} and {geobox.shape} pixels); bring it to '
                'the same grid, or use export_training_data, which resamples labels'
            )
        floating = np.dtype(truth.dtypes[0]).kind == 'f'
        windows = [window for window in _windows(geobox.shape, chip_size) if _has_label(truth, window, unlabelled)]
    if split == 'blocks' and block_size is None:
        side = min(4, max(1, min(geobox.shape) // chip_size // 4))
        block_size = side * chip_size * max(geobox.resolution)
    if not windows:
        raise errors.ChipFolderError(
            f'no window of {chip_size} pixels of {labels} holds a label; pass a smaller chip_size'
        )
    chips = tuple(
        ChipSource(
            name=f'r{int(window.row_off):06d}_c{int(window.col_off):06d}',
            dates=((raster,),),
            labels=(labels,),
            read_label=partial(_window_label, labels, window, tuple(unlabelled)),
            nodata=() if nodata is None else (nodata,),
            read_image=partial(_window_image, raster, window),
        )
        for window in windows
    )
    listing = Listing(Task.REGRESSION if floating else Task.PIXELS, chips, None)
    return _prepare(
        raster.stem, listing, bands=bands, class_mapping=class_mapping, val_split_pct=val_split_pct, seed=seed,
        chip_size=chip_size, batch_size=batch_size, transforms=transforms, working_dir=working_dir or raster.parent,
        ignore_classes=ignore_classes, split=split, block_size=block_size,
    )  # fmt: skip


def _prepare(name: str, listing: Listing, *, working_dir: str | Path | None, **options: Any) -> data.ChipData:
    opened = OpenedFolder(Path.cwd(), 'Classified_Tiles', ExportMetadata.empty(), listing, ())
    return prepare.prepare_data(GivenChips(name, opened), working_dir=working_dir or Path.cwd(), pack=False, **options)


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
    task = _task_of(first[1]) if has_labels else Task.UNLABELLED
    band_count = len(_as_image(first[0]))
    values: set[int] = set()
    if task in (Task.LABEL, Task.LABELS, Task.OBJECTS, Task.INSTANCES):
        for index in range(count):
            values |= set(_as_label(item(index)[1], task, unlabelled).class_ids.tolist())
        values |= set(class_mapping)
    classes = tuple(
        ClassInfo(value, class_mapping.get(value, str(value)), _COLORS[number % len(_COLORS)])
        for number, value in enumerate(sorted(values))
    )
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


def _as_array(value: Any) -> np.ndarray:
    array: np.ndarray = np.asarray(value.numpy() if hasattr(value, 'numpy') else value)
    return array


def _as_image(value: Any) -> np.ndarray:
    image = _as_array(value)
    if image.ndim != 3:
        raise errors.ChipFolderError(f'an image must be (bands, height, width), got shape {image.shape}')
    return image


def _task_of(target: Any) -> Task:
    if isinstance(target, tuple | list) and len(target) in (2, 3) and np.ndim(target[0]) == 2:
        return Task.OBJECTS if len(target) == 2 else Task.INSTANCES
    label = _as_array(target)
    if label.ndim == 2:
        return Task.REGRESSION if label.dtype.kind == 'f' else Task.PIXELS
    if label.ndim == 1:
        return Task.LABELS
    if label.ndim == 0:
        return Task.LABEL
    raise errors.ChipFolderError(
        f'a label of shape {label.shape} is not known; pass (height, width), a class value, (classes,) bool, or '
        '(boxes, class values)'
    )


def _as_label(target: Any, task: Task, unlabelled: Sequence[float]) -> Label:
    if task == Task.UNLABELLED:
        return Label()
    if task in (Task.OBJECTS, Task.INSTANCES):
        boxes, ids = _as_array(target[0]).astype(np.float32).reshape(-1, 4), _as_array(target[1]).astype(np.int64)
        if task == Task.OBJECTS:
            return Label(class_ids=ids, boxes=boxes)
        masks = tuple(_as_array(mask).astype(bool) for mask in target[2])
        return Label(class_ids=ids, boxes=mask_boxes(masks), masks=masks)
    label = _as_array(target)
    if task == Task.LABEL:
        return Label(class_ids=label.reshape(1).astype(np.int64))
    if task == Task.LABELS:
        return Label(class_ids=np.flatnonzero(label).astype(np.int64))
    return _raster_label(label, unlabelled, None)


def _raster_label(label: np.ndarray, unlabelled: Sequence[float], valid: np.ndarray | None) -> Label:
    missing = np.isin(label, list(unlabelled))
    if valid is not None:
        missing |= ~valid
    if label.dtype.kind == 'f':
        return Label(raster=np.where(missing, np.nan, label).astype(np.float32))
    raster = np.where(missing, 0, label).astype(np.int64)
    return Label(raster=raster, unlabelled=missing if missing.any() else None)


def _dataset_item(dataset: Any, index: int) -> tuple[Any, Any]:
    item = dataset[index]
    if isinstance(item, Mapping):
        return item['image'], next((item[key] for key in ('mask', 'label') if key in item), None)
    return (item[0], item[1] if len(item) > 1 else None) if isinstance(item, tuple | list) else (item, None)


def _item_image(item: Item, index: int) -> tuple[np.ndarray, np.ndarray | None, GeoBox]:
    pixels = _as_image(item(index)[0])
    mask = None
    if pixels.dtype.kind == 'f' and (missing := np.isnan(pixels)).any():
        mask = ~missing
    return pixels, mask, GeoBox(pixels.shape[1:], Affine.identity(), None)


def _item_label(item: Item, index: int, task: Task, unlabelled: tuple[float, ...], shape: tuple[int, int]) -> Label:
    label = _as_label(item(index)[1], task, unlabelled)
    if label.raster is not None and label.raster.shape != shape:
        raise errors.ChipFolderError(f'chip {index}: the label is {label.raster.shape} pixels and the image {shape}')
    return label


def _windows(shape: tuple[int, int], size: int) -> list[Window]:
    """Return windows side by side; those at the far edges may be smaller, but not below half."""
    starts = [
        [start for start in range(0, length, size) if length - start >= min(size // 2, length)] for length in shape
    ]
    return [
        Window(col, row, min(size, shape[1] - col), min(size, shape[0] - row)) for row in starts[0] for col in starts[1]
    ]


def _has_label(truth: Any, window: Window, unlabelled: Sequence[float]) -> bool:
    pixels, valid = read_window(truth, window, [1])
    missing = np.isin(pixels[0], list(unlabelled)) | (np.isnan(pixels[0]) if pixels.dtype.kind == 'f' else False)
    return bool((~missing if valid is None else ~missing & valid).any())


def _window_image(path: Path, window: Window) -> tuple[np.ndarray, np.ndarray | None, GeoBox]:
    with open_raster(path) as src:
        pixels, valid = read_window(src, window, range(1, src.count + 1))
        whole = raster_geobox(src)
    place = whole.crop(int(window.row_off), int(window.col_off), pixels.shape[1:])
    return pixels, None if valid is None else valid[None], place


def _window_label(path: Path, window: Window, unlabelled: tuple[float, ...], shape: tuple[int, int]) -> Label:
    with open_raster(path) as src:
        pixels, valid = read_window(src, window, [1])
    return _raster_label(pixels[0], unlabelled, valid)

"""What labels chips: features, a class raster, both (panoptic), or nothing."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from geolearn.chips.exporting.placement import Cutout, ExportOptions, turn_pixels
from geolearn.chips.exporting.vector_labels import (
    Clipped,
    Layer,
    Naming,
    VectorLabels,
    is_vector,
    need_shapely,
    place_areas,
    place_vectors,
    read_layers,
)
from geolearn.chips.label import Label, Task, mask_boxes
from geolearn.chips.meaning.values import as_numbers
from geolearn.classes import ClassInfo, default_color
from geolearn.errors import ChipFolderError
from geolearn.raster import open_raster, raster_geobox, read_window
from geolearn.raster.opening import burn_polygons, group_pixels

RasterPath = str | Path | Sequence[str | Path]


class RasterLabels:
    """A raster of class values, or of regression targets, on the grid of the image.

    Args:
        path: The raster, or several that make one mosaic.
        image: Dataset of the image, whose grid it must have.
        shown: What the image is called in messages.
        classes: Classes; None takes the values found, with the raster's own names and colors.
        numbers: Whether pixels are regression targets; then there are no classes.

    Raises:
        ChipFolderError: If it has several bands, another grid, or values that are no class values.
    """

    def __init__(
        self, path: RasterPath, image: Any, shown: str, classes: Sequence[ClassInfo] | None, *, numbers: bool = False
    ) -> None:
        self.path, self.numbers = path, numbers
        self.shown = str(path) if isinstance(path, str | Path) else f'mosaic of {len(path)} files'
        with open_raster(path) as src:
            _check_grids(image, src, f'image {shown} and labels {self.shown}')
            known = () if numbers else classes
            self.classes = tuple(known) if known is not None else _find_classes(src, self.shown)

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Open it for one thread."""
        with open_raster(self.path) as src:
            yield src


def read_values(
    src: Any, window: tuple[int, int, int, int], mask: np.ndarray | None, shown: str, *, numbers: bool = False
) -> np.ndarray:
    """Return class values (height, width) of a window, 0 where labels or image have no data.

    Args:
        src: Dataset of the labels.
        window: Row, column, height and width.
        mask: True where the image has data; None where it has everywhere.
        shown: What the labels are called in messages.
        numbers: Return regression targets instead, float32 with NaN where there is no data.
    """
    row, col, height, width = window
    pixels, valid = read_window(src, Window(col, row, width, height), [1])
    if mask is not None:
        valid = mask if valid is None else mask & valid
    if numbers:
        return as_numbers(pixels[0], valid, f'labels {shown}')
    values = pixels[0] if valid is None else np.where(valid, pixels[0], 0).astype(pixels.dtype)
    if values.dtype.kind == 'f' and (np.rint(values) != values).any():
        raise ChipFolderError(
            f"labels {shown} hold fractions; class values are whole numbers; pass target='values' to export numbers"
        )
    if values.dtype.itemsize > 1 or values.dtype.kind == 'i':
        low, high = values.min(), values.max()
        if low < 0 or high > 65535:
            raise ChipFolderError(f'labels {shown} hold values from {low} to {high}; class values lie in 0..65535')
    whole: np.ndarray = values if values.dtype == np.uint8 else values.astype(np.uint16)
    return whole


def _find_classes(src: Any, shown: str) -> tuple[ClassInfo, ...]:
    """Read the raster once, by block rows, and make a class of each value but 0."""
    seen = np.zeros(65536, bool)
    step = max(src.block_shapes[0][0], 256)
    for row in range(0, src.height, step):
        window = (row, 0, min(step, src.height - row), src.width)
        values = read_values(src, window, None, shown)
        seen[: int(values.max()) + 1] |= np.bincount(values.ravel()) > 0
    tags = src.tags(1)
    try:
        colors = src.colormap(1)
    except ValueError:  # rasterio's word for a band without colors
        colors = {}
    found = [int(value) for value in np.flatnonzero(seen) if value]
    return tuple(
        ClassInfo(value, tags.get(f'class_{value}') or str(value), _color(colors.get(value), at))
        for at, value in enumerate(found)
    )


def _color(given: tuple[int, ...] | None, position: int) -> tuple[int, int, int]:
    return default_color(position) if given is None or not any(given[:3]) else (given[0], given[1], given[2])


def _check_grids(src: Any, lab: Any, shown: str) -> None:
    if lab.count != 1:
        raise ChipFolderError(f'{shown}: labels hold {lab.count} bands; a label raster has one band of class values')
    image, label = raster_geobox(src), raster_geobox(lab)
    same_crs = src.crs == lab.crs or not (src.crs and lab.crs)
    if image.shape != label.shape or not same_crs or not image.transform.almost_equals(label.transform, 1e-6):
        raise ChipFolderError(
            f'{shown} lie on different grids: {image.shape} at {image.transform[:6]} in {src.crs} '
            f'and {label.shape} at {label.transform[:6]} in {lab.crs}; warp the labels to the image first'
        )


TOO_SMALL = 'feature smaller than a pixel, or cut to less'

BELOW_RATIO = 'feature of which less than min_polygon_overlap_ratio is in the chip'

WITHOUT_DATA = 'feature where the raster has no data'


def feature_label(task: Task, cut: Clipped, shape: tuple[int, int], mask: np.ndarray | None, ratio: float) -> Label:
    """Return the label of a chip from the features in it.

    Features with less than `ratio` of their area in the chip are no objects of it. A class per pixel is true
    regardless: their pixels keep the class. Where features overlap, pixels take the class of the later one.

    Args:
        task: What the label must hold.
        cut: Features in pixels of the chip.
        shape: Height and width of the chip.
        mask: (height, width), True where the raster has data; None where it has everywhere.
        ratio: 0..1.
    """
    kept = cut.select(cut.shares >= ratio)
    skipped = [BELOW_RATIO] * (len(cut.class_ids) - len(kept.class_ids))
    if task is Task.PIXELS:
        return Label(raster=burn(cut, shape, mask), skipped=tuple(skipped))
    if task is Task.OBJECTS:
        return _boxes(kept, shape, mask, skipped)
    if task in (Task.INSTANCES, Task.PANOPTIC):
        return _instances(kept, shape, mask, skipped, raster=burn(cut, shape, mask) if task is Task.PANOPTIC else None)
    if task in (Task.LABEL, Task.LABELS):
        found = _boxes(kept, shape, mask, skipped)
        if task is Task.LABEL:
            return found
        return Label(class_ids=np.unique(found.class_ids), skipped=found.skipped)
    return Label()


def burn(cut: Clipped, shape: tuple[int, int], mask: np.ndarray | None) -> np.ndarray:
    """Return the class value of each pixel (height, width) uint16 whose center lies in a feature, else 0."""
    raster = burn_polygons(zip(cut.geometry, cut.class_ids.tolist()), shape, dtype=np.uint16)
    return raster if mask is None else np.where(mask, raster, 0).astype(np.uint16)


def _boxes(cut: Clipped, shape: tuple[int, int], mask: np.ndarray | None, skipped: list[str]) -> Label:
    height, width = shape
    limits = (width, height, width, height)
    boxes = np.clip(need_shapely().bounds(cut.geometry).reshape(-1, 4), 0, limits).astype(np.float32)
    sides = boxes[:, 2:] - boxes[:, :2]
    # what remains of a feature at the edge of a chip shows nothing if it is thinner than a pixel
    wide = (sides > 0).all(axis=1) & (cut.whole | (sides >= 1).all(axis=1))
    seen = np.array([mask is None or bool(_outline(geometry, mask).any()) for geometry in cut.geometry], bool)
    skipped = [*skipped, *[TOO_SMALL] * int((~wide).sum()), *[WITHOUT_DATA] * int((wide & ~seen).sum())]
    kept = wide & seen
    return Label(class_ids=cut.class_ids[kept], boxes=boxes[kept], skipped=tuple(skipped))


def _outline(geometry: Any, mask: np.ndarray) -> np.ndarray:
    """Return the pixels with data that a geometry touches."""
    burnt = burn_polygons([(geometry, 1)], mask.shape, all_touched=True)
    touched: np.ndarray = mask & (burnt > 0)
    return touched


def _instances(
    cut: Clipped, shape: tuple[int, int], mask: np.ndarray | None, skipped: list[str], raster: np.ndarray | None
) -> Label:
    masks, kept, skipped = [], [], list(skipped)
    for position, geometry in enumerate(cut.geometry):
        burnt = _instance(geometry, shape)
        if not burnt.any():
            skipped.append(TOO_SMALL)
            continue
        if mask is not None and not (burnt := burnt & mask).any():
            skipped.append(WITHOUT_DATA)
            continue
        masks.append(burnt)
        kept.append(position)
    return Label(raster, cut.class_ids[kept], mask_boxes(masks), tuple(masks), tuple(skipped))


def _instance(geometry: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return the mask of one geometry, drawn in its own window only: a chip may hold hundreds."""
    left, top, right, bottom = geometry.bounds
    rows = slice(max(0, int(top)), min(shape[0], int(bottom) + 1))
    cols = slice(max(0, int(left)), min(shape[1], int(right) + 1))
    mask = np.zeros(shape, bool)
    window = mask[rows, cols]
    if window.size:
        moved = need_shapely().transform(geometry, lambda points: points - (cols.start, rows.start))
        window[:] = burn_polygons([(moved, 1)], window.shape) > 0
    return mask


def raster_label(task: Task, values: np.ndarray) -> Label:
    """Return the label of a chip from class values (height, width), 0 where unlabelled, or from regression targets.

    Objects are groups of pixels of one class that share edges. The class of a whole chip is the one with most pixels.
    """
    if task in (Task.PIXELS, Task.REGRESSION):
        return Label(raster=values)
    if task in (Task.LABEL, Task.LABELS):
        found, counts = np.unique(values[values > 0], return_counts=True)
        found = found[[counts.argmax()]] if task is Task.LABEL and len(found) else found
        return Label(class_ids=found.astype(np.int64))
    if task is Task.UNLABELLED:
        return Label()
    groups = group_pixels(values)
    masks = [burn_polygons([(geometry, 1)], values.shape) > 0 for geometry, _ in groups]
    found = np.array([value for _, value in groups], np.int64)
    if task is Task.OBJECTS:
        return Label(class_ids=found, boxes=mask_boxes(masks))
    return Label(values if task is Task.PANOPTIC else None, found, mask_boxes(masks), tuple(masks))


@dataclass(frozen=True, slots=True)
class Truth:
    """The label of a chip and what the metadata tells of it.

    Args:
        label: In the form that the format needs.
        features: Class value and area in pixels of each feature, (n,) and (n,); None where the label tells.
        outline: (height, width), True inside the feature that the chip was made for.
        empty: Whether the chip shows nothing that is worth a chip.
    """

    label: Label
    features: tuple[np.ndarray, np.ndarray] | None = None
    outline: np.ndarray | None = None
    empty: bool = False


@dataclass(frozen=True)
class LabelSource:
    """Labels of a raster.

    Args:
        vectors: Features; the objects of a panoptic label where `raster` gives the classes of pixels.
        raster: Class values, or regression targets.
    """

    vectors: VectorLabels | None = None
    raster: RasterLabels | None = None

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """Classes of all parts, in their order."""
        found: dict[int, ClassInfo] = {}
        for part in (self.raster, self.vectors):
            for info in part.classes if part else ():
                if found.setdefault(info.value, info).name != info.name:
                    raise ChipFolderError(
                        f'class value {info.value} is called {found[info.value].name!r} in the class raster and '
                        f'{info.name!r} in the instances; give both one name with classes='
                    )
        return tuple(found.values())

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Open the class raster for one thread; yields None where there is none."""
        with ExitStack() as stack:
            yield stack.enter_context(self.raster.open()) if self.raster else None

    def values(self, src: Any, window: tuple[int, int, int, int], mask: np.ndarray | None) -> np.ndarray | None:
        """Read the raster of class values or numbers in a window; None where there is none."""
        if self.raster is None:
            return None
        return read_values(src, window, mask, self.raster.shown, numbers=self.raster.numbers)

    def truth(
        self, cutout: Cutout, mask: np.ndarray | None, values: np.ndarray | None, options: ExportOptions
    ) -> Truth:
        """Make the label of a chip.

        Args:
            cutout: Where it lies.
            mask: (height, width) of the chip, True where the raster has data.
            values: (height, width) of class values or numbers in the chip.
            options: The form of the label.
        """
        if self.vectors is None:
            label = Label() if values is None else raster_label(options.task, values)
            return Truth(label, empty=values is not None and is_empty(label, options.min_labelled))
        cut = self.vectors.features.cut(cutout)
        label = feature_label(options.task, cut, cutout.shape, mask, options.min_polygon_overlap_ratio)
        if values is not None:
            label = Label(values, label.class_ids, label.boxes, label.masks, label.skipped)
        enough = values is not None or bool((cut.shares >= options.min_polygon_overlap_ratio).any())
        counted = cut.select(cut.shares >= options.min_polygon_overlap_ratio)
        return Truth(
            label,
            (counted.class_ids, _areas(counted)) if options.task in (Task.PIXELS, Task.LABELS) else None,
            burn(cut, cutout.shape, None) > 0 if cutout.feature is not None else None,
            is_empty(label, options.min_labelled) or not enough,
        )


def is_empty(label: Label, min_labelled: float) -> bool:
    """Whether nothing is labelled, or less than the share of pixels that is asked for."""
    if label.raster is None:
        return len(label.class_ids) == 0
    if label.raster.dtype.kind == 'f':
        share = 1 - float(np.isnan(label.raster).mean())
        return not share or share < min_labelled
    return not (label.raster.any() and float((label.raster > 0).mean()) >= min_labelled) and not (
        len(label.class_ids) and not min_labelled
    )


def _areas(cut: Clipped) -> np.ndarray:
    areas: np.ndarray = need_shapely().area(cut.geometry)
    return areas


def turned(array: np.ndarray, cutout: Cutout) -> np.ndarray:
    """Return the part of a window (..., height, width) that a cutout shows."""
    return array if cutout.turn is None else turn_pixels(array, cutout)


@dataclass(frozen=True)
class LabelInput:
    """What the user said about labels; files are read once, whatever the number of rasters."""

    labels: Any
    instances: Any
    mask_polygons: Any
    naming: Naming
    layer: str | None
    crs: str | None
    buffer_radius: float | None

    def read(self, src: Any, shown: str, options: ExportOptions) -> tuple[LabelSource, Any]:
        """Return the labels of a raster and the polygon, in its pixels, that chips must lie within."""
        areas = None if self.mask_polygons is None else place_areas(self._areas, raster_geobox(src), self.crs)
        return self.label_source(src, shown, options), areas

    @cached_property
    def _layers(self) -> tuple[Layer, ...]:
        vector = is_vector(self.labels, self.layer)
        return tuple(read_layers(self.labels if vector else self.instances, self.layer if vector else None))

    @cached_property
    def _areas(self) -> tuple[Layer, ...]:
        return tuple(read_layers(self.mask_polygons, None))

    def label_source(self, src: Any, shown: str, options: ExportOptions) -> LabelSource:
        """Return the labels of a raster."""
        if options.task is Task.UNLABELLED:
            if self.labels is not None:
                raise ChipFolderError('Export_Tiles have no labels; pass labels=None, or choose a format with labels')
            return LabelSource()
        if self.labels is None:
            raise ChipFolderError('no labels are given, which only Export_Tiles can do without')
        vector = is_vector(self.labels, self.layer)
        if self.instances is not None and (options.task is not Task.PANOPTIC or vector):
            raise ChipFolderError(
                'instance_labels are the objects of Panoptic_Segmentation beside a class raster; drop them, or pass a '
                'class raster as labels'
            )
        numbers = options.task is Task.REGRESSION
        if vector and numbers:
            raise ChipFolderError("target='values' needs a raster of numbers as labels, not vectors")
        regions = None if vector else RasterLabels(self.labels, src, shown, self.naming.classes, numbers=numbers)
        if not vector and self.instances is None:
            return LabelSource(raster=regions)
        found = place_vectors(
            self._layers, raster_geobox(src), self.naming, crs=self.crs, buffer_radius=self.buffer_radius
        )
        return LabelSource(found, regions)


def shown_name(raster: str | Path | Sequence[str | Path]) -> str:
    """Return what a raster, or several, is called in messages."""
    if isinstance(raster, str | Path):
        return str(raster)
    return str(raster[0]) if len(raster) == 1 else f'mosaic of {len(raster)} files'

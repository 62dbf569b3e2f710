"""What labels chips: features, a class raster, both (panoptic), or nothing."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from geolearn.chips.exporting import placement, vector_labels
from geolearn.chips.formats.shapes import SMALLEST_AREA, oriented_label
from geolearn.chips.formats.styles import read_raster_style, read_vector_style, styled_classes
from geolearn.chips.label import Label, Task, mask_boxes
from geolearn.chips.meaning.values import as_classes, as_numbers, refuse_lossy
from geolearn.classes import ClassInfo
from geolearn.errors import ChipFolderError
from geolearn.oriented.geometry import mask_rectangle, minimum_rectangle
from geolearn.raster import AlignedRaster, open_raster, raster_geobox, read_window, same_grid
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
        unlabelled: Values that mean "not labelled" beside NoData; where they are given without 0, value 0 is a class.
        align: Whether labels on another grid are brought to that of the image, nearest neighbor.

    Raises:
        ChipFolderError: If it has several bands, another grid without `align`, or values that are no class values.
    """

    def __init__(
        self,
        path: RasterPath,
        image: Any,
        shown: str,
        classes: Sequence[ClassInfo] | None,
        *,
        numbers: bool = False,
        unlabelled: tuple[float, ...] | None = None,
        align: bool = False,
    ) -> None:
        self.path, self.numbers, self.unlabelled = path, numbers, unlabelled
        self.shown = str(path) if isinstance(path, str | Path) else f'mosaic of {len(path)} files'
        self._grid = raster_geobox(image) if align else None
        with self.open() as src:
            _check_grids(image, src, f'image {shown} and labels {self.shown}')
            moved = isinstance(src, AlignedRaster)
            said = f'labels {self.shown} lie on another grid; each pixel takes the label at its center'
            self.notes = [said] if moved else []
            if src.nodatavals[0] == 0 and vector_labels.zero_is_class(unlabelled):
                self.notes.append(
                    f'labels {self.shown} declare 0 as NoData, so that 0 is unlabelled though unlabelled= does not '
                    'name it; if 0 is a class, take the declaration out of the file (gdal_edit.py -unsetnodata <file>)'
                )
            known = () if numbers else classes
            if not numbers:
                refuse_lossy(src, f'labels {self.shown}')
            self.classes = tuple(known) if known is not None else self._find_classes(src)

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Open it for one thread."""
        with open_raster(self.path) as src:
            other = self._grid is not None and not same_grid(src.geobox, self._grid)
            yield AlignedRaster(src, self._grid) if self._grid is not None and other else src

    def read(self, src: Any, window: tuple[int, int, int, int], mask: np.ndarray | None) -> np.ndarray:
        """Return class values or regression targets of a window.

        Args:
            src: Dataset of the labels.
            window: Row, column, height and width.
            mask: True where the image has data; None where it has everywhere.

        Returns:
            (height, width) uint8 or uint16 class values, 0 where labels or image have no data; where 0 is a class,
            int32 with -1 there. Or float32 regression targets with NaN there.
        """
        row, col, height, width = window
        pixels, valid = read_window(src, Window(col, row, width, height), [1])
        if mask is not None:
            valid = mask if valid is None else mask & valid
        if self.numbers:
            return as_numbers(pixels[0], valid, f'labels {self.shown}', self.unlabelled or ())
        values, unknown = as_classes(pixels[0], valid, self.unlabelled or (), f'labels {self.shown}')
        if not vector_labels.zero_is_class(self.unlabelled):
            return values
        signed = values.astype(np.int32)
        if unknown is not None:
            signed[unknown] = -1
        return signed

    def _find_classes(self, src: Any) -> tuple[ClassInfo, ...]:
        """Read the raster once, by block rows, and make a class of each value; of 0 only where it is one."""
        seen = np.zeros(65536, bool)
        step = max(src.block_shapes[0][0], 256)
        for row in range(0, src.height, step):
            values = self.read(src, (row, 0, min(step, src.height - row), src.width), None)
            found = values[labelled(values)]
            if found.size:
                seen[: int(found.max()) + 1] |= np.bincount(found) > 0
        style = read_raster_style(src, self.path)
        return styled_classes([int(value) for value in np.flatnonzero(seen)], style)


def labelled(values: np.ndarray) -> np.ndarray:
    """Return where class values (height, width) say something: above 0, or from 0 on where they are signed."""
    known: np.ndarray = values >= 0 if values.dtype.kind == 'i' else values > 0
    return known


def _raster_part(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return `Label.raster` and `Label.unlabelled` of class values or regression targets."""
    if values.dtype.kind != 'i':
        return values, None
    return np.maximum(values, 0).astype(np.uint16), values < 0


def _check_grids(src: Any, lab: Any, shown: str) -> None:
    if lab.count != 1:
        raise ChipFolderError(f'{shown}: labels hold {lab.count} bands; a label raster has one band of class values')
    image, label = raster_geobox(src), raster_geobox(lab)
    if not same_grid(image, label):
        raise ChipFolderError(
            f'{shown} lie on different grids: {image.shape} at {image.transform[:6]} in {src.crs} '
            f'and {label.shape} at {label.transform[:6]} in {lab.crs}; pass align_labels=True to take for each pixel '
            'the label at its center, or warp the labels to the image first'
        )


TOO_SMALL = 'feature smaller than a pixel, or cut to less'

BELOW_RATIO = 'feature of which less than min_polygon_overlap_ratio is in the chip'

WITHOUT_DATA = 'feature where the raster has no data'


def feature_label(
    task: Task,
    cut: vector_labels.Clipped,
    shape: tuple[int, int],
    mask: np.ndarray | None,
    ratio: float,
    *,
    zero: bool = False,
) -> Label:
    """Return the label of a chip from the features in it.

    Features with less than `ratio` of their area in the chip are no objects of it. A class per pixel is true
    regardless: their pixels keep the class. Where features overlap, pixels take the class of the later one.

    Args:
        task: What the label must hold.
        cut: Features in pixels of the chip.
        shape: Height and width of the chip.
        mask: (height, width), True where the raster has data; None where it has everywhere.
        ratio: 0..1.
        zero: Whether value 0 is a class.
    """
    kept = cut.select(cut.shares >= ratio)
    skipped = [BELOW_RATIO] * (len(cut.class_ids) - len(kept.class_ids))
    if task is Task.PIXELS:
        raster, unknown = _raster_part(burn(cut, shape, mask, zero=zero))
        return Label(raster=raster, skipped=tuple(skipped), unlabelled=unknown)
    if task is Task.OBJECTS:
        return _boxes(kept, shape, mask, skipped)
    if task is Task.ORIENTED:
        return _oriented(kept, shape, mask, skipped)
    if task in (Task.INSTANCES, Task.PANOPTIC):
        found = _instances(kept, shape, mask, skipped)
        if task is Task.INSTANCES:
            return found
        raster, unknown = _raster_part(burn(cut, shape, mask, zero=zero))
        return replace(found, raster=raster, unlabelled=unknown)
    if task in (Task.LABEL, Task.LABELS):
        found = _boxes(kept, shape, mask, skipped)
        if task is Task.LABEL:
            return found
        return Label(class_ids=np.unique(found.class_ids), skipped=found.skipped)
    return Label()


def burn(
    cut: vector_labels.Clipped, shape: tuple[int, int], mask: np.ndarray | None, *, zero: bool = False
) -> np.ndarray:
    """Return the class value of each pixel (height, width) whose center lies in a feature.

    Others are 0 and the array uint16; where 0 is a class (`zero`) they are -1 and the array int32.
    """
    shift = int(zero)
    values = (cut.class_ids + shift).tolist()
    raster = burn_polygons(zip(cut.geometry, values), shape, dtype=np.int32 if zero else np.uint16)
    found: np.ndarray = raster if mask is None else np.where(mask, raster, 0).astype(raster.dtype)
    return found - shift


def _boxes(cut: vector_labels.Clipped, shape: tuple[int, int], mask: np.ndarray | None, skipped: list[str]) -> Label:
    height, width = shape
    limits = (width, height, width, height)
    boxes = np.clip(vector_labels.need_shapely().bounds(cut.geometry).reshape(-1, 4), 0, limits).astype(np.float32)
    sides = boxes[:, 2:] - boxes[:, :2]
    # what remains of a feature at the edge of a chip shows nothing if it is thinner than a pixel
    wide = (sides > 0).all(axis=1) & (cut.whole | (sides >= 1).all(axis=1))
    seen = np.array([mask is None or bool(_outline(geometry, mask).any()) for geometry in cut.geometry], bool)
    skipped = [*skipped, *[TOO_SMALL] * int((~wide).sum()), *[WITHOUT_DATA] * int((wide & ~seen).sum())]
    kept = wide & seen
    return Label(class_ids=cut.class_ids[kept], boxes=boxes[kept], skipped=tuple(skipped))


def _oriented(cut: vector_labels.Clipped, shape: tuple[int, int], mask: np.ndarray | None, skipped: list[str]) -> Label:
    """Return the rectangles of least area around whole features, in pixels of the chip; corners may lie outside."""
    seen = np.array([mask is None or bool(_outline(geometry, mask).any()) for geometry in cut.geometry], bool)
    coordinates = vector_labels.need_shapely().get_coordinates
    turned = [minimum_rectangle(coordinates(geometry)) for geometry in cut.uncut[seen]]
    texts = [*skipped, *[WITHOUT_DATA] * int((~seen).sum())]
    return oriented_label(
        cut.class_ids[seen],
        np.array(turned).reshape(-1, 5),
        shape,
        texts,
        least_area=SMALLEST_AREA,
        too_small=TOO_SMALL,
    )


def _outline(geometry: Any, mask: np.ndarray) -> np.ndarray:
    """Return the pixels with data that a geometry touches."""
    burnt = burn_polygons([(geometry, 1)], mask.shape, all_touched=True)
    touched: np.ndarray = mask & (burnt > 0)
    return touched


def _instances(
    cut: vector_labels.Clipped, shape: tuple[int, int], mask: np.ndarray | None, skipped: list[str]
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
    return Label(None, cut.class_ids[kept], mask_boxes(masks), tuple(masks), tuple(skipped))


def _instance(geometry: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return the mask of one geometry, drawn in its own window only: a chip may hold hundreds."""
    left, top, right, bottom = geometry.bounds
    rows = slice(max(0, int(top)), min(shape[0], int(bottom) + 1))
    cols = slice(max(0, int(left)), min(shape[1], int(right) + 1))
    mask = np.zeros(shape, bool)
    window = mask[rows, cols]
    if window.size:
        moved = vector_labels.need_shapely().transform(geometry, lambda points: points - (cols.start, rows.start))
        window[:] = burn_polygons([(moved, 1)], window.shape) > 0
    return mask


def raster_label(task: Task, values: np.ndarray) -> Label:
    """Return the label of a chip from what `RasterLabels.read` returns.

    Objects are groups of pixels of one class above 0 that share edges. The class of a whole chip is the one with most
    pixels.
    """
    raster, unknown = _raster_part(values)
    if task in (Task.PIXELS, Task.REGRESSION):
        return Label(raster=raster, unlabelled=unknown)
    if task in (Task.LABEL, Task.LABELS):
        found, counts = np.unique(values[labelled(values)], return_counts=True)
        found = found[[counts.argmax()]] if task is Task.LABEL and len(found) else found
        return Label(class_ids=found.astype(np.int64))
    if task is Task.UNLABELLED:
        return Label()
    groups = group_pixels(raster)
    masks = [burn_polygons([(geometry, 1)], values.shape) > 0 for geometry, _ in groups]
    found = np.array([value for _, value in groups], np.int64)
    if task is Task.OBJECTS:
        return Label(class_ids=found, boxes=mask_boxes(masks))
    if task is Task.ORIENTED:
        turned = np.array([mask_rectangle(mask) for mask in masks], np.float64).reshape(-1, 5)
        return oriented_label(found, turned, values.shape)
    objects = Label(None, found, mask_boxes(masks), tuple(masks))
    return replace(objects, raster=raster, unlabelled=unknown) if task is Task.PANOPTIC else objects


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
        zero: Whether value 0 is a class.
    """

    vectors: vector_labels.VectorLabels | None = None
    raster: RasterLabels | None = None
    zero: bool = False

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
        return self.raster.read(src, window, mask)

    def truth(
        self,
        cutout: placement.Cutout,
        mask: np.ndarray | None,
        values: np.ndarray | None,
        options: placement.ExportOptions,
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
        label = feature_label(options.task, cut, cutout.shape, mask, options.min_polygon_overlap_ratio, zero=self.zero)
        if values is not None:
            raster, unknown = _raster_part(values)
            label = replace(label, raster=raster, unlabelled=unknown)
        enough = values is not None or bool((cut.shares >= options.min_polygon_overlap_ratio).any())
        counted = cut.select(cut.shares >= options.min_polygon_overlap_ratio)
        return Truth(
            label,
            (counted.class_ids, _areas(counted)) if options.task in (Task.PIXELS, Task.LABELS) else None,
            labelled(burn(cut, cutout.shape, None, zero=True)) if cutout.feature is not None else None,
            is_empty(label, options.min_labelled) or not enough,
        )


def is_empty(label: Label, min_labelled: float) -> bool:
    """Whether nothing is labelled, or less than the share of pixels that is asked for."""
    if label.raster is None:
        return len(label.class_ids) == 0
    if label.raster.dtype.kind == 'f':
        share = 1 - float(np.isnan(label.raster).mean())
        return not share or share < min_labelled
    known = label.raster > 0 if label.unlabelled is None else ~label.unlabelled
    return not (known.any() and float(known.mean()) >= min_labelled) and not (len(label.class_ids) and not min_labelled)


def _areas(cut: vector_labels.Clipped) -> np.ndarray:
    areas: np.ndarray = vector_labels.need_shapely().area(cut.geometry)
    return areas


def turned(array: np.ndarray, cutout: placement.Cutout) -> np.ndarray:
    """Return the part of a window (..., height, width) that a cutout shows."""
    return array if cutout.turn is None else placement.turn_pixels(array, cutout)


@dataclass(frozen=True)
class LabelInput:
    """What the user said about labels; files are read once, whatever the number of rasters."""

    labels: Any
    instances: Any
    mask_polygons: Any
    naming: vector_labels.Naming
    layer: str | None
    crs: str | None
    buffer_radius: float | None
    align: bool = False

    def read(self, src: Any, shown: str, options: placement.ExportOptions) -> tuple[LabelSource, Any]:
        """Return the labels of a raster and the polygon, in its pixels, that chips must lie within."""
        areas = (
            None if self.mask_polygons is None else vector_labels.place_areas(self._areas, raster_geobox(src), self.crs)
        )
        return self.label_source(src, shown, options), areas

    @cached_property
    def _layers(self) -> tuple[vector_labels.Layer, ...]:
        vector = vector_labels.is_vector(self.labels, self.layer)
        return tuple(
            vector_labels.read_layers(self.labels if vector else self.instances, self.layer if vector else None)
        )

    @cached_property
    def _styled(self) -> vector_labels.Naming:
        """Where classes come from, with the names and colors of a style beside the file."""
        return replace(self.naming, style=read_vector_style(self.labels, self.naming.value_field))

    @cached_property
    def _areas(self) -> tuple[vector_labels.Layer, ...]:
        return tuple(vector_labels.read_layers(self.mask_polygons, None))

    def label_source(self, src: Any, shown: str, options: placement.ExportOptions) -> LabelSource:
        """Return the labels of a raster."""
        if options.task is Task.UNLABELLED:
            if self.labels is not None:
                raise ChipFolderError('Export_Tiles have no labels; pass labels=None, or choose a format with labels')
            return LabelSource()
        if self.labels is None:
            raise ChipFolderError('no labels are given, which only Export_Tiles can do without')
        vector = vector_labels.is_vector(self.labels, self.layer)
        if self.instances is not None and (options.task is not Task.PANOPTIC or vector):
            raise ChipFolderError(
                'instance_labels are the objects of Panoptic_Segmentation beside a class raster; drop them, or pass a '
                'class raster as labels'
            )
        numbers = options.task is Task.REGRESSION
        if vector and numbers:
            raise ChipFolderError("target='values' needs a raster of numbers as labels, not vectors")
        unlabelled = self.naming.unlabelled
        regions = (
            None
            if vector
            else RasterLabels(
                self.labels,
                src,
                shown,
                self.naming.classes,
                numbers=numbers,
                unlabelled=unlabelled,
                align=self.align,
            )
        )
        if not vector and self.instances is None:
            vector_labels.refuse_vector_options(
                self.labels,
                class_value_field=self.naming.value_field,
                class_name_field=self.naming.name_field,
                layer=self.layer,
                labels_crs=None if self.mask_polygons is not None else self.crs,
                buffer_radius=self.buffer_radius,
            )
            return LabelSource(raster=regions, zero=vector_labels.zero_is_class(unlabelled))
        found = vector_labels.place_vectors(
            self._layers, raster_geobox(src), self._styled, crs=self.crs, buffer_radius=self.buffer_radius
        )
        return LabelSource(found, regions, vector_labels.zero_is_class(unlabelled))


def shown_name(raster: str | Path | Sequence[str | Path]) -> str:
    """Return what a raster, or several, is called in messages."""
    if isinstance(raster, str | Path):
        return str(raster)
    return str(raster[0]) if len(raster) == 1 else f'mosaic of {len(raster)} files'

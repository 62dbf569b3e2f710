"""What labels chips: features, a class raster, both (panoptic), or nothing."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from geolearn.chips.exporting.chip_labels import burn, feature_label, raster_label
from geolearn.chips.exporting.features import Cut, need_shapely
from geolearn.chips.exporting.naming import Naming
from geolearn.chips.exporting.options import ExportOptions
from geolearn.chips.exporting.placement import Tile, turn_pixels
from geolearn.chips.exporting.raster_labels import RasterLabels, read_values
from geolearn.chips.exporting.vector_labels import (
    Layer,
    VectorLabels,
    is_vector,
    place_areas,
    place_vectors,
    read_layers,
)
from geolearn.chips.label import Label, Task
from geolearn.classes import ClassInfo
from geolearn.errors import ChipFolderError
from geolearn.raster import raster_geobox


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
        raster: Class values, or numbers to learn.
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

    def truth(self, tile: Tile, mask: np.ndarray | None, values: np.ndarray | None, options: ExportOptions) -> Truth:
        """Make the label of a chip.

        Args:
            tile: Where it lies.
            mask: (height, width) of the chip, True where the raster has data.
            values: (height, width) of class values or numbers in the chip.
            options: The form of the label.
        """
        if self.vectors is None:
            label = Label() if values is None else raster_label(options.task, values)
            return Truth(label, empty=values is not None and is_empty(label, options.min_labelled))
        cut = self.vectors.features.cut(tile)
        label = feature_label(options.task, cut, tile.shape, mask, options.min_polygon_overlap_ratio)
        if values is not None:
            label = Label(values, label.class_ids, label.boxes, label.masks, label.skipped)
        enough = values is not None or bool((cut.shares >= options.min_polygon_overlap_ratio).any())
        counted = cut.select(cut.shares >= options.min_polygon_overlap_ratio)
        return Truth(
            label,
            (counted.class_ids, _areas(counted)) if options.task in (Task.PIXELS, Task.LABELS) else None,
            burn(cut, tile.shape, None) > 0 if tile.feature is not None else None,
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


def _areas(cut: Cut) -> np.ndarray:
    areas: np.ndarray = need_shapely().area(cut.geometry)
    return areas


def turned(array: np.ndarray, tile: Tile) -> np.ndarray:
    """Return the part of a window (..., height, width) that a tile shows."""
    return array if tile.turn is None else turn_pixels(array, tile)


@dataclass(frozen=True)
class LabelReader:
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

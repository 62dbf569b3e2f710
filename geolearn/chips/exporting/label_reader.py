"""Read what the user gave as labels, for each raster that chips are cut from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from geolearn.chips.exporting.naming import Naming
from geolearn.chips.exporting.options import ExportOptions
from geolearn.chips.exporting.regions import RasterLabels
from geolearn.chips.exporting.sources import LabelSource
from geolearn.chips.exporting.vectors import Layer, is_vector, place_areas, place_vectors, read_layers
from geolearn.chips.label import Task
from geolearn.errors import ChipFolderError
from geolearn.raster import raster_geobox


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
        numbers = options.task is Task.VALUES
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

"""What classes of models do with rasters, and with which options, for callers that do not know the class."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from geolearn.networks.spec import ModelSpec


class RasterUse(NamedTuple):
    """What models of a class do with rasters.

    Args:
        text: It, in words, such as ``'maps pixels'``.
        suffixes: Of the files that it writes.
        options: Keywords of the method that does it; see `Model.use_on_raster`.
    """

    text: str
    suffixes: tuple[str, ...]
    options: tuple[str, ...]


RASTERS = ('.tif', '.tiff', '.zarr')
"""Suffixes of the maps that are written."""

TILE_OPTIONS = ('tile_size', 'batch_size', 'device', 'aoi', 'bbox', 'bbox_crs')

MAP_OPTIONS = (
    *TILE_OPTIONS,
    *('halo', 'compile', 'engine', 'mixed_precision', 'blend', 'augment', 'max_memory', 'cog'),
    *('resume', 'part', 'merge_parts'),
)
"""Keywords of `predict_raster`, besides those on reading."""

CLASS_MAP_OPTIONS = (*MAP_OPTIONS, 'outputs', 'probability_dtype', 'layout')
"""The same of classifiers."""

EMBEDDING_OPTIONS = ('dequantize', 'product')
"""Keywords on precomputed embeddings, of models of the values of pixels."""

READING = ('bands', 'sensor', 'scale', 'offset', 'nodata', 'resolution', 'dates')
"""Options on reading, which all models have."""

NOT_EACH = ('resume', 'part', 'merge_parts')
"""Options of one map that many have not."""


class UsesRasters(Protocol):
    """What is needed of a model that does something with rasters."""

    spec: ModelSpec
    network: Any
    raster_use: ClassVar[RasterUse]

    def use_on_raster(self, sources: Sequence[Any], dst: str | Path, options: Mapping[str, Any]) -> Path:
        """Map rasters, or detect objects in them."""


def one_or_several(sources: Sequence[Any]) -> Any:
    """Return a single raster as such, and several, which make a mosaic or are dates, as they are."""
    return sources if len(sources) > 1 else sources[0]

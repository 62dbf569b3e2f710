"""Options of reading rasters and of running networks over them; public methods build them once and pass them on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from geolearn.units import to_decibels

Resolution = float | Literal['training']
"""Side of the pixels in units of the raster's CRS, or that of the training chips."""

Scale = float | Literal['db']
"""Factor of stored values, or ``'db'``: radar bands are linear power, of which 10 * log10 is taken."""

NoData = float | Sequence[float | None] | None
"""Value that marks missing pixels in all bands, or one for each band of the file in file order, None for no value."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class ReadOptions:
    """How a raster's bands and values are read; None leaves it to the file.

    Args:
        bands: Names of the bands in file order.
        sensor: Sensor whose band names they are.
        scale: Factor of the stored values; 1 states that they are in the model's units already. ``'db'`` makes decibels
            of the radar bands, and leaves others as they are.
        offset: Added after scaling.
        nodata: Value that marks missing pixels, on top of what the file says, or one for each band of the file.
        resolution: Side of the pixels to resample to while reading, in units of the raster's CRS, or ``'training'`` for
            that of the training chips; None reads the raster as it is.
        radar: Whether each band of the model is radar, for ``scale='db'``.

    Raises:
        ValueError: If a number cannot scale pixel values, or is not a size.
    """

    bands: Sequence[str] | None = None
    sensor: str | None = None
    scale: Scale | None = None
    offset: float = 0.0
    nodata: NoData = None
    resolution: Resolution | None = None
    radar: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.scale, str):
            if self.scale != 'db' or not any(self.radar):
                raise ValueError(
                    f"scale must be a number, or 'db' for a model with radar bands in decibels, got {self.scale!r}"
                )
        elif self.scale == 0 or not math.isfinite(self.factor):
            raise ValueError(f'scale must be a finite number other than 0, got {self.scale}')
        if not math.isfinite(self.offset):
            raise ValueError(f'offset must be a finite number, got {self.offset}')
        values = self.nodata if isinstance(self.nodata, Sequence) else (self.nodata,)
        if isinstance(values, str) or not all(value is None or _is_number(value) for value in values):
            raise ValueError(f'nodata must be a number, or one for each band, got {self.nodata!r}')
        size = self.resolution
        if size is not None and size != 'training' and not (_is_number(size) and 0 < size < math.inf):
            raise ValueError(f"resolution must be a number above 0 or 'training', got {size!r}")

    @property
    def factor(self) -> float:
        """The scale, 1 where none is given, or decibels are made."""
        return 1.0 if self.scale is None or isinstance(self.scale, str) else self.scale

    def nodata_of(self, indexes: Sequence[int], count: int) -> tuple[float | None, ...]:
        """Return the value of missing pixels in each band that is read.

        Args:
            indexes: 1-based bands.
            count: Bands of the file.

        Raises:
            ValueError: If there is not one value for each band of the file.
        """
        if not isinstance(self.nodata, Sequence):
            return (self.nodata,) * len(indexes)
        values = tuple(self.nodata)
        if len(values) != count:
            raise ValueError(f'nodata must be a number, or one for each of {count} bands; got {len(values)}: {values}')
        return tuple(values[index - 1] for index in indexes)

    def to_model_units(self, pixels: np.ndarray) -> np.ndarray:
        """Return stored pixels as float32 in the units that the network was trained on: pixels * scale + offset."""
        values = pixels.astype(np.float32)
        if self.scale == 'db':
            rows = np.flatnonzero(self.radar)
            values[rows] = to_decibels(values[rows])
        if self.factor != 1.0:
            values *= np.float32(self.factor)
        if self.offset:
            values += np.float32(self.offset)
        return values


@dataclass(frozen=True)
class TilingOptions:
    """How tiles are cut and computed; None leaves it to the network.

    Args:
        tile_size: Side of the tiles in pixels.
        halo: Pixels dropped at inner tile edges.
        batch_size: Tiles computed together.
        device: Torch device; None means CUDA where there is one.
        compile: Whether to compile the network first. It takes up to a minute and gave convolutions 1.1 to 1.4 times
            the speed, plain transformers hardly any on processors without AVX-512: for thousands of tiles.

    Raises:
        ValueError: If a number is out of its range.
    """

    tile_size: int | None = None
    halo: int | None = None
    batch_size: int = 4
    device: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f'batch_size must be at least 1, got {self.batch_size}')
        if self.tile_size is not None and self.tile_size < 1:
            raise ValueError(f'tile_size must be at least 1 pixel, got {self.tile_size}')

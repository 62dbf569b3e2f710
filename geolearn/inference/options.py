"""How a raster is read, and how its tiles are cut and computed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal, get_args

import numpy as np

from geolearn import errors, units
from geolearn.inference.area import AreaOfInterest
from geolearn.inference.engines import Engine
from geolearn.inference.plan import BLENDS, Blend
from geolearn.precision import Precision, check_precision
from geolearn.raster import Dequantize

Resolution = float | Literal['training']
"""Side of the pixels in units of the raster's CRS, or that of the training chips."""

Scale = float | Literal['db']
"""Factor of stored values, or ``'db'``: radar bands are linear power, of which 10 * log10 is taken."""

NoData = float | Sequence[float | None] | None
"""Value that marks missing pixels in all bands, or one for each band of the file in file order, None for no value."""


def _as_day(given: object) -> date:
    if isinstance(given, datetime):
        return given.date()
    try:
        return given if isinstance(given, date) else date.fromisoformat(str(given))
    except ValueError as error:
        raise ValueError(f"dates must be dates or texts such as '2024-05-01', got {given!r}") from error


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
        area: Part of the raster that is read; None for all of it.
        dequantize: How codes of precomputed embeddings become vectors; None does what the model was trained with.
        product: Name and version of the embeddings that the raster holds, where it does not say so itself.
        dates: When the image of each date was taken, as dates or ISO texts, for networks that read it.
        is_checked: Whether units and borders were checked already, by the process that this one computes for.

    Raises:
        ValueError: If a number cannot scale pixel values, or is not a size, or dates are none.
    """

    bands: Sequence[str] | None = None
    sensor: str | None = None
    scale: Scale | None = None
    offset: float = 0.0
    nodata: NoData = None
    resolution: Resolution | None = None
    radar: tuple[bool, ...] = ()
    area: AreaOfInterest | None = None
    dequantize: Dequantize | None = None
    product: str | None = None
    dates: Sequence[date | str] | None = None
    is_checked: bool = False

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
    def days(self) -> tuple[date, ...] | None:
        """The dates as such; None where they are not given.

        Raises:
            ValueError: If one is no date.
        """
        if self.dates is None:
            return None
        if isinstance(self.dates, str) or not isinstance(self.dates, Sequence):
            raise ValueError(f"dates must be a list, such as ['2024-05-01'], got {self.dates!r}")
        return tuple(map(_as_day, self.dates))

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
        values = np.empty(pixels.shape, np.float32)
        self.put_model_units(pixels, values)
        return values

    def put_model_units(self, pixels: np.ndarray, values: np.ndarray) -> None:
        """Convert as `to_model_units` does, into an array float32 of the same shape."""
        with np.errstate(over='ignore', invalid='ignore'):  # what float32 cannot hold is no data
            np.copyto(values, pixels, casting='unsafe')
        self.scale_values(values)

    def scale_values(self, values: np.ndarray) -> None:
        """Change float32 values in stored units into the units that the network was trained on."""
        if self.scale == 'db':
            rows = np.flatnonzero(self.radar)
            values[rows] = units.to_decibels(values[rows])
        if self.factor != 1.0:
            values *= np.float32(self.factor)
        if self.offset:
            values += np.float32(self.offset)


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
        blend: How the tiles of a map meet.
        augment: Test-time augmentation of maps: each tile is computed ``'flips'`` 4 times, flipped, or (True) 8 times,
            flipped and turned, and the mean of the outputs is taken.
        max_memory: Bytes that rows and tiles may take, besides the network and what it computes; None for 160 MiB, or
            72 MiB where a raster is stored in tiles and ``blend`` is ``'crop'``.
        engine: What computes maps: torch, the network's ONNX graph in onnxruntime or OpenVINO, or the fastest.
        mixed_precision: ``'bf16'``, ``'fp16'`` (CUDA only), True for the better of them on a GPU, None or False for
            float32 throughout. On CPUs torch and OpenVINO have the first, and it alone.

    Raises:
        ValueError: If a number is out of its range, or options do not go together.
        UnknownNameError: If there is no such way to blend or to augment, or no such engine.
    """

    tile_size: int | None = None
    halo: int | None = None
    batch_size: int | None = None
    device: str | None = None
    compile: bool = False
    blend: Blend | None = None
    augment: bool | Literal['flips'] = False
    max_memory: int | None = None
    engine: Engine = 'torch'
    mixed_precision: Precision | bool | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ('blend', self.blend, BLENDS),
            ('augment', self.augment, ('flips',)),
            ('engine', self.engine, get_args(Engine)),
        ):
            if value is not None and not isinstance(value, bool) and value not in known:
                raise errors.UnknownNameError(name, str(value), known)
        if isinstance(self.blend, bool):
            raise errors.UnknownNameError('blend', str(self.blend), BLENDS)
        if self.compile and self.engine not in ('torch', 'auto'):
            raise ValueError(f"compile=True is for engine='torch', got engine={self.engine!r}")
        check_precision(self.mixed_precision)
        if self.mixed_precision and self.engine == 'onnx':
            raise ValueError(
                f"mixed_precision={self.mixed_precision!r} is not for engine='onnx': onnxruntime computes in float32 "
                "on CPUs; leave out mixed_precision, or pass engine='torch' or engine='openvino'"
            )
        if self.max_memory is not None and self.max_memory < 1:
            raise ValueError(f'max_memory must be a number of bytes above 0, got {self.max_memory}')
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f'batch_size must be at least 1, got {self.batch_size}')
        if self.tile_size is not None and self.tile_size < 1:
            raise ValueError(f'tile_size must be at least 1 pixel, got {self.tile_size}')

"""Map a raster with a trained network: check that it fits the model, choose tiles, stream."""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import geolearn
from geolearn.device import choose_device
from geolearn.errors import RasterError
from geolearn.inference.encoding import Encoding
from geolearn.inference.raster import MapPlan, map_raster
from geolearn.inference.tiles import PixelScale, Source
from geolearn.models.network import Network
from geolearn.models.spec import ModelSpec
from geolearn.raster import (
    find_band_indexes,
    open_raster,
    raster_geobox,
    require_place,
    require_same_grid,
    sample_pixels,
)
from geolearn.raster.reading import RasterPath
from geolearn.tiling import make_grid
from geolearn.units import compare_units, typical_values

log = logging.getLogger('geolearn')

CONVOLUTION_TILE = 512
"""Convolutions run fastest per pixel at about this side: smaller tiles overlap more, larger ones leave caches."""

CONVOLUTION_HALO = 32

POSITION_GRID_SIDES = 2
"""Tiles of networks with embedded positions, in sides of the training chips: as accurate, with half the overlap."""


class Reading(NamedTuple):
    """How a raster's bands and values are understood; None leaves it to the file.

    Args:
        bands: Names of the bands in file order.
        sensor: Whose names they are.
        scale: Multiplies values; 1 says that they are in the model's units already.
        offset: Is added after that.
    """

    bands: Sequence[str] | None = None
    sensor: str | None = None
    scale: float | None = None
    offset: float = 0.0

    @property
    def pixel_scale(self) -> PixelScale:
        """From stored values to the model's units."""
        return PixelScale(1.0 if self.scale is None else self.scale, self.offset)


class Running(NamedTuple):
    """How tiles are cut and computed; None leaves it to the model."""

    tile_size: int | None = None
    halo: int | None = None
    batch_size: int = 4
    device: str | None = None
    compile: bool = False


class MapModel(NamedTuple):
    """What maps: a network, what it was trained on, and what its outputs mean.

    Args:
        spec: Of the model.
        network: Of the model.
        encoding: From its outputs to the map's pixels.
        every_date: Whether a pixel needs data at every date.
    """

    spec: ModelSpec
    network: Network
    encoding: Encoding
    every_date: bool = False


RasterSource = RasterPath | Sequence[RasterPath]
"""A raster, or several that make one mosaic; for models of several dates one such for each date, or one file of all."""


def map_with_model(model: MapModel, src: RasterSource, dst: str | Path, reading: Reading, running: Running) -> Path:
    """Do what `predict_raster` says."""
    spec, network = model.spec, model.network
    check_reading(reading)
    _check_running(running)
    target = check_target(src, Path(dst).expanduser())
    side, halo = choose_tile(spec, network, running)
    with ExitStack() as stack:
        sources = open_dates(src, spec, reading, stack)
        first = sources[0].dataset
        grid = make_grid((first.height, first.width), tile_size=side, halo=halo)
        plan = MapPlan(grid, running.batch_size, reading.pixel_scale, model.encoding, running.compile, model.every_date)
        tags = {'MODEL': spec.model, 'BACKBONE': spec.backbone, 'SOFTWARE': f'geolearn {geolearn.__version__}'}
        return map_raster(sources, network.to(choose_device(running.device)), plan, target, tags=tags)


def open_dates(src: RasterSource, spec: ModelSpec, reading: Reading, stack: ExitStack) -> list[Source]:
    """Open a raster, or one of each date, and find the model's bands in it.

    Args:
        src: What the caller of `predict_raster` passed.
        spec: Of the model.
        reading: How the raster is understood.
        stack: Closes what is opened.

    Raises:
        RasterError: If bands, units, dates or grids do not fit.
    """
    if spec.dates == 1:
        return [match_raster(stack.enter_context(open_raster(src)), spec, reading)]  # type: ignore[arg-type]
    if isinstance(src, str | Path):
        return _dates_in_one(stack.enter_context(open_raster(src)), spec, reading)
    if len(src) != spec.dates:
        raise RasterError(
            f'this model takes images of {spec.dates} dates, found {len(src)} rasters; pass one for each date, oldest '
            'first, or a list of tiles for each date'
        )
    sources = [match_raster(stack.enter_context(open_raster(date)), spec, reading) for date in src]
    first = raster_geobox(sources[0].dataset)
    for source in sources[1:]:
        require_same_grid(first, raster_geobox(source.dataset))
    return sources


def match_raster(dataset: Any, spec: ModelSpec, reading: Reading) -> Source:
    """Find a model's bands in an open raster, and check that its values are in the units of the training chips.

    Raises:
        RasterError: If it has no place, or bands or units do not fit.
    """
    require_place(dataset)
    indexes = find_band_indexes(dataset, spec.bands, names=reading.bands, sensor=reading.sensor)
    _check_units(dataset, indexes, spec, reading)
    return Source(dataset, tuple(indexes))


def _dates_in_one(dataset: Any, spec: ModelSpec, reading: Reading) -> list[Source]:
    """Part a file that holds all bands of the first date, then all of the second, and so on."""
    require_place(dataset)
    bands = len(spec.bands)
    if dataset.count != spec.dates * bands:
        raise RasterError(
            f'this model takes {spec.dates} dates of {bands} bands, found one raster of {dataset.count} bands; pass a '
            'list of one raster for each date'
        )
    sources = [Source(dataset, tuple(range(1 + date * bands, 1 + (date + 1) * bands))) for date in range(spec.dates)]
    log.warning('%s bands taken as %s dates of %s bands, one date after the other', dataset.count, spec.dates, bands)
    for source in sources:
        _check_units(dataset, source.indexes, spec, reading)
    return sources


def check_reading(reading: Reading) -> None:
    """Refuse numbers that no value can be scaled by."""
    if reading.scale == 0 or not math.isfinite(reading.scale or 1.0):
        raise ValueError(f'scale must be a finite number other than 0, got {reading.scale}')
    if not math.isfinite(reading.offset):
        raise ValueError(f'offset must be a finite number, got {reading.offset}')


def _check_running(running: Running) -> None:
    if running.batch_size < 1:
        raise ValueError(f'batch_size must be at least 1, got {running.batch_size}')
    if running.tile_size is not None and running.tile_size < 1:
        raise ValueError(f'tile_size must be at least 1 pixel, got {running.tile_size}')


def check_target(src: RasterSource, dst: Path) -> Path:
    """Refuse before hours of work what could not be written after them.

    Raises:
        RasterError: If the target is one of the sources, or a folder.
    """
    if any(os.path.realpath(source) == os.path.realpath(dst) for source in _all_files(src)):
        raise RasterError(f'{dst} is the raster to map; write the map to another file')
    if dst.is_dir():
        raise RasterError(f'{dst} is a folder; pass the GeoTIFF to write, such as {dst / "map.tif"}')
    return dst


def _all_files(src: RasterSource) -> Iterator[str | Path]:
    if isinstance(src, str | Path):
        yield src
    else:
        for part in src:
            yield from _all_files(part)


def _check_units(dataset: Any, indexes: Sequence[int], spec: ModelSpec, reading: Reading) -> None:
    check_units(sample_pixels(dataset, indexes), spec, reading)


def check_units(sample: np.ndarray, spec: ModelSpec, reading: Reading) -> None:
    """Refuse pixels in other units than the training chips; a caller who says scale=1 is only told.

    Args:
        sample: Valid pixels (bands, n) in stored units, n possibly 0.
        spec: Of the model.
        reading: How the pixels are understood.

    Raises:
        RasterError: If they are in other units.
    """
    typical = typical_values(sample)
    if typical is None:
        return
    statistics, names = spec.statistics, [band.name for band in spec.bands]
    verdict = compare_units(reading.pixel_scale.apply(typical), statistics.mean, statistics.std, names)
    if verdict.far and reading.scale != 1:
        raise RasterError(
            f"the raster's values are in other units than the training chips: medians {verdict.table}. Pass scale= "
            '(and offset=) so that value * scale + offset is what the model was trained on; scale=1 if it is already'
        )
    if verdict.odd:
        log.warning('the raster may be in other units than the training chips: medians %s', verdict.table)


def choose_tile(spec: ModelSpec, network: Network, running: Running) -> tuple[int, int]:
    """Return tile side and halo: near the training size where positions are embedded, else what is fastest."""
    if network.backbone.has_position_grid:
        side, halo = POSITION_GRID_SIDES * spec.chip_size, spec.chip_size // 8
    else:
        side = max(spec.chip_size, CONVOLUTION_TILE)
        halo = CONVOLUTION_HALO
    side = side if running.tile_size is None else running.tile_size
    return side, min(halo, side // 8) if running.halo is None else running.halo

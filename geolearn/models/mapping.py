"""Map a raster with a trained network: check that it fits the model, choose tiles, stream."""

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import geolearn
from geolearn.device import choose_device
from geolearn.errors import RasterError
from geolearn.inference.raster import MapPlan, map_raster
from geolearn.inference.tiles import PixelScale
from geolearn.models.segmenter import Segmenter
from geolearn.models.spec import ModelSpec
from geolearn.raster import find_band_indexes, open_raster, require_place, sample_pixels
from geolearn.raster.reading import RasterPath
from geolearn.tiling import make_grid
from geolearn.units import compare_units, typical_values

log = logging.getLogger('geolearn')

CONVOLUTION_TILE = 512
"""Convolutions run fastest per pixel at about this side: smaller tiles overlap more, larger ones leave caches."""

CONVOLUTION_HALO = 32

POSITION_GRID_SIDES = 2
"""Tiles of networks with embedded positions, in sides of the training chips: as accurate, with half the overlap."""


class MapOptions(NamedTuple):
    """What the caller of predict_raster asked for; None leaves it to the model and the file."""

    bands: Sequence[str] | None
    sensor: str | None
    scale: float | None
    offset: float
    tile_size: int | None
    halo: int | None
    batch_size: int
    device: str | None


def map_with_model(spec: ModelSpec, network: Segmenter, src: RasterPath, dst: str | Path, options: MapOptions) -> Path:
    """Do what `PixelClassifier.predict_raster` says."""
    if spec.dates > 1:
        raise RasterError(
            f'this model takes images of {spec.dates} dates, and rasters of several dates are not mapped yet; '
            'compute batches of data.valid_dl with model.network'
        )
    _check_numbers(options)
    target = _check_target(src, Path(dst).expanduser())
    side, halo = _choose_tile(spec, network, options)
    scale = PixelScale(1.0 if options.scale is None else options.scale, options.offset)
    with open_raster(src) as dataset:
        require_place(dataset)
        indexes = find_band_indexes(dataset, spec.bands, names=options.bands, sensor=options.sensor)
        _check_units(dataset, indexes, spec, scale, vouched=options.scale == 1)
        grid = make_grid((dataset.height, dataset.width), tile_size=side, halo=halo)
        plan = MapPlan(tuple(indexes), grid, options.batch_size, scale, spec.class_infos)
        tags = {'MODEL': spec.model, 'BACKBONE': spec.backbone, 'SOFTWARE': f'geolearn {geolearn.__version__}'}
        return map_raster(dataset, network.to(choose_device(options.device)), plan, target, tags=tags)


def _check_numbers(options: MapOptions) -> None:
    if options.batch_size < 1:
        raise ValueError(f'batch_size must be at least 1, got {options.batch_size}')
    if options.tile_size is not None and options.tile_size < 1:
        raise ValueError(f'tile_size must be at least 1 pixel, got {options.tile_size}')
    if options.scale == 0 or not math.isfinite(options.scale or 1.0):
        raise ValueError(f'scale must be a finite number other than 0, got {options.scale}')
    if not math.isfinite(options.offset):
        raise ValueError(f'offset must be a finite number, got {options.offset}')


def _check_target(src: RasterPath, dst: Path) -> Path:
    """Refuse before hours of work what could not be written after them."""
    sources = [src] if isinstance(src, str | Path) else src
    if any(os.path.realpath(source) == os.path.realpath(dst) for source in sources):
        raise RasterError(f'{dst} is the raster to map; write the map to another file')
    if dst.is_dir():
        raise RasterError(f'{dst} is a folder; pass the GeoTIFF to write, such as {dst / "map.tif"}')
    return dst


def _check_units(dataset: Any, indexes: Sequence[int], spec: ModelSpec, scale: PixelScale, *, vouched: bool) -> None:
    """Refuse a raster in other units than the training chips; a caller who says scale=1 is only told."""
    typical = typical_values(sample_pixels(dataset, indexes))
    if typical is None:
        return
    statistics, names = spec.statistics, [band.name for band in spec.bands]
    verdict = compare_units(scale.apply(typical), statistics.mean, statistics.std, names)
    if verdict.far and not vouched:
        raise RasterError(
            f"the raster's values are in other units than the training chips: medians {verdict.table}. Pass scale= "
            '(and offset=) so that value * scale + offset is what the model was trained on; scale=1 if it is already'
        )
    if verdict.odd:
        log.warning('the raster may be in other units than the training chips: medians %s', verdict.table)


def _choose_tile(spec: ModelSpec, network: Segmenter, options: MapOptions) -> tuple[int, int]:
    """Return tile side and halo: near the training size where positions are embedded, else what is fastest."""
    if network.backbone.has_position_grid:
        side, halo = POSITION_GRID_SIDES * spec.chip_size, spec.chip_size // 8
    else:
        side = max(spec.chip_size, CONVOLUTION_TILE)
        halo = CONVOLUTION_HALO
    side = side if options.tile_size is None else options.tile_size
    return side, min(halo, side // 8) if options.halo is None else options.halo

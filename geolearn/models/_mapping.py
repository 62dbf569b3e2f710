"""Map a raster with a trained network: check that it fits the model, choose tiles, stream."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import geolearn
from geolearn.errors import RasterError
from geolearn.inference.raster import MapPlan, check_range, map_raster
from geolearn.inference.tiles import PixelScale
from geolearn.models.segmenter import Segmenter
from geolearn.models.spec import ModelSpec
from geolearn.raster import find_band_indexes, open_raster, sample_pixels
from geolearn.raster.reading import RasterPath
from geolearn.tiling import make_grid

log = logging.getLogger('geolearn')

CONVOLUTION_TILE = 512
"""Convolutions run fastest per pixel at about this side: smaller tiles overlap more, larger ones leave caches."""

CONVOLUTION_HALO = 32


class TileChoice(NamedTuple):
    """What the caller asked for; None leaves it to the model."""

    tile_size: int | None
    halo: int | None
    batch_size: int


def map_with(
    spec: ModelSpec,
    network: Segmenter,
    src: RasterPath,
    dst: str | Path,
    *,
    names: Sequence[str] | None,
    sensor: str | None,
    scale: PixelScale,
    tiling: TileChoice,
) -> Path:
    """Do what `PixelClassifier.predict_raster` says."""
    if tiling.batch_size < 1:
        raise ValueError(f'batch_size must be at least 1, got {tiling.batch_size}')
    _check_target(src, dst)
    side, halo = _choose_tile(spec, network, tiling)
    with open_raster(src) as dataset:
        indexes = find_band_indexes(dataset, spec.bands, names=names, sensor=sensor)
        sample = scale.apply(sample_pixels(dataset, indexes))
        remark = check_range(sample, spec.statistics.mean, spec.statistics.std, [band.name for band in spec.bands])
        if remark:
            log.warning('%s', remark)
        grid = make_grid((dataset.height, dataset.width), tile_size=side, halo=halo)
        plan = MapPlan(tuple(indexes), grid, tiling.batch_size, scale, spec.class_infos)
        tags = {'MODEL': spec.model, 'BACKBONE': spec.backbone, 'SOFTWARE': f'geolearn {geolearn.__version__}'}
        return map_raster(dataset, network, plan, dst, tags=tags)


def _check_target(src: RasterPath, dst: str | Path) -> None:
    sources = [src] if isinstance(src, str | Path) else src
    if any(os.path.realpath(source) == os.path.realpath(dst) for source in sources):
        raise RasterError(f'{dst} is the raster to map; write the map to another file')


def _choose_tile(spec: ModelSpec, network: Segmenter, tiling: TileChoice) -> tuple[int, int]:
    """Return tile side and halo: the training size where positions are embedded, else what is fastest."""
    if network.backbone.has_position_grid:
        side = tiling.tile_size or spec.chip_size
        default_halo = side // 8
    else:
        side = tiling.tile_size or max(spec.chip_size, CONVOLUTION_TILE)
        default_halo = min(side // 8, CONVOLUTION_HALO)
    return side, default_halo if tiling.halo is None else tiling.halo

"""Decide which chips are cut, and in which jobs: straight grids, turned grids, or one chip for each feature."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from affine import Affine

from geolearn.chips.exporting.features import Features, need_shapely
from geolearn.chips.exporting.options import ExportOptions
from geolearn.chips.exporting.placement import Job, NothingThereError, Tile, grid_jobs, hull, turned_tile, turned_tiles
from geolearn.errors import ChipFolderError

TILES_PER_JOB = 16
"""Of tiles that are read one by one."""


def plan_jobs(src: Any, options: ExportOptions, features: Features | None, areas: Any, threads: int) -> tuple[Job, ...]:
    """Return all jobs in the order in which chips are numbered.

    Args:
        src: Dataset of the image.
        options: How chips are cut.
        features: Vector labels.
        areas: Polygon in pixels of the raster; chips not completely within are left out. None keeps all.
        threads: How many work at once.

    Raises:
        NothingThereError: If no chip fits.
        ChipFolderError: If the raster is smaller than a chip.
    """
    if options.per_feature and features is not None:
        tiles: Iterable[Tile] = _inside(_feature_tiles((src.height, src.width), options, features), areas)
        jobs = [Job(at, group) for at, group in enumerate(_batched(tiles, TILES_PER_JOB))]
    else:
        # tiles without features are neither read nor written
        jobs = _grids(src, options, areas, threads, needed=None if options.output_nofeature_tiles else features)
    if not jobs:
        where = 'that lies within mask_polygons' if areas is not None else 'inside the raster that shows a feature'
        raise NothingThereError(f'there is no chip of {options.tile_size} pixels {where}; choose a smaller tile_size')
    return tuple(jobs)


def _grids(src: Any, options: ExportOptions, areas: Any, threads: int, needed: Features | None) -> list[Job]:
    shape, size, stride = (src.height, src.width), options.tile_size, options.stride
    pixel_bytes = sum(_itemsize(dtype) for dtype in src.dtypes)
    groups = grid_jobs(shape, size, stride, block=src.block_shapes[0], pixel_bytes=pixel_bytes, threads=threads)
    jobs: list[Job] = []
    for group in groups:
        if tiles := tuple(_inside(_showing(group, needed), areas)):
            jobs.append(Job(len(jobs), tiles, hull(tiles)))
    for angle in options.angles[1:]:
        turned = list(turned_tiles(shape, size, stride, angle))
        for tiles in _batched(_inside(_showing(turned, needed), areas), TILES_PER_JOB):
            jobs.append(Job(len(jobs), tiles))
    return jobs


def _showing(tiles: Sequence[Tile], features: Features | None) -> Sequence[Tile]:
    """Return the tiles that touch any feature; all where None are given."""
    return tiles if features is None else [tiles[at] for at in features.touching(tiles)]


def _batched(tiles: Iterable[Tile], size: int) -> Iterator[tuple[Tile, ...]]:
    rest = iter(tiles)
    while group := tuple(islice(rest, size)):
        yield group


def _itemsize(dtype: str) -> int:
    return int(''.join(letter for letter in dtype if letter.isdigit()) or 8) // 8 or 1


def _inside(tiles: Iterable[Tile], areas: Any) -> Iterator[Tile]:
    if areas is None:
        yield from tiles
        return
    shapely = need_shapely()
    shapely.prepare(areas)
    for tile in tiles:
        if areas.covers(shapely.polygons(tile.corners())):
            yield tile


def _feature_tiles(shape: tuple[int, int], options: ExportOptions, features: Features) -> Iterator[Tile]:
    height, width = shape
    size = options.tile_size
    if options.crop_mode == 'fixed' and min(shape) < size:
        raise ChipFolderError(f'the raster is {width}x{height} pixels, smaller than tile_size {size}')
    for feature, (left, top, right, bottom) in enumerate(features.bounds.tolist()):
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            continue
        if options.crop_mode == 'bounding_box':
            row, col = max(0, math.floor(top)), max(0, math.floor(left))
            crop = (min(height, math.ceil(bottom)) - row, min(width, math.ceil(right)) - col)
            yield Tile((row, col, *crop), crop, None, feature)
            continue
        middle = (left + right) / 2, (top + bottom) / 2
        # at the edge of the raster a chip moves inwards
        col = min(max(0, round(middle[0] - size / 2)), width - size)
        row = min(max(0, round(middle[1] - size / 2)), height - size)
        yield Tile((row, col, size, size), (size, size), None, feature)
        for angle in options.angles[1:]:
            cos, sin = (round(f(math.radians(angle)), 15) for f in (math.cos, math.sin))
            x = middle[0] - (cos - sin) * size / 2
            y = middle[1] - (sin + cos) * size / 2
            if tile := turned_tile(shape, size, Affine(cos, -sin, x, sin, cos, y), feature):
                yield tile

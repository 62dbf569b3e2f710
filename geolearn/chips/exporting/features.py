"""Vector labels in the raster's pixels, and what of them falls into a chip."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine

from geolearn.chips.exporting.placement import Tile, apply_affine
from geolearn.extras import require

_PURPOSE = 'export vector labels'


def need_shapely() -> Any:
    """Return shapely, or say how to install it."""
    return require('shapely', extra='vector', to=_PURPOSE)


@dataclass(frozen=True, eq=False)
class Cut:
    """The features in one chip, in the order of their file.

    Args:
        geometry: (n,) polygons in pixels of the chip, clipped to it.
        class_ids: (n,) int64 class values.
        shares: (n,) how much of each feature's area is in the chip, 0..1.
        whole: (n,) whether all of the feature is.
    """

    geometry: np.ndarray
    class_ids: np.ndarray
    shares: np.ndarray
    whole: np.ndarray

    def select(self, kept: np.ndarray) -> 'Cut':
        """Return some of the features, by boolean mask."""
        return Cut(self.geometry[kept], self.class_ids[kept], self.shares[kept], self.whole[kept])


class Features:
    """Polygons in pixels of the raster (x = columns), with class values and a search tree.

    Args:
        geometry: (n,) shapely polygons and multipolygons with area.
        values: (n,) int64 class values.
    """

    def __init__(self, geometry: np.ndarray, values: np.ndarray) -> None:
        shapely = need_shapely()
        self.geometry, self.class_ids = geometry, values
        self.bounds: np.ndarray = shapely.bounds(geometry).reshape(-1, 4)
        self._areas, self._tree = shapely.area(geometry), shapely.STRtree(geometry)

    def __len__(self) -> int:
        return len(self.class_ids)

    def touching(self, tiles: Sequence[Tile]) -> list[int]:
        """Return the positions of the tiles that touch any feature."""
        outlines = need_shapely().polygons(np.array([tile.corners() for tile in tiles]).reshape(-1, 4, 2))
        found: list[int] = np.unique(self._tree.query(outlines, predicate='intersects')[0]).tolist()
        return found

    def cut(self, tile: Tile) -> Cut:
        """Return the features that share an area with a tile, or the one that the tile was made for."""
        shapely = need_shapely()
        outline = shapely.polygons(tile.corners())
        found = np.sort(self._tree.query(outline)) if tile.feature is None else np.array([tile.feature])
        bounds = self.bounds[found]
        low, high = tile.corners().min(axis=0), tile.corners().max(axis=0)
        whole = (bounds[:, :2] >= low).all(axis=1) & (bounds[:, 2:] <= high).all(axis=1) & (tile.turn is None)
        geometry = self.geometry[found]
        geometry[~whole] = [areal(part) for part in shapely.intersection(geometry[~whole], outline)]
        areas = shapely.area(geometry)
        shares = np.clip(areas / self._areas[found], 0, 1)
        whole |= shares > 1 - 1e-9
        kept = areas > 0
        moved = move(geometry[kept], invert(tile.to_raster))
        return Cut(moved, self.class_ids[found][kept], shares[kept], whole[kept])


def areal(geometry: Any) -> Any:
    """Return the polygons of a geometry: cutting leaves points and lines where outlines only touch."""
    if geometry.geom_type != 'GeometryCollection':
        return geometry
    shapely = need_shapely()
    parts = [part for part in shapely.get_parts(geometry) if part.geom_type in ('Polygon', 'MultiPolygon')]
    return shapely.union_all(parts)


def move(geometry: np.ndarray, transform: Affine) -> np.ndarray:
    """Apply an affine to geometries."""
    moved: np.ndarray = need_shapely().transform(geometry, lambda points: apply_affine(transform, points))
    return moved


def invert(transform: Affine) -> Affine:
    """Return the inverse of an affine."""
    t = transform
    determinant = t.a * t.e - t.b * t.d
    a, b, d, e = t.e / determinant, -t.b / determinant, -t.d / determinant, t.a / determinant
    return Affine(a, b, -a * t.c - b * t.f, d, e, -d * t.c - e * t.f)

"""Where an array of pixels lies on the ground."""

from dataclasses import dataclass

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from geolearn.errors import RasterError


@dataclass(frozen=True, slots=True)
class GeoBox:
    """Shape, transform and CRS of a raster, kept together.

    Args:
        shape: Height and width in pixels.
        transform: Affine from (column, row) to map coordinates.
        crs: WKT or ``'EPSG:...'``, or None where the raster names none.
    """

    shape: tuple[int, int]
    transform: Affine
    crs: str | None

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in map units; the hull where the raster is rotated."""
        height, width = self.shape
        corners = [self._place(row, col) for row in (0, height) for col in (0, width)]
        xs, ys = [x for x, _ in corners], [y for _, y in corners]
        return min(xs), min(ys), max(xs), max(ys)

    def _place(self, row: int, col: int) -> tuple[float, float]:
        # written out: affine 3 warns of `*`, and older ones have no `@`
        t = self.transform
        return t.a * col + t.b * row + t.c, t.d * col + t.e * row + t.f

    @property
    def resolution(self) -> tuple[float, float]:
        """Pixel width and height in map units."""
        t = self.transform
        return (t.a**2 + t.d**2) ** 0.5, (t.b**2 + t.e**2) ** 0.5

    def crop(self, row: int, col: int, shape: tuple[int, int]) -> 'GeoBox':
        """Return the box of the window whose upper-left pixel is (row, col)."""
        (x, y), t = self._place(row, col), self.transform
        return GeoBox(shape, Affine(t.a, t.b, x, t.d, t.e, y), self.crs)


MISFIT_PX = 0.1
"""By how much two grids may be apart: web tiles and products of one agency differ by some thousandths."""


def same_crs(one: str | None, two: str | None) -> bool:
    """Tell whether two CRSs, as WKT, are one."""
    if one == two or one is None or two is None:
        return one == two
    return bool(CRS.from_user_input(one) == CRS.from_user_input(two))


def same_grid(one: GeoBox, other: GeoBox) -> bool:
    """Whether the pixels of two rasters are the same ones, to `MISFIT_PX`.

    Where one names no CRS, it is taken to be that of the other.
    """
    alike = one.crs is None or other.crs is None or same_crs(one.crs, other.crs)
    return one.shape == other.shape and alike and max(map(abs, _worst_shift(one, other))) <= MISFIT_PX


def _worst_shift(first: GeoBox, other: GeoBox) -> tuple[float, float]:
    """Return how many pixels across and down the corner lies that is farthest from that of `first`."""
    inverse = ~first.transform
    height, width = first.shape
    worst = (0.0, 0.0)
    for row, col in ((0, 0), (0, width), (height, 0), (height, width)):
        corner = other.crop(row, col, (0, 0)).transform
        x, y = corner.c, corner.f
        shift = (
            inverse.a * x + inverse.b * y + inverse.c - col,
            inverse.d * x + inverse.e * y + inverse.f - row,
        )
        worst = max(worst, shift, key=lambda pair: max(map(abs, pair)))
    return worst


ELSEWHERE_PX = 0.5
"""Images of one chip that lie farther apart than this show different ground, or other pixels of it."""


def in_pixel_space(box: GeoBox) -> bool:
    """Whether a transform only counts pixels, from the top down or the bottom up: no place on the ground."""
    t, height = box.transform, box.shape[0]
    return (t.a, t.b, t.c, t.d) == (1, 0, 0, 0) and (t.e, t.f) in {(1, 0), (-1, 0), (-1, height)}


def corner_shift(first: GeoBox, other: GeoBox) -> float:
    """Return by how many pixels of the first raster the corners of two lie apart, whatever their pixel sizes.

    0 where one has no place, only one of them names a CRS, or they share no ground: see `lie_apart`.
    """
    if in_pixel_space(first) or in_pixel_space(other) or (first.crs is None) != (other.crs is None):
        return 0.0
    if lie_apart(first, other):
        return 0.0
    inverse, (height, width) = ~first.transform, first.shape
    shifts = [0.0]
    for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corner = other.crop(down * other.shape[0], across * other.shape[1], (0, 0)).transform
        shifts.append(abs(inverse.a * corner.c + inverse.b * corner.f + inverse.c - across * width))
        shifts.append(abs(inverse.d * corner.c + inverse.e * corner.f + inverse.f - down * height))
    return max(shifts)


def lie_apart(first: GeoBox, other: GeoBox) -> bool:
    """Whether two rasters share no ground. Those that belong together then have places of no meaning, such as 0, 0."""
    if in_pixel_space(first) or in_pixel_space(other):
        return False
    (left, bottom, right, top), (west, south, east, north) = first.bounds, other.bounds
    return not (left < east and west < right and bottom < north and south < top)


def require_same_grid(first: GeoBox, other: GeoBox) -> None:
    """Refuse two dates of a place whose pixels do not lie on each other.

    Args:
        first: Place of one raster.
        other: Place of the other.

    Raises:
        RasterError: If CRS or size differ, or a corner is more than `MISFIT_PX` pixels away; the message says how far.
    """
    advice = 'warp them to one grid first (gdalwarp -t_srs -te -tr)'
    if not same_crs(first.crs, other.crs):
        raise RasterError(f'the rasters have different CRSs, {first.crs} and {other.crs}; {advice}')
    if first.shape != other.shape:
        raise RasterError(
            f'the rasters are of {first.shape[1]}x{first.shape[0]} and {other.shape[1]}x{other.shape[0]} pixels, '
            f'bounds {first.bounds} and {other.bounds}; {advice}'
        )
    worst = _worst_shift(first, other)
    if max(map(abs, worst)) > MISFIT_PX:
        raise RasterError(
            f'the rasters do not lie on each other: one is {worst[0]:+.2f} pixels across and {worst[1]:+.2f} down from '
            f'the other; {advice}'
        )


def apply_affine(transform: Affine, points: np.ndarray) -> np.ndarray:
    """Move points (n, 2) of (column, row) or (x, y)."""
    # written out: affine 3 warns of `*`, and older ones have no `@`
    x, y, t = points[:, 0], points[:, 1], transform
    return np.stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f], axis=1)


def crs_name(crs: str | None) -> str:
    """Return what a CRS is called in messages: its EPSG code where it has one."""
    if crs is None:
        return 'no CRS'
    found = CRS.from_user_input(crs)
    code = found.to_epsg()
    return f'EPSG:{code}' if code else f'the CRS {found.to_string()[:60]}'

"""Where an array of pixels lies on the ground."""

from dataclasses import dataclass

from affine import Affine


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

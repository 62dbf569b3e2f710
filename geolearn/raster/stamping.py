"""Write many small GeoTIFFs of one layout: GDAL writes the first, the others are stamped from its bytes.

Files without compression differ in their pixels and their origin only. Making one with GDAL costs milliseconds of
setting up, most of them under Python's lock; copying its bytes around other pixels costs as much as writing them.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from affine import Affine
from rasterio.io import MemoryFile

from geolearn.raster._opening import open_quietly
from geolearn.raster.geobox import GeoBox

# any numbers that a file holds once only: their bytes are looked for
_ORIGIN = (123456.7890625, 654321.0987654)
_PATTERN_SEED = 20260101


@dataclass(frozen=True)
class Stamp:
    """The bytes of a GeoTIFF around its pixels.

    Args:
        head: Bytes before the pixels.
        tail: Bytes after them.
        place_at: Where in the file its place is written; None where files have none.
    """

    head: bytes
    tail: bytes
    place_at: int | None

    def write(self, path: Path, pixels: np.ndarray, transform: Affine | None) -> None:
        """Write a file; `transform` is as turned and scaled as the stamp's."""
        with path.open('wb') as file:
            file.write(self.head)
            file.write(np.ascontiguousarray(pixels).data)
            file.write(self.tail)
            if self.place_at is not None and transform is not None:
                file.seek(self.place_at)
                file.write(_place_bytes(transform))


def find_stamp(
    pixels: np.ndarray,
    geobox: GeoBox | None,
    *,
    nodata: float | None,
    band_names: Sequence[str],
    options: Sequence[tuple[str, object]],
) -> Stamp | None:
    """Return the stamp for files of this layout, or None where GDAL lays them out otherwise.

    Args:
        pixels: (bands, height, width) of one of the files.
        geobox: Its place, or None.
        nodata: NoData value.
        band_names: Description of each band.
        options: GDAL's creation options, without compression.
    """
    linear = (
        None if geobox is None else (geobox.transform.a, geobox.transform.b, geobox.transform.d, geobox.transform.e)
    )
    crs = None if geobox is None else geobox.crs
    return _make_stamp(pixels.shape, pixels.dtype.str, linear, crs, nodata, tuple(band_names), tuple(options))


@lru_cache(maxsize=16)
def _make_stamp(
    shape: tuple[int, int, int],
    dtype: str,
    linear: tuple[float, float, float, float] | None,
    crs: str | None,
    nodata: float | None,
    band_names: tuple[str, ...],
    options: tuple[tuple[str, object], ...],
) -> Stamp | None:
    """Let GDAL write a pattern, and look where its pixels and its origin are."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    pattern = np.random.default_rng(_PATTERN_SEED).bytes(size)
    pixels = np.frombuffer(pattern, dtype).reshape(shape)
    profile = {'driver': 'GTiff', 'count': shape[0], 'height': shape[1], 'width': shape[2], 'dtype': str(pixels.dtype)}
    transform = None
    if linear is not None:
        transform = Affine(linear[0], linear[1], _ORIGIN[0], linear[2], linear[3], _ORIGIN[1])
        profile |= {'transform': transform, 'crs': crs}
    with MemoryFile() as memory:
        dst = open_quietly(memory.name, 'w', profile | {'nodata': nodata} | dict(options))
        with dst:
            # names first: GDAL would write its directory again behind the pixels
            for index, name in enumerate(band_names, 1):
                dst.set_band_description(index, name)
            dst.write(pixels)
        data = bytes(memory.getbuffer())
    if len(pattern) < 64 or data.count(pattern) != 1:
        return None
    start = data.index(pattern)
    head, tail = data[:start], data[start + size :]
    if transform is None:
        return Stamp(head, tail, None)
    place = _place_bytes(transform)
    return Stamp(head, tail, data.index(place)) if data.count(place) == 1 else None


def _place_bytes(transform: Affine) -> bytes:
    """Return what a GeoTIFF holds of an origin: a tie point, or the matrix where the raster is turned."""
    t = transform
    if t.b == 0 and t.d == 0 and t.e < 0:
        return struct.pack('<6d', 0, 0, 0, t.c, t.f, 0)
    return struct.pack('<16d', t.a, t.b, 0, t.c, t.d, t.e, 0, t.f, 0, 0, 0, 0, 0, 0, 0, 1)

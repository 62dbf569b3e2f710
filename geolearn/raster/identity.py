"""What tells whether a source is still the one that it was, where no size and time of a file does."""

import hashlib
import itertools

import numpy as np
from rasterio.windows import Window

from geolearn.raster.raster import Raster

SIDE = 64
"""Of the windows whose pixels are compared."""

PLACES = 3
"""Windows along each axis: corners, middles of the sides, and center."""


def digest_of_samples(raster: Raster) -> str:
    """Return a hash, in hex, of grid, bands and the pixels of nine windows; of all pixels of a small raster."""
    digest = hashlib.blake2b(digest_size=16)
    place = (raster.shape, *raster.transform[:6], raster.geobox.crs)
    bands = (raster.dtypes, raster.descriptions, raster.nodatavals, raster.scales, raster.offsets)
    digest.update(repr((place, bands)).encode())
    for row, col in itertools.product(_starts(raster.height), _starts(raster.width)):
        window = Window(col, row, min(SIDE, raster.width), min(SIDE, raster.height))
        pixels, valid = raster.read_masked(window, raster.indexes)
        digest.update(np.ascontiguousarray(pixels).tobytes())
        if valid is not None:
            digest.update(np.packbits(valid).tobytes())
    return digest.hexdigest()


def _starts(length: int) -> list[int]:
    last = max(length - SIDE, 0)
    return sorted({round(last * step / (PLACES - 1)) for step in range(PLACES)})

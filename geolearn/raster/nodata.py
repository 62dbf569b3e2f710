"""NoData: the one rule that says which pixels hold data.

1. **Per band.** A band lacks data where its value is its own NoData value (the file's tag, which may differ from band
   to band), one of the values that the user named with `nodata=`, NaN or infinite, or beyond what float32 holds, in
   which networks compute. The latter includes the most negative float32, about -3.4e38, which Esri's software writes
   for NoData and often does not tag.
2. **Per raster.** All bands lack data where the mask of the file (internal, .msk, or of a VRT) is 0, and where its
   opacity (a band flagged as alpha) is 0. All of these hold together: a NoData tag does not switch off a mask, nor a
   mask the tag.
3. **A band that is data is never a mask.** A band flagged as alpha is opacity where it is called so, or has no name and
   holds little else than 0 and full opacity. With the name of a band, or with many values (the near infrared of
   four-byte aerial images), it is a band like any other.
4. **Across bands**: what is missing in one of the bands that are used is missing in all of them. Bands that are not
   used do not count.
5. **Across dates**: a network that compares dates needs every one of them; for all others one date is enough
   (`missing`). Training masks what is missing at any date.

Masks are boolean, True where there is data: (bands, height, width), or (1, height, width) where all bands share one,
or None where everything is valid. In floating images that go to a network, NaN stands for missing pixels.
"""

import math
from collections.abc import Sequence

import numpy as np

from geolearn.errors import RasterError

LIMIT = 3.4e38
"""Float32 ends at 3.4028e38; values from here on are no measurement but what software writes for NoData."""

USUAL_NODATA = frozenset({-99, -999, -9999, -99999, -32767, -32768, 65535})
"""Values that often mean NoData where nothing says so."""


def is_number(values: np.ndarray) -> np.ndarray | None:
    """Return where values are finite as float32 and no NoData of Esri's; None where the type holds no others."""
    if values.dtype.kind not in 'fc':
        return None
    # the comparison is False for NaN; float16 ends before the limit
    kept: np.ndarray = np.isfinite(values) if values.dtype.itemsize == 2 else np.abs(values) < LIMIT
    return kept


def differs(values: np.ndarray, nodata: float | None) -> np.ndarray | None:
    """Return where values are not `nodata`; None where none of them can be."""
    if nodata is None or math.isnan(nodata):
        return None
    if values.dtype.kind in 'iu':
        limits = np.iinfo(values.dtype)
        if not (limits.min <= nodata <= limits.max and nodata == int(nodata)):
            return None
        nodata = int(nodata)
    elif values.dtype.kind == 'f':
        with np.errstate(over='ignore'):
            nodata = values.dtype.type(nodata)  # a tag has the digits of a double, the pixels those of their type
    kept: np.ndarray = values != nodata
    return kept


def can_hold(dtype: str, value: float) -> bool:
    """Whether a value, NaN included, can be stored in a type."""
    kind = np.dtype(dtype)
    if kind.kind not in 'iu':
        return not math.isfinite(value) or kind.kind not in 'fc' or abs(value) <= np.finfo(kind).max
    limits = np.iinfo(kind)
    return math.isfinite(value) and value == int(value) and limits.min <= value <= limits.max


def check_nodata(nodata: Sequence[float | None], dtypes: Sequence[str], shown: str) -> None:
    """Refuse values that the user named as NoData but that no pixel of their band can have; NaN never does harm.

    Args:
        nodata: One value for all bands, or one for each; None among them means nothing.
        dtypes: Stored dtype of each band.
        shown: What the raster is called in messages.

    Raises:
        RasterError: If a band's own value, or a value for all bands, does not fit in the type of the pixels.
    """
    single = len(set(nodata)) == 1
    pairs = list(zip(nodata if len(nodata) > 1 else [*nodata] * len(dtypes), dtypes))
    named = [(value, dtype) for value, dtype in pairs if value is not None and not math.isnan(value)]
    wrong = [(value, dtype) for value, dtype in named if not can_hold(dtype, value)]
    if not wrong or (single and len(wrong) < len(pairs)):
        return
    value, dtype = wrong[0]
    kind = np.dtype(dtype)
    limits = np.iinfo(kind) if kind.kind in 'iu' else np.finfo(kind)
    whole = 'whole numbers from' if kind.kind in 'iu' else 'numbers from'
    raise RasterError(
        f'{shown} holds {dtype} pixels, {whole} {limits.min:.9g} to {limits.max:.9g}, so that none can be nodata='
        f'{value:g}; pass the value that missing pixels have in the file, before any scale, such as nodata=0, or leave '
        'nodata= out'
    )


def valid_by_band(
    pixels: np.ndarray, nodata: Sequence[Sequence[float | None]], shared: Sequence[np.ndarray] = ()
) -> np.ndarray | None:
    """Apply points 1 and 2 of the rule to pixels.

    Args:
        pixels: (bands, height, width) in the stored dtype.
        nodata: For each band the values that mean NoData; None among them means nothing.
        shared: Masks (height, width) or (bands, height, width) of the file, True where valid.

    Returns:
        A mask, or None where everything is valid.
    """
    found = [is_number(pixels), *shared]
    valid: np.ndarray | None = None
    for mask in found:
        if mask is not None:
            mask = mask if mask.ndim == 3 else mask[None]
            valid = mask if valid is None else valid & mask
    for band, values in enumerate(nodata):
        for value in values:
            kept = differs(pixels[band], value)
            if kept is None or kept.all():  # most rasters lack little: a mask of all bands takes longer to make
                continue
            if valid is None:
                valid = np.ones(pixels.shape, bool)
            elif len(valid) != len(pixels):
                valid = np.broadcast_to(valid, pixels.shape).copy()
            valid[band] &= kept
    return compact(valid)


def compact(mask: np.ndarray | None) -> np.ndarray | None:
    """Return a mask in its shortest form: None where all is valid, (1, height, width) where all bands share it."""
    if mask is None or mask.all():
        return None
    return mask[:1] if (mask == mask[:1]).all() else mask


def valid_in_all_bands(mask: np.ndarray | None, bands: Sequence[int] | None = None) -> np.ndarray | None:
    """Apply point 4 of the rule: missing in one band is missing in all.

    Args:
        mask: (bands, height, width), (1, height, width) or None.
        bands: 0-based bands that are used; None for all.

    Returns:
        (height, width), True where every used band holds data, or None where all of them do everywhere.
    """
    if mask is None:
        return None
    used = mask if bands is None or len(mask) == 1 else mask[list(bands)]
    return None if used.all() else np.logical_and.reduce(used, axis=0)


def missing(pixels: np.ndarray, *, every_date: bool) -> np.ndarray:
    """Apply point 5 of the rule: return where (height, width) an image holds too little to map.

    Args:
        pixels: (bands, height, width) or (dates, bands, height, width) floats, NaN where there is no data.
        every_date: Whether each date is needed, as for change; else one of them is enough.
    """
    absent = np.isnan(pixels).any(axis=-3)
    if absent.ndim == 2:
        return absent
    result: np.ndarray = absent.any(axis=0) if every_date else absent.all(axis=0)
    return result


def as_float32(pixels: np.ndarray) -> np.ndarray:
    """Return pixels (..., bands, height, width) as float32 for a network, NaN in all bands where one is NaN."""
    known = is_number(pixels)
    with np.errstate(over='ignore', invalid='ignore'):
        values = pixels.astype(np.float32)
    if known is not None and not known.all():
        np.copyto(values, np.float32(np.nan), where=~known.all(axis=-3, keepdims=True))
    return values

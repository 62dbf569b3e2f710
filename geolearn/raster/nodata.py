"""The rule of NoData: a pixel that lacks data in one band lacks it in all."""

import numpy as np


def valid_in_all_bands(valid: np.ndarray) -> np.ndarray:
    """Return where (height, width) all bands of a mask (bands, height, width) are valid."""
    everywhere: np.ndarray = np.logical_and.reduce(valid, axis=0)
    return everywhere


def missing(pixels: np.ndarray, *, every_date: bool) -> np.ndarray:
    """Return where (height, width) an image lacks the data that a prediction needs.

    Args:
        pixels: (bands, height, width) or (dates, bands, height, width) float, NaN where there is no data.
        every_date: Whether a pixel needs data at every date, as change does; else one date is enough.
    """
    absent = np.isnan(pixels).any(axis=-3)
    if absent.ndim == 2:
        return absent
    result: np.ndarray = absent.any(axis=0) if every_date else absent.all(axis=0)
    return result

"""Bring boxes that people and programs wrote into the form that `Label` promises."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from geolearn.chips.label import Label

NOT_FINITE = 'box with a coordinate that is no finite number'
INSIDE_OUT = 'box of no area or inside out'
OUTSIDE = 'box outside the chip'

Box = tuple[float, float, float, float]


def box_label(
    values: Sequence[int], boxes: Sequence[Box], shape: tuple[int, int], skipped: Sequence[str] = ()
) -> Label:
    """Return the label of a chip with these boxes, clipped to the chip; useless boxes are left out and told.

    Args:
        values: n class values.
        boxes: n times left, top, right, bottom in pixels; anything may be in them.
        shape: Height and width of the chip.
        skipped: What was left out already.
    """
    kept, clean, texts = clean_boxes(boxes, shape)
    return Label(values=np.array(values, np.int64)[kept], boxes=clean, skipped=(*skipped, *texts))


def clean_boxes(boxes: ArrayLike, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Clip boxes to the chip and drop those of which nothing is left.

    Args:
        boxes: (n, 4) left, top, right, bottom.
        shape: Height and width of the chip.

    Returns:
        The positions (m,) of the boxes kept, these as (m, 4) float32, and a text for each one dropped.
    """
    given = np.asarray(boxes, np.float64).reshape(-1, 4)
    height, width = shape
    finite = np.asarray(np.isfinite(given).all(axis=1))
    known = np.where(finite[:, None], given, 0)
    clipped = np.clip(known, 0, (width, height, width, height))
    # a box thinner than float32 can tell has no area either, so it is measured after rounding
    clean = clipped.astype(np.float32)
    proper = _has_area(known)
    inside = proper & _has_area(clipped)
    kept = inside & _has_area(clean)
    texts = [NOT_FINITE] * int((~finite).sum())
    texts += [INSIDE_OUT] * int((finite & ~proper).sum() + (inside & ~kept).sum())
    texts += [OUTSIDE] * int((proper & ~inside).sum())
    return np.flatnonzero(kept), clean[kept], texts


def _has_area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])

"""Draw the outlines of objects, given as polygons or as run lengths, into masks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from geolearn.chips.label import Label, mask_boxes
from geolearn.extras import require
from geolearn.oriented import geometry, overlap

NOT_FINITE = 'box with a coordinate that is no finite number'

INSIDE_OUT = 'box of no area or inside out'

OUTSIDE = 'box outside the chip'

Box = tuple[float, float, float, float]


SLIVER = 'oriented box of no area'

SMALLEST_AREA = 1.0
"""Least area of an oriented object in square pixels."""

TWO_POINTS = 'quadrilateral with fewer than three different corners, or of an area below 1 square pixel'


def oriented_label(
    values: Sequence[int] | np.ndarray,
    turned: ArrayLike,
    shape: tuple[int, int] | None = None,
    skipped: Sequence[str] = (),
    ignored: Sequence[bool] | np.ndarray | None = None,
    *,
    least_area: float = 0.0,
    too_small: str = SLIVER,
) -> Label:
    """Return the label of a chip with these oriented boxes, whole and in the form le90; unusable ones are counted.

    Args:
        values: n class values.
        turned: (n, 5) x, y, width, height, angle in radians, clockwise; anything may be in them.
        shape: Height and width of the chip, outside of which boxes are left out; None asks nothing of their place.
        skipped: What was left out already.
        ignored: (n,) which objects are neither to be detected nor background; None for none.
        least_area: Boxes of this area or a smaller one are left out.
        too_small: How these are called.
    """
    given = np.asarray(turned, np.float64).reshape(-1, 5)
    finite: np.ndarray = np.asarray(np.isfinite(given).all(axis=1))
    known = geometry.canonical(np.where(finite[:, None], given, 0))
    proper = finite & (known[:, 2:4] > 0).all(axis=1) & (known[:, 2] * known[:, 3] > least_area)
    inside = proper.copy()
    boxes = geometry.hulls(known)
    if shape is not None:
        frame = geometry.from_hulls(np.array([[0, 0, shape[1], shape[0]]], np.float64))
        inside &= overlap.may_touch(known, np.broadcast_to(frame, known.shape))
        boxes = np.clip(boxes, 0, (shape[1], shape[0], shape[1], shape[0]))
    texts = [NOT_FINITE] * int((~finite).sum()) + [too_small] * int((finite & ~proper).sum())
    texts += [OUTSIDE] * int((proper & ~inside).sum())
    return Label(
        class_ids=np.array(values, np.int64)[inside],
        boxes=boxes[inside].astype(np.float32),
        skipped=(*skipped, *texts),
        turned=known[inside].astype(np.float32),
        ignored=None if ignored is None else np.array(ignored, bool)[inside],
    )


def box_label(
    values: Sequence[int], boxes: Sequence[Box], shape: tuple[int, int], skipped: Sequence[str] = ()
) -> Label:
    """Return the label of a chip with these boxes, clipped to the chip; unusable boxes are left out and counted.

    Args:
        values: n class values.
        boxes: n times left, top, right, bottom in pixels; anything may be in them.
        shape: Height and width of the chip.
        skipped: What was left out already.
    """
    kept, clean, texts = clean_boxes(boxes, shape)
    return Label(class_ids=np.array(values, np.int64)[kept], boxes=clean, skipped=(*skipped, *texts))


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


MAX_LENGTH = 2**21
"""Longest outline in pixels that is drawn, and the farthest from the chip; time and memory grow with it."""

EMPTY = 'outline that covers no pixel of the chip'

BROKEN = 'outline that is broken'

TOO_FAR = 'outline that runs far beyond the chip'

OTHER_SIZE = 'outline made for an image of another size'


@dataclass(frozen=True, slots=True)
class Polygons:
    """An object made of one or more polygons.

    Args:
        rings: For each polygon its x, y, x, y, ... in pixels as the bytes of float64; compact where there are millions.
    """

    rings: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RunLengths:
    """An object as COCO's run lengths: pixels outside, inside, outside, ... down the columns.

    Args:
        size: Height and width of the image that it was made for.
        counts: The lengths, or COCO's compressed text of them.
    """

    size: tuple[int, int]
    counts: tuple[int, ...] | bytes


Outline = Polygons | RunLengths


def polygons_rectangle(outline: Polygons) -> np.ndarray:
    """Return the rectangle of least area (5,) around polygons; NaN where one is broken."""
    rings = [np.frombuffer(ring, np.float64) for ring in outline.rings]
    if any(ring.size < 4 or ring.size % 2 or not np.isfinite(ring).all() for ring in rings):
        return np.full(5, np.nan)
    return geometry.minimum_rectangle(np.concatenate([ring.reshape(-1, 2) for ring in rings]))


class _UnusableError(ValueError):
    """An outline cannot be drawn; the text says why, in words that suit many."""


def need_drawing() -> None:
    """Raise MissingExtraError unless the library that draws polygons is there."""
    require('pycocotools.mask', extra='detection', to='read outlines of objects')


def outline_label(objects: Iterable[tuple[int, Outline]], shape: tuple[int, int], skipped: Sequence[str] = ()) -> Label:
    """Return the label of a chip with outlined objects; boxes are those of the masks.

    Args:
        objects: Class value and outline of each.
        shape: Height and width of the chip.
        skipped: What was left out already.
    """
    values, masks, turned, texts = list[int](), list[np.ndarray](), list[np.ndarray](), list(skipped)
    for value, outline in objects:
        try:
            masks.append(draw_outline(outline, shape))
            values.append(value)
            # of the corners themselves, whole and to a fraction of a pixel
            whole = polygons_rectangle(outline) if isinstance(outline, Polygons) else np.full(5, np.nan)
            turned.append(whole if whole[2:4].min() > 0 else geometry.mask_rectangle(masks[-1]))
        except _UnusableError as error:
            texts.append(str(error))
    return Label(
        class_ids=np.array(values, np.int64),
        boxes=mask_boxes(masks),
        masks=tuple(masks),
        skipped=tuple(texts),
        turned=np.array(turned, np.float32).reshape(-1, 5),
    )


def draw_outline(outline: Outline, shape: tuple[int, int]) -> np.ndarray:
    """Return the mask (height, width) bool of an outline; at least one pixel is in it.

    Raises:
        ValueError: If nothing can be drawn; the text says why.
    """
    mask = _polygon_mask(outline, shape) if isinstance(outline, Polygons) else _run_mask(outline, shape)
    if not mask.any():
        raise _UnusableError(EMPTY)
    return mask


def _polygon_mask(outline: Polygons, shape: tuple[int, int]) -> np.ndarray:
    rings = [np.frombuffer(ring, np.float64) for ring in outline.rings]
    for ring in rings:
        if ring.size < 6 or ring.size % 2 or not np.isfinite(ring).all():
            raise _UnusableError(BROKEN)
        corners = ring.reshape(-1, 2)
        # pycocotools walks along each edge, whatever its length, in 32-bit integers
        steps = np.abs(np.diff(corners, axis=0, append=corners[:1])).max(axis=1)
        if np.abs(ring).max() > MAX_LENGTH or steps.sum() > MAX_LENGTH:
            raise _UnusableError(TOO_FAR)
    draw = require('pycocotools.mask', extra='detection', to='read outlines of objects')
    drawn = draw.merge(draw.frPyObjects([ring.tolist() for ring in rings], *shape))
    return _run_mask(RunLengths(shape, drawn['counts']), shape)


def _run_mask(outline: RunLengths, shape: tuple[int, int]) -> np.ndarray:
    """Decode run lengths; not by pycocotools, which trusts them and reads and writes past its memory."""
    if outline.size != shape:
        raise _UnusableError(OTHER_SIZE)
    counts = _uncompress(outline.counts) if isinstance(outline.counts, bytes) else outline.counts
    height, width = shape
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise _UnusableError(BROKEN)
    inside = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, counts).reshape(width, height).T)


def _uncompress(text: bytes) -> list[int]:
    """Decode COCO's text: groups of five bits from the lowest, bit 5 for 'more', differences to the last but one."""
    counts, value, shift = list[int](), 0, 0
    for byte in text:
        bits = byte - 48
        if not 0 <= bits < 64 or shift > 60:
            raise _UnusableError(BROKEN)
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise _UnusableError(BROKEN)
    return counts

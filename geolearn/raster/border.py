"""Notice missing pixels that no file declares: blocks of one value at the edge of a raster or of a chip, and -9999."""

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from rasterio.windows import Window

from geolearn.raster.nodata import USUAL_NODATA

log = logging.getLogger('geolearn')

FILL_VALUES = USUAL_NODATA | {0, -1, 255}
"""What borders are filled with, besides the ends of integer types."""

MARKERS = tuple(sorted(value for value in USUAL_NODATA if value < 0))
"""Numbers that mean NoData wherever they lie, where they are far below all measurements."""

SIDES = (16, 64)
"""Least and largest side of a block, of which there are eight along the shorter side of a raster."""

LEAST_BLOCKS = 2

LEAST_VALUES = 16
"""Images have more values than this in some band; masks and class rasters have fewer."""

SAMPLES = 16
"""Windows of which a few pixels are kept, to know what the rest of a raster holds."""

SAMPLE_SIDE = 48

LEAST_GAP = 0.01
"""In a single band, distance of a border's value from all others as a share of their range."""


class BorderCheck:
    """Reports once, while a raster is read, that pixels look like NoData which nothing declares.

    Such are blocks at the edge whose pixels have one value in all bands that are read: one that borders are filled
    with, or a value below or above all others; and single pixels of a value such as -9999, far below all others. Masks
    and class rasters are left alone, as are areas of other values that do not touch the edge. Only the edge and a few
    pixels of what is read anyway are compared, so it costs nothing beside the reading. Threads may share it.

    Args:
        shown: What the raster is called in the message.
        known: Values that the user named as NoData.
    """

    def __init__(self, shown: str, known: Iterable[float | None] = ()) -> None:
        self._shown, self._known = shown, frozenset(value for value in known if value is not None)
        self._lock = threading.Lock()
        self._areas = Counter[tuple[float, ...]]()
        self._rest: list[np.ndarray] = []
        self._least = 0
        self._bands: tuple[int, ...] = ()
        self._reported = False

    def add(
        self, pixels: np.ndarray, valid: np.ndarray | None, window: Window, shape: tuple[int, int], bands: Sequence[int]
    ) -> None:
        """Take in a window that was read; where it shows what was missing to be sure, the border is reported.

        Args:
            pixels: (bands, height, width) in the stored dtype.
            valid: Mask that can be broadcast to it, True where there is data; None where there is everywhere.
            window: Where they lie.
            shape: Height and width of the raster, or of that file of a mosaic, that is read.
            bands: Numbers of the bands, which must be the same each time; others are passed over.
        """
        if self._reported or pixels.dtype.kind not in 'iuf':
            return
        side = block_side(shape)
        found = edge_values(pixels, valid, window, shape, side)
        with self._lock:
            if self._reported:
                return
            if not self._bands:
                self._bands = tuple(bands)
            if tuple(bands) != self._bands:
                return
            self._areas.update(found)
            self._least = max(self._least, LEAST_BLOCKS * side**2)
            sample = _sample(pixels, valid)
            if _varies(sample):
                if len(self._rest) == SAMPLES:
                    self._rest[-1] = sample
                else:
                    self._rest.append(sample)
            value, marker = self._find(), None
            if value is None:
                marker = self._find_marker(sample)
            self._reported = value is not None or marker is not None
        if marker is not None:
            log.warning(
                '%s: pixels hold the value %s, far below all others, which looks like missing pixels that the file '
                'does not declare as NoData; if they are, pass nodata=%s',
                self._shown,
                _text(marker),
                _text(marker),
            )
        if value is None:
            return
        log.warning(
            '%s: large areas at its edge hold the value %s in %s, which looks like missing pixels that the file does '
            'not declare as NoData; if they are, pass nodata=%s',
            self._shown,
            _text(value[0]) if len(set(value)) == 1 else ', '.join(map(_text, value)),
            'all bands' if len(value) > 1 else 'its band',
            nodata_words(value),
        )

    def _find(self) -> tuple[float, ...] | None:
        rest = np.concatenate(self._rest, axis=1) if self._rest and self._areas else None
        for value, area in self._areas.most_common():
            if area >= self._least and rest is not None and looks_like_fill(value, rest):
                return None if self._known.issuperset(value) else value
        return None

    def _find_marker(self, sample: np.ndarray) -> float | None:
        if not self._rest or not np.isin(MARKERS, sample).any():
            return None
        value = find_marker(np.concatenate([*self._rest, sample], axis=1))
        return None if value in self._known else value


def block_side(shape: tuple[int, int]) -> int:
    """Return the side of the blocks that a border of a raster must fill."""
    return min(max(min(shape) // 8, SIDES[0]), SIDES[1], *shape)


def edge_values(
    pixels: np.ndarray, valid: np.ndarray | None, window: Window, shape: tuple[int, int], side: int
) -> Counter[tuple[float, ...]]:
    """Count the pixels in blocks of one value that lie at the edge of a raster.

    Args:
        pixels: (bands, height, width).
        valid: Mask that can be broadcast to it, or None.
        window: Where they lie in the raster.
        shape: Height and width of the raster.
        side: Of a block.

    Returns:
        Pixels by value: one number for each band.
    """
    found = Counter[tuple[float, ...]]()
    for rows, cols in _edge_blocks(window, shape, side):
        block = pixels[:, rows, cols]
        first = block[:, 0, 0]
        # two corners tell most blocks of an image apart from a border
        if not (first == block[:, -1, -1]).all() or not (block == first[:, None, None]).all():
            continue
        mask = None if valid is None else valid[..., rows, cols]
        if mask is None or mask.all():
            found[tuple(float(number) for number in first)] += block[0].size
    return found


def _edge_blocks(window: Window, shape: tuple[int, int], side: int) -> Iterator[tuple[slice, slice]]:
    """Yield the blocks of a window, in its own pixels, that touch the edge of the raster, each once."""
    top, left = int(window.row_off), int(window.col_off)
    height, width = int(window.height), int(window.width)
    if height < side or width < side:
        return
    inner = [0, height]
    if top == 0:
        inner[0] = side
        yield from ((slice(0, side), cols) for cols in _steps(0, width, side))
    if top + height == shape[0] and height - side >= inner[0]:
        inner[1] = height - side
        yield from ((slice(height - side, height), cols) for cols in _steps(0, width, side))
    columns = [slice(0, side)] if left == 0 else []
    if left + width == shape[1] and (width >= 2 * side or not columns):
        columns.append(slice(width - side, width))
    yield from ((rows, cols) for rows in _steps(inner[0], inner[1], side) for cols in columns)


def _steps(start: int, stop: int, side: int) -> Iterator[slice]:
    return (slice(at, at + side) for at in range(start, stop - side + 1, side))


def looks_like_fill(value: tuple[float, ...], rest: np.ndarray) -> bool:
    """Whether a value at the edge is what borders are filled with, given other pixels (bands, n)."""
    others = rest[:, ~(rest == np.array(value)[:, None]).all(axis=0)]
    if others.shape[1] < LEAST_VALUES or max(len(np.unique(band)) for band in others) < LEAST_VALUES:
        return False
    usual = all(number in FILL_VALUES or _ends_type(number, rest.dtype) for number in value)
    if len(value) == 1:
        low, high = np.percentile(others, [1, 99])
        gap = max(float(others.min()) - value[0], value[0] - float(others.max()))
        return usual and bool(gap > 0 and gap >= LEAST_GAP * (high - low))
    if len(set(value)) > 1:
        return usual
    return usual or bool((others > value[0]).all() or (others < value[0]).all())


def find_marker(pixels: np.ndarray) -> float | None:
    """Return a number such as -9999 among pixels (bands, n) that no measurement is near to; None where there is none.

    It lies below all others by at least the range that most of them have.
    """
    if pixels.dtype.kind == 'u':
        return None
    if pixels.dtype == np.float16:  # which none of them fits into
        pixels = pixels.astype(np.float32)
    others = pixels[~np.isin(pixels, MARKERS)]
    if len(np.unique(others)) < LEAST_VALUES:
        return None
    low, high = np.percentile(others, [1, 99])
    return next(
        (float(value) for value in MARKERS if low - value >= high - low and value < others.min() and value in pixels),
        None,
    )


def _ends_type(number: float, dtype: np.dtype) -> bool:
    if dtype.kind not in 'iu':
        return False
    limits = np.iinfo(dtype)
    return number in (limits.min, limits.max)


def _sample(pixels: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Return some valid pixels of a window (bands, n)."""
    rows, cols = (max(1, length // SAMPLE_SIDE) for length in pixels.shape[1:])
    some = pixels[:, ::rows, ::cols]
    if valid is None:
        return some.reshape(len(some), -1).copy()
    kept = np.logical_and.reduce(np.broadcast_to(valid, pixels.shape)[:, ::rows, ::cols], axis=0)
    return some[:, kept]


def _varies(sample: np.ndarray) -> bool:
    return bool(sample.shape[1]) and not bool((sample == sample[:, :1]).all())


def nodata_words(value: Sequence[float]) -> str:
    """Return NoData values as one writes them after ``nodata=``: a number, or a list of one for each band."""
    return _text(value[0]) if len(set(value)) == 1 else f'[{", ".join(map(_text, value))}]'


def _text(number: float) -> str:
    return str(int(number)) if number == int(number) else repr(number)

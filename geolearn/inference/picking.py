"""Make objects of what a detector's graph gives at every place, as its network does, in NumPy alone."""

from collections.abc import Sequence

import numpy as np

from geolearn import errors
from geolearn.bundle import PADDED_MULTIPLE, SMALLEST_SIDE, DetectionFacts
from geolearn.inference import overlapping
from geolearn.inference.flipped import suppress_by_shape
from geolearn.inference.placing import ArrayDetections
from geolearn.oriented import geometry
from geolearn.oriented.suppression import suppress_oriented
from geolearn.tiling import Span, spread_windows


def pick_objects(
    outputs: np.ndarray,
    facts: DetectionFacts,
    filled: tuple[int, int],
    size: tuple[int, int],
    *,
    threshold: float = 0.0,
    nms_overlap: float = 1.0,
) -> list[ArrayDetections]:
    """Return the objects of images, each by descending score.

    Args:
        outputs: Of the graph, (N, places, 4 + classes) float32, or 5 + classes of oriented boxes.
        facts: Of the graph.
        filled: Height and width of the images that it was given.
        size: Those of the images themselves, which `filled` has at the upper left.
        threshold: Lowest score of an object.
        nms_overlap: Intersection over union of two objects of one class above which the lower-scoring is dropped, on
            top of what the network does.

    Raises:
        BundleError: If the graph gives another number of places than its manifest says.
    """
    padded = tuple(-(-max(1, round(side * facts.zoom)) // PADDED_MULTIPLE) * PADDED_MULTIPLE for side in filled)
    counts = count_places(facts, padded)
    if outputs.ndim != 3 or outputs.shape[1] != sum(counts) or outputs.shape[2] <= facts.numbers:
        raise errors.BundleError(
            f'the graph gives {outputs.shape} for images of {filled} pixels, and its manifest says that there are '
            f'{sum(counts)} places; save the model again'
        )
    return [_pick(output, facts, counts, padded, size, threshold, nms_overlap) for output in outputs]


def count_places(facts: DetectionFacts, shape: Sequence[int]) -> list[int]:
    """Return the number of boxes of each level, or window, in images of a height and width, filled up and zoomed."""
    if facts.window:
        rows, cols = _spread(facts, shape)
        return [facts.boxes_per_place] * (len(rows) * len(cols))
    return [facts.boxes_per_place * int(np.prod([-(-side // stride) for side in shape])) for stride in facts.strides]


def _pick(
    output: np.ndarray,
    facts: DetectionFacts,
    counts: Sequence[int],
    padded: Sequence[int],
    size: tuple[int, int],
    threshold: float,
    nms_overlap: float,
) -> ArrayDetections:
    numbers, scores = output[:, : facts.numbers], output[:, facts.numbers :]
    usable = (scores > facts.score_thresh) & (scores >= threshold) & np.isfinite(numbers).all(1)[:, None]
    places, labels = _choose(np.where(usable, scores, -1), facts, counts)
    best, boxes = scores[places, labels], numbers[places]
    if facts.window:
        kept = _in_cores(boxes, places // facts.boxes_per_place, facts, padded)
        found = ArrayDetections(boxes[kept], labels[kept], best[kept])
        found = found.select(np.argsort(-found.scores, kind='stable'))
    elif facts.oriented:
        turned = geometry.canonical(boxes)
        rows = suppress_oriented(
            turned.astype(np.float64), labels, best.astype(np.float64), threshold=facts.nms_thresh, most=facts.most
        )
        found = ArrayDetections(geometry.hulls(turned[rows]), labels[rows], best[rows], turned=turned[rows])
    else:
        boxes = _clip(boxes, padded)
        rows, _ = overlapping.nms(boxes.astype(np.float64), labels, best, overlap=facts.nms_thresh)
        rows = rows[: facts.most]
        found = ArrayDetections(boxes[rows], labels[rows], best[rows])
    found = _place_in_image(found, size, facts.zoom)
    return found if nms_overlap >= 1 else found.select(suppress_by_shape(found, nms_overlap)[0])


def _spread(facts: DetectionFacts, shape: Sequence[int]) -> tuple[list[Span], list[Span]]:
    """Return the rows and columns of windows, in cells of the coarsest stride; images fill one at least."""
    cells = facts.window // facts.strides[-1]
    rows, cols = (spread_windows(max(-(-side // facts.strides[-1]), cells), cells) for side in shape)
    return rows, cols


def _in_cores(boxes: np.ndarray, windows: np.ndarray, facts: DetectionFacts, shape: Sequence[int]) -> np.ndarray:
    """Return whether the middles of boxes (n, 4) lie in the cores of the windows (n,) that gave them."""
    rows, cols = _spread(facts, shape)
    columns = np.array([[*col[1:], *row[1:]] for row in rows for col in cols])[windows]
    x, y = (boxes[:, :2] + boxes[:, 2:]).T / (2 * facts.strides[-1])
    inside: np.ndarray = (x >= columns[:, 0]) & (x < columns[:, 1]) & (y >= columns[:, 2]) & (y < columns[:, 3])
    return inside


def _choose(scores: np.ndarray, facts: DetectionFacts, counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return places (n,) and classes (n,) of the highest scores (places, classes); those below 0 are none."""
    classes = scores.shape[1]
    if facts.candidates == 'class':
        parts = [_highest(column, facts.most_candidates) * classes + i for i, column in enumerate(scores.T)]
    else:
        ends = np.cumsum(counts)
        parts = [
            _highest(scores[end - count : end].ravel(), facts.most_candidates) + (end - count) * classes
            for end, count in zip(ends, counts)
        ]
    chosen = np.concatenate(parts)
    if facts.candidates == 'level and image':
        chosen = chosen[_highest(scores.ravel()[chosen], facts.most_candidates)]
    return chosen // classes, chosen % classes


def _highest(values: np.ndarray, most: int) -> np.ndarray:
    """Return the numbers of the highest values (n,) of 0 or more, highest first."""
    known = np.flatnonzero(values >= 0)
    if len(known) > most:
        known = known[np.argpartition(-values[known], most - 1)[:most]]
    found: np.ndarray = known[np.argsort(-values[known], kind='stable')]
    return found


def _clip(boxes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    limits = np.array([shape[1], shape[0], shape[1], shape[0]], boxes.dtype)
    return np.clip(boxes, np.zeros(4, boxes.dtype), limits)


def _place_in_image(found: ArrayDetections, size: tuple[int, int], zoom: float) -> ArrayDetections:
    """Bring objects from the filled and zoomed image to the given one."""
    boxes = found.boxes / np.float32(zoom)
    turned = None if found.turned is None else geometry.scaled(found.turned, 1 / zoom)
    inside = _clip(boxes, size)
    real = ((inside[:, 2:] - inside[:, :2]) >= SMALLEST_SIDE).all(1)
    # what has its middle in the padding is the edge between it and the image
    real &= ((boxes[:, :2] + boxes[:, 2:]) / 2 <= np.array([size[1], size[0]], np.float32)).all(1)
    return ArrayDetections(inside, found.labels, found.scores, turned=turned).select(real)

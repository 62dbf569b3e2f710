"""How much oriented boxes overlap: exact intersection over union, and ProbIoU for losses."""

from typing import TYPE_CHECKING, Any

import numpy as np

from geolearn.oriented import geometry
from geolearn.oriented.geometry import A

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-10
"""A point counts as inside of an edge up to this share of the edge's length times the distances in play."""

PAIRS_AT_ONCE = 200_000
"""Pairs that are clipped in one go; some 200 MB."""


def intersection_areas(first: A, second: A) -> A:
    """Return the area (n,) that convex quadrilaterals (n, 4, 2) share, float64, with gradients to their corners.

    The first are clipped by the four half-planes of the second (Sutherland and Hodgman 1974), all pairs at once. The
    corners of both run the same way round as those of `geometry.corners`.
    """
    return polygon_areas(intersect_polygons(first, second))


def intersect_polygons(polygons: A, quadrilaterals: A) -> A:
    """Return what convex polygons (n, k, 2) share with convex quadrilaterals (n, 4, 2): (n, k + 8, 2).

    Points come as often as is needed; they are all one point where nothing is shared.
    """
    for corner in range(4):
        start, edge = quadrilaterals[:, corner], quadrilaterals[:, (corner + 1) % 4] - quadrilaterals[:, corner]
        polygons = _clipped(polygons, start, edge)
    return polygons


def polygon_areas(polygons: A) -> A:
    """Return the areas (n,) of polygons (n, k, 2) whose corners run as those of `geometry.corners` do."""
    xp = geometry.module_of(polygons)
    x, y = polygons[..., 0], polygons[..., 1]
    twice = (x * xp.roll(y, -1, 1) - xp.roll(x, -1, 1) * y).sum(1)
    areas: A = (twice / 2).clip(min=0)
    return areas


def _clipped(polygon: Any, start: Any, edge: Any) -> Any:
    """Return what polygons (n, k, 2) have in half-planes: (n, k + 2, 2), the last point as often as is needed."""
    xp = geometry.module_of(polygon)
    offset = polygon - start[:, None]
    depth = edge[:, None, 0] * offset[..., 1] - edge[:, None, 1] * offset[..., 0]
    size = xp.amax(abs(edge), 1) * xp.amax(abs(offset), (1, 2))
    inside = depth >= -TOLERANCE * size[:, None]
    following, depth_after = xp.roll(polygon, -1, 1), xp.roll(depth, -1, 1)
    crosses = inside != xp.roll(inside, -1, 1)
    fall = xp.where(crosses, depth - depth_after, xp.ones_like(depth))
    share = (depth / xp.where(fall == 0, xp.ones_like(fall), fall)).clip(0, 1)
    crossing = polygon + share[..., None] * (following - polygon)
    length, count = polygon.shape[:2]
    points = xp.stack((polygon, crossing), 2).reshape(length, 2 * count, 2)
    used = xp.stack((inside, crosses), 2).reshape(length, 2 * count)
    # where each used point goes; the others go behind the last place. A sort does the same and takes four times as long
    filled = used.cumsum(1)
    goes = xp.where(used, filled - 1, count + 2).clip(max=count + 2)
    last = (filled[:, -1:] - 1).clip(0, count + 1)
    return _take(points, _places(goes, last, count))


def _places(goes: Any, last: Any, count: int) -> Any:
    """Return the number of the point (n, count + 2) at each place, after the last used one that one again."""
    if isinstance(goes, np.ndarray):
        numbers = np.zeros((len(goes), count + 3), np.int64)
        np.put_along_axis(numbers, goes, np.arange(2 * count)[None], 1)
        return np.take_along_axis(numbers, np.minimum(np.arange(count + 2), last), 1)
    import torch

    order: Any = torch.zeros((len(goes), count + 3), dtype=torch.int64, device=goes.device)
    order.scatter_(1, goes, torch.arange(2 * count, device=goes.device).expand(len(goes), -1))
    places = torch.arange(count + 2, device=goes.device).expand(len(goes), -1)
    return order.gather(1, torch.minimum(places, last))


def _take(points: Any, order: Any) -> Any:
    """Return the points (n, m, 2) of these numbers (n, m)."""
    if isinstance(points, np.ndarray):
        return np.take_along_axis(points, order[..., None], 1)
    return points.gather(1, order[..., None].expand(-1, -1, 2))


def pair_overlaps(first: A, second: A) -> A:
    """Return the exact intersection over union (n,) of oriented boxes (n, 5) with boxes (n, 5), float64, 0..1.

    Each pair is moved to the middle of its first box, as map coordinates would leave too few digits. Gradients flow to
    both, unless the two do not touch.
    """
    xp = geometry.module_of(first)
    one, other = _double(first), _double(second)
    middle = one[:, :2] if isinstance(one, np.ndarray) else one[:, :2].detach()
    one = xp.concatenate((one[:, :2] - middle, one[:, 2:]), 1)
    other = xp.concatenate((other[:, :2] - middle, other[:, 2:]), 1)
    shared = intersection_areas(geometry.corners(one), geometry.corners(other))
    areas = one[:, 2] * one[:, 3], other[:, 2] * other[:, 3]
    # rounding may make it larger than the smaller of the two
    shared = xp.minimum(shared, xp.minimum(*areas))
    union = areas[0] + areas[1] - shared
    overlaps: A = xp.where(union > 0, shared / union.clip(min=1e-300), xp.zeros_like(union))
    return overlaps


def _double(values: Any) -> Any:
    return values.astype(np.float64) if isinstance(values, np.ndarray) else values.double()


def array_overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return `pair_overlaps` of NumPy arrays; pairs that cannot touch are not clipped."""
    found = np.zeros(len(first))
    near = np.flatnonzero(may_touch(first, second))
    for start in range(0, len(near), PAIRS_AT_ONCE):
        part = near[start : start + PAIRS_AT_ONCE]
        found[part] = pair_overlaps(np.asarray(first)[part], np.asarray(second)[part])
    return found


def overlap_matrix(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the exact intersection over union (n, m) of each of boxes (n, 5) with each of boxes (m, 5), float64."""
    rows, cols = (grid.ravel() for grid in np.indices((len(first), len(second))))
    found: np.ndarray = array_overlaps(np.asarray(first)[rows], np.asarray(second)[cols])
    return found.reshape(len(first), len(second))


def may_touch(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return whether pairs of oriented boxes (n, 5) may share ground (n,) bool: no side of either separates them."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    offset = second[:, :2] - first[:, :2]
    reach = (np.hypot(first[:, 2], first[:, 3]) + np.hypot(second[:, 2], second[:, 3])) / 2
    touching: np.ndarray = (offset**2).sum(1) < reach**2
    turn = second[:, 4] - first[:, 4]
    cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    slack = 1e-9 * (reach + 1e-300)
    for own, other in ((first, second), (second, first)):
        along, down = np.cos(own[:, 4]), np.sin(own[:, 4])
        u = np.abs(offset[:, 0] * along + offset[:, 1] * down)
        v = np.abs(offset[:, 1] * along - offset[:, 0] * down)
        touching &= 2 * u < own[:, 2] + other[:, 2] * cos + other[:, 3] * sin + slack
        touching &= 2 * v < own[:, 3] + other[:, 2] * sin + other[:, 3] * cos + slack
    return touching


def visible_shares(boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return which share (n,) of the area of oriented boxes (n, 5) lies in an image of a height and width, 0..1."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 5)
    height, width = shape
    around = geometry.hulls(boxes)
    shares = (around[:, :2] >= 0).all(1) & (around[:, 2:] <= np.array([width, height])).all(1)
    found: np.ndarray = np.array(shares, np.float64)
    cut = np.flatnonzero(~shares)
    if len(cut):
        frame = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
        shared = intersection_areas(geometry.corners(boxes[cut]), np.broadcast_to(frame, (len(cut), 4, 2)))
        found[cut] = shared / np.maximum(boxes[cut, 2] * boxes[cut, 3], 1e-300)
    return np.clip(found, 0, 1)


SOFTENING = 0.01
"""Is added to the variances of boxes as Gaussians, in square pixels, so that those without a side have some."""


def prob_iou(first: 'Tensor', second: 'Tensor') -> 'Tensor':
    """Return ProbIoU (...,) of oriented boxes (..., 5): the likeness of two Gaussians (Llerena et al. 2021).

    It is smooth and has gradients everywhere, but is no intersection over union (an exact 0.5 is 0.65 on average) and
    cannot tell how a square is turned (arXiv:2106.06072).

    Args:
        first: Float32, of any form of the angle.
        second: The same.
    """
    (a1, b1, c1), (a2, b2, c2) = _covariance(first), _covariance(second)
    a, b, c = a1 + a2, b1 + b2, c1 + c2
    dx, dy = first[..., 0] - second[..., 0], first[..., 1] - second[..., 1]
    joint = (a * b - c * c).clamp(min=1e-12)
    own = ((a1 * b1 - c1 * c1).clamp(min=1e-12) * (a2 * b2 - c2 * c2).clamp(min=1e-12)).sqrt()
    distance = (a * dy * dy + b * dx * dx - 2 * c * dx * dy) / (4 * joint) + 0.5 * (joint / (4 * own)).log()
    # rounding gives equal boxes a distance below 0; the term under the root bounds the slope there
    return 1 - (1 - (-distance.clamp(min=0)).exp() + 1e-6).sqrt()


def _covariance(boxes: 'Tensor') -> 'tuple[Tensor, Tensor, Tensor]':
    """Return variance along x and y, and covariance, of boxes as Gaussians."""
    along, across = boxes[..., 2] ** 2 / 12 + SOFTENING, boxes[..., 3] ** 2 / 12 + SOFTENING
    cos, sin = boxes[..., 4].cos(), boxes[..., 4].sin()
    return along * cos**2 + across * sin**2, along * sin**2 + across * cos**2, (along - across) * cos * sin


def square_angle_loss(predicted: 'Tensor', true: 'Tensor') -> 'Tensor':
    """Return what ProbIoU lacks (n,): the misalignment of near-squares, 0..1, with a period of a quarter turn.

    Args:
        predicted: (n, 5).
        true: (n, 5); the longer ones of these count less.
    """
    elongation = (true[..., 2].clamp(min=1e-6) / true[..., 3].clamp(min=1e-6)).log() / 0.5
    misaligned: Tensor = (2 * (predicted[..., 4] - true[..., 4])).sin() ** 2
    return (-(elongation**2)).exp() * misaligned

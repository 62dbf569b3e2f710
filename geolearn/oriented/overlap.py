"""How much oriented boxes overlap: exact intersection over union, and ProbIoU for losses."""

import numpy as np
import torch
from torch import Tensor

from geolearn.oriented import geometry

TOLERANCE = 1e-10
"""A point counts as inside of an edge up to this share of the edge's length times the distances in play."""

PAIRS_AT_ONCE = 200_000
"""Pairs that are clipped in one go; some 200 MB."""


def intersection_areas(first: Tensor, second: Tensor) -> Tensor:
    """Return the area (n,) that convex quadrilaterals (n, 4, 2) share, float64, with gradients to their corners.

    The first are clipped by the four half-planes of the second (Sutherland and Hodgman 1974), all pairs at once. The
    corners of both run the same way round as those of `geometry.corners`.
    """
    return polygon_areas(intersect_polygons(first, second))


def intersect_polygons(polygons: Tensor, quadrilaterals: Tensor) -> Tensor:
    """Return what convex polygons (n, k, 2) share with convex quadrilaterals (n, 4, 2): (n, k + 8, 2).

    Points come as often as is needed; they are all one point where nothing is shared.
    """
    for corner in range(4):
        start, edge = quadrilaterals[:, corner], quadrilaterals[:, (corner + 1) % 4] - quadrilaterals[:, corner]
        polygons = _clipped(polygons, start, edge)
    return polygons


def polygon_areas(polygons: Tensor) -> Tensor:
    """Return the areas (n,) of polygons (n, k, 2) whose corners run as those of `geometry.corners` do."""
    x, y = polygons.unbind(-1)
    twice = (x * y.roll(-1, 1) - x.roll(-1, 1) * y).sum(1)
    return (twice / 2).clamp(min=0)


def _clipped(polygon: Tensor, start: Tensor, edge: Tensor) -> Tensor:
    """Return what polygons (n, k, 2) have in half-planes: (n, k + 2, 2), the last point as often as is needed."""
    offset = polygon - start[:, None]
    depth = edge[:, None, 0] * offset[..., 1] - edge[:, None, 1] * offset[..., 0]
    with torch.no_grad():
        size = edge.abs().amax(1) * offset.abs().amax((1, 2))
    inside = depth >= -TOLERANCE * size[:, None]
    following, depth_after = polygon.roll(-1, 1), depth.roll(-1, 1)
    crosses = inside != inside.roll(-1, 1)
    fall = torch.where(crosses, depth - depth_after, torch.ones_like(depth))
    share = (depth / torch.where(fall == 0, torch.ones_like(fall), fall)).clamp(0, 1)
    crossing = polygon + share[..., None] * (following - polygon)
    count = polygon.shape[1]
    points = torch.stack((polygon, crossing), 2).flatten(1, 2)
    used = torch.stack((inside, crosses), 2).flatten(1, 2)
    # where each used point goes; the others go behind the last place. A sort does the same and takes four times as long
    filled = used.cumsum(1)
    goes = torch.where(used, filled - 1, count + 2).clamp(max=count + 2)
    order = torch.zeros((len(polygon), count + 3), dtype=torch.int64, device=polygon.device)
    order.scatter_(1, goes, torch.arange(2 * count, device=polygon.device).expand(len(polygon), -1))
    last = (filled[:, -1:] - 1).clamp(0, count + 1)
    places = torch.arange(count + 2, device=polygon.device).expand(len(polygon), -1)
    order = order.gather(1, torch.minimum(places, last))
    return points.gather(1, order[..., None].expand(-1, -1, 2))


def pair_overlaps(first: Tensor, second: Tensor) -> Tensor:
    """Return the exact intersection over union (n,) of oriented boxes (n, 5) with boxes (n, 5), float64, 0..1.

    Each pair is moved to the middle of its first box, as map coordinates would leave too few digits. Gradients flow to
    both, unless the two do not touch.
    """
    one, other = first.double(), second.double()
    middle = one[:, :2].detach()
    one = torch.cat((one[:, :2] - middle, one[:, 2:]), 1)
    other = torch.cat((other[:, :2] - middle, other[:, 2:]), 1)
    shared = intersection_areas(geometry.corners(one), geometry.corners(other))
    areas = one[:, 2] * one[:, 3], other[:, 2] * other[:, 3]
    # rounding may make it larger than the smaller of the two
    shared = torch.minimum(shared, torch.minimum(*areas))
    union = areas[0] + areas[1] - shared
    return torch.where(union > 0, shared / union.clamp(min=1e-300), torch.zeros_like(union))


def array_overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return `pair_overlaps` of NumPy arrays; pairs that cannot touch are not clipped."""
    found = np.zeros(len(first))
    near = np.flatnonzero(may_touch(first, second))
    for start in range(0, len(near), PAIRS_AT_ONCE):
        part = near[start : start + PAIRS_AT_ONCE]
        one, other = (torch.from_numpy(np.ascontiguousarray(boxes[part], np.float64)) for boxes in (first, second))
        found[part] = pair_overlaps(one, other).numpy()
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
        ones = torch.from_numpy(geometry.corners(boxes[cut]))
        frame = torch.tensor([[0, 0], [width, 0], [width, height], [0, height]], dtype=torch.float64)
        areas = boxes[cut, 2] * boxes[cut, 3]
        found[cut] = intersection_areas(ones, frame.expand(len(cut), 4, 2)).numpy() / np.maximum(areas, 1e-300)
    return np.clip(found, 0, 1)


SOFTENING = 0.01
"""Is added to the variances of boxes as Gaussians, in square pixels, so that those without a side have some."""


def prob_iou(first: Tensor, second: Tensor) -> Tensor:
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


def _covariance(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return variance along x and y, and covariance, of boxes as Gaussians."""
    along, across = boxes[..., 2] ** 2 / 12 + SOFTENING, boxes[..., 3] ** 2 / 12 + SOFTENING
    cos, sin = boxes[..., 4].cos(), boxes[..., 4].sin()
    return along * cos**2 + across * sin**2, along * sin**2 + across * cos**2, (along - across) * cos * sin


def square_angle_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Return what ProbIoU lacks (n,): the misalignment of near-squares, 0..1, with a period of a quarter turn.

    Args:
        predicted: (n, 5).
        true: (n, 5); the longer ones of these count less.
    """
    elongation = (true[..., 2].clamp(min=1e-6) / true[..., 3].clamp(min=1e-6)).log() / 0.5
    misaligned: Tensor = (2 * (predicted[..., 4] - true[..., 4])).sin() ** 2
    return torch.exp(-(elongation**2)) * misaligned

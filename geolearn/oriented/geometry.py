"""Oriented boxes (x, y, width, height, angle): corners, hulls, minimum rectangles, and the one convention for angles.

Image coordinates: x to the right, y downwards, pixel edges at whole numbers. The angle is in radians, clockwise as
seen: it turns the x axis towards the y axis. Boxes are stored, printed and compared in the form le90: width >= height
and -pi/2 <= angle < pi/2, so that the width is the length of the object and the angle the direction of its long side.
All functions take NumPy arrays and tensors alike and return what they were given.
"""

import math
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor  # loaded with the first tensor: graphs run without torch

A = TypeVar('A', np.ndarray, 'Tensor')

HALF_TURN, QUARTER_TURN = math.pi, math.pi / 2

NEAR_SQUARE = 1.2
"""Length over width below which a box says no more than which way its sides lie, by quarter turns."""

_SIGNS = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))


def canonical(boxes: A) -> A:
    """Return boxes (n, 5) in the form le90; the same rectangles."""
    xp = module_of(boxes)
    x, y, width, height, angle = _columns(boxes)
    upright = width < height
    turned = xp.where(upright, angle + QUARTER_TURN, angle)
    turned = (turned + QUARTER_TURN) % HALF_TURN - QUARTER_TURN
    # rounding may give the upper end, which is the lower one
    turned = xp.where(turned >= QUARTER_TURN, turned - HALF_TURN, turned)
    longer, shorter = xp.where(upright, height, width), xp.where(upright, width, height)
    made: A = xp.stack((x, y, longer, shorter, turned), -1)
    return made


def corners(boxes: A) -> A:
    """Return the corners (n, 4, 2) of boxes (n, 5): of a level box from the upper left one clockwise."""
    xp = module_of(boxes)
    x, y, width, height, angle = _columns(boxes)
    along, down = xp.stack((xp.cos(angle), xp.sin(angle)), -1), xp.stack((-xp.sin(angle), xp.cos(angle)), -1)
    center = xp.stack((x, y), -1)
    across, upward = along * width[..., None], down * height[..., None]
    made: A = xp.stack([center + first * across + second * upward for first, second in _SIGNS], -2)
    return made


def hulls(boxes: A) -> A:
    """Return the level boxes (n, 4) left, top, right, bottom around boxes (n, 5)."""
    xp = module_of(boxes)
    x, y, width, height, angle = _columns(boxes)
    cos, sin = abs(xp.cos(angle)) / 2, abs(xp.sin(angle)) / 2
    half_width, half_height = width * cos + height * sin, width * sin + height * cos
    made: A = xp.stack((x - half_width, y - half_height, x + half_width, y + half_height), -1)
    return made


def from_hulls(boxes: A) -> A:
    """Return level boxes (n, 4) left, top, right, bottom as oriented ones (n, 5) in the form le90."""
    xp = module_of(boxes)
    left, top, right, bottom = _columns(boxes)
    made: A = xp.stack(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top, 0 * left), -1)
    return canonical(made)


def moved(boxes: A, x: float, y: float) -> A:
    """Return boxes (n, 5) moved by so many pixels to the right and down."""
    xp = module_of(boxes)
    made: A = xp.stack((boxes[..., 0] + x, boxes[..., 1] + y, boxes[..., 2], boxes[..., 3], boxes[..., 4]), -1)
    return made


def scaled(boxes: A, factor: float) -> A:
    """Return boxes (n, 5) in an image whose sides are `factor` times as long."""
    xp = module_of(boxes)
    made: A = xp.stack((*(boxes[..., i] * factor for i in range(4)), boxes[..., 4]), -1)
    return made


def mirrored(boxes: A, *, width: float | None = None, height: float | None = None) -> A:
    """Return boxes (n, 5) in an image of this width that is flipped left to right, or of this height upside down."""
    xp = module_of(boxes)
    x, y, across, down, angle = _columns(boxes)
    if width is not None:
        x, angle = width - x, -angle
    if height is not None:
        y, angle = height - y, -angle
    made: A = xp.stack((x, y, across, down, angle), -1)
    return canonical(made)


def transposed(boxes: A) -> A:
    """Return boxes (n, 5) in an image whose rows and columns change places."""
    xp = module_of(boxes)
    x, y, width, height, angle = _columns(boxes)
    made: A = xp.stack((y, x, width, height, QUARTER_TURN - angle), -1)
    return canonical(made)


def rotated(boxes: A, angle: float, center: tuple[float, float]) -> A:
    """Return boxes (n, 5) in an image that is turned by an angle in radians, clockwise, about a center x, y."""
    xp = module_of(boxes)
    x, y, width, height, own = _columns(boxes)
    dx, dy = x - center[0], y - center[1]
    cos, sin = math.cos(angle), math.sin(angle)
    made: A = xp.stack(
        (center[0] + dx * cos - dy * sin, center[1] + dx * sin + dy * cos, width, height, own + angle), -1
    )
    return canonical(made)


def angle_errors(first: A, second: A) -> A:
    """Return how far the directions of boxes (n, 5) are apart, in radians (n,): 0..pi/2, or 0..pi/4 of near-squares.

    Args:
        first: Predicted boxes.
        second: True boxes; one whose length is less than 1.2 times its width is a near-square.
    """
    xp = module_of(first)
    first, second = canonical(first), canonical(second)
    difference = abs(first[..., 4] - second[..., 4])
    difference = xp.where(difference > QUARTER_TURN, HALF_TURN - difference, difference)
    square = second[..., 2] < NEAR_SQUARE * second[..., 3]
    made: A = xp.where(square & (difference > QUARTER_TURN / 2), QUARTER_TURN - difference, difference)
    return made


def rectangles_of_quadrilaterals(quadrilaterals: np.ndarray) -> np.ndarray:
    """Return the rectangle of least area (n, 5), in the form le90, around each four points (n, 4, 2) in any order.

    One side of it lies along a side of the points' convex hull; the directions of all six pairs of points are tried,
    among which are those of the hull. Four equal points give a box without sides.
    """
    points = np.asarray(quadrilaterals, np.float64).reshape(-1, 4, 2)
    edges = np.stack([points[:, j] - points[:, i] for i, j in combinations(range(4), 2)], 1)
    return _smallest(points, edges)


def minimum_rectangle(points: np.ndarray) -> np.ndarray:
    """Return the rectangle of least area (5,), in the form le90, around points (n, 2), at least one."""
    hull = convex_hull(points)
    return _smallest(hull[None], (np.roll(hull, -1, axis=0) - hull)[None])[0]


def convex_hull(points: np.ndarray) -> np.ndarray:
    """Return the corners (m, 2) float64 of the convex hull of points (n, 2), in order around it."""
    ordered = np.unique(np.asarray(points, np.float64).reshape(-1, 2), axis=0).tolist()
    if len(ordered) < 3:
        return np.array(ordered, np.float64).reshape(-1, 2)
    chains = []
    for row in (ordered, ordered[::-1]):
        chain: list[list[float]] = []
        for x, y in row:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2], chain[-1]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                chain.pop()
            chain.append([x, y])
        chains.append(chain[:-1])
    return np.array(chains[0] + chains[1])


def mask_rectangle(mask: np.ndarray) -> np.ndarray:
    """Return the rectangle of least area (5,) around the pixels of a mask (height, width) bool, which has some.

    It holds the pixels whole: their corners count, not their centers, which would make it a pixel too small.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    part = mask[rows]
    first, last = part.argmax(axis=1), mask.shape[1] - part[:, ::-1].argmax(axis=1)
    points = [np.stack([x, y], 1) for x in (first, last) for y in (rows, rows + 1)]
    return minimum_rectangle(np.concatenate(points))


def _smallest(points: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the smallest of the rectangles (n, 5) around points (n, k, 2) that lie along edges (n, e, 2)."""
    middle = points.mean(axis=1, keepdims=True)
    centered = points - middle
    lengths = np.hypot(edges[..., 0], edges[..., 1])
    # what has no length has no direction; a level rectangle holds the points too
    angles = np.where(lengths > 0, np.arctan2(edges[..., 1], edges[..., 0]), 0.0)
    along = np.stack([np.cos(angles), np.sin(angles)], -1)
    down = np.stack([-np.sin(angles), np.cos(angles)], -1)
    u, v = (np.einsum('nkc,nec->nek', centered, direction) for direction in (along, down))
    low, high = np.stack([u.min(-1), v.min(-1)], -1), np.stack([u.max(-1), v.max(-1)], -1)
    sides = high - low
    areas = sides.prod(-1)
    # of equal areas, the first: without this, rounding would decide
    best = (areas <= areas.min(axis=1, keepdims=True) * (1 + 1e-12)).argmax(axis=1)
    rows = np.arange(len(points))
    offset = ((low + high) / 2)[rows, best]
    center = middle[:, 0] + offset[:, :1] * along[rows, best] + offset[:, 1:] * down[rows, best]
    return canonical(np.concatenate([center, sides[rows, best], angles[rows, best, None]], 1))


def _columns(boxes: Any) -> tuple[Any, ...]:
    return tuple(boxes[..., index] for index in range(boxes.shape[-1]))


def module_of(values: Any) -> Any:
    """Return the module whose functions take these values: NumPy or torch."""
    if isinstance(values, np.ndarray):
        return np
    import torch

    return torch if isinstance(values, torch.Tensor) else np

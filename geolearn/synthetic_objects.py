"""Make chips and scenes of ships, cars and buildings that lie in any direction: tests of oriented boxes run on them.

Rows of ships and cars at a slant break level boxes and their suppression; ships show the angle, buildings, which are
near-squares, how sides lie, and cars are small. The boxes follow from what is drawn.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from geolearn.classes import ClassInfo
from geolearn.oriented import geometry, overlap
from geolearn.synthetic import smooth_noise

OBJECT_CLASSES = (
    ClassInfo(1, 'ship', (0, 114, 178)),
    ClassInfo(2, 'car', (230, 159, 0)),
    ClassInfo(3, 'building', (204, 121, 167)),
)

SHIP, CAR, BUILDING = (info.value for info in OBJECT_CLASSES)

_LENGTHS = {SHIP: (18.0, 36.0), CAR: (9.0, 14.0), BUILDING: (12.0, 24.0)}  # in pixels

_SHAPES = {SHIP: (3.0, 5.5), CAR: (1.7, 2.3), BUILDING: (1.0, 1.15)}  # length over width

_ROWS = 0.6  # share of the groups of ships and cars that lie side by side

_STEP = 1.25  # widths from one of a row to the next

_JITTER = math.radians(2)  # of the angles in a row, standard deviation

_BOW = 0.35  # share of a ship's length over which its width falls

_CONTRAST = 0.15  # least difference of brightness from the ground

_NOISE = 0.03

_MOST_OVERLAP = 0.02


@dataclass(frozen=True)
class ObjectScene:
    """An image with the oriented boxes of what is drawn in it.

    Args:
        image: (3, height, width) uint8 red, green and blue.
        turned: (n, 5) float32 x, y, width, height, angle in the form le90; see `geolearn.oriented.geometry`.
        class_ids: (n,) int64 class values of `OBJECT_CLASSES`.
    """

    image: np.ndarray
    turned: np.ndarray
    class_ids: np.ndarray


def make_object_chips(count: int, size: int = 128, *, seed: int = 0) -> list[ObjectScene]:
    """Draw chips with two to five groups of objects each; the same arguments give the same bytes.

    Args:
        count: Number of chips.
        size: Side in pixels; 64 at least.
        seed: Chooses all of them.

    Raises:
        ValueError: If chips are too small.
    """
    if size < 64:
        raise ValueError(f'chips need 64 pixels a side to hold their objects, got {size}')
    return [_draw_scene(rng, size, int(rng.integers(2, 6))) for rng in np.random.default_rng(seed).spawn(count)]


def make_harbor(size: int = 1024, *, ships: int = 200, seed: int = 0) -> ObjectScene:
    """Draw a scene with ships along slanted berths, which tiles of any size cut, and cars and buildings between them.

    Args:
        size: Side in pixels; 512 at least.
        ships: Ships at the berths.
        seed: Chooses the scene.

    Raises:
        ValueError: If the scene cannot hold so many.
    """
    rng = np.random.default_rng(seed)
    places = _Places(size)
    angle = rng.uniform(0.3, 1.2)
    for row in range(-64, 65):
        if len(places) >= ships:
            break
        length = rng.uniform(24, 36)
        width = length / rng.uniform(3.5, 5)
        for step in range(-(size // 8), size // 8):
            along, across = step * _STEP * width, row * 48.0
            x = size / 2 + along * math.cos(angle) - across * math.sin(angle)
            y = size / 2 + along * math.sin(angle) + across * math.cos(angle)
            turn = angle + math.pi / 2 + rng.normal(0, _JITTER)
            if len(places) < ships and min(x, y) > 20 and max(x, y) < size - 20:
                places.add(SHIP, (x, y, length, width, turn))
    if len(places) < ships:
        raise ValueError(f'a scene of {size} pixels holds {len(places)} ships at its berths, {ships} were asked for')
    for _ in range(size * size // 8192):
        _add_group(rng, places, int(rng.choice([CAR, BUILDING])))
    return _draw(rng, places)


class _Places:
    """Objects that have a place, which others leave free."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.boxes = np.zeros((0, 5))
        self.class_ids: list[int] = []

    def __len__(self) -> int:
        return len(self.class_ids)

    def add(self, value: int, box: tuple[float, ...]) -> bool:
        """Take an object in, unless it overlaps another one; say whether."""
        new = np.array([box])
        near = np.hypot(*(self.boxes[:, :2] - new[:, :2]).T) < 60
        others = self.boxes[near]
        if len(others):
            shared = overlap.overlap_matrix(new, others)[0]
            smaller = np.minimum(new[0, 2] * new[0, 3], others[:, 2] * others[:, 3])
            union = (new[0, 2] * new[0, 3] + others[:, 2] * others[:, 3]) / (1 + shared)
            if (shared * union > _MOST_OVERLAP * smaller).any():
                return False
        self.boxes = np.concatenate([self.boxes, new])
        self.class_ids.append(value)
        return True


def _draw_scene(rng: Generator, size: int, groups: int) -> ObjectScene:
    places = _Places(size)
    for _ in range(groups):
        _add_group(rng, places, int(rng.integers(1, len(OBJECT_CLASSES) + 1)))
    return _draw(rng, places)


def _add_group(rng: Generator, places: _Places, value: int) -> None:
    """Add one object, or several side by side."""
    length = rng.uniform(*_LENGTHS[value])
    width = length / rng.uniform(*_SHAPES[value])
    angle = rng.uniform(0, math.tau)
    count = int(rng.integers(2, 6)) if value != BUILDING and rng.random() < _ROWS else 1
    x, y = rng.uniform(4, places.size - 4, 2)
    for step in range(count):
        off = (step - (count - 1) / 2) * _STEP * width
        place = x - off * math.sin(angle), y + off * math.cos(angle)
        if min(place) >= 0 and max(place) <= places.size:
            places.add(value, (*place, length, width, angle + rng.normal(0, _JITTER) * (count > 1)))


def _draw(rng: Generator, places: _Places) -> ObjectScene:
    shape = (places.size, places.size)
    ground = rng.uniform(0.25, 0.75, 3)
    texture = 0.05 * smooth_noise(rng, shape, 12) + 0.03 * smooth_noise(rng, shape, 2)
    image = ground[:, None, None] + texture
    for value, box in zip(places.class_ids, places.boxes):
        color = _color(rng, ground)
        for share, part in _parts(value, color):
            _paint(image, box, value, share, part)
    image += rng.normal(0, _NOISE, image.shape)
    return ObjectScene(
        np.clip(np.rint(255 * image), 0, 255).astype(np.uint8),
        geometry.canonical(places.boxes).astype(np.float32),
        np.array(places.class_ids, np.int64),
    )


def _color(rng: Generator, ground: np.ndarray) -> np.ndarray:
    """Draw a color that stands out from the ground."""
    while True:
        color = rng.uniform(0.05, 0.95, 3)
        if abs(color.mean() - ground.mean()) >= _CONTRAST:
            return color


def _parts(value: int, color: np.ndarray) -> list[tuple[tuple[float, float], np.ndarray]]:
    """Return the parts of an object along its length, -0.5..0.5, each with its color."""
    whole = (-0.5, 0.5)
    if value == CAR:
        return [(whole, color), ((0.2, 0.38), color * 0.3)]  # a windscreen behind the hood
    if value == BUILDING:
        return [(whole, color), ((0.0, 0.5), color * 0.7)]  # the roof beyond the ridge lies in shade
    return [(whole, color)]


def _paint(image: np.ndarray, box: np.ndarray, value: int, share: tuple[float, float], color: np.ndarray) -> None:
    """Paint a part of an object; pixels at its edge in proportion."""
    x, y, length, width, angle = box.tolist()
    left, top, right, bottom = geometry.hulls(box[None])[0].tolist()
    rows = np.arange(max(0, int(top) - 1), min(image.shape[1], int(bottom) + 2))
    cols = np.arange(max(0, int(left) - 1), min(image.shape[2], int(right) + 2))
    if not len(rows) or not len(cols):
        return
    dx, dy = cols[None] + 0.5 - x, rows[:, None] + 0.5 - y
    u = dx * math.cos(angle) + dy * math.sin(angle)
    v = dy * math.cos(angle) - dx * math.sin(angle)
    half = np.full_like(u, width / 2)
    if value == SHIP:
        bow = np.clip((u / length - (0.5 - _BOW)) / _BOW, 0, 1)
        half = half * (1 - bow**2)
    inside = np.minimum(half - np.abs(v), np.minimum(u - share[0] * length, share[1] * length - u))
    covered = np.clip(inside + 0.5, 0, 1)
    window = np.ix_(np.arange(3), rows, cols)
    image[window] += covered * (color[:, None, None] - image[window])

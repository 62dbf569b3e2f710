"""What the fifth number of an oriented box means, by the program that wrote it."""

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from geolearn.errors import UnknownNameError
from geolearn.oriented.geometry import canonical

BOX_ANGLES: Mapping[str, tuple[float, int]] = MappingProxyType(
    {
        'deg_cw': (math.pi / 180, 1),
        'deg_ccw': (math.pi / 180, -1),
        'rad_cw': (1.0, 1),
        'rad_ccw': (1.0, -1),
        'detectron2': (math.pi / 180, -1),
        'mmrotate': (1.0, 1),
        'opencv': (math.pi / 180, 1),
        'torchvision': (math.pi / 180, -1),
        'ultralytics': (1.0, 1),
    }
)
"""Radians in a unit, and 1 where angles are clockwise as seen, by the name of a convention or of a program."""


def check_box_angles(name: str | None) -> None:
    """Raise UnknownNameError unless a name is None or one of `BOX_ANGLES`."""
    if name is not None and name not in BOX_ANGLES:
        raise UnknownNameError('box_angles', str(name), BOX_ANGLES)


def as_oriented(boxes: np.ndarray, name: str) -> np.ndarray:
    """Return boxes (n, 5) x, y, width, height, angle of a program as those of geolearn, in the form le90."""
    unit, sign = BOX_ANGLES[name]
    made = np.array(boxes, np.float64).reshape(-1, 5)
    made[:, 4] *= unit * sign
    finite = np.isfinite(made).all(axis=1)
    made[finite] = canonical(made[finite])
    return made

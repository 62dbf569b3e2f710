"""Rasters of bright squares, and a network that detects them exactly."""

from collections.abc import Callable

import numpy as np
import pytest
from square_detector import SquareDetector
from torch import nn


@pytest.fixture
def detector() -> Callable[..., nn.Module]:
    """The network that detects what is bright."""
    return SquareDetector


@pytest.fixture(scope='session')
def draw() -> Callable[..., np.ndarray]:
    """Draw bright boxes on the dark: (1, height, width) float32."""

    def draw(shape, boxes, *, bands=1):
        image = np.zeros((bands, *shape), np.float32)
        for left, top, right, bottom in boxes:
            image[:, top:bottom, left:right] = 1
        return image

    return draw

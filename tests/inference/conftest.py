"""Rasters of bright squares, and a network that detects them exactly."""

from collections.abc import Callable

import numpy as np
import pytest
from square_detector import SquareDetector
from torch import nn

from geolearn.bands import resolve_bands
from geolearn.classes import ClassInfo
from geolearn.networks.spec import ModelSpec
from geolearn.normalize import Normalization
from geolearn.statistics import BandStatistics


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


def describe(bands=('Red', 'Green'), classes=2):
    """Describe a model of classes 1, 2, ... for bands in 0..40."""
    count = len(bands)
    return ModelSpec(
        model='Plain',
        backbone='none',
        bands=tuple(resolve_bands(bands)),
        class_infos=tuple(ClassInfo(value, f'class {value}', (value, 0, 0)) for value in range(1, classes + 1)),
        ignored_values=(0,),
        chip_size=64,
        statistics=BandStatistics((0,) * count, (40,) * count, (20,) * count, (12,) * count),
        normalization=Normalization((20,) * count, (12,) * count, 'the test'),
        dtype='int16',
    )


@pytest.fixture(scope='session')
def make_spec() -> Callable[..., ModelSpec]:
    """The function that describes models."""
    return describe

"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def shared() -> Path:
    """The folder of reference numbers and real data beside the checkout, or the one that GEOLEARN_SHARED names."""
    path = Path(os.environ.get('GEOLEARN_SHARED') or Path(__file__).parents[2] / 'shared')
    if not path.is_dir():
        pytest.skip(f'needs the shared folder of oracles and data, absent at {path.name}; set GEOLEARN_SHARED')
    return path

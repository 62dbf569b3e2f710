"""A small transformer for detectors."""

import dataclasses

import pytest

from geolearn.backbones import catalog


@pytest.fixture
def small_dofa(monkeypatch):
    """Let 'dofa_tiny' be 48 wide and 4 deep, for building and for loading."""
    record = dataclasses.replace(catalog.get_record('dofa_tiny'), dim=48, depth=4, heads=3)
    monkeypatch.setattr(catalog, 'get_record', lambda name: record)

"""A small DOFA that tests can build, load and serve in milliseconds."""

import dataclasses

import pytest
import torch

from geolearn.backbones import catalog
from geolearn.backbones.dofa import DynamicPatchEmbed
from geolearn.backbones.trunk import ViT, ViTConfig


@pytest.fixture(autouse=True, scope='module')
def _one_thread():
    """Networks this small are faster on one thread, above all beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def use_record(monkeypatch):
    """A function that makes the catalog answer with a given record for every name."""

    def use(record):
        monkeypatch.setattr(catalog, 'get_record', lambda name: record)
        return record

    return use


@pytest.fixture
def small_dofa(use_record):
    """Let 'dofa_base' stand for the oracle's size: 48 wide, 4 deep, 3 heads. Returns its catalog record."""
    return use_record(dataclasses.replace(catalog.get_record('dofa_base'), dim=48, depth=4, heads=3))


@pytest.fixture
def official_state():
    """A state dict with the names of the official file, at the oracle's size, random."""
    torch.manual_seed(1)
    state = ViT(ViTConfig(48, 4, 3), DynamicPatchEmbed([0.5], 48), 16).state_dict()
    extra = {'mask_token': torch.zeros(1, 1, 512), 'projector.weight': torch.eye(48), 'projector.bias': torch.zeros(48)}
    return {**state, **extra}

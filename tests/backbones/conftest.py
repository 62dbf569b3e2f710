"""The state of a small DOFA as its official file names it."""

import pytest
import torch

from geolearn.backbones.dofa import DynamicPatchEmbed
from geolearn.backbones.trunk import ViT, ViTConfig


@pytest.fixture(autouse=True, scope='module')
def _one_thread(one_thread):
    """Networks this small are faster on one thread, above all beside other work."""


@pytest.fixture
def official_state():
    """A state dict with the names of the official file, at the oracle's size, random."""
    torch.manual_seed(1)
    state = ViT(ViTConfig(48, 4, 3), DynamicPatchEmbed([0.5], 48), 16).state_dict()
    extra = {'mask_token': torch.zeros(1, 1, 512), 'projector.weight': torch.eye(48), 'projector.bias': torch.zeros(48)}
    return {**state, **extra}

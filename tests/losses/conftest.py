"""A batch to lose on."""

import pytest
import torch

from geolearn.classes import IGNORE_INDEX


@pytest.fixture
def batch():
    """Logits (2, 5, 8, 9) and targets of all five classes, about a fifth of them ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 5, 8, 9, generator=generator)
    target = torch.randint(0, 5, (2, 8, 9), generator=generator)
    return logits, target.masked_fill(torch.rand(2, 8, 9, generator=generator) < 0.2, IGNORE_INDEX)

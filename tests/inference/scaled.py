"""A network whose outputs are multiples of the first band."""

from types import SimpleNamespace

import torch
from torch import nn


class Scaled(nn.Module):
    """Logits that are the first band, times a number."""

    def __init__(self, outputs=2):
        super().__init__()
        self.backbone = SimpleNamespace(has_position_grid=False, strides=(16,))
        self.context, self.finer = None, 1
        self.weight = nn.Parameter(torch.linspace(-1, 1, outputs))
        self.calls = 0

    def forward(self, x):
        self.calls += len(x)
        x = x[:, 0] if x.ndim == 5 else x
        return (torch.nan_to_num(x, nan=20.0)[:, :1] / 20 - 1) * self.weight[:, None, None]

"""Which device to compute on."""

import torch


def choose_device(device: str | None = None) -> torch.device:
    """Return the device asked for, or CUDA where there is one, else the CPU."""
    return torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))

"""Which device to compute on."""

import torch

from geolearn.errors import UnknownNameError


def is_out_of_memory(error: RuntimeError) -> bool:
    """Say whether torch found no memory, on whatever device."""
    text = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or 'out of memory' in text or "can't allocate memory" in text


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device asked for, or CUDA where there is one, else the CPU.

    Raises:
        UnknownNameError: If there is no such kind of device.
        ValueError: If this machine has none of that kind, or not that many.
    """
    cuda = torch.cuda.is_available()
    if device is None:
        return torch.device('cuda' if cuda else 'cpu')
    here = ['cpu', *(f'cuda:{index}' for index in range(torch.cuda.device_count() if cuda else 0))]
    if torch.backends.mps.is_available():
        here.append('mps')
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UnknownNameError('device', str(device), ['cpu', 'cuda', *here]) from error
    numbered = f'{chosen.type}:{chosen.index or 0}' if chosen.type == 'cuda' else chosen.type
    if chosen.type in ('cpu', 'cuda', 'mps') and numbered not in here:
        raise ValueError(f'device {str(device)!r} is not on this machine; it has {", ".join(here)}')
    return chosen

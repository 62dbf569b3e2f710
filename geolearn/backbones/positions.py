"""Position embeddings on a grid of tokens: make the fixed ones, resize any."""

import torch
import torch.nn.functional as F
from torch import Tensor

from geolearn.errors import WeightsError


def sincos_position_grid(dim: int, grid: tuple[int, int], *, cls: bool = True) -> Tensor:
    """Make the fixed 2-D sine-cosine embedding of MAE (He et al. 2021, arXiv:2111.06377).

    The first half of the width holds the column, the second the row; in each half the sines come first.

    Args:
        dim: Width D, a multiple of 4.
        grid: (h, w) in tokens.
        cls: Whether a row of zeros for the class token comes first.

    Returns:
        float32 of shape (1, h*w, D), or (1, 1 + h*w, D) with `cls`.
    """
    if dim % 4:
        raise ValueError(f'2-D sine-cosine positions need a width that is a multiple of 4, got {dim}')
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing='ij')
    parts = []
    for place in (columns, rows):
        angle = place.reshape(-1, 1) * frequency
        parts += [angle.sin(), angle.cos()]
    positions = torch.cat(parts, dim=1).float()
    if cls:
        positions = torch.cat([positions.new_zeros(1, dim), positions])
    return positions[None]


def resize_position_grid(pos: Tensor, grid: tuple[int, int], *, prefix: int = 1, mode: str = 'bicubic') -> Tensor:
    """Interpolate the embedding of a square grid to another grid, as detectron2 and timm do without antialiasing.

    Args:
        pos: (1, prefix + n*n, D).
        grid: (h, w) wanted, in tokens.
        prefix: Slots in front that belong to no place (the class token); kept as they are.
        mode: Of `torch.nn.functional.interpolate`, with align_corners False.

    Returns:
        (1, prefix + h*w, D); `pos` itself where the grid is the same.
    """
    side = round((pos.shape[1] - prefix) ** 0.5)
    if side * side != pos.shape[1] - prefix:
        raise WeightsError(
            f'position embedding of shape {tuple(pos.shape)} holds no square grid after {prefix} slot(s)'
        )
    if grid == (side, side):
        return pos
    square = pos[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square.float(), size=grid, mode=mode, align_corners=False)
    return torch.cat([pos[:, :prefix], resized.flatten(2).transpose(1, 2).to(pos.dtype)], dim=1)

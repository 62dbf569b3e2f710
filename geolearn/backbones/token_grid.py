"""Positions on a grid of tokens: make the fixed embeddings, resize any, and add relative ones to attention."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from geolearn.errors import WeightsError


def pad_to_multiple(x: Tensor, step: int) -> Tensor:
    """Pad images (..., H, W) right and bottom with zeros, until both sides are multiples of `step` pixels.

    Zero is the mean of normalized pixels.
    """
    return F.pad(x, (0, -x.shape[-1] % step, 0, -x.shape[-2] % step))


def crop_maps(maps: Sequence[Tensor], x: Tensor, strides: Sequence[int]) -> list[Tensor]:
    """Cut maps of the padded image to ceil(H / stride), ceil(W / stride) of the image `x` (..., H, W)."""
    return [m[..., : -(-x.shape[-2] // s), : -(-x.shape[-1] // s)] for m, s in zip(maps, strides)]


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
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing='ij')
    positions = torch.cat([embed_numbers(place.flatten(), dim // 2) for place in (columns, rows)], dim=1).float()
    if cls:
        positions = torch.cat([positions.new_zeros(1, dim), positions])
    return positions[None]


def embed_numbers(numbers: Tensor, dim: int) -> Tensor:
    """Embed numbers (...) as (..., dim), in their dtype: sines, then cosines, at wavelengths from 2 pi to 20000 pi."""
    half = dim // 2
    # the same steps in the same order as the published models, whose weights saw this rounding
    frequency = 1.0 / 10000 ** (torch.arange(half, dtype=numbers.dtype, device=numbers.device) / half)
    angle = numbers[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def resize_position_grid(
    pos: Tensor, grid: tuple[int, int], *, prefix: int = 1, mode: str = 'bicubic', align_corners: bool = False
) -> Tensor:
    """Interpolate the embedding of a square grid to another grid, as detectron2 and timm do without antialiasing.

    Args:
        pos: (1, prefix + n*n, D).
        grid: (h, w) wanted, in tokens.
        prefix: Slots in front that belong to no place (the class token); kept as they are.
        mode: Of `torch.nn.functional.interpolate`.
        align_corners: Of `torch.nn.functional.interpolate`: whether the corner tokens keep their places.

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
    resized = F.interpolate(square.float(), size=grid, mode=mode, align_corners=align_corners)
    return torch.cat([pos[:, :prefix], resized.flatten(2).transpose(1, 2).to(pos.dtype)], dim=1)


def relative_position_bias(q: Tensor, table_h: Tensor, table_w: Tensor, grid: tuple[int, int]) -> Tensor:
    """Compute what decomposed relative positions add to the logits, from unscaled queries.

    Args:
        q: Queries (B, heads, h*w, d), not scaled.
        table_h: Embeddings (2*size-1, d) of vertical offsets; interpolated linearly where size is not h.
        table_w: The same for horizontal offsets.
        grid: (h, w).

    Returns:
        Bias of shape (B, heads, h*w, h*w).
    """
    h, w = grid
    q = q.reshape(*q.shape[:2], h, w, q.shape[-1])
    by_row = torch.einsum('bnhwd,hkd->bnhwk', q, _offset_table(table_h, h).to(q.dtype))
    by_column = torch.einsum('bnhwd,wkd->bnhwk', q, _offset_table(table_w, w).to(q.dtype))
    return (by_row[..., :, None] + by_column[..., None, :]).reshape(*q.shape[:2], h * w, h * w)


def _offset_table(table: Tensor, size: int) -> Tensor:
    if table.shape[0] != 2 * size - 1:
        table = F.interpolate(table.T[None].float(), size=2 * size - 1, mode='linear')[0].T
    place = torch.arange(size, device=table.device)
    return table[place[:, None] - place[None, :] + size - 1]

"""Plain vision transformer blocks, with attention over everything or within windows of the token grid.

Parameter names are timm's (``norm1``, ``attn.qkv``, ``attn.proj``, ``ls1.gamma``, ``norm2``, ``mlp.fc1``, ``mlp.fc2``),
so the state dict of a timm ``Block`` loads as it is. Windows follow ViTDet (Li et al. 2022, arXiv:2203.16527) as
detectron2 computes it.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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


Size = tuple[int, int]
"""Height and width, in tokens."""


class Attention(nn.Module):
    """Multi-head self-attention, fused, over all tokens it is given.

    Args:
        dim: Width D; a multiple of `heads`.
        heads: Number of heads.
        qkv_bias: Whether the joint projection to queries, keys and values has a bias.
        rel_pos: Size (h, w) of the grid that decomposed relative positions are made for (MViTv2, arXiv:2112.01526).
            Their tables start at zero, so that switching them on changes nothing until they are trained.
    """

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool = True, rel_pos: Size | None = None) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f'dim must be a multiple of heads, got dim {dim} and {heads} heads')
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        # how fast pairs turn with time, row and column, (3, heads, d / 2), where a network has such (see `turn_pairs`)
        self.rope_mixed_freqs: nn.Parameter | None = None
        self.rel_pos_h: nn.Parameter | None = None
        self.rel_pos_w: nn.Parameter | None = None
        if rel_pos is not None:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * rel_pos[0] - 1, dim // heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * rel_pos[1] - 1, dim // heads))

    def forward(
        self, x: Tensor, seen: Tensor | None = None, turns: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Attend; `x` is (B, N, D), or (B, h, w, D), which relative positions need. The shape is kept.

        Args:
            x: Tokens.
            seen: Which tokens are attended to, (B, N); None is all of them. Relative positions take no part then.
            turns: Angles (heads, N, d / 2) by which pairs of the numbers of queries and keys are turned; None for none.
            bias: What is added to the logits, (heads, N, N), the same for all B; it takes the place of relative
                positions, and does not go with `seen`.
        """
        q, k, v = self._split(x)
        if turns is not None:
            q, k = turn_pairs(torch.stack([q, k]), turns).unbind(0)
        if bias is not None:
            mask: Tensor | None = bias.to(q.dtype)[None]
        else:
            mask = self._position_bias(q, x) if seen is None else seen[:, None, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(y.transpose(1, 2).reshape(x.shape))

    def weights(self, x: Tensor) -> Tensor:
        """Return the attention weights between tokens (B, N, D): (B, heads, N, N) float32, rows summing to 1."""
        q, k, _ = self._split(x)
        logits = (q @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5
        bias = self._position_bias(q, x)
        return (logits if bias is None else logits + bias.float()).softmax(dim=-1)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Project tokens to queries, keys and values, each (B, heads, N, d)."""
        qkv = self.qkv(x).reshape(x.shape[0], -1, 3, self.heads, x.shape[-1] // self.heads)
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def _position_bias(self, q: Tensor, x: Tensor) -> Tensor | None:
        if self.rel_pos_h is None or self.rel_pos_w is None:
            return None
        if x.dim() != 4:
            raise ValueError(f'relative positions need a grid of tokens (B, h, w, D), got shape {tuple(x.shape)}')
        return relative_position_bias(q, self.rel_pos_h, self.rel_pos_w, (x.shape[1], x.shape[2]))


def turn_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (0, 1), (2, 3) ... of the last axis of x (..., N, d) by angles (..., N, d / 2), in radians."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


class Mlp(nn.Module):
    """Two linear layers with exact GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform every token; shape (..., D) is kept."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """Scale each feature by a learned factor (CaiT, arXiv:2103.17239)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        """Scale; shape (..., D) is kept."""
        return x * self.gamma


class DropPath(nn.Module):
    """Drop whole samples' branches while training, at `rate` (stochastic depth, arXiv:1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop and rescale; shape (B, ...) is kept."""
        if self.rate == 0 or not self.training:
            return x
        keep = torch.rand((x.shape[0],) + (1,) * (x.dim() - 1), device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1 - self.rate)


class Stage(nn.Module):
    """A block that may forget its activations in training and compute them again on the way back.

    Subclasses write `run` instead of `forward`; all blocks of a trunk derive from it, so that one switch serves all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.checkpointing = False

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """Transform tokens; what else a block takes follows them."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self.run, x, *context, use_reentrant=False)
        return self.run(x, *context)

    def run(self, x: Tensor, *context: Any) -> Tensor:
        """Transform tokens, whatever is kept for the way back."""
        raise NotImplementedError


class Block(Stage):
    """A pre-norm transformer block.

    Args:
        dim: Width D.
        heads: Number of attention heads.
        mlp_ratio: Hidden width of the MLP, over D.
        qkv_bias: Whether queries, keys and values have a bias.
        eps: Of both layer norms; 1e-6 for DOFA and timm, 1e-5 for Prithvi.
        layer_scale: First value of LayerScale, or None for none.
        drop_path: Rate of stochastic depth.
        rel_pos: Grid of relative positions, see `Attention`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        eps: float = 1e-6,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        rel_pos: Size | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qkv_bias=qkv_bias, rel_pos=rel_pos)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def run(
        self,
        x: Tensor,
        window: Size | None = None,
        seen: Tensor | None = None,
        turns: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Transform tokens (B, N, D) or a grid of them (B, h, w, D); with a window, attend within windows only.

        As in ViTDet a grid that the window does not divide is padded right and bottom with zeros after the first
        norm, and the padding takes part in attention. Tokens (B, N, D) must come window by window.

        Args:
            x: Tokens.
            window: Height and width of a window, in tokens; None for global attention.
            seen: Which tokens are attended to, (units, N) for the units within which they attend: images or windows.
            turns: Angles of the N tokens of a unit, as for `Attention`.
            bias: What is added to the logits of the N tokens of a unit, as for `Attention`.
        """
        x = x + self.drop_path(self.ls1(self._attend(self.norm1(x), window, seen, turns, bias)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))

    def _attend(self, x: Tensor, window: Size | None, *context: Tensor | None) -> Tensor:
        if all(one is None for one in context):
            context = ()  # kinds of attention of their own take tokens alone
        if window is not None and x.dim() == 3:
            return self.attn(x.reshape(-1, window[0] * window[1], x.shape[2]), *context).reshape(x.shape)
        if window is None or window == (x.shape[1], x.shape[2]):
            return self.attn(x, *context)
        attended = self.attn(window_partition(x, window), *context)
        return window_unpartition(attended, window, (x.shape[1], x.shape[2]))


def window_partition(x: Tensor, window: Size) -> Tensor:
    """Cut a grid into windows that do not overlap, padding right and bottom with zeros.

    Args:
        x: Grid (B, h, w, D).
        window: Height and width of a window, in tokens.

    Returns:
        Windows (B*n, wh, ww, D), row by row within each image.
    """
    (wh, ww), (b, h, w, d) = window, x.shape
    x = F.pad(x, (0, 0, 0, -w % ww, 0, -h % wh))
    rows, columns = x.shape[1] // wh, x.shape[2] // ww
    return x.reshape(b, rows, wh, columns, ww, d).transpose(2, 3).reshape(-1, wh, ww, d)


def window_unpartition(windows: Tensor, window: Size, grid: Size) -> Tensor:
    """Undo `window_partition`: windows (B*n, wh, ww, D) back to the grid (B, h, w, D), padding cut off."""
    (wh, ww), (h, w) = window, grid
    rows, columns = -(-h // wh), -(-w // ww)
    x = windows.reshape(-1, rows, columns, wh, ww, windows.shape[-1]).transpose(2, 3)
    return x.reshape(x.shape[0], rows * wh, columns * ww, -1)[:, :h, :w]


def choose_window(grid: int, preferred: int = 14) -> int:
    """Choose the window for one axis of `grid` tokens: near `preferred`, and dividing the grid where it can.

    A grid of up to `preferred` + 4 tokens is one window: 14 -> 14, 28 -> 14, 32 -> 16, 64 -> 16, 96 -> 16, 37 -> 14.
    """
    if grid <= preferred + 4:
        return grid
    divisors = [n for n in range(preferred - 4, preferred + 5) if n > 0 and grid % n == 0]
    return min(divisors, key=lambda n: (abs(n - preferred), -n), default=preferred)


def global_blocks(depth: int) -> tuple[int, ...]:
    """List the blocks (from 0) that attend globally: every depth/4-th, the last included. 12 -> 2, 5, 8, 11."""
    return tuple(sorted({-(-depth * quarter // 4) - 1 for quarter in (1, 2, 3, 4)}))


def choose_windows(grid: Size, window: int | None) -> Size | None:
    """Choose the windows for a grid: None per axis (see `choose_window`), 0 global attention (None), else that side."""
    if window is None:
        return choose_window(grid[0]), choose_window(grid[1])
    return (window, window) if window else None


def windowed_states(
    blocks: Iterable[nn.Module],
    x: Tensor,
    *,
    window: Size | None,
    global_at: Collection[int],
    layers: Sequence[int],
    frames: int = 1,
) -> list[Tensor]:
    """Run blocks over a grid within windows, all but those in `global_at`, and keep the outputs of some.

    Where windows divide the grid and no block uses relative positions, tokens are put in the order of the windows once:
    a window is then a run of tokens, and neither windowed nor global blocks move any.

    Args:
        blocks: Called with tokens and a window, as `Block` is.
        x: Grid (B * frames, h, w, D), the frames of an image side by side.
        window: Height and width of the windows, in tokens; None for all blocks global.
        global_at: Blocks that attend over everything, counted from 0.
        layers: Blocks whose output is wanted; those after the last of them are not run.
        frames: Grids that belong to one image; windows stay within a grid, global blocks attend over all of them.

    Returns:
        A grid (B * frames, h, w, D) for each of `layers`, in their order.
    """
    blocks, (b, h, w, d) = list(blocks), x.shape
    positional = any(isinstance(block, Block) and block.attn.rel_pos_h is not None for block in blocks)
    order = None if window is None or positional or h % window[0] or w % window[1] else window
    if order:
        x = window_partition(x, order).reshape(b, h * w, d)
    kept: dict[int, Tensor] = {}
    for i, block in enumerate(blocks[: max(layers) + 1]):
        everywhere = window is None or i in global_at
        if everywhere and frames > 1:
            x = block(x.reshape(b // frames, -1, d), None).reshape(x.shape)
        else:
            x = block(x, None if everywhere else window)
        if i in layers:
            kept[i] = window_unpartition(x.reshape(-1, *order, d), order, (h, w)) if order else x
    return [kept[i] for i in layers]


def init_linear(module: nn.Module) -> None:
    """Give linear layers the usual start of transformers: truncated normal weights, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

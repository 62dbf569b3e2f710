"""Attention whose logits fall with the distance of two patches: ALiBi (arXiv:2108.12409) in two dimensions.

The bias is computed for any grid, so that windows and images of any size and shape need no table.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones.vit import Attention, Size

MOST_BIASES = 2**26
"""Biases that are held at a time, 256 MiB in float32."""


def alibi_bias(grid: Size, heads: int, rows: slice = slice(None), device: torch.device | None = None) -> Tensor:
    """Compute what distances take off the logits: (heads, h*w, h*w) float32, -slope * distance in patches.

    `rows` chooses queries.
    Head i of n has the slope r ** (i + 1) with r = 2 ** (-8 / n), as in ALiBi (arXiv:2108.12409).
    """
    place = torch.arange(grid[0] * grid[1], device=device)
    y, x = (place // grid[1]).float(), (place % grid[1]).float()
    distances = torch.hypot(y[rows, None] - y, x[rows, None] - x)
    slopes = torch.tensor([2 ** (-8 * (i + 1) / heads) for i in range(heads)], device=device)
    return -slopes[:, None, None] * distances


def alibi_attention(q: Tensor, k: Tensor, v: Tensor, grid: Size) -> Tensor:
    """Attend with `alibi_bias`; queries, keys and values are (B, heads, h*w, d), as is what returns.

    Biases cannot be fused away, so that many queries are taken a part at a time.
    """
    heads, count = q.shape[1], q.shape[2]
    step = max(1, MOST_BIASES // (heads * count))
    parts = []
    for start in range(0, count, step):
        rows = slice(start, start + step)
        bias = alibi_bias(grid, heads, rows, q.device).to(q.dtype)
        parts.append(F.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=bias))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class AlibiAttention(Attention):
    """Self-attention over a grid (B, h, w, D), or a window of it, with `alibi_bias`."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend; the shape (B, h, w, D) is kept."""
        b, h, w, d = x.shape
        q, k, v = self.qkv(x).reshape(b, h * w, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(alibi_attention(q, k, v, (h, w)).transpose(1, 2).reshape(x.shape))


class AlibiCrossAttention(nn.Module):
    """Attention from a grid (B, h, w, D) to another of the same size, with `alibi_bias`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from `x` to `context`; the shape is kept."""
        b, h, w, d = x.shape
        q, k, v = (
            layer(y).reshape(b, h * w, self.heads, d // self.heads).transpose(1, 2)
            for layer, y in ((self.q, x), (self.k, context), (self.v, context))
        )
        return self.proj(alibi_attention(q, k, v, (h, w)).transpose(1, 2).reshape(x.shape))
